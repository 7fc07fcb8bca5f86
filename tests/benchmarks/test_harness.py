"""The benchmark harness: what it accepts and rejects, its arithmetic, its files, and one quick run from end to end."""

from __future__ import annotations

import importlib
import itertools
import json
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

import pyalign

ROOT = Path(__file__).resolve().parents[2]
NAMES = ("competitors", "costs", "measure", "operations", "pages", "plots", "record", "run", "tables")


@pytest.fixture
def bench(monkeypatch):
    monkeypatch.setattr(sys, "path", [*sys.path, str(ROOT)])  # last: the installed package comes before the checkout's
    pytest.importorskip("benchmarks.record")
    return SimpleNamespace(**{name: importlib.import_module(f"benchmarks.{name}") for name in NAMES})


@pytest.fixture
def solver_cases(bench):
    return importlib.import_module("benchmarks.operations.linear_assignment")


def result(bench, name="c", operation="linear_assignment", size=8, ours=1.0, theirs=2.0, limit=0.5):
    made = bench.record.Result(operation, "f", name, size)
    for who, role, seconds in (("us", "ours", ours), ("them", "competitor", theirs), ("floor", "limit", limit)):
        made.timings[who] = bench.record.Timing(role, seconds, seconds * 0.9, seconds * 1.1, 5)
    return made


def case(bench, contestants, check=lambda name, answer: "", gates=(), name="c", size=8, **options):
    contest = bench.record.Contest(contestants, check, **options)
    names = tuple(c.name for c in contestants)
    return bench.record.Case("linear_assignment", "f", name, size, names, tuple(gates), lambda: contest, growth=3)


@pytest.mark.parametrize("quick", [True, False])
def test_records_are_well_formed(bench, quick):
    made = bench.operations.cases(quick=quick)
    assert len({(c.operation, c.name) for c in made}) == len(made) > 20
    assert {c.operation for c in made} == set(bench.operations.OPERATIONS)
    for c in made:
        assert c.gates, c.name
        for gate in c.gates:
            assert gate.of in c.names and gate.most > 0
            assert gate.against == bench.record.BEST or gate.against in c.names


def test_the_full_set_has_every_family_and_size(bench):
    made = bench.operations.cases(["linear_assignment"])
    sizes = {f: {c.size for c in made if c.family == f} for f in (*bench.costs.DRAWN, *bench.costs.REAL)}
    assert all(found == {64, 128, 256, 512, 1024, 2048, 4096, 8192} for found in sizes.values()) and len(sizes) == 8
    assert {c.size for c in bench.operations.cases(["linear_assignment"], max_n=128)} == {64, 128}


def test_a_gate_passes_at_its_limit_and_fails_above(bench):
    Gate, BEST = bench.record.Gate, bench.record.BEST
    made = result(bench, ours=1.8, theirs=2.0)
    made.figures = {"us": {"objective": 10.0}, "them": {"objective": 11.0}}
    gates = [Gate("us", BEST, 0.9), Gate("us", BEST, 0.89), Gate("us", "floor", 3.7), Gate("us", "nobody", 1.0)]
    made.judge([*gates, Gate("us", "them", 1.0, figure="objective"), Gate("them", "us", 1.0, figure="objective")])
    assert [v.passed for v in made.verdicts] == [True, False, True, None, False, True]
    assert "0.9, at most 0.89" in str(made.verdicts[1]) and "not measured" in str(made.verdicts[3])


def test_the_mean_gate_is_geometric_and_over_gated_cases_only(bench):
    Gate, BEST = bench.record.Gate, bench.record.BEST
    results = [result(bench, ours=0.5), result(bench, ours=8.0), result(bench, ours=100.0)]
    for made in results[:2]:
        made.judge([Gate("us", BEST, 0.9)])  # ratios 0.25 and 4
    verdict = bench.record.mean_verdict(bench.record.MeanGate("linear_assignment", "us", BEST, 0.5), results)
    assert verdict.ratio == pytest.approx(1.0) and verdict.passed is False and "2 cases" in verdict.case


def test_contestants_alternate_and_each_round_begins_with_another(bench):
    calls = []
    ones = [bench.record.Contestant(n, "ours", lambda n=n: calls.append(n)) for n in "abc"]
    effort = bench.measure.Effort(seconds=5.0, repeats=6, short=0.0)
    made = bench.measure.measure(case(bench, ones), bench.measure.Pace(effort))
    order = "".join(name for name, _ in itertools.groupby(calls))
    assert order.startswith("abcabcbca")  # once each for the answers, then the first two rounds
    assert all(t.repeats == 6 for t in made.timings.values())


def test_a_wrong_answer_is_named_and_not_timed(bench):
    Contestant = bench.record.Contestant
    both = [Contestant("us", "ours", lambda: 3), Contestant("them", "competitor", lambda: 4)]

    def check(name, answer):
        return "" if answer == 3 else f"gave {answer}"

    gates = [bench.record.Gate("us", bench.record.BEST, 0.9)]
    made = bench.measure.measure(case(bench, both, check, gates), bench.measure.Pace(bench.measure.Effort(seconds=0.0)))
    assert made.wrong == {"them": "gave 4"} and list(made.timings) == ["us"]
    assert made.verdicts[0].passed is None and "WRONG" in bench.run.line(made)


def test_who_would_take_too_long_is_skipped_by_name(bench):
    Contestant, Effort = bench.record.Contestant, bench.measure.Effort
    runs = {"fast": 0.001, "next": 0.002, "slow": 0.01}
    sleeping = [Contestant(n, "competitor", lambda s=s: bench.measure.time.sleep(s)) for n, s in runs.items()]
    pace = bench.measure.Pace(Effort(seconds=0.0, repeats=1, longest=0.1, slow=0.05))
    bench.measure.measure(case(bench, sleeping, size=8), pace)
    made = bench.measure.measure(case(bench, sleeping, size=16), pace)  # 8, 16 and 80 ms predicted
    assert set(made.timings) == {"fast", "next"} and "others were faster" in made.skipped["slow"]
    made = bench.measure.measure(case(bench, sleeping, size=128), pace)
    assert not made.timings and all(made.skipped[n] for n in runs)


def test_a_missing_solver_is_skipped_by_name(bench, solver_cases, monkeypatch):
    gone = bench.competitors.Solver("lapx lapjv", "no_such_module", lambda m: m.solve, lambda shape, answer: answer)
    scipy = bench.competitors.SOLVERS[0]
    monkeypatch.setattr(bench.competitors, "SOLVERS", (scipy, gone))
    contest = solver_cases._contest(np.eye(4))
    assert {c.name for c in contest.contestants if c.role == "competitor"} == {"scipy"}
    assert "no_such_module" in contest.missing["lapx lapjv"] and "pyalign-nn[bench]" in contest.missing["lapx lapjv"]


@pytest.mark.parametrize("shape", [(7, 7), (4, 9), (9, 4)])
def test_certificates_are_proved_and_others_compared_with_them(bench, solver_cases, shape):
    cost = np.random.default_rng(0).random(shape)
    contest = solver_cases._contest(cost)
    for contestant in contest.contestants:
        assert contest.check(contestant.name, contestant.run()) == ""
    rows, columns = (np.asarray(x) for x in bench.competitors.linear_sum_assignment(cost))
    columns[[0, 1]] = columns[[1, 0]]
    assert "not optimal by" in contest.check("scipy", (rows, columns))
    columns[0] = columns[1]
    assert contest.check("scipy", (rows, columns)) == "not an assignment"


@pytest.mark.parametrize("field", ["row_duals", "col_duals"])
@pytest.mark.parametrize("by", [0.1, -0.1])
def test_duals_that_prove_nothing_are_rejected(solver_cases, field, by):
    cost = np.random.default_rng(0).random((6, 6))
    answer = pyalign.engine.linear_assignment(torch.from_numpy(cost))
    assert solver_cases.certified(cost, answer) == pytest.approx(float(answer.objective))
    changed = replace(answer, **{field: getattr(answer, field) + by})
    with pytest.raises(AssertionError, match="infeasible" if by > 0 else "gap"):
        solver_cases.certified(cost, changed)


@pytest.mark.parametrize("operation", ["cross_moments", "permuted_lerp"])
def test_answers_that_are_off_are_rejected(bench, operation):
    for made in bench.operations.cases([operation], quick=True):
        contest = made.build()
        for contestant in (c for c in contest.contestants if c.role != "limit"):
            answer = contestant.run()
            assert contest.check(contestant.name, answer) == "", (made.name, contestant.name)
            assert contest.check(contestant.name, spoilt(answer)) != "", (made.name, contestant.name)


def spoilt(answer):
    if isinstance(answer, tuple):
        return (spoilt(answer[0]), *answer[1:])
    if isinstance(answer, pyalign.engine.CrossMoments):
        return pyalign.engine.CrossMoments(**{**vars(answer), "comoment": spoilt(answer.comoment)})
    other = answer.detach().clone()
    other.view(-1)[-1] += 0.5 * other.abs().max()
    return other


def two_mlps():
    models = []
    for seed in (0, 1):
        torch.manual_seed(seed)
        models.append(nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 5), nn.ReLU(), nn.Linear(5, 3)))
    return models


def test_the_plain_method_climbs_and_recovers_a_planted_permutation(bench):
    plain = bench.competitors
    a, b = two_mlps()
    spec = pyalign.derive(a, torch.zeros(2, 6))
    axes, shapes = plain.axes_of(spec)
    assert {axes[n] for n in ("0.weight", "4.weight")} == {("0", None), (None, "2")}
    moved = spec.random(3, pyalign.symmetry.Kind.PERMUTATION).apply(a)
    one, two, other = ({n: m.state_dict()[n].reshape(shapes[n]) for n in axes} for m in (a, moved, b))
    found = plain.weight_matching(axes, one, two)
    norm = sum(float(x.double().square().sum()) for x in one.values())
    assert plain.objective(axes, one, two, found.perms) == pytest.approx(norm, rel=1e-6)
    perms = plain.weight_matching(axes, one, other).perms
    reached = plain.objective(axes, one, other, perms)
    assert plain.objective(axes, one, other, {g: torch.arange(5) for g in perms}) < reached
    for group in perms:  # a local optimum: no other permutation of one group alone is better
        each = itertools.permutations(range(5))
        assert max(plain.objective(axes, one, other, {**perms, group: torch.tensor(p)}) for p in each) < reached + 1e-5


def test_the_plain_objective_agrees_with_the_alignments(bench):
    a, b = two_mlps()
    alignment = pyalign.align(a, b, method="weight", example_inputs=torch.zeros(2, 6))
    axes, shapes = bench.competitors.axes_of(alignment.spec)
    one, two = ({n: m.state_dict()[n].reshape(shapes[n]) for n in axes} for m in (a, b))
    perms = {g: element.perm for g, element in alignment.transforms.items()}
    assert bench.competitors.objective(axes, one, two, perms) == pytest.approx(alignment.objective, rel=1e-9)


def test_from_the_identity_weight_matching_ends_where_the_plain_method_does(bench):
    """Updated and skipped similarities change nothing: the same orders of groups lead to the same permutations."""
    models = []
    for seed in (0, 1):
        with torch.random.fork_rng([]):
            torch.manual_seed(seed)
            layers = (nn.Conv2d(3, 20, 3), nn.BatchNorm2d(20), nn.ReLU(), nn.Conv2d(20, 24, 3), nn.ReLU(), nn.Flatten())
            models.append(nn.Sequential(*layers, nn.Linear(96, 30), nn.ReLU(), nn.Linear(30, 5)).eval())
    spec = pyalign.derive(models[0], torch.zeros(2, 3, 6, 6))
    axes, shapes = bench.competitors.axes_of(spec)
    one, two = ({n: m.state_dict()[n].reshape(shapes[n]) for n in axes} for m in models)
    ends = []
    for seed in range(3):
        method = pyalign.WeightMatching(start=spec.identity())
        found = pyalign.align(*models, method=method, spec=spec, verify=False, seed=seed)
        perms = bench.competitors.weight_matching(axes, one, two, seed=seed).perms
        assert all(torch.equal(perm, found.transforms[group].perm) for group, perm in perms.items())
        ends.append(found.objective)
    assert len(set(ends)) > 1, "the orders would lead to one place anyway"


def test_a_product_axis_is_split(bench):
    model = nn.Sequential(nn.Conv2d(1, 3, 3), nn.ReLU(), nn.Flatten(), nn.Linear(12, 2))
    axes, shapes = bench.competitors.axes_of(pyalign.derive(model, torch.zeros(1, 1, 4, 4)))
    assert axes["3.weight"] == (None, "0", None) and shapes["3.weight"] == (2, 3, 4)


def test_comparison_cancels_the_machine(bench):
    old = [result(bench, "c", ours=1.0, theirs=2.0, limit=0.5), result(bench, "gone")]
    new = [result(bench, "c", ours=1.0, theirs=4.0, limit=1.0), result(bench, "fresh")]  # a machine half as fast
    lines, ratios = bench.tables.compared(new, old)
    assert ratios == [pytest.approx(0.5)] and len(lines) == 3
    assert "2.00" in lines[-1] and lines[-1].endswith("| 0.50 |")


def test_results_survive_json(bench):
    made = result(bench)
    made.judge([bench.record.Gate("us", "floor", 1.5)])
    content = json.loads(json.dumps(bench.tables.to_json([made], {"threads": "2"}, bench.operations.MEAN_GATES)))
    assert bench.tables.from_json(content) == [made]
    assert content["verdicts"][0]["passed"] is False and content["verdicts"][0]["ratio"] == 2.0


def test_pages_are_filled_between_their_markers_only(bench):
    begin, end = bench.pages.BEGIN, bench.pages.END
    text = f"before\n\n{begin}\n\nold\n\n{end}\n\nafter\n"
    assert bench.pages.filled(text, "new\n") == f"before\n\n{begin}\n\nnew\n\n{end}\n\nafter\n"
    for bad in ("nothing", f"{end} {begin}", f"{begin} {begin} {end}", f"{begin} {end} {end}"):
        with pytest.raises(ValueError, match="once each"):
            bench.pages.filled(bad, "new")
    for page in ("README.md", "docs/speed.md"):
        assert bench.pages.filled((ROOT / page).read_text(encoding="utf-8"), "new")


def test_a_quick_run_writes_its_files_and_fails_at_its_gates(bench, monkeypatch, tmp_path, capsys):
    pytest.importorskip("matplotlib")
    arguments = ["--quick", "--repeats", "3", "--max-n", "32", "--operation", "cross_moments", "linear_assignment"]
    assert bench.run.main([*arguments, "--no-gates", "--out", str(tmp_path)]) == 0
    plots = ["speed_cross_moments.png", "speed_linear_assignment.png"]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["speed.json", "speed.md", *plots]
    said, report = capsys.readouterr().out, (tmp_path / "speed.md").read_text(encoding="utf-8")
    content = json.loads((tmp_path / "speed.json").read_text())
    assert content["settings"]["threads"] == "2" and "processor: " in said
    assert {r["operation"] for r in content["results"]} == {"cross_moments", "linear_assignment"}
    assert all("pyalign engine" in r["timings"] for r in content["results"] if r["operation"] == "linear_assignment")
    assert "### uniform, n = 32" in report and "| case | ratio of | measured | at most |" in report
    impossible = [bench.record.Gate("pyalign float32", "packed product", 1e-9)]
    first = replace(bench.operations.cases(["cross_moments"], quick=True)[0], gates=tuple(impossible))
    monkeypatch.setattr(bench.run, "cases", lambda *given: [first])
    base = ["--quick", "--repeats", "1", "--base", str(tmp_path / "speed.json")]
    assert bench.run.main(base) == 1
    said = capsys.readouterr().out
    assert f"missed cross_moments, {first.name}: pyalign float32 / packed product" in said and "Compared with" in said
    assert bench.run.main([*base, "--no-gates"]) == 0


@pytest.mark.parametrize("operation", ["cross_moments", "linear_assignment", "permuted_lerp"])
def test_the_devices_cases_run_and_reject_what_is_off(bench, operation):
    """Their inputs, contestants and checks, on the CPU."""
    module = importlib.import_module("benchmarks.gpu")
    full = module.cases([operation])
    assert len({c.name for c in full}) == len(full) >= 8 and all(c.gates for c in full)
    made = [c for c in module.cases([operation], quick=True, device="cpu") if "tf32" not in c.name]
    for c in made:
        contest = c.build()
        assert {x.name for x in contest.contestants} | set(contest.missing) == set(c.names)
        for contestant in (x for x in contest.contestants if x.role != "limit"):
            answer = contestant.run()
            assert contest.check(contestant.name, answer) == "", (c.name, contestant.name)
            if operation == "linear_assignment" and isinstance(answer, pyalign.engine.Assignment):
                answer = replace(answer, perm=answer.perm.flip(-1))
            elif operation != "linear_assignment":
                answer = spoilt(answer)
            else:
                continue
            assert contest.check(contestant.name, answer) != "", (c.name, contestant.name)
    if operation == "linear_assignment":
        assert {"torch-lap-cuda", "torch-linear-assignment"} <= {
            *contest.missing,
            *(x.name for x in contest.contestants),
        }


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a CUDA device")
def test_without_a_device_it_says_why(bench, capsys):
    assert bench.run.main(["--device", "cuda"]) == 2
    assert "nothing is measured on a CUDA device:" in capsys.readouterr().out


@pytest.fixture
def device(bench, monkeypatch):
    """A device that is the CPU, for all that surrounds the measurements."""
    module, real = importlib.import_module("benchmarks.gpu.device"), bench.run.gpu.cases
    monkeypatch.setattr(module, "why_not", list)
    monkeypatch.setattr(module, "describe", lambda: {"device": "a device"})
    monkeypatch.setattr(bench.run.gpu, "cases", lambda operations, quick: real(operations, quick, "cpu"))
    return module


def test_figures_on_a_device_come_after_its_tests(bench, device, monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(device, "run_tests", lambda: 1)
    assert bench.run.main(["--device", "cuda"]) == 1 and "did not pass" in capsys.readouterr().out
    monkeypatch.setattr(device, "run_tests", lambda: 0)
    monkeypatch.setattr(bench.run.gpu, "cases", lambda *given: [])
    assert bench.run.main(["--device", "cuda", "--out", str(tmp_path)]) == 0
    assert sorted(p.name for p in tmp_path.iterdir()) == ["speed_cuda.json", "speed_cuda.md"]


def test_runs_on_a_device_add_up(bench, device, monkeypatch, tmp_path):
    """One command after another, each with its own cases; but not what another device measured."""
    pytest.importorskip("matplotlib")
    monkeypatch.setattr(device, "run_tests", lambda: 1 / 0)
    common = ["--device", "cuda", "--tested", "--quick", "--repeats", "1", "--longest", "2", "--no-gates"]
    for operation in ("weight_matching", "cross_moments", "permuted_lerp"):
        assert bench.run.main([*common, "--operation", operation, "--out", str(tmp_path)]) == 0
    content = json.loads((tmp_path / "speed_cuda.json").read_text())
    assert content["settings"]["pytest -m gpu"] == "before, by the caller's word"
    found = [(r["operation"], r["name"]) for r in content["results"]]
    assert len(set(found)) == len(found) and {o for o, _ in found} == {*bench.run.gpu.OPERATIONS} - {
        "linear_assignment"
    }
    assert (tmp_path / "speed_cuda_weight_matching.png").exists()
    monkeypatch.setattr(device, "describe", lambda: {"device": "another"})
    assert bench.run.main([*common, "--operation", "permuted_lerp", "--out", str(tmp_path)]) == 0
    content = json.loads((tmp_path / "speed_cuda.json").read_text())
    assert {r["operation"] for r in content["results"]} == {"permuted_lerp"}


def test_a_run_on_a_device_that_is_cut_off_leaves_its_results(bench, device, monkeypatch, tmp_path):
    measured = [result(bench, "first")]

    def measure(case, pace):
        if not measured:
            raise KeyboardInterrupt
        return measured.pop()

    monkeypatch.setattr(bench.run, "measure", measure)
    with pytest.raises(KeyboardInterrupt):
        bench.run.main(["--device", "cuda", "--tested", "--quick", "--out", str(tmp_path)])
    content = json.loads((tmp_path / "speed_cuda.json").read_text())
    assert [r["name"] for r in content["results"]] == ["first"]


def test_a_contestant_that_raises_is_wrong_and_the_others_are_measured(bench):
    def broken():
        raise RuntimeError("no such kernel")

    contestants = [bench.record.Contestant("theirs", "competitor", broken), bench.record.Contestant("us", "ours", int)]
    contest = bench.record.Contest(contestants, lambda name, answer: "")
    case = bench.record.Case("cross_moments", "f", "c", 1, ("theirs", "us"), (), lambda: contest)
    found = bench.measure.measure(case, bench.measure.Pace(bench.measure.Effort(seconds=0.0, repeats=1)))
    assert found.wrong == {"theirs": "raised RuntimeError: no such kernel"} and list(found.timings) == ["us"]


def test_weight_matching_on_a_device_is_checked(bench):
    module = importlib.import_module("benchmarks.gpu")
    assert {case.name for case in module.cases(["weight_matching"])} == {
        f"{name}, one sweep" for name in ("ResNet-50", "GPT-2", "Llama-7B layer")
    }
    for case in module.cases(["weight_matching"], quick=True, device="cpu"):
        contest = case.build()
        assert tuple(x.name for x in contest.contestants) == case.names
        answer = contest.contestants[0].run()
        assert contest.check("pyalign", answer) == "" and any(not g.is_identity for g in answer.transforms.values())
        assert "reached" in contest.check("pyalign", replace(answer, objective=1.01 * answer.objective))


def test_a_failed_write_leaves_the_earlier_file(bench, monkeypatch, tmp_path):
    (tmp_path / "speed.json").write_text("earlier")
    monkeypatch.setattr(bench.run, "report", lambda *given: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        bench.run.write(tmp_path, [result(bench)], {})
    assert [p.name for p in tmp_path.iterdir()] == ["speed.json"] and (tmp_path / "speed.json").read_text() == "earlier"
