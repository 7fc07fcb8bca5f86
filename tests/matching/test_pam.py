"""The Birkhoff polytope by its definition, relaxed permutations, and proximal alternating minimisation."""

import functools
import itertools
from dataclasses import replace

import pytest
import torch
from torch import nn

import pyalign
from pyalign.errors import CheckpointError, DataError, InputError, MismatchError
from pyalign.matching import PAM, ActivationMatching, Problem
from pyalign.matching.birkhoff import decompose, nearest, project
from pyalign.matching.relaxed import RelaxedObjective, mixed, movable
from pyalign.symmetry import ScaledPermutation, derive
from pyalign.symmetry.actions import act


def network(seed, width=5):
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(1, width, 3), nn.BatchNorm2d(width), nn.ReLU(), nn.Flatten(), nn.Linear(4 * width, 4), nn.ReLU(),
        nn.Linear(4, 3),
    )  # fmt: skip


def batches(count=3, size=16):
    generator = torch.Generator().manual_seed(0)
    return [
        (torch.randn(size, 1, 4, 4, generator=generator), torch.randint(3, (size,), generator=generator))
        for _ in range(count)
    ]


@pytest.mark.parametrize("n", [1, 2, 6])
def test_the_projection_is_the_nearest_point_of_the_polytope(n):
    generator = torch.Generator().manual_seed(n)
    for scale in (0.1, 3.0):
        x = scale * torch.randn(n, n, generator=generator, dtype=torch.float64)
        p = project(x, 5000, 1e-12)
        assert float(p.min()) >= 0.0
        torch.testing.assert_close(p.sum(0), torch.ones(n, dtype=torch.float64), rtol=0, atol=1e-6)
        torch.testing.assert_close(p.sum(1), torch.ones(n, dtype=torch.float64), rtol=0, atol=1e-6)
        # nearest in a convex set: no direction into it, and so to none of its vertices, goes towards x
        corner = torch.eye(n, dtype=torch.float64)[nearest(x - p)]
        assert float(((x - p) * (corner - p)).sum()) <= 1e-6


def test_a_mixture_is_taken_apart_and_sampled_by_its_weights():
    perms = [torch.tensor(p) for p in ([0, 1, 2, 3], [1, 2, 3, 0], [3, 2, 1, 0])]
    weights = torch.tensor([0.6, 0.3, 0.1], dtype=torch.float64)
    matrix = sum(w * torch.eye(4, dtype=torch.float64)[p] for w, p in zip(weights, perms, strict=True))
    mixture = decompose(matrix)
    rebuilt = sum(w * torch.eye(4, dtype=torch.float64)[p] for w, p in zip(mixture.weights, mixture.perms, strict=True))
    torch.testing.assert_close(rebuilt, matrix)
    generator = torch.Generator().manual_seed(0)
    drawn = [tuple(mixture.sample(generator).tolist()) for _ in range(300)]
    assert drawn.count((0, 1, 2, 3)) / 300 == pytest.approx(float(mixture.weights[0]), abs=0.12)
    assert decompose(torch.eye(3)).perms.tolist() == [[0, 1, 2]]
    assert len(decompose(project(torch.rand(9, 9)), most=4).perms) <= 4


def test_a_permutation_matrix_acts_as_the_permutation():
    model = network(0)
    spec = derive(model, batches()[0][0])
    free, held = movable(spec)
    assert set(free) == set(spec.groups) and not held
    elements = spec.random(3, pyalign.symmetry.Kind.PERMUTATION).transforms
    matrices = {name: torch.eye(e.size)[e.perm] for name, e in elements.items()}
    for name, tensor in model.state_dict().items():
        if tensor.is_floating_point():
            torch.testing.assert_close(mixed(tensor, spec.on(name), matrices), act(tensor, spec.on(name), elements))


def test_groups_in_blocks_are_held():
    model = nn.Sequential(nn.Conv2d(1, 4, 1), nn.ReLU(), nn.Conv2d(4, 4, 1, groups=2), nn.ReLU(), nn.Conv2d(4, 2, 1))
    free, held = movable(derive(model, torch.randn(2, 1, 2, 2)))
    assert held and not set(free) & set(held)


@pytest.mark.parametrize(("kind", "bends"), [("bezier", 1), ("bezier", 3), ("polychain", 2)])
def test_the_relaxed_loss_is_that_of_the_curve_at_a_vertex(kind, bends):
    a, b = network(0), network(1)
    spec = derive(a, batches()[0][0])
    path = pyalign.Curve(a, b, kind=kind, bends=bends)
    offsets = [{n: torch.randn_like(x) for n, x in path.control_point(1).items()} for _ in range(bends)]
    for point, offset in zip(path.inner, offsets, strict=True):
        for buffer, extra in zip(point, path.layout.pack(offset), strict=True):
            buffer += extra
    objective = RelaxedObjective(spec, a, b, offsets, list(spec.groups), kind=kind)
    x, y = batches()[0]
    with torch.no_grad():
        value = objective.at(0.3, x, y, 0, objective.matrices)
        expected = nn.functional.cross_entropy(path.at(0.3).train()(x), y)
    torch.testing.assert_close(value, expected)


def small(**changes):
    return PAM(**{"permutation_epochs": 1, "epochs": 1, "candidates": 4, "permutation_lr": 1.0, **changes})


CURVES = [{}, {"bends": 3}, {"kind": "polychain", "bends": 2}, {"precision": torch.bfloat16}]


@pytest.mark.parametrize("curve", CURVES, ids=str)
def test_it_answers_with_an_alignment_that_keeps_the_function_and_never_a_worse_loss(curve):
    a, b, data = network(0), network(1), batches()
    method = small(start=ActivationMatching(), rounds=2, **curve)
    problem = Problem(a, b, derive(a, data[0][0]), data, seed=0)
    answer = method.run(problem)
    aligned = answer.alignment.apply(b)
    x = data[0][0]
    torch.testing.assert_close(aligned.eval()(x), b.eval()(x), rtol=1e-4, atol=1e-5)
    trace = answer.alignment.trace
    assert len(trace) == 4 and trace[1] >= trace[0] and trace[3] >= trace[2]
    assert all(torch.equal(answer.curve.state(1.0)[n], t) for n, t in aligned.state_dict().items())
    assert (answer.curve.kind, answer.curve.bends) == (curve.get("kind", "bezier"), curve.get("bends", 1))
    assert answer.curve.state(0.5)["0.weight"].dtype == torch.float32
    method = "proximal alternating minimisation"
    assert pyalign.align(a, b, data, method=small(candidates=0)).method.startswith(method)


def test_the_best_candidate_wins_also_over_the_present_one(monkeypatch):
    """The running best must be kept when the present permutations beat some of the samples."""
    from pyalign.matching import pam

    for values in itertools.permutations((0.0, 1.0, 2.0)):
        given = iter(values)
        monkeypatch.setattr(pam, "_judge", lambda *_, given=given: next(given))
        a, b, data = network(0), network(1), batches(1)
        alignment = small(candidates=1, permutation_epochs=1, epochs=1).match(
            Problem(a, b, derive(a, data[0][0]), data, seed=0)
        )
        assert alignment.objective == 0.0 and alignment.trace == (-values[0], 0.0)
        if values[0] == 0.0:
            assert alignment.is_identity


def test_candidates_are_judged_on_the_same_batches_and_t(monkeypatch):
    seen = []
    real = RelaxedObjective.at

    def at(self, t, inputs, targets, index, matrices):
        if not torch.is_grad_enabled():
            seen.append((t, index, float(inputs.sum())))
        return real(self, t, inputs, targets, index, matrices)

    monkeypatch.setattr(RelaxedObjective, "at", at)
    a, b, data = network(0), network(1), batches(2)
    small(permutation_epochs=1, epochs=1, judged=2).match(Problem(a, b, derive(a, data[0][0]), data, seed=0))
    assert len(seen) == 2 * (2 + 4) and seen[:2] * 6 == seen


def test_the_start_and_what_was_found_are_composed():
    a, data = network(0), batches()
    spec = derive(a, data[0][0])
    first = spec.random(1, pyalign.symmetry.Kind.PERMUTATION)
    b = first.inverse().apply(a)
    answer = small(start=first, permutation_lr=1e-9).run(Problem(a, b, spec, data, seed=0))
    for name, element in answer.alignment.transforms.items():
        assert isinstance(element, ScaledPermutation) and torch.equal(element.perm, first.transforms[name].perm)


class Shuffled:
    """Batches in an order of their own, which goes on from epoch to epoch."""

    def __init__(self):
        self.batches, self.generator = batches(), torch.Generator().manual_seed(3)

    def __iter__(self):
        return iter([self.batches[i] for i in torch.randperm(3, generator=self.generator)])


def test_every_bend_is_pulled_to_where_the_last_round_left_it():
    """With an overwhelming pull the curve stays the line that it begins as, and its loss that of the line."""
    a, b, data = network(0), network(1), batches()
    held = {"proximity": 1e-9, "permutation_lr": 1e-9, "bends": 3, "rounds": 2, "weight_decay": 0.0}
    answer = small(**held).run(Problem(a, b, derive(a, data[0][0]), data, seed=0))
    free = small(**{**held, "proximity": 1e9}).run(Problem(a, b, derive(a, data[0][0]), data, seed=0))
    line = pyalign.interpolate(a, answer.alignment.apply(b), 0.3).state_dict()["4.weight"]
    torch.testing.assert_close(answer.curve.state(0.3)["4.weight"], line, rtol=1e-5, atol=1e-6)
    assert not torch.allclose(free.curve.state(0.3)["4.weight"], line, rtol=1e-3, atol=1e-3)
    assert all(not torch.equal(*pair) for pair in itertools.combinations([p[0] for p in free.curve.inner], 2))


def test_mixed_precision_computes_in_it():
    a, b, data = network(0), network(1), batches(1)
    seen = set()

    def loss(output, targets):
        seen.add(output.dtype)
        return nn.functional.cross_entropy(output.float(), targets)

    small(precision=torch.bfloat16, loss=loss).match(Problem(a, b, derive(a, data[0][0]), data, seed=0))
    assert seen == {torch.bfloat16}


@pytest.mark.parametrize("settings", [{}, {"bends": 2, "kind": "polychain", "precision": torch.bfloat16}], ids=str)
def test_it_resumes_from_its_folder(tmp_path, settings):
    small = functools.partial(globals()["small"], **settings)
    a, b, steps = network(0), network(1), []
    problem = Problem(a, b, derive(a, batches()[0][0]), Shuffled(), seed=0)

    def stop(step):
        steps.append(step)
        if len(steps) == 5:  # two phases of three steps
            raise KeyboardInterrupt

    whole = small(judged=1).run(problem)
    with pytest.raises(KeyboardInterrupt):
        small(judged=1, checkpoint=tmp_path, every=1, callback=stop).run(replace(problem, data=Shuffled()))
    problem = replace(problem, data=Shuffled())
    answer = small(judged=1, checkpoint=tmp_path, every=1).run(problem)
    assert all(torch.equal(answer.curve.state(0.5)[n], t) for n, t in whole.curve.state(0.5).items())
    assert sorted(p.name for p in tmp_path.iterdir()) == ["curve-0.safetensors", "permutations-0.safetensors"]
    again = small(judged=1, checkpoint=tmp_path).run(replace(problem, data=Shuffled()))
    assert all(torch.equal(answer.curve.state(0.5)[n], t) for n, t in again.curve.state(0.5).items())
    with pytest.raises(CheckpointError, match="another run"):
        small(judged=1, checkpoint=tmp_path, lr=0.2).run(replace(problem, data=Shuffled()))


@pytest.mark.parametrize(
    "wrong",
    [{"rounds": 0}, {"epochs": 0}, {"judged": 0}, {"candidates": -1}, {"proximity": 0.0}, {"bends": 0}],
    ids=str,
)
def test_settings_that_cannot_be(wrong):
    with pytest.raises(InputError):
        PAM(**wrong)


def test_problems_that_cannot_be():
    a, b, data = network(0), network(1), batches()
    spec = derive(a, data[0][0])
    with pytest.raises(InputError, match="needs data"):
        small().match(Problem(a, b, spec))
    with pytest.raises(DataError, match="no targets"):
        small().match(Problem(a, b, spec, [x for x, _ in data]))
    other = network(0, width=6)
    start = derive(other, data[0][0]).identity()
    with pytest.raises(MismatchError, match="another architecture"):
        small(start=start).match(Problem(a, b, spec, data))
