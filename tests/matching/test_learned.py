"""Learned matching: projections and their gradients, latents that act as their elements, and the search."""

from __future__ import annotations

import itertools
import math
from functools import cache

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import pyalign
from pyalign.errors import CheckpointError, InputError, MismatchError, NonFiniteError, PyalignWarning
from pyalign.matching import LearnedMatching, Problem
from pyalign.matching.latents import Latent, Matrices, Projection, latents_of
from pyalign.matching.learned_objective import LearnedObjective, sampler_of
from pyalign.matching.projectors import best_order, placed, polar, sinkhorn
from pyalign.symmetry import BlockLinear, Group, Kind, ScaledPermutation, SymmetrySpec, Wreath, derive, state_of
from pyalign.symmetry.elements import composed
from tests.symmetry.test_attention import Network, Shape


class Attention(nn.Module):
    """Pre-norm without scales, two heads, gelu: orthogonal, permutation, invertible within heads."""

    def __init__(self, d: int = 8, heads: int = 2, rotary: bool = False) -> None:
        super().__init__()
        self.heads, self.rotary = heads, rotary
        self.embed = nn.Linear(5, d)
        self.qkv, self.out = nn.Linear(d, 3 * d), nn.Linear(d, d)
        self.norm = nn.RMSNorm(d, elementwise_affine=False)
        self.up, self.down, self.head = nn.Linear(d, 6), nn.Linear(6, d), nn.Linear(d, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        b, n, d = x.shape
        q, k, v = (t.view(b, n, self.heads, -1).transpose(1, 2) for t in self.qkv(self.norm(x)).split(d, dim=2))
        x = x + self.out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(b, n, d))
        x = x + self.down(F.gelu(self.up(self.norm(x))))
        return self.head(self.norm(x).mean(1))


def mixed_network() -> nn.Module:
    """Signs, positive factors, groups in blocks and a flatten."""
    return nn.Sequential(
        nn.Conv2d(1, 6, 1), nn.GroupNorm(3, 6), nn.Tanh(), nn.Conv2d(6, 4, 1), nn.ReLU(), nn.Flatten(),
        nn.Linear(16, 5), nn.Tanh(), nn.Linear(5, 3),
    )  # fmt: skip


def grouped_network() -> nn.Module:
    """Grouped convolutions, whose blocks move with their channels."""
    return nn.Sequential(
        nn.Conv2d(1, 6, 1), nn.Tanh(), nn.Conv2d(6, 4, 1, groups=2), nn.ReLU(), nn.Conv2d(4, 4, 1, groups=4),
        nn.Flatten(), nn.Linear(16, 5), nn.Tanh(), nn.Linear(5, 3),
    )  # fmt: skip


class Mixture(nn.Module):
    """Three experts in a list, the two best of each token."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.gate, self.head = nn.Linear(5, 6), nn.Linear(6, 3), nn.Linear(6, 3)
        self.experts = nn.ModuleList(nn.Sequential(nn.Linear(6, 7), nn.Tanh(), nn.Linear(7, 6)) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        x = torch.tanh(self.embed(x))
        best, index = self.gate(x).topk(2, -1)
        weight = torch.zeros(*x.shape[:-1], 3, dtype=x.dtype).scatter(-1, index, best.softmax(-1))
        mixed = sum(weight[..., n : n + 1] * expert(x) for n, expert in enumerate(self.experts))
        return self.head(x + mixed).mean(1)


@cache
def derived(make, within: Kind) -> tuple[nn.Module, Tensor, SymmetrySpec]:
    """A network, inputs, and the symmetry, found once."""
    torch.manual_seed(0)
    model = make().double()
    x = torch.randn((16, 4, 5) if make in (Attention, Mixture) else (16, 1, 2, 2), dtype=torch.float64)
    return model, x, derive(model, x, within=within)


def problem(make, noise: float = 0.02, within: Kind = Kind.INVERTIBLE) -> Problem:
    """B is a random element of the group applied to A with a little noise."""
    model, x, spec = derived(make, within)
    moved = spec.random(0).apply(model)
    with torch.no_grad():
        for p in moved.parameters():
            p += noise * torch.randn(p.shape, generator=torch.Generator().manual_seed(0), dtype=p.dtype)
    return Problem(model, moved, spec, [(x, model(x).argmax(1))], progress=False)


def attention(noise: float = 0.02) -> Problem:
    return problem(Attention, noise)


def reordered_attention(noise: float = 0.02) -> Problem:
    """The same without mixing: units within heads change places, signs and sizes."""
    return problem(Attention, noise, Kind.SCALED)


def convolution(noise: float = 0.02) -> Problem:
    return problem(mixed_network, noise)


def grouped(noise: float = 0.02) -> Problem:
    return problem(grouped_network, noise)


def mixture(noise: float = 0.02) -> Problem:
    return problem(Mixture, noise)


@pytest.mark.parametrize("shape", [(1, 1), (4, 4), (2, 3, 3)])
def test_the_polar_factor_and_its_gradient(shape):
    generator = torch.Generator().manual_seed(len(shape))
    latent = torch.randn(shape, generator=generator, dtype=torch.float64)
    factor = polar(latent)
    u, _, vh = torch.linalg.svd(latent)
    torch.testing.assert_close(factor, u @ vh)
    # At an orthogonal latent all singular values coincide, and torch's own gradient of the decomposition is NaN.
    for start in (latent, factor, 3.0 * torch.eye(shape[-1], dtype=torch.float64).expand(shape)):
        assert torch.autograd.gradcheck(polar, (start.clone().requires_grad_(),))
    singular = torch.zeros(shape, dtype=torch.float64).requires_grad_()
    polar(singular).sum().backward()
    assert singular.grad is not None and bool((singular.grad == 0).all())


def test_orders_pass_their_gradient_straight_through():
    generator = torch.Generator().manual_seed(0)
    rows = torch.randn(2, 4, 3, generator=generator, dtype=torch.float64).requires_grad_()
    latent = torch.randn(2, 4, 4, generator=generator, dtype=torch.float64).requires_grad_()
    perm, sign = best_order(latent, torch.arange(4).repeat(2, 1), signs=True)
    assert sign is not None
    matrices = torch.zeros(2, 4, 4, dtype=torch.float64).scatter_(2, perm.unsqueeze(-1), sign.unsqueeze(-1))
    size = latent[0].detach().abs()
    best = max(float(size[range(4), order].sum()) for order in itertools.permutations(range(4)))
    assert float((matrices[0] * latent[0]).detach().sum()) == pytest.approx(best)
    upstream = torch.randn(2, 4, 3, generator=generator, dtype=torch.float64)
    for odd, dense in ((True, matrices), (False, matrices.abs())):
        out = placed(rows, latent, perm, sign, odd)
        torch.testing.assert_close(out, dense @ rows)
        to_rows, to_latent = torch.autograd.grad(out, (rows, latent), upstream)
        torch.testing.assert_close(to_rows, dense.mT @ upstream)
        through = upstream @ rows.mT
        torch.testing.assert_close(to_latent, through if odd else through * sign.unsqueeze(-1))


def test_sinkhorn_gives_doubly_stochastic_matrices_that_sharpen():
    latent = torch.randn(2, 5, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    soft, sharp = sinkhorn(latent, 1.0, 200), sinkhorn(latent, 0.02, 2000)
    for matrix in (soft, sharp):
        torch.testing.assert_close(matrix.sum(1), torch.ones(2, 5, dtype=torch.float64), rtol=0, atol=1e-3)
        torch.testing.assert_close(matrix.sum(2), torch.ones(2, 5, dtype=torch.float64), rtol=0, atol=1e-3)
    perm, _ = best_order(latent, torch.arange(5).repeat(2, 1), signs=False)
    assert torch.equal(sharp.argmax(-1), perm) and float(soft.amax()) < 0.99


@pytest.mark.parametrize("make", [attention, reordered_attention, convolution, grouped, mixture])
@pytest.mark.parametrize("soft", [False, True])
def test_latents_act_on_the_tensors_as_their_elements_do(make, soft):
    """Wherever latents are, on every binding; and soft ones when they are projected hard."""
    given = make()
    like = next(given.model_b.parameters()).detach()
    latents, held = latents_of(given.spec, like, permutations=True, projection=Projection(soft))
    assert not held
    generator = torch.Generator().manual_seed(1)
    for latent in latents.values():
        for part, parameter in latent.parameters.items():
            noise = torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype)
            parameter.data += (10.0 if soft and part == "order" else 1.0) * noise
    elements = {}
    for name, latent in latents.items():
        elements[name] = latent.element(elements)
    assert sum(not element.is_identity for element in elements.values()) > len(elements) / 2
    expected = given.spec.stacked(given.spec.apply(elements, state_of(given.model_b)))
    objective = objective_of(given, latents)
    objective._refresh(hard=True)
    for name, moves in objective.moves.items():
        moved = objective.b[name]
        for move in moves:
            moved = move(moved)
        torch.testing.assert_close(moved.detach(), expected[name])


@pytest.mark.parametrize("make", [attention, reordered_attention, mixture])
def test_soft_blocks_take_along_what_is_within_them(make):
    """Where soft matrices are all but permutations, tensors move as by the element that the latents stand for."""
    given = make()
    like = next(given.model_b.parameters()).detach()
    latents, _ = latents_of(given.spec, like, permutations=True, projection=Projection(True))
    generator = torch.Generator().manual_seed(3)
    for latent in latents.values():
        for part, parameter in latent.parameters.items():
            noise = torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype)
            if part == "order":
                order = torch.randperm(parameter.shape[-1], generator=generator)
                order = order.roll(1) if torch.equal(order, torch.arange(len(order))) else order
                parameter.data.copy_(60.0 * torch.eye(len(order), dtype=parameter.dtype)[order])
            else:
                parameter.data += 0.3 * noise
    objective = objective_of(given, latents)
    objective._refresh(hard=False)
    moved = {}
    for name, moves in objective.moves.items():
        moved[name] = objective.b[name]
        for move in moves:
            moved[name] = move(moved[name])
    elements = {}
    for name, latent in latents.items():
        elements[name] = latent.element(elements)
    expected = given.spec.stacked(given.spec.apply(elements, state_of(given.model_b)))
    for name, tensor in moved.items():
        torch.testing.assert_close(tensor.detach(), expected[name], rtol=1e-6, atol=1e-6)


def objective_of(given: Problem, latents, **changes) -> LearnedObjective:
    settings = {"sampler": sampler_of(0.5), "loss": None, "seed": 0, "window": 5, "held": None, "name": "test"}
    return LearnedObjective(given.spec, given.model_a, given.model_b, latents, **{**settings, **changes})


@pytest.mark.parametrize("make", [attention, reordered_attention, convolution, grouped, mixture])
def test_gradients_of_what_is_smooth_are_those_of_the_loss(make):
    given = make(noise=0.3)
    like = next(given.model_b.parameters()).detach()
    latents, _ = latents_of(given.spec, like, permutations=True, projection=Projection(soft=True, temperature=2.0))
    objective = objective_of(given, latents)
    objective.loss(given.data[0], 0, 1.0).backward()
    generator = torch.Generator().manual_seed(2)
    for parameter in objective.parameters:
        towards = torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype)
        values = []
        for step in (1e-5, -2e-5):
            parameter.data += step * towards
            values.append(objective.loss(given.data[0], 0, 1.0).item())
        parameter.data += 1e-5 * towards
        slope = (values[0] - values[1]) / 2e-5
        assert float((parameter.grad * towards).sum()) == pytest.approx(slope, rel=1e-4, abs=1e-7)


@pytest.mark.parametrize(
    ("make", "projector"),
    [(attention, "assignment"), (convolution, "sinkhorn"), (grouped, "sinkhorn"), (mixture, "assignment")],
)
def test_it_lowers_the_loss_by_an_exact_element(make, projector):
    given = make(noise=0.3)
    x, _ = given.data[0]
    before = pyalign.barrier(given.model_a, given.model_b, given.data, points=3).loss[1]
    method = LearnedMatching(start=None, steps=20, lr=0.05, projector=projector, window=10, held=given.data)
    answer = method.match(given)
    aligned = answer.apply(given.model_b)
    torch.testing.assert_close(aligned(x), given.model_b(x), rtol=1e-9, atol=1e-9)
    assert pyalign.barrier(given.model_a, aligned, given.data, points=3).loss[1] < before - 0.01
    assert answer.objective is not None and not answer.is_identity


def test_the_start_is_kept_where_learning_does_harm():
    given = attention(noise=0.0)
    start = pyalign.align(given.model_a, given.model_b, given.data, method="weight", spec=given.spec)
    outputs = given.model_a(given.data[0][0]).detach()

    def distance(output: Tensor, _: Tensor) -> Tensor:
        return F.mse_loss(output, outputs)

    method = LearnedMatching(start=start, steps=4, lr=5.0, window=1, held=given.data, loss=distance)
    answer = method.match(given)
    for name, element in start.transforms.items():
        left = composed(answer.transforms[name], element.inverse())
        if isinstance(left, BlockLinear):
            assert float((left.matrices - torch.eye(left.matrices.shape[-1])).abs().max()) < 1e-6
        else:
            assert left.is_identity


def test_it_resumes_to_the_bit_and_repeats_itself(tmp_path):
    given = attention(noise=0.3)
    made = {"start": None, "lr": 0.05, "window": 3}
    whole = LearnedMatching(steps=12, **made).match(given)
    path = tmp_path / "run.safetensors"

    def stop(step: pyalign.paths.Step) -> None:
        if step.step == 8:
            raise KeyboardInterrupt

    resumed = {**made, "checkpoint": path, "every": 4, "steps": 12}
    with pytest.raises(KeyboardInterrupt):
        LearnedMatching(callback=stop, **resumed).match(given)
    again = LearnedMatching(**resumed).match(given)
    assert again.objective == whole.objective
    for name, element in whole.transforms.items():
        other = again.transforms[name]
        if isinstance(element, ScaledPermutation):
            assert torch.equal(element.perm, other.perm)
        else:
            assert torch.equal(element.matrices, other.matrices)
    with pytest.raises(CheckpointError, match="another run"):
        LearnedMatching(**{**resumed, "t": 0.5}).match(given)


def test_a_loss_that_is_not_finite_ends_the_search_with_what_was_good():
    given = attention(noise=0.3)
    calls = iter(range(1000))

    def fragile(output: Tensor, targets: Tensor) -> Tensor:
        loss = F.cross_entropy(output, targets)
        return loss * math.nan if next(calls) == 7 else loss

    with pytest.warns(PyalignWarning, match="ended early"):
        answer = LearnedMatching(start=None, steps=20, lr=0.02, loss=fragile, window=5).match(given)
    assert any("best after 5 steps" in note for note in answer.notes)
    x, _ = given.data[0]
    torch.testing.assert_close(answer.apply(given.model_b)(x), given.model_b(x), rtol=1e-9, atol=1e-9)

    def broken(output: Tensor, targets: Tensor) -> Tensor:
        return output.sum() * math.nan

    with pytest.raises(NonFiniteError):
        LearnedMatching(start=None, steps=3, loss=broken).match(given)


def test_what_cannot_be_is_refused():
    given = attention()
    for wrong in ({"projector": "softmax"}, {"t": (0.6, 1.2)}, {"window": 0}, {"temperature": 0.0}):
        with pytest.raises(InputError):
            LearnedMatching(**wrong)
    with pytest.raises(InputError, match="needs data"):
        LearnedMatching().match(Problem(given.model_a, given.model_b, given.spec))
    with pytest.raises(MismatchError):
        LearnedMatching(start=convolution().spec.identity()).match(given)
    with pytest.raises(InputError, match="exactly one"):
        LearnedMatching(start=None, steps=3, epochs=2).match(given)


def test_models_without_symmetry_are_answered():
    still = nn.Linear(3, 2)
    answer = pyalign.align(still, still, [(torch.randn(4, 3), torch.zeros(4).long())], method="learned")
    assert answer.is_identity and any("can be learnt" in note for note in answer.notes)


@pytest.mark.parametrize("kind", [Kind.ROTATION, Kind.TURN, Kind.CENTRED, Kind.ORTHOGONAL, Kind.INVERTIBLE])
def test_matrices_are_of_their_class_wherever_the_latent_is(kind):
    spec = attention().spec
    top = next(n for n, g in spec.groups.items() if g.size == 2)
    group = Group("turned", 8, kind, Wreath(top, 2))
    latent = Matrices(group, Latent(spec.groups[top], None), torch.zeros(1, dtype=torch.float64))
    latent.latent.data.normal_(generator=torch.Generator().manual_seed(0))
    latent.refresh(hard=False)
    element = latent.element({top: ScaledPermutation.identity(2)})
    assert isinstance(element, BlockLinear) and element.kind is kind
    rows = torch.randn(8, 3, dtype=torch.float64)
    for power in (1, -1):
        torch.testing.assert_close(latent.act(rows, power).detach(), element.act(rows, power))


def test_rotary_heads_in_single_precision() -> None:
    """Sizes and angles of pairs become matrices in float64, whatever the latents are."""
    torch.manual_seed(0)
    ends = [Network(Shape("expand", rotary=True)).eval() for _ in range(2)]
    x = torch.randn(8, 6, 5)
    data = [(x, torch.randint(3, (8, 6)))]
    spec = derive(ends[0], x, within=Kind.INVERTIBLE)
    assert any(g.kind is Kind.ROTATION for g in spec.groups.values())

    def loss(output: Tensor, targets: Tensor) -> Tensor:
        return F.cross_entropy(output.flatten(0, 1), targets.flatten())

    found = pyalign.align(*ends, data, method=LearnedMatching(steps=3, loss=loss), spec=spec)
    assert any("3 steps" in note for note in found.notes)
    torch.testing.assert_close(found.apply(ends[1])(x), ends[1](x), rtol=1e-4, atol=1e-4)
