"""The page of a run: every figure and table is there, in the text and in a browser at two widths; exported figures."""

import json
import re
import shutil
import subprocess

import pytest

pytest.importorskip("matplotlib")

from cli.helpers_cli import inside, pyalign
from report.helpers_html import hosts, read

from pyalign.errors import InputError
from pyalign.paths import Barrier, Correlations, CurveRecord, PlaneRecord
from pyalign.report import Run, export_figures, run_page
from pyalign.train import RobustRecord

FIGURES, TABLES = 9, 8
BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


def run():
    t = tuple(i / 10 for i in range(11))
    hill = tuple(0.5 + 4 * x * (1 - x) for x in t)
    rates = tuple(0.9 - 2 * x * (1 - x) for x in t)
    line = Barrier(t, hill, rates, 100)
    low, high, arc = (tuple(start + slope * x for x in t) for start, slope in ((0.5, 0.1), (0.9, -0.01), (0.0, 3.0)))
    curve = CurveRecord(t, low, high, 100, True, arc)
    grid = tuple(i / 4 for i in range(5))
    plane = PlaneRecord(
        grid, grid, tuple(tuple(x * x + y for x in grid) for y in grid), tuple((0.5, 0.6, 0.7, 0.8, 0.9) for _ in grid),
        ((0.0, 0.0), (1.0, 0.0), (0.5, 0.75)), (0.1, 1.0, 0.9), (0.9, 0.8, 0.7),
        {"curve": ((0.0, 0.0), (0.5, 0.5), (1.0, 0.0))},
    )  # fmt: skip
    layers = Correlations(0.0, t, ("conv1 & <bn>", "fc"), ("g", "h"), (rates, hill), (hill, hill))
    return Run(
        "Two networks </script>", "A lead.", {"line": line, "curve": curve}, {"through the curve": plane},
        {"by activations": {"conv1": (0.1, 0.8), "fc": (0.0, 0.6)}}, {"curve": layers},
        {"curve": RobustRecord(curve, line)}, {"seed": "0", "learning rate": "0.1"},
    )  # fmt: skip


def test_every_figure_and_table_is_there_and_nothing_is_asked_of_any_host():
    html = run_page(run())
    root = read(html)
    assert len(list(root.all("figure"))) == FIGURES and len(list(root.all("table"))) == TABLES
    captions = [c.text() for c in root.all("caption")]
    for word in (
        "Loss along",
        "Accuracy along",
        "robust loss",
        "three models",
        "units",
        "every layer",
        "seeds",
        "Versions",
    ):
        assert any(word in caption for caption in captions), word
    assert hosts(html) == [] and run_page(run()) == html
    assert not re.search(r"<(link|iframe|object|embed|base)\b", html)


def test_the_button_holds_all_numbers():
    (data,) = read(run_page(run())).all("script", id="numbers")
    content = json.loads(data.text())
    assert content == json.loads(json.dumps(run().to_dict()))
    assert CurveRecord.from_dict(content["paths"]["curve"]) == run().paths["curve"]
    assert content["versions"]["torch"] and content["title"].endswith("</script>")


def test_parts_that_were_not_measured_are_left_out():
    root = read(run_page(Run("only a line", paths={"line": Barrier((0.0, 1.0), (1.0, 2.0))})))
    assert len(list(root.all("figure"))) == 1 and len(list(root.all("table"))) == 2
    with pytest.raises(InputError, match="nothing to show"):
        run_page(Run("empty"))


def test_paths_of_different_lengths_tell_their_positions():
    paths = {"a": Barrier((0.0, 1.0), (1.0, 2.0)), "b": Barrier((0.0, 0.5, 1.0), (1.0, 2.0, 1.0))}
    assert "Loss at 2 to 3 positions." in run_page(Run("two", paths=paths))
    assert "Loss at 3 positions." in run_page(Run("one", paths={"b": paths["b"]}))


def test_figures_are_exported_in_both_formats(tmp_path):
    written = export_figures(run(), tmp_path)
    names = {path.stem for path in written}
    assert (
        len(written) == 2 * len(names) and {"paths", "robust", "correlations", "plane-through-the-curve-loss"} <= names
    )
    assert all((tmp_path / f"{n}.png").read_bytes()[:4] == b"\x89PNG" for n in names)
    assert all("<svg" in (tmp_path / f"{n}.svg").read_text() for n in names)


def test_the_command_makes_the_page_from_files(tmp_path, capsys):
    found = run()
    contents = {
        "line": found.paths["line"].to_dict(),
        "curve": {**found.paths["curve"].to_dict(), "settings": {"lr": 0.03, "clip": None, "optimizer": {"n": "SGD"}}},
        "plane": found.planes["through the curve"].to_dict(), "layers": found.correlations["curve"].to_dict(),
        "robust": found.robust["curve"].to_dict(),
        "found": {"groups": [{"name": "conv1", "correlation_before": 0.1, "correlation_after": 0.8}]},
    }  # fmt: skip
    with inside(tmp_path):
        for name, content in contents.items():
            (tmp_path / f"{name}.json").write_text(json.dumps(content))
        words = [f"{name}.json" for name in contents if name != "curve"]
        outcome = pyalign(capsys, "report", *words, "my curve=curve.json", "--setting", "seed=7", "--out", "r.html")
        assert outcome.code == 0, outcome.err
        html = (tmp_path / "r.html").read_text()
        assert len(list(read(html).all("figure"))) == FIGURES and "my curve" in html
        cells = [element.text() for kind in ("th", "td") for element in read(html).all(kind)]
        assert {"my curve: lr", "0.03", "my curve: optimizer", "SGD", "seed", "7"} <= set(cells)
        assert "my curve: clip" not in cells
        (tmp_path / "bad.json").write_text("[1]")
        assert pyalign(capsys, "report", "bad.json", "--out", "x.html").code == 1
        assert pyalign(capsys, "report", "line.json", "--setting", "seed", "--out", "x.html").code == 2
        assert not (tmp_path / "x.html").exists()


PROBE = """<script>
window.addEventListener("load", async () => {
  let copied = "";
  Object.defineProperty(navigator, "clipboard", {value: {writeText: async (text) => { copied = text; }}});
  document.getElementById("copy").click();
  await new Promise((done) => setTimeout(done, 50));
  const seen = (kind) => [...document.querySelectorAll(kind)].filter((e) => {
    const box = e.getBoundingClientRect();
    return box.width > 100 && box.height > 40 && box.left >= 0 && box.right <= innerWidth;
  }).length;
  document.body.dataset.probe = JSON.stringify({
    width: innerWidth, scroll: document.documentElement.scrollWidth, figures: seen("figure svg"),
    tables: seen(".scroll"), copied: copied === document.getElementById("numbers").textContent,
    said: document.getElementById("copied").textContent,
  });
});
</script>"""


@pytest.mark.skipif(BROWSER is None, reason="no Chromium on this machine")
@pytest.mark.parametrize("width", [500, 1280])
def test_a_browser_shows_every_figure_and_table(tmp_path, width):
    page = tmp_path / "page.html"
    page.write_text(run_page(run()).replace("</body>", PROBE + "</body>"), encoding="utf-8")
    words = ["--headless=new", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path / 'profile'}"]
    words += [f"--window-size={width},900", "--virtual-time-budget=4000", "--dump-dom", page.as_uri()]
    dom = subprocess.run([BROWSER, *words], capture_output=True, text=True, timeout=120, check=True).stdout
    (body,) = read(dom).all("body")
    found = json.loads(body.attributes["data-probe"])
    assert found["figures"] == FIGURES and found["tables"] == TABLES and found["scroll"] <= found["width"]
    assert found["copied"] and found["said"] == "copied"
