"""Attention with shared keys and values, as different codes write it: one symmetry, derived, verified and recovered."""

from __future__ import annotations

import math
import warnings
from collections import Counter
from dataclasses import dataclass, replace

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import rms_norm, scaled_dot_product_attention

from pyalign import align, derive
from pyalign.errors import SymmetryError
from pyalign.symmetry import Flat, Kind, SymmetrySpec, Wreath, verify

from .helpers import listed

FORMS = ("expand", "interleave", "index", "tile", "broadcast", "einsum", "enable_gqa")


@dataclass
class Shape:
    """A small attention: `heads` query heads that share `shared` keys and values, each of `width` entries."""

    form: str
    heads: int = 4
    shared: int = 2
    width: int = 4
    bias: bool = False
    sinks: bool = False
    fused: bool = False
    rotary: bool = False
    normed: bool = False
    apart: bool = False

    @classmethod
    def random(cls, seed: int) -> Shape:
        g = torch.Generator().manual_seed(seed)
        number = lambda n: int(torch.randint(n, (), generator=g))  # noqa: E731
        shared, form = 1 + number(3), FORMS[number(len(FORMS))]
        sinks = number(2) == 1 and form in ("expand", "interleave", "index", "tile")
        flags = [number(2) == 1 for _ in range(3)]
        return cls(form, shared * (2 + number(2)), shared, 2 * (2 + number(2)), flags[0], sinks, flags[1], flags[2])


class Network(nn.Module):
    """One such attention between two layers."""

    def __init__(self, shape: Shape, stream: int = 10) -> None:
        super().__init__()
        s = self.shape = shape
        sizes = [s.heads * s.width, s.shared * s.width, s.shared * s.width]
        self.first, self.last = nn.Linear(5, stream), nn.Linear(stream, 3)
        self.qkv = nn.ModuleList(
            [nn.Linear(stream, n, bias=s.bias) for n in ([sum(sizes)] if s.fused else sizes)]
        )  # fmt: skip
        self.o, self.sizes = nn.Linear(sizes[0], stream, bias=s.bias), sizes
        self.sinks = nn.Parameter(torch.randn(s.heads)) if s.sinks else None

    def forward(self, x: Tensor) -> Tensor:
        x = torch.tanh(self.first(x))
        s, batch, length = self.shape, x.shape[0], x.shape[1]
        parts = torch.cat([layer(x) for layer in self.qkv], -1).split(self.sizes, -1)
        q, k, v = (part.view(batch, length, -1, s.width).transpose(1, 2) for part in parts)
        if s.normed:
            q, k = (rms_norm(z, (s.width,)) for z in (q, k))
        if s.rotary:
            q, k = (turned(z) if s.apart else rotated(z) for z in (q, k))
        y = self.attended(q / math.sqrt(s.width), k, v).transpose(1, 2).reshape(batch, length, -1)
        result: Tensor = self.last(x + self.o(y))
        return result

    def attended(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        s = self.shape
        b, t, times = q.shape[0], q.shape[2], s.heads // s.shared
        apart = q.reshape(b, s.shared, times, t, s.width)
        if s.form == "enable_gqa":
            return scaled_dot_product_attention(q, k, v, enable_gqa=True, is_causal=True, scale=1.0)
        if s.form == "einsum":
            scores = torch.einsum("bgrtd,bgsd->bgrts", apart, k)
            return torch.einsum("bgrts,bgsd->bgrtd", scores.softmax(-1), v).reshape(q.shape)
        if s.form == "broadcast":
            return ((apart @ k.unsqueeze(2).mT).softmax(-1) @ v.unsqueeze(2)).reshape(q.shape)
        k, v = (repeated(x, s.form, times) for x in (k, v))
        scores = q @ k.mT
        if self.sinks is None:
            return scores.softmax(-1) @ v
        sinks = self.sinks.reshape(1, -1, 1, 1).expand(b, -1, t, -1)
        return torch.cat([scores, sinks], -1).softmax(-1)[..., :-1] @ v


def repeated(x: Tensor, form: str, times: int) -> Tensor:
    b, n, t, d = x.shape
    if form == "expand":
        return x[:, :, None].expand(b, n, times, t, d).reshape(b, n * times, t, d)
    if form == "interleave":
        return x.repeat_interleave(times, 1)
    return x[:, torch.arange(n).repeat_interleave(times)] if form == "index" else x.repeat(1, times, 1, 1)


def rotated(x: Tensor) -> Tensor:
    t, d = x.shape[-2:]
    angle = torch.arange(t)[:, None] / 10.0 ** (torch.arange(0, d, 2) / d)
    cos, sin = (f(torch.cat([angle, angle], -1)).to(x) for f in (torch.cos, torch.sin))
    one, two = x.chunk(2, -1)
    return x * cos + torch.cat([-two, one], -1) * sin


def turned(x: Tensor) -> Tensor:
    """The same rotation for code that keeps the two parts of pairs (here neighbours) apart."""
    t, d = x.shape[-2:]
    angle = torch.arange(t)[:, None] / 10.0 ** (torch.arange(0, d, 2) / d)
    cos, sin = angle.cos().to(x), angle.sin().to(x)
    one, two = x[..., ::2], x[..., 1::2]
    return torch.stack([one * cos - two * sin, one * sin + two * cos], -1).flatten(-2)


def complex_turned(x: Tensor) -> Tensor:
    """The same rotation of neighbours, written with complex numbers."""
    t, d = x.shape[-2:]
    angle = torch.arange(t)[:, None] / 10.0 ** (torch.arange(0, d, 2) / d)
    turns = torch.polar(torch.ones_like(angle), angle).to(torch.complex128)
    return torch.view_as_real(torch.view_as_complex(x.reshape(*x.shape[:-1], -1, 2)) * turns).flatten(-2)


def built(shape: Shape) -> tuple[nn.Module, Tensor, SymmetrySpec]:
    torch.manual_seed(0)
    model, x = Network(shape).double().eval(), torch.randn(2, 6, 5, dtype=torch.float64)
    return model, x, derive(model, x, within=Kind.INVERTIBLE)


def expected(s: Shape) -> dict[str, int]:
    """Key-value heads, query heads within them, and matrices within key-value heads."""
    free = "invertible"
    pairs = ("" if s.normed else "scaled ") + "rotation of pairs" if s.rotary else "orthogonal" if s.normed else free
    if s.shared == 1:
        within = Counter([f"{pairs} {s.width}", f"{free} {s.width}"])
        return {"signed permutation 10": 1, f"permutation {s.heads}": 1, **within}
    within = Counter([f"{pairs} {s.shared}x{s.width}", f"{free} {s.shared}x{s.width}"])
    blocks = {f"permutation {s.shared}": 1, f"permutation {s.shared}x{s.heads // s.shared}": 1}
    return {"signed permutation 10": 1, **blocks, **within}


def check(shape: Shape, seed: int = 5, recover: bool = False) -> None:
    model, x, spec = built(shape)
    assert dict(listed(spec)) == expected(shape), spec.report()
    assert verify(spec, model, x, seed=seed).error < 1e-9
    if not recover:
        return
    moved = spec.random(seed).apply(model)
    found = align(model, moved, method="weight", spec=spec, verify=False).apply(moved).state_dict()
    for name, tensor in model.state_dict().items():
        torch.testing.assert_close(found[name], tensor, rtol=1e-7, atol=1e-7)


@pytest.mark.parametrize("form", FORMS)
def test_query_heads_move_within_their_key_value_heads(form: str) -> None:
    check(Shape(form))


@pytest.mark.parametrize("form", ["expand", "einsum", "enable_gqa"])
def test_one_key_and_value_for_all_query_heads(form: str) -> None:
    check(Shape(form, shared=1), recover=form == "expand")


@pytest.mark.parametrize("rotary", [False, True])
def test_norms_of_queries_and_keys_leave_what_keeps_lengths(rotary: bool) -> None:
    check(Shape("enable_gqa", rotary=rotary, normed=True), recover=True)


def test_rotations_are_found_where_the_code_keeps_their_parts_apart() -> None:
    check(Shape("enable_gqa", rotary=True, apart=True))


def test_rotations_are_found_in_complex_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(globals(), "turned", complex_turned)
    check(Shape("enable_gqa", rotary=True, apart=True), recover=True)
    check(Shape("expand", rotary=True, apart=True, normed=True))


def test_pairs_that_meet_in_other_complex_products_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    def squared(x: Tensor) -> Tensor:
        pairs = torch.view_as_complex(x.reshape(*x.shape[:-1], -1, 2))
        return torch.view_as_real(pairs * pairs).flatten(-2)

    monkeypatch.setitem(globals(), "turned", squared)
    model, x, spec = built(Shape("enable_gqa", rotary=True, apart=True))
    assert not any(g.kind.paired for g in spec.groups.values())
    assert verify(spec, model, x).error < 1e-9


def test_an_odd_head_keeps_the_entry_that_has_no_partner(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(globals(), "turned", lambda x: torch.cat([rotated(x[..., :4]), x[..., 4:]], -1))
    model, x, spec = built(Shape("enable_gqa", width=5, rotary=True, apart=True))
    found = {"permutation 2": 1, "permutation 2x2": 1, "scaled rotation of pairs 2x4": 1, "invertible 2x5": 1}
    assert dict(listed(spec)) == {"signed permutation 10": 1, **found}
    assert verify(spec, model, x).error < 1e-9


def test_a_reflection_is_no_rotation(monkeypatch: pytest.MonkeyPatch) -> None:
    def reflected(x: Tensor) -> Tensor:
        angle = torch.arange(x.shape[-2], dtype=x.dtype)[:, None] / torch.arange(1, x.shape[-1] // 2 + 1)
        one, two = x.chunk(2, -1)
        return torch.cat([one * angle.cos() + two * angle.sin(), one * angle.sin() - two * angle.cos()], -1)

    monkeypatch.setitem(globals(), "turned", reflected)
    model, x, spec = built(Shape("enable_gqa", rotary=True, apart=True))
    assert not any(g.kind.paired for g in spec.groups.values())
    assert verify(spec, model, x).error < 1e-9


@pytest.mark.parametrize("seed", range(2))
def test_random_attentions(seed: int) -> None:
    check(Shape.random(seed), seed, recover=True)


def test_query_heads_of_different_keys_do_not_change_places() -> None:
    model, x, spec = built(Shape("expand", rotary=True))
    queries = next(g for g in spec.groups.values() if not g.kind.mixes and isinstance(g.structure, Wreath))
    wrong = replace(spec, groups={**spec.groups, queries.name: replace(queries, structure=Flat())})
    with pytest.raises(SymmetryError):
        for seed in range(3):  # one of 24 orders is right by chance
            verify(wrong, model, x, seed=seed)


def test_unlike_query_heads_stay_in_their_block() -> None:
    class Sloped(Network):
        """A constant slope for each head, as in ALiBi, tells the heads apart."""

        def attended(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            k, v = (repeated(x, "expand", 2) for x in (k, v))
            slopes = torch.arange(1, 5).to(q)[:, None, None] * torch.arange(q.shape[2]).to(q)
            return (q @ k.mT + slopes).softmax(-1) @ v

    torch.manual_seed(0)
    model, x = Sloped(Shape("expand")).double().eval(), torch.randn(2, 6, 5, dtype=torch.float64)
    spec = derive(model, x, within=Kind.INVERTIBLE)
    assert dict(listed(spec)) == {"signed permutation 10": 1, "invertible 4": 4}
    assert verify(spec, model, x).passed


def test_values_whose_axis_is_lost_among_others_are_not_mixed() -> None:
    class Tabled(Network):
        """Scores plus a number for each head, query and key, all on one axis of a parameter."""

        def __init__(self, shape: Shape) -> None:
            super().__init__(shape)
            self.table = nn.Parameter(torch.randn(shape.heads * 36))

        def attended(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            return (q @ k.mT + self.table.view(-1, 6, 6)).softmax(-1) @ v

    torch.manual_seed(0)
    model, x = Tabled(Shape("expand", shared=4)).double().eval(), torch.randn(2, 6, 5, dtype=torch.float64)
    spec = derive(model, x, within=Kind.INVERTIBLE)
    assert dict(listed(spec)) == {"signed permutation 10": 1, "invertible 4": 4}  # queries with keys
    assert verify(spec, model, x).error < 1e-9


class Windows(nn.Module):
    """Gates with a bias for each place, written window by window into a tensor of its own (as in DeepSeek-V4)."""

    def __init__(self) -> None:
        super().__init__()
        self.value, self.gate, self.out = nn.Linear(6, 16), nn.Linear(6, 16), nn.Linear(8, 3)
        self.places = nn.Parameter(torch.randn(4, 16))

    def forward(self, x: Tensor) -> Tensor:
        value, gate = self.value(x).view(2, 3, 4, 16), self.gate(x).view(2, 3, 4, 16) + self.places
        values, gates = value.new_zeros(2, 3, 8, 8), gate.new_full((2, 3, 8, 8), float("-inf"))
        for whole, part in ((values, value), (gates, gate)):
            whole[:, :, 4:] = part[..., 8:]
            whole[:, 1:, :4] = part[:, :-1, :, :8]
        pooled = (values * gates.softmax(2)).sum(2) * torch.arange(1, 9)
        return self.out(pooled)


@pytest.mark.parametrize("within", [Kind.SCALED, Kind.INVERTIBLE])
def test_what_is_written_with_two_kinds_of_units_stays(within: Kind) -> None:
    torch.manual_seed(0)
    model, x = Windows().eval(), torch.randn(2, 12, 6)
    spec = derive(model, x, within=within)
    assert verify(spec, model, x).passed


class Solved(nn.Module):
    """A linear system for each head, as in gated delta networks: linear in its right side, whose units are free."""

    def __init__(self) -> None:
        super().__init__()
        self.key, self.value, self.out = nn.Linear(6, 12), nn.Linear(6, 12), nn.Linear(12, 3)

    def forward(self, x: Tensor) -> Tensor:
        key, value = (layer(x).view(2, 5, 3, 4).transpose(1, 2) for layer in (self.key, self.value))
        system = (key @ key.mT).tril(-1) + torch.eye(5).to(x)
        mixed = torch.linalg.solve_triangular(system, value, upper=False, unitriangular=True)
        return self.out(mixed.transpose(1, 2).reshape(2, 5, 12))


def test_triangular_systems_are_linear_in_their_right_side() -> None:
    torch.manual_seed(0)
    model, x = Solved().eval(), torch.randn(2, 5, 6)
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        spec = derive(model, x, within=Kind.INVERTIBLE)
    assert listed(spec)["permutation 3"] == 1 and listed(spec)["invertible 3x4"] == 1
    assert verify(spec, model, x).passed


class Apart(nn.Module):
    """Projections with axes of their own for heads and for what is in them, as XLNet has them, all by einsum."""

    def __init__(self, heads: int, width: int) -> None:
        super().__init__()
        self.words = nn.Embedding(7, 8)
        self.qkvo = nn.ParameterList(torch.randn(8, heads, width) * 0.3 for _ in range(4))
        self.last = nn.Linear(8, 3)

    def forward(self, ids: Tensor) -> Tensor:
        x = self.words(ids)
        q, k, v = (torch.einsum("ibh,hnd->ibnd", x, w) for w in self.qkvo[:3])
        scores = torch.einsum("ibnd,jbnd->bnij", q, k).softmax(-1)
        out = torch.einsum("bnij,jbnd->ibnd", scores, v)
        return self.last(x + torch.einsum("ibnd,hnd->ibh", out, self.qkvo[3]))


@pytest.mark.parametrize(("heads", "width"), [(4, 3), (3, 4), (2, 6)])
def test_heads_with_an_axis_of_their_own(heads: int, width: int) -> None:
    torch.manual_seed(0)
    model, ids = Apart(heads, width).double(), torch.arange(12).reshape(6, 2) % 7
    spec = derive(model, ids, within=Kind.INVERTIBLE)
    order = next(g for g in spec.groups.values() if g.size == heads and not g.kind.mixes)
    assert {(b.tensor, b.axis) for b in spec.of(order.name)} == {(f"qkvo.{n}", 1) for n in range(4)}, spec.report()
    assert listed(spec)[f"invertible {width}"] == 2
    assert verify(spec, model, ids).passed
