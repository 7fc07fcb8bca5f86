"""Folding of scales: the function stays, the stream then turns as a whole, and there is a way back."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from pyalign import align, derive
from pyalign.errors import InputError, MismatchError, SymmetryError
from pyalign.symmetry import Kind, fold, verify


class Block(nn.Module):
    """Two readers of one norm, written back to the stream; the last norm is read by the head alone."""

    def __init__(self, width: int = 12, hidden: int = 10, tied: bool = False) -> None:
        super().__init__()
        self.embedding, self.norm = nn.Embedding(7, width), nn.RMSNorm(width)
        self.gate, self.up, self.down = (
            nn.Linear(width, hidden), nn.Linear(width, hidden), nn.Linear(hidden, width)
        )  # fmt: skip
        self.last, self.head = nn.RMSNorm(width), nn.Linear(width, 7, bias=False)
        if tied:
            self.head.weight = self.embedding.weight

    def forward(self, x: Tensor) -> Tensor:
        x = self.embedding(x)
        y = self.norm(x)
        x = x + self.down(torch.sigmoid(self.gate(y)) * self.up(y))
        result: Tensor = self.head(self.last(x))
        return result


def model(seed: int = 0, tied: bool = False) -> Block:
    torch.manual_seed(seed)
    built = Block(tied=tied).double().eval()
    with torch.no_grad():
        for norm in (built.norm, built.last):
            norm.weight.copy_(torch.rand(12) - 0.4)  # signs pass into the readers too
    return built


TOKENS = torch.randint(0, 7, (3, 5), generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("tied", [False, True])
def test_folding_keeps_the_function_and_frees_the_stream(tied: bool) -> None:
    original = model(tied=tied)
    before = {n: t.clone() for n, t in original.state_dict().items()}
    folding = fold(original, TOKENS)
    assert set(folding.constants) == {"norm.weight", "last.weight"}
    assert folding.untied == (("head.weight",) if tied else ())
    torch.testing.assert_close(folding.model(TOKENS), original(TOKENS), rtol=1e-12, atol=1e-12)
    assert bool((folding.model.norm.weight == 1).all())
    assert all(torch.equal(t, before[n]) for n, t in original.state_dict().items())
    spec = derive(folding.model, TOKENS, within=Kind.INVERTIBLE, constants=folding.constants)
    assert [(g.size, g.kind) for g in spec.groups.values() if g.kind.mixes] == [(12, Kind.ORTHOGONAL)]
    assert verify(spec, folding.model, TOKENS).passed
    unfolded = folding.unfold()
    for name, tensor in unfolded.state_dict().items():
        torch.testing.assert_close(tensor, before[name], rtol=1e-12, atol=1e-12)


def test_without_folding_the_stream_is_not_turned() -> None:
    spec = derive(model(), TOKENS, within=Kind.INVERTIBLE)
    assert not any(g.kind.mixes for g in spec.groups.values())


def test_folded_networks_are_aligned_by_a_rotation_of_the_stream() -> None:
    folding = fold(model(), TOKENS)
    spec = derive(folding.model, TOKENS, within=Kind.INVERTIBLE, constants=folding.constants)
    turned = spec.random(4).apply(folding.model)
    found = align(folding.model, turned, method="weight", spec=spec, example_inputs=TOKENS).apply(turned)
    for name, tensor in found.state_dict().items():
        torch.testing.assert_close(tensor, folding.model.state_dict()[name], rtol=1e-7, atol=1e-7)


class Centred(Block):
    """The same with LayerNorms, whose biases no head without a bias could take up."""

    def __init__(self, width: int = 12, hidden: int = 10, tied: bool = False) -> None:
        super().__init__(width, hidden, tied)
        self.norm, self.last = nn.LayerNorm(width), nn.LayerNorm(width)


class Difference(nn.Module):
    """The scale of a norm, stored as its difference from one."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(width))

    def forward(self, x: Tensor) -> Tensor:
        return x * (x.square().mean(-1, keepdim=True) + 1e-6).rsqrt() * (1.0 + self.weight)


@pytest.mark.parametrize("tied", [False, True])
def test_layer_norms_keep_their_class_and_the_mean(tied: bool) -> None:
    torch.manual_seed(1)
    original = Centred(tied=tied).double().eval()
    with torch.no_grad():
        for norm in (original.norm, original.last):
            norm.weight.copy_(torch.rand(12) - 0.4)
            norm.bias.normal_()
    before = {n: t.clone() for n, t in original.state_dict().items()}
    folding = fold(original, TOKENS)
    assert folding.shifts == {"norm.weight": "norm.bias", "last.weight": "last.bias"} and not folding.notes
    torch.testing.assert_close(folding.model(TOKENS), original(TOKENS), rtol=1e-12, atol=1e-12)
    spec = derive(folding.model, TOKENS, within=Kind.INVERTIBLE, constants=folding.constants)
    assert [(g.size, g.kind) for g in spec.groups.values() if g.kind.mixes] == [(12, Kind.CENTRED)]
    assert "mean" in spec.report()
    assert verify(spec, folding.model, TOKENS).error < 1e-9
    turned = spec.random(4).apply(folding.model)
    found = align(folding.model, turned, method="weight", spec=spec, example_inputs=TOKENS).apply(turned)
    for name, tensor in found.state_dict().items():
        torch.testing.assert_close(tensor, folding.model.state_dict()[name], rtol=1e-7, atol=1e-7)
    for name, tensor in folding.unfold().state_dict().items():
        torch.testing.assert_close(tensor, before[name], rtol=1e-12, atol=1e-12)


def test_matrices_that_move_the_mean_are_no_symmetry_of_a_layer_norm() -> None:
    torch.manual_seed(1)
    folding = fold(Centred().double().eval(), TOKENS)
    spec = derive(folding.model, TOKENS, within=Kind.INVERTIBLE, constants=folding.constants)
    groups = {n: replace(g, kind=Kind.ORTHOGONAL) if g.kind.mixes else g for n, g in spec.groups.items()}
    with pytest.raises(SymmetryError, match="mixing units is not"):
        verify(replace(spec, groups=groups), folding.model, TOKENS)


def test_scales_stored_as_a_difference_from_one_become_zero() -> None:
    torch.manual_seed(1)
    original = Block()
    original.norm, original.last = Difference(12), Difference(12)
    original = original.double().eval()
    with torch.no_grad():
        for norm in (original.norm, original.last):
            norm.weight.normal_()
    folding = fold(original, TOKENS)
    assert bool((folding.model.norm.weight == 0).all())
    torch.testing.assert_close(folding.model(TOKENS), original(TOKENS), rtol=1e-12, atol=1e-12)
    spec = derive(folding.model, TOKENS, within=Kind.INVERTIBLE, constants=folding.constants)
    assert [(g.size, g.kind) for g in spec.groups.values() if g.kind.mixes] == [(12, Kind.ORTHOGONAL)]
    assert verify(spec, folding.model, TOKENS).passed
    for name, tensor in folding.unfold().state_dict().items():
        torch.testing.assert_close(tensor, original.state_dict()[name], rtol=1e-12, atol=1e-12)


def test_a_norm_after_the_sum_stays() -> None:
    torch.manual_seed(1)
    layer = nn.TransformerEncoderLayer(12, 2, 10, batch_first=True, dropout=0.0).double().eval()
    network = nn.Sequential(nn.Linear(4, 12), layer, nn.Linear(12, 3)).double().eval()
    x = torch.randn(2, 5, 4, dtype=torch.float64)
    folding = fold(network, x)
    assert folding.constants == ("1.norm2.weight",)  # the last one is read by the head alone
    assert any("1.norm1.weight stays" in note for note in folding.notes)
    spec = derive(folding.model, x, within=Kind.INVERTIBLE, constants=folding.constants)
    assert all(g.kind is Kind.INVERTIBLE for g in spec.groups.values() if g.kind.mixes)
    assert verify(spec, folding.model, x).passed


def test_a_zero_scale_stays() -> None:
    original = model()
    with torch.no_grad():
        original.norm.weight[3] = 0
    folding = fold(original, TOKENS)
    assert folding.constants == ("last.weight",)
    assert any("norm.weight stays: an entry is zero" in note for note in folding.notes)


def test_what_is_not_constant_is_refused() -> None:
    folding = fold(model(), TOKENS)
    spec = derive(folding.model, TOKENS, within=Kind.INVERTIBLE, constants=folding.constants)
    with pytest.raises(InputError, match="no constant"):
        derive(model(), TOKENS, constants=("norm.weight",))
    with pytest.raises(InputError, match="no constant"):
        derive(model(), TOKENS, constants=("nothing",))
    with pytest.raises(MismatchError, match="constant"):
        spec.random(0).apply(model())
