"""Measure the operations of the engine against every public way to do the same, and against the machine's limit.

python -m benchmarks.run --out benchmarks/results            everything, about ten minutes on two cores
python -m benchmarks.run --operation cross_moments           one operation
python -m benchmarks.run --quick --no-gates                  small inputs, seconds
python -m benchmarks.run --base earlier.json                 compared with an earlier run
python -m benchmarks.run --device cuda --out benchmarks/results     on a GPU: `pytest -m gpu`, then what runs there
    where time is short: one --operation after another, --tested after the first; results in one folder add up
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import geometric_mean
from typing import Any

import torch
from tqdm.auto import tqdm

from benchmarks import gpu
from benchmarks.gpu import device as gpu_device
from benchmarks.machine import describe
from benchmarks.measure import Effort, Pace, measure
from benchmarks.operations import MEAN_GATES, OPERATIONS, cases
from benchmarks.pages import fill
from benchmarks.plots import draw
from benchmarks.record import Case, MeanGate, Result, Skipped
from benchmarks.tables import compared, from_json, report, seconds, to_json, verdicts
from pyalign import engine
from pyalign._atomic import replacing

__all__ = ["main", "run"]


def run(
    chosen: Sequence[Case],
    effort: Effort,
    say: Callable[[str], None],
    keep: Callable[[list[Result]], None] | None = None,
) -> list[Result]:
    """Measure the cases in order, and say each result as soon as it is there; `keep` is given all there are so far."""
    pace, results = Pace(effort), []
    with tqdm(chosen, unit="case", disable=None) as bar:
        for case in bar:
            bar.set_description(f"{case.operation}, {case.name}")
            try:
                results.append(measure(case, pace))
            except Skipped as reason:
                results.append(Result(case.operation, case.family, case.name, case.size, skipped={"": str(reason)}))
            except torch.OutOfMemoryError as reason:
                why = f"the device has no room for it: {reason}"
                results.append(Result(case.operation, case.family, case.name, case.size, skipped={"": why}))
            say(line(results[-1]))
            if keep is not None:
                keep(results)
    return results


def line(result: Result) -> str:
    """One result in one line."""
    parts = [f"{result.operation}, {result.name}:"]
    for name in (*result.names("ours"), *result.names("competitor")[:2], *result.names("limit")):
        timing = result.timings[name]
        parts.append(f"{name} {seconds(timing.median)} ±{timing.spread / 2:.0%},")
    for verdict in result.verdicts:
        if verdict.ratio is not None:
            sign = "ok" if verdict.passed else "MISSED"
            what = f"{verdict.figure} " if verdict.figure else ""
            parts.append(
                f"{what}{verdict.of} / {verdict.against} {verdict.ratio:.2f} (at most {verdict.most:.3g}, {sign})"
            )
    parts += [f"{name}: WRONG, {why}" for name, why in result.wrong.items()]
    parts += [f"skipped: {result.skipped['']}"] if "" in result.skipped else []
    return " ".join(parts).rstrip(",:")


def write(folder: Path, results: Sequence[Result], settings: dict[str, Any], stem: str = "speed") -> None:
    """Write JSON, Markdown and plots, each whole or not at all."""
    means = MEAN_GATES if stem == "speed" else ()
    content = json.dumps(to_json(results, settings, means), indent=1) + "\n"
    text = report(results, settings, means)
    writers: dict[str, Callable[[Path], Any]] = {
        f"{stem}.json": lambda path: path.write_text(content, encoding="utf-8"),
        f"{stem}.md": lambda path: path.write_text(text, encoding="utf-8"),
    }
    for name in dict.fromkeys(r.operation for r in results if r.timings):
        writers[f"{stem}_{name}.png"] = lambda path, name=name: draw(results, name, path)
    for file, save in writers.items():
        with replacing(folder / file) as temporary:
            save(temporary)


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--operation", nargs="+", default=[], choices=list(OPERATIONS), help="only these (default all)")
    parser.add_argument("--only", default="", metavar="TEXT", help="only cases whose name contains TEXT")
    parser.add_argument("--quick", action="store_true", help="small inputs, a few seconds")
    parser.add_argument("--max-n", type=int, help="largest assignment problem (default 8192)")
    parser.add_argument("--longest", type=float, default=20.0, help="skip what is predicted to take more seconds")
    parser.add_argument("--repeats", type=int, default=30, help="most samples per contestant and case (default 30)")
    parser.add_argument("--threads", type=int, default=2, help="torch and engine threads (default 2)")
    parser.add_argument(
        "--out", type=Path, help="folder for speed.json, speed.md and the plots (default: none written)"
    )
    parser.add_argument("--base", type=Path, help="an earlier speed.json to compare with")
    parser.add_argument("--pages", action="store_true", help="also fill the tables of README.md and docs (needs --out)")
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"], help="where to measure (default cpu)")
    parser.add_argument(
        "--tested", action="store_true", help="with --device cuda: `pytest -m gpu` has passed here, do not run it again"
    )
    parser.add_argument("--no-gates", action="store_true", help="exit with 0 also where a gate is missed")
    options = parser.parse_args(arguments)
    if options.pages and options.out is None:
        parser.error("--pages needs --out")
    if options.device == "cuda" and options.pages:
        parser.error("--device cuda fills no pages: they are written on a machine without one")
    return options


def _print_comparison(results: Sequence[Result], base: Path) -> None:
    rows, ratios = compared(results, from_json(json.loads(base.read_text(encoding="utf-8"))))
    print(f"\nCompared with {base}:\n", *rows, sep="\n")
    if ratios:
        print(f"\ngeometric mean of {len(ratios)} cases: {geometric_mean(ratios):.3f}")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmarks; the exit status is 1 where an answer is wrong or a gate is missed, 2 without the engine."""
    options = _options(arguments)
    if engine.build().get("simd", "") == "" or "compiler" not in engine.build():
        print(f"the compiled engine is not there: {engine.build()}; install the package first (pip install -e .)")
        return 2
    if options.device == "cuda":
        return _on_device(options)
    threads = torch.get_num_threads()
    torch.set_num_threads(options.threads)
    try:
        settings = {**describe(), "quick": str(options.quick)}
        print(*(f"{key}: {value}" for key, value in settings.items()), sep="\n", end="\n\n")
        every = cases(options.operation, options.quick, options.max_n, options.threads)
        chosen = [case for case in every if options.only in case.name]
        shortly = 0.05 if options.quick else Effort.seconds
        effort = Effort(seconds=shortly, repeats=options.repeats, longest=options.longest)
        results = run(chosen, effort, tqdm.write)
    finally:
        torch.set_num_threads(threads)
    if options.out is not None:
        write(options.out, results, settings)
    if options.pages:
        fill(results, settings, MEAN_GATES, options.out)
    if options.base is not None:
        _print_comparison(results, options.base)
    return _judge(results, options.no_gates)


def _on_device(options: argparse.Namespace) -> int:
    """Test, then measure, on a CUDA device; 2 where there is none or something has no implementation there."""
    reasons = gpu_device.why_not()
    if reasons:
        print("nothing is measured on a CUDA device:", *reasons, sep="\n  ")
        return 2
    if not options.tested and gpu_device.run_tests() != 0:
        print("nothing is measured: `pytest -m gpu` did not pass")
        return 1
    tested = "before, by the caller's word" if options.tested else "passed"
    settings = {**gpu_device.describe(), **describe(), "quick": str(options.quick), "pytest -m gpu": tested}
    print(*(f"{key}: {value}" for key, value in settings.items()), sep="\n", end="\n\n")
    chosen = [case for case in gpu.cases(options.operation, options.quick) if options.only in case.name]
    earlier = [] if options.out is None else _other_results(options.out / "speed_cuda.json", settings, chosen)

    def keep(results: list[Result]) -> None:  # a run that is cut off leaves what it has measured
        if options.out is not None:
            _write_json(options.out / "speed_cuda.json", [*earlier, *results], settings)

    results = run(chosen, Effort(repeats=options.repeats, longest=options.longest), tqdm.write, keep)
    if options.out is not None:
        write(options.out, [*earlier, *results], settings, "speed_cuda")
    if options.base is not None:
        _print_comparison(results, options.base)
    return _judge(results, options.no_gates, means=())


def _other_results(path: Path, settings: Mapping[str, Any], chosen: Sequence[Case]) -> list[Result]:
    """What an earlier run in the same place measured on this device with the same versions, of cases not chosen now."""
    if not path.exists():
        return []
    content, now = json.loads(path.read_text(encoding="utf-8")), {(case.operation, case.name) for case in chosen}
    same = all(content["settings"].get(key) == value for key, value in settings.items() if key != "pytest -m gpu")
    return [r for r in from_json(content) if (r.operation, r.name) not in now] if same else []


def _write_json(path: Path, results: Sequence[Result], settings: Mapping[str, Any]) -> None:
    content = json.dumps(to_json(results, settings, ()), indent=1) + "\n"
    with replacing(path) as temporary:
        temporary.write_text(content, encoding="utf-8")


def _judge(results: Sequence[Result], no_gates: bool, means: Sequence[MeanGate] = MEAN_GATES) -> int:
    absent = {name: why for r in results for name, why in r.skipped.items() if "not installed" in why}
    wrong = [f"{r.operation}, {r.name}: {n} {r.wrong[n]}" for r in results for n in r.wrong if n.startswith("pyalign")]
    missed = [str(v) for v in verdicts(results, means) if v.passed is False]
    print()
    for name, why in absent.items():
        print(f"skipped {name}: {why}")
    for text in wrong:
        print("WRONG", text)
    for text in missed:
        print("missed", text)
    for v in verdicts(results, means)[len(verdicts(results, ())) :]:
        print(v)
    return 1 if wrong or (missed and not no_gates) else 0


if __name__ == "__main__":
    sys.exit(main())
