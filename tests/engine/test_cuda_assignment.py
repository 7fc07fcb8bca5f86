"""The GPU's linear assignment: the CPU's tests, on its algorithm played by the host, and on a GPU where there is one.

`backend` is "cuda" in all of them; only who solves differs. What the host plays is compiled from the same templates
(csrc/linear_assignment/parallel_*.h), so it must give the kernels' answers to the last bit.
"""

from __future__ import annotations

import dataclasses
import functools
import importlib

import numpy as np
import pytest
import torch
from engine import fuzz_linear_assignment as fuzz
from engine import test_linear_assignment as shared
from engine.helpers_engine import check_assignment, placed
from engine.test_linear_assignment import (  # noqa: F401  (collected here once more, for this file's `backend`)
    FAMILIES,
    field,
    test_batch_equals_one_by_one,
    test_dtypes,
    test_empty,
    test_forbidden_pairs,
    test_infeasible_is_named,
    test_integers_are_exact_to_two_to_the_53,
    test_narrow_dtypes_are_widened,
    test_not_finite_is_named,
    test_optimal_and_certified,
    test_planted,
    test_ragged,
    test_warm_start_is_optimal,
    test_warm_start_of_a_list,
)

from pyalign import engine, errors
from pyalign.engine import Assignment, cuda, cuda_assignment, dispatch, linear_assignment

_cpu = importlib.import_module("pyalign._cpu")
built = pytest.mark.skipif(bool(cuda.MISSING), reason=cuda.MISSING or "built")
gpu = pytest.mark.gpu


def play(*arguments, seed=0):
    """What the kernels do, by one thread of the host."""
    _cpu.emulate_linear_assignment(*arguments, seed)


def played(costs, maximize, start):
    return cuda_assignment.solve(costs, maximize, start, play)


def on_gpu(cost, maximize=False, start=None, backend="cuda"):
    """The answer of the kernels to costs on the CPU, on the CPU."""
    moved = placed(cost, "cuda") if isinstance(cost, torch.Tensor) else [placed(c, "cuda") for c in cost]
    answer = engine.linear_assignment(moved, maximize, start, backend)  # `linear_assignment` is this one, in some tests
    parts = {f.name: getattr(answer, f.name) for f in dataclasses.fields(answer)}
    return Assignment(**{name: back(part) for name, part in parts.items()})


def back(part):
    if isinstance(part, tuple):
        return tuple(tensor.cpu() for tensor in part)
    return part.cpu() if isinstance(part, torch.Tensor) else part


@pytest.fixture(params=["played by the host", pytest.param("kernels", marks=gpu)])
def backend(request, monkeypatch):
    if request.param == "kernels":
        monkeypatch.setattr(shared, "linear_assignment", on_gpu)
        monkeypatch.setitem(globals(), "linear_assignment", on_gpu)
        return "cuda"
    row = dispatch.Implementation("cuda", ("cpu",), dispatch.COSTS, "", played)
    monkeypatch.setattr(dispatch, "OPERATIONS", {**dispatch.OPERATIONS, "linear_assignment": (row,)})
    return "cuda"


def run_fuzz(solve, first, count, seed):
    wrong = []
    for k in range(first, first + count):
        problem = fuzz.draw(seed, k)
        text = fuzz.wrong_with(problem, solve(problem.cost, problem.maximize))
        wrong += [f"problem {k} of seed {seed} ({problem.name}): {text}"] if text else []
    return wrong


def test_a_thousand_problems():
    def solve(cost, maximize):
        return Assignment(*played([cost], maximize, [])[0], maximize, "cuda")

    assert run_fuzz(solve, 0, 1000, seed=11) == []


@pytest.mark.parametrize("family", ["uniform", "ties", "i * j", "near ties"])
def test_the_order_of_work_changes_nothing(family):
    """Threads work in no order; here every step is done in another one each time."""
    rng = np.random.default_rng(3)
    costs = [torch.from_numpy(FAMILIES[family](rng, n, m)) for n, m in ((90, 90), (40, 50), (50, 40))]
    expected = played(costs, False, [])
    start = [(u, v, perm) for perm, u, v, _, _ in expected]
    costs.append(costs[0] + 0.01 * torch.from_numpy(rng.normal(size=(90, 90))))
    for earlier in ([], [*start, start[0]]):
        expected = played(costs, False, earlier)
        for seed in (1, 2, 3):
            answers = cuda_assignment.solve(costs, False, earlier, functools.partial(play, seed=seed))
            for answer, want in zip(answers, expected, strict=True):
                assert all(torch.equal(part, other) for part, other in zip(answer, want, strict=True))


@gpu
def test_a_thousand_problems_on_the_gpu():
    assert run_fuzz(on_gpu, 0, 1000, seed=11) == []


@pytest.mark.parametrize("family", ["uniform", "correlation", "ties", "i * j", "near ties"])
def test_larger(family, backend):
    """Rows with more columns than their lists, and phases in which rows look at all of them."""
    rng = np.random.default_rng(5)
    for n, m in ((150, 150), (120, 180), (179, 180)):
        cost = torch.from_numpy(FAMILIES[family](rng, n, m)).float()
        check_assignment(cost, linear_assignment(cost, backend=backend))


def test_one_of_many_ties(backend):
    """More equally cheap columns than a list holds, in a matrix that only all of them together solve."""
    cost = torch.ones(90, 90).triu().double()
    check_assignment(cost, linear_assignment(cost, backend=backend))
    check_assignment(cost, linear_assignment(cost, True, backend=backend), True)


@pytest.mark.parametrize("junk", [float("nan"), float("inf"), 1e300, -1e300, 1e17, -7.0])
def test_warm_start_with_nonsense(junk, backend):
    cost = torch.rand(40, 40, generator=torch.Generator().manual_seed(8), dtype=torch.float64)
    good = linear_assignment(cost, backend=backend)
    duals = torch.full((40,), junk, dtype=torch.float64)
    for perm in (good.perm * 0, good.perm.flip(0), good.perm * 0 - 5, good.perm + 10**12):
        start = dataclasses.replace(good, col_duals=duals, perm=perm)
        check_assignment(cost, linear_assignment(cost, start=start, backend=backend))


def test_warm_start_from_the_answer_is_the_answer(backend):
    cost = torch.rand(60, 60, generator=torch.Generator().manual_seed(8), dtype=torch.float64)
    first = linear_assignment(cost, backend=backend)
    again = linear_assignment(cost, start=first, backend=backend)
    assert torch.equal(first.perm, again.perm)
    check_assignment(cost, again)


def test_layout_of_the_costs_changes_nothing(backend):
    cost = torch.randint(0, 3, (30, 21), generator=torch.Generator().manual_seed(6)).float()
    expected = linear_assignment(cost, backend=backend)
    wide = torch.full((60, 63), float("nan"))
    wide[::2, ::3] = cost
    for same in (cost.T.contiguous().T, wide[::2, ::3], torch.stack([cost, cost])[1], cost[None].expand(3, -1, -1)):
        answer = linear_assignment(same, backend=backend)
        perm, duals = (answer.perm[-1], answer.col_duals[-1]) if same.dim() == 3 else (answer.perm, answer.col_duals)
        assert torch.equal(perm, expected.perm) and torch.equal(duals, expected.col_duals)


def test_more_than_two_to_the_31_elements(tmp_path):
    """Rows that lie 2^31 elements apart, in a file of holes."""
    far = 2**31 + 3
    memory = np.memmap(tmp_path / "costs", np.float32, "w+", shape=(far + 8,))
    memory[:3], memory[far : far + 3] = (5.0, 1.0, 7.0), (4.0, 0.5, 9.0)
    cost = torch.as_strided(torch.from_numpy(memory), (2, 3), (far, 1))
    assert played([cost], False, [])[0][0].tolist() == [1, 0]


@gpu
def test_more_than_two_to_the_31_elements_on_the_gpu():
    far = 2**31 + 3
    if torch.cuda.mem_get_info()[0] < 5 * far:
        pytest.skip("the device has too little memory")
    memory = torch.zeros(far + 8, device="cuda")
    memory[:3], memory[far : far + 3] = torch.tensor([5.0, 1.0, 7.0]), torch.tensor([4.0, 0.5, 9.0])
    cost = torch.as_strided(memory, (2, 3), (far, 1))
    assert linear_assignment(cost, backend="cuda").perm.tolist() == [1, 0]


def test_several_devices_are_refused():
    with pytest.raises(errors.InputError, match=r"more than one device.*cpu, meta"):
        linear_assignment([torch.rand(2, 2), torch.rand(2, 2, device="meta")])


def test_memory_that_is_not_there_is_named(monkeypatch):
    def no_room(*_, **__):
        raise torch.OutOfMemoryError

    monkeypatch.setattr(torch, "empty", no_room)
    with pytest.raises(errors.WorkspaceError, match=r"costs of 16\.0 MiB.*fewer or smaller problems"):
        played([torch.zeros(2048, 2048)], False, [])


def call(module, **changes):
    """A direct call that is right but for the changes."""
    arguments = {
        "costs": [torch.rand(2, 3)],
        "maximize": False,
        "exchanged": [False],
        "start": [None],
        "answers": [[torch.empty(2, dtype=torch.int64), *(torch.empty(s).double() for s in (2, 3, (), ()))]],
        "status": torch.empty(1, 3, dtype=torch.int32),
    }
    return module.emulate_linear_assignment(**{**arguments, **changes})


REFUSED = {
    "equally many": {"exchanged": []},
    "no more rows than columns": {"costs": [torch.rand(3, 2)]},
    "contiguous rows": {"costs": [torch.rand(3, 2).T]},
    "expected float32, float64": {"costs": [torch.ones(2, 3, dtype=torch.int32)]},
    "2 or 3 dimensions": {"costs": [torch.rand(3)]},
    "perm: given shape": {"exchanged": [True]},
    "expected none for": {"start": [[torch.zeros(3), torch.zeros(2)]]},
    "status: given shape": {"status": torch.empty(2, 3, dtype=torch.int32)},
    "a sequence of 5": {"answers": [[]]},
}


@pytest.mark.parametrize("text", REFUSED)
def test_direct_calls_are_checked(text):
    call(_cpu)
    with pytest.raises((ValueError, TypeError), match=text):
        call(_cpu, **REFUSED[text])


@built
def test_tensors_on_the_wrong_device_are_refused():
    module = importlib.import_module("pyalign._cuda")
    with pytest.raises(ValueError, match=r"costs\[0\]: given a tensor on cpu, expected cuda:0"):
        module.linear_assignment([torch.rand(2, 2)], False, [False], [None], [[]], None, "any", None, 0, 0)


H200 = {"multiprocessors": 132, "clusters": True, "shared": 232448}
A100 = {"multiprocessors": 108, "clusters": False, "shared": 166912}


def plan(shapes, team="any", machine=H200):
    return importlib.import_module("pyalign._cuda").linear_assignment_plan(shapes, team, **machine)


@built
@pytest.mark.parametrize("machine", [H200, A100], ids=["H200", "A100"])
def test_the_plan_takes_every_problem_once(machine):
    shapes = [(3, 64, 64), (100, 7, 9), (0, 5, 5), (1, 9000, 14336), (200, 1024, 1024), (2, 0, 4), (40, 2048, 2048)]
    made = plan(shapes, machine=machine)
    problems = sum(b for b, _, _ in shapes)
    assert sorted(made["order"]) == list(range(problems))
    assert made["launches"][0]["begin"] == 0
    assert sum(launch["count"] for launch in made["launches"]) == problems
    for launch in made["launches"]:
        assert launch["teams"] >= 1 and launch["threads"] % 32 == 0 and launch["shared"] <= machine["shared"]
        assert launch["teams"] * launch["scratch"] <= made["bytes"]
        assert launch["team"] != "cluster" or machine["clusters"]
        if launch["team"] != "block":
            assert launch["teams"] * launch["blocks_of_team"] <= machine["multiprocessors"]


@built
@pytest.mark.parametrize(
    "shapes, machine, team, blocks",
    [
        ([(64, 128, 128)], H200, "block", 1),
        ([(1024, 1024, 1024)], H200, "block", 1),
        ([(1, 2048, 2048)], H200, "cluster", 8),
        ([(32, 2048, 2048)], H200, "cluster", 4),
        ([(32, 14336, 14336)], H200, "cluster", 4),
        ([(1, 14336, 14336)], H200, "grid", 132),
        ([(1, 2048, 2048)], A100, "grid", 108),
        ([(200, 2048, 2048)], A100, "block", 1),
    ],
)
def test_who_solves_what(shapes, machine, team, blocks):
    (launch,) = plan(shapes, machine=machine)["launches"]
    assert (launch["team"], launch["blocks_of_team"]) == (team, blocks)


@built
def test_the_workspace_is_shared_by_launches_and_bounded_by_the_teams():
    small, large = plan([(64, 128, 128)])["bytes"], plan([(1, 8192, 8192)])["bytes"]
    assert max(small, large) <= plan([(64, 128, 128), (1, 8192, 8192)])["bytes"] < small + large
    # What more problems than teams add is their rows of the table.
    few, many = plan([(10_000, 1024, 1024)]), plan([(20_000, 1024, 1024)])
    assert few["launches"][0]["teams"] == many["launches"][0]["teams"]
    assert 10_000 * 64 < many["bytes"] - few["bytes"] < 10_000 * 256


@built
def test_plans_that_make_no_sense_are_refused():
    for shapes, team, machine, text in (
        ([(1, 3, 2)], "any", H200, "no more rows"),
        ([(1, 2, 2)], "warp", H200, "given 'warp'"),
        ([(1, 2, 2)], "cluster", A100, "no code for clusters"),
    ):
        with pytest.raises(ValueError, match=text):
            plan(shapes, team, machine)


@gpu
@pytest.mark.parametrize("team", ["block", "cluster", "grid"])
@pytest.mark.parametrize("family", ["uniform", "correlation", "ties", "i * j"])
def test_every_team_gives_the_answer_of_the_host(family, team, monkeypatch):
    module = importlib.import_module("pyalign._cuda")
    solve, size = module.linear_assignment, module.linear_assignment_bytes
    try:
        size([(1, 2, 2)], team, 0)
    except ValueError as reason:
        pytest.skip(str(reason))
    monkeypatch.setattr(module, "linear_assignment", lambda *a: solve(*a[:6], team, *a[7:]))
    monkeypatch.setattr(module, "linear_assignment_bytes", lambda shapes, _, device: size(shapes, team, device))
    rng = np.random.default_rng(3)
    costs = [torch.from_numpy(FAMILIES[family](rng, n, m)) for n, m in ((200, 200), (64, 90), (90, 64), (1, 1), (0, 3))]
    costs += [torch.from_numpy(FAMILIES[family](rng, 300, 300)).float()]
    for _ in range(3):
        answers = cuda_assignment.linear_assignment([cost.cuda() for cost in costs], False, [])
        for answer, expected in zip(answers, played(costs, False, []), strict=True):
            for part, want in zip(answer, expected, strict=True):
                assert torch.equal(part.cpu(), want)


@gpu
@pytest.mark.parametrize("n", [1500, 3000, 5000])
def test_large_problems_have_the_optimum_of_the_cpu(n):
    cost = torch.rand(n, n, generator=torch.Generator().manual_seed(n))
    answer, expected = on_gpu(cost), linear_assignment(cost, backend="cpu")
    assert abs(answer.objective - expected.objective) <= 1e-12 * n
    assert 0 <= answer.gap <= 1e-12 * n and len(answer.perm.unique()) == n


@gpu
def test_the_current_stream_is_used():
    cost = torch.rand(8, 300, 300, device="cuda")
    expected = linear_assignment(cost, backend="cuda")
    late, stream = torch.zeros_like(cost), torch.cuda.Stream()
    torch.cuda.synchronize()
    with torch.cuda.stream(stream):
        torch.cuda._sleep(20_000_000)
        late.copy_(cost)  # queued behind the sleep: another stream would see zeros
        assert torch.equal(linear_assignment(late, backend="cuda").perm, expected.perm)
