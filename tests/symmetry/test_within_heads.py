"""Units within attention heads where nothing may be mixed: they change places, signs and sizes inside their head."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

import pyalign
from pyalign.matching import ActivationMatching, WeightMatching
from pyalign.symmetry import Kind, ScaledPermutation, SymmetrySpec, Wreath, derive, state_of

WIDTH, INPUTS = 4, torch.randn(6, 5, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


class Attention(nn.Module):
    """Attention by hand: `heads` queries for `shared` keys and values, `rotary` embeddings of the halves of a head."""

    def __init__(self, heads: int = 4, shared: int = 4, rotary: bool = False) -> None:
        super().__init__()
        self.heads, self.shared, self.rotary = heads, shared, rotary
        self.stem = nn.Linear(8, 10)
        self.q, self.k, self.v = (nn.Linear(10, n * WIDTH) for n in (heads, shared, shared))
        self.o, self.head = nn.Linear(heads * WIDTH, 7), nn.Linear(7, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.tanh(self.stem(x))
        q, k, v = (layer(x).unflatten(-1, (-1, WIDTH)).transpose(1, 2) for layer in (self.q, self.k, self.v))
        if self.rotary:
            q, k = turned(q), turned(k)
        k, v = (t.repeat_interleave(self.heads // self.shared, 1) for t in (k, v))
        scores = (q @ k.transpose(-1, -2) / math.sqrt(WIDTH)).softmax(-1)
        return self.head(torch.tanh(self.o((scores @ v).transpose(1, 2).flatten(2))))


def turned(x: Tensor) -> Tensor:
    angles = torch.arange(x.shape[-2], dtype=x.dtype).unsqueeze(1) * torch.tensor([1.0, 0.1], dtype=x.dtype)
    cosine, sine = (torch.cat([f, f], -1) for f in (angles.cos(), angles.sin()))
    return x * cosine + torch.cat([-x[..., WIDTH // 2 :], x[..., : WIDTH // 2]], -1) * sine


SHAPES = {
    "every head its own": {"heads": 4, "shared": 4},
    "keys of groups": {"heads": 4, "shared": 2},
    "one key for all": {"heads": 4, "shared": 1},
    "rotary": {"heads": 4, "shared": 2, "rotary": True},
}


def network(shape: str) -> nn.Module:
    torch.manual_seed(1)
    return Attention(**SHAPES[shape]).double().eval()


def inner(spec: SymmetrySpec) -> dict[str, tuple[int, Kind, int]]:
    """Size, class and number of blocks of the groups within heads."""
    groups = [spec.groups[name] for name in sorted(spec.placed)]
    return {g.name: (g.size, g.kind, g.structure.blocks if isinstance(g.structure, Wreath) else 1) for g in groups}


@pytest.mark.parametrize("kind", [Kind.PERMUTATION, Kind.SIGNED, Kind.SCALED])
@pytest.mark.parametrize("shape", SHAPES)
def test_the_groups_are_those_written_by_hand(shape: str, kind: Kind) -> None:
    shared = SHAPES[shape]["shared"]
    one = (shared * WIDTH, kind, shared)
    expected = {"v.within": one} if "rotary" in shape else {"q.within": one, "v.within": one}
    model = network(shape)
    spec = derive(model, INPUTS, within=kind)
    assert inner(spec) == expected
    assert inner(derive(model, INPUTS, within=Kind.INVERTIBLE).within(kind)) == expected
    on = {(b.tensor, b.axis, b.side.power, b.positions.shape[1]) for b in spec.of("v.within")}
    runs = SHAPES[shape]["heads"] // shared
    assert on == {("v.weight", 0, 1, 1), ("v.bias", 0, 1, 1), ("o.weight", 1, -1, runs)}
    assert spec.verify(model, INPUTS).error < 1e-12
    assert not any(site.group in spec.placed and site.positions.shape[0] != shared * WIDTH for site in spec.sites)


@pytest.mark.parametrize("kind", list(Kind))
@pytest.mark.parametrize("shape", SHAPES)
def test_it_can_be_restricted_to_every_class(shape: str, kind: Kind) -> None:
    """Blocks that may not move stay in the spec where what is within them may."""
    model = network(shape)
    spec = derive(model, INPUTS, within=Kind.INVERTIBLE).within(kind)
    assert all(group.kind <= kind for group in spec.groups.values())
    assert all(spec.groups[g.structure.outer] for g in spec.groups.values() if isinstance(g.structure, Wreath))
    assert spec.verify(model, INPUTS).error < 1e-12
    moved = spec.random(0).apply(model)
    found = pyalign.align(model, moved, spec=spec, method=WeightMatching(), progress=False)
    assert found.objective is not None and found.objective > -1e-12


def test_an_element_moves_blocks_and_what_is_within_them() -> None:
    """Against the same written out with loops: a group of keys, its queries, and the units within each."""
    model = network("keys of groups")
    spec = derive(model, INPUTS, within=Kind.SCALED)
    moved = spec.random(5)
    keys, queries, values = (moved.transforms[n] for n in ("k", "q", "v.within"))
    assert all(isinstance(g, ScaledPermutation) for g in (keys, queries, values))
    assert values.scale is not None and bool((values.scale < 0).any())
    old = state_of(model)
    new = spec.apply({name: moved.transforms[name] for name in ("k", "q", "q.within", "v.within")}, old)
    for slot in range(2 * WIDTH):
        block, source = slot // WIDTH, int(values.perm[slot])
        assert source // WIDTH == int(keys.perm[block])
        torch.testing.assert_close(new["v.bias"][slot], values.scale[slot] * old["v.bias"][source])
    for head in range(4):
        block, source = head // 2, int(queries.perm[head])
        assert source // 2 == int(keys.perm[block])
        for unit in range(WIDTH):
            here = block * WIDTH + unit
            column = old["o.weight"][:, source * WIDTH + int(values.perm[here]) % WIDTH]
            torch.testing.assert_close(new["o.weight"][:, head * WIDTH + unit], column / values.scale[here])
    back = moved.inverse().apply(moved.apply(old))
    assert all(torch.allclose(back[name], old[name], atol=1e-12) for name in old)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(
    ("method", "kind", "planted"),
    [
        (WeightMatching(), Kind.PERMUTATION, Kind.PERMUTATION),
        (WeightMatching(), Kind.SIGNED, Kind.SIGNED),
        (WeightMatching(), Kind.SCALED, Kind.SCALED),
        (ActivationMatching(), Kind.SCALED, Kind.SIGNED),
        (ActivationMatching(), Kind.INVERTIBLE, Kind.SIGNED),
    ],
    ids=["weights permuted", "weights signed", "weights scaled", "activations", "activations among matrices"],
)
def test_a_planted_element_is_recovered(
    shape: str, method: WeightMatching | ActivationMatching, kind: Kind, planted: Kind
) -> None:
    model = network(shape)
    spec = derive(model, INPUTS, within=kind)
    moved = spec.random(7, planted).apply(model)
    data = torch.randn(16, 32, 5, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    found = pyalign.align(model, moved, list(data), method=method, spec=spec, progress=False)
    old, new = state_of(model), found.apply(state_of(moved))
    for name in old:
        torch.testing.assert_close(new[name], old[name], rtol=1e-9, atol=1e-9)


def test_the_default_alignment_finds_units_within_heads() -> None:
    """Also with noise on the weights, and by both methods alike."""
    model = network("every head its own")
    truth = derive(model, INPUTS).random(3, Kind.PERMUTATION)
    moved = truth.apply(model)
    with torch.no_grad():
        for p in moved.parameters():
            p += 0.02 * torch.randn(p.shape, generator=torch.Generator().manual_seed(2), dtype=p.dtype)
    data = list(torch.randn(16, 32, 5, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(1)))
    found = pyalign.align(model, moved, data, progress=False)
    assert found.correlation_after["v.within"] > 0.9 > found.correlation_before["v.within"]
    for name, element in truth.inverse().transforms.items():
        assert torch.equal(found.transforms[name].perm, element.perm), name


def test_it_is_kept_on_disk_and_restricted(tmp_path) -> None:
    model = network("keys of groups")
    moved = derive(model, INPUTS).random(3)
    moved.save(tmp_path / "a.safetensors")
    again = pyalign.Alignment.load(tmp_path / "a.safetensors", model)
    assert again.spec.placed == moved.spec.placed and again.spec.fingerprint == moved.spec.fingerprint
    one, two = (g.apply(state_of(model)) for g in (moved, again))
    assert all(torch.equal(one[name], two[name]) for name in one)


def stepped(model: nn.Module, momentum: dict | None = None) -> torch.optim.Optimizer:
    optimiser = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    if momentum is not None:
        optimiser.load_state_dict(momentum)
    optimiser.zero_grad()
    model(INPUTS).square().mean().backward()
    optimiser.step()
    return optimiser


def test_training_goes_on_alike_after_a_move() -> None:
    model = network("keys of groups")
    moving = derive(model, INPUTS).random(3, Kind.SIGNED)
    optimiser = stepped(model)
    other, momentum = moving.apply(model), moving.apply(optimiser, parameters=model)
    stepped(other, momentum)
    stepped(model, optimiser.state_dict())
    expected = moving.apply(state_of(model))
    for name, tensor in state_of(other).items():
        torch.testing.assert_close(tensor, expected[name], rtol=1e-10, atol=1e-12)


class Fused(nn.Module):
    """Queries, and keys and values that they share, from one layer: each kind for itself, or key after key."""

    def __init__(self, shared: int, by_key: bool) -> None:
        super().__init__()
        self.runs, self.shared, self.by_key = 4 // shared, shared, by_key
        self.stem, self.qkv = nn.Linear(8, 10), nn.Linear(10, (4 + 2 * shared) * WIDTH)
        self.o, self.head = nn.Linear(4 * WIDTH, 7), nn.Linear(7, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.qkv(torch.tanh(self.stem(x)))
        if self.by_key:
            parts = x.unflatten(-1, (self.shared, -1, WIDTH)).split([self.runs, 1, 1], -2)
            q, k, v = (part.flatten(-3, -2).transpose(1, 2) for part in parts)
        else:
            sizes = [4 * WIDTH, self.shared * WIDTH, self.shared * WIDTH]
            q, k, v = (part.unflatten(-1, (-1, WIDTH)).transpose(1, 2) for part in x.split(sizes, -1))
        k, v = (t.repeat_interleave(self.runs, 1) for t in (k, v))
        scores = (q @ k.mT / math.sqrt(WIDTH)).softmax(-1)
        return self.head(torch.tanh(self.o((scores @ v).transpose(1, 2).flatten(2))))


@pytest.mark.parametrize("by_key", [False, True])
@pytest.mark.parametrize("shared", [1, 2])
@pytest.mark.parametrize("kind", [Kind.PERMUTATION, Kind.SIGNED])
def test_activations_tell_queries_from_the_keys_beside_them(shared: int, by_key: bool, kind: Kind) -> None:
    torch.manual_seed(1)
    model = Fused(shared, by_key).double().eval()
    spec = derive(model, INPUTS, within=kind)
    moved = spec.random(7).apply(model)
    data = torch.randn(16, 32, 5, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    found = pyalign.align(model, moved, list(data), method=ActivationMatching(), spec=spec, progress=False)
    old, new = state_of(model), found.apply(state_of(moved))
    for name in old:
        torch.testing.assert_close(new[name], old[name], rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("shape", SHAPES)
def test_heads_in_place_are_not_said_to_be_unseen(shape: str) -> None:
    """They are known by the units that they hold, or by each of their entries."""
    model = network(shape)
    spec = derive(model, INPUTS)
    found = pyalign.align(model, model, [INPUTS], method=ActivationMatching(), spec=spec, progress=False)
    assert all(element.is_identity for element in found.transforms.values())
    assert not [note for note in found.notes if "no activations" in note]


@pytest.mark.parametrize("fixed", ["q", "k", "v.within"])
def test_what_is_declared_fixed_leaves_a_symmetry(fixed: str) -> None:
    """Query heads take along the blocks of their key: where they stay, the keys stay."""
    model = network("keys of groups")
    spec = pyalign.declare(model, {}, base=derive(model, INPUTS), fixed=[fixed])
    assert fixed not in spec.groups and ("k" in spec.groups) is (fixed == "v.within")
    assert spec.verify(model, INPUTS).error < 1e-12
