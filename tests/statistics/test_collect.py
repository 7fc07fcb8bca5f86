"""Collection at sites: what is seen is what the models compute, whatever they overwrite, and nothing is left behind."""

from __future__ import annotations

import gc
import itertools
import warnings
import weakref

import pytest
import torch
import torch.nn.functional as F
from matching import handmade
from torch import nn

from pyalign.errors import DataError, InputError, MismatchError, NonFiniteError, PyalignWarning
from pyalign.statistics import Moments, choose_sites, collect
from pyalign.symmetry import Group, Site, SymmetrySpec, derive


def two(build, *arguments):
    return tuple(handmade.generic(build(*arguments), seed) for seed in (1, 2))


def site(group, module, op, index=0, *, axis=1, width=4, positions=None, nonlinear=True, call=0):
    positions = torch.arange(width).unsqueeze(1) if positions is None else positions
    return Site(group, module, call, op, index, axis, width, positions, nonlinear)


def spec_of(model, *sites):
    groups = {s.group: Group(s.group, s.positions.shape[0]) for s in sites}
    shapes = {name: tuple(t.shape) for name, t in model.state_dict().items()}
    return SymmetrySpec(groups, (), sites, shapes=shapes)


def check(moments: Moments, x, y):
    expected = Moments(x.shape[1], y.shape[1]).update(x, y)
    assert moments.count == expected.count
    torch.testing.assert_close(moments.covariance(), expected.covariance(), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(moments.mean_a, expected.mean_a, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(moments.mean_b, expected.mean_b, rtol=1e-5, atol=1e-6)


class Overwriting(nn.Module):
    """Every observed value is overwritten later: in-place ReLU of a linear output, in-place addition to that."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(3, 4), nn.Linear(4, 4)

    def forward(self, x):
        h = self.first(x)
        F.relu_(h)
        h += 7.0
        g = F.relu(self.second(h))
        view = g[:, 1:3]
        view.mul_(100.0)
        g.t_()
        return g


def test_values_are_seen_before_they_are_overwritten():
    a, b = two(Overwriting)
    x = handmade.batches(40, 3)[0]
    seen = site("first", "", "aten.relu_.default"), site("second", "", "aten.relu.default")
    spec = spec_of(a, *seen)

    def values(model, relu):
        h = relu(model.first(x))
        return h, relu(model.second(F.relu(model.first(x)) + 7.0))

    for observe, relu in (("after", F.relu), ("before", lambda t: t)):
        found = collect(a, b, spec, [x], observe=observe)
        with torch.no_grad():
            for s, of_a, of_b in zip(seen, values(a, relu), values(b, relu), strict=True):
                check(found[s], of_a, of_b)


def test_the_check_rejects_what_was_overwritten():
    a, b = two(Overwriting)
    x = handmade.batches(40, 3)[0]
    found = collect(a, b, spec_of(a, site("first", "", "aten.relu_.default")), [x])
    with torch.no_grad(), pytest.raises(AssertionError):
        check(next(iter(found.values())), F.relu(a.first(x)) + 7.0, F.relu(b.first(x)) + 7.0)


class Shared(nn.Module):
    """One activation module called twice, and a nested call."""

    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(4, 4) for _ in range(2))
        self.act = nn.Tanh()

    def forward(self, x):
        for layer in self.layers:
            x = self.act(layer(x))
        return x


def test_calls_of_a_shared_module_are_told_apart():
    a, b = two(Shared)
    x = handmade.batches(30, 4)[0]
    seen = [site(f"call {k}", "act", "aten.tanh.default", call=k) for k in (0, 1)]
    found = collect(a, b, spec_of(a, *seen), [x[:10], x[10:]])
    with torch.no_grad():
        once = [m.act(m.layers[0](x)) for m in (a, b)]
        twice = [m.act(m.layers[1](h)) for m, h in zip((a, b), once, strict=True)]
    check(found[seen[0]], *once)
    check(found[seen[1]], *twice)


def test_units_of_a_part_of_an_axis_and_units_with_several_entries():
    class Flat(nn.Module):
        def forward(self, x):
            return F.relu(x)

    a = Flat()
    x = handmade.batches(50, 12)[0]
    runs = torch.arange(8).reshape(4, 2)
    scattered = torch.tensor([[11], [3], [7]])
    seen = [
        site("runs", "", "aten.relu.default", width=12, positions=runs),
        site("scattered", "", "aten.relu.default", width=12, positions=scattered),
    ]
    found = collect(a, a, spec_of(a, *seen), [x])
    h = F.relu(x)
    check(found[seen[0]], *[h[:, :8].reshape(50, 4, 2).movedim(1, -1).reshape(100, 4)] * 2)
    check(found[seen[1]], *[h[:, [11, 3, 7]]] * 2)


def test_derived_sites_are_the_layers_outputs():
    a, b = two(handmade.ResNet)
    x = handmade.batches(4, 3, 8, 8)[0]
    spec = derive(a, x)
    for observe in ("after", "before"):
        for s, moments in collect(a, b, spec, [x], observe=observe, sites="all").items():
            assert moments.count == 4 * (64 if spec.groups[s.group].size == 6 else 16)
            assert bool((moments.mean_a != 0).any())
            assert bool((moments.mean_a < 0).any()) == (observe == "before")


def test_modes_weights_hooks_and_random_state_are_left_as_found():
    a, b = two(handmade.ResNet)
    a.train()
    a.blocks[1].eval()
    modes = [m.training for m in a.modules()]
    before = {name: t.clone() for name, t in a.state_dict().items()}
    state = torch.get_rng_state()
    collect(a, b, handmade.resnet_spec(a), handmade.batches(4, 3, 8, 8))
    assert modes == [m.training for m in a.modules()]
    assert all(torch.equal(before[name], t) for name, t in a.state_dict().items())
    assert torch.equal(state, torch.get_rng_state())
    assert not torch.nn.modules.module._global_forward_hooks and not any(m._forward_hooks for m in a.modules())


def test_random_operators_draw_the_same_numbers_in_both_models():
    class Noisy(nn.Module):
        def forward(self, x):
            return F.relu(x + torch.randn_like(x))

    model = Noisy()
    found = collect(model, model, spec_of(model, site("g", "", "aten.relu.default")), handmade.batches(50, 4))
    torch.testing.assert_close(next(iter(found.values())).correlation().diagonal(), torch.ones(4, dtype=torch.float64))


def test_activations_are_freed_with_their_batch():
    class Watched(nn.Module):
        def __init__(self):
            super().__init__()
            self.alive = []

        def forward(self, x):
            h = F.relu(x * 2)
            self.alive.append(weakref.ref(h.untyped_storage()))
            return h.sum()

    model = Watched()
    living = []

    def data():
        for x in handmade.batches(20, 4, count=6):
            gc.collect()
            living.append(sum(r() is not None for r in model.alive))
            yield x

    collect(model, model, spec_of(model, site("g", "", "aten.relu.default")), data())
    assert len(model.alive) == 12 and max(living) == 0


@pytest.mark.parametrize("count", [0, 3, 7])
def test_number_of_sites_is_bounded_and_spread(count):
    model = handmade.Concat(growth=3, layers=6)
    spec = handmade.concat_spec(model)
    chosen = choose_sites(spec, count or "all")
    seen = [s.index for s in chosen["stem"]]
    assert seen == {0: list(range(7)), 3: [0, 3, 6], 7: list(range(7))}[count]
    assert [s.index for s in choose_sites(spec, "last")["stem"]] == [6]


def test_nonlinear_sites_come_first():
    model = nn.Linear(4, 4)
    sites = (site("g", "", "aten.add.Tensor", nonlinear=False), site("g", "", "aten.relu.default"))
    assert choose_sites(spec_of(model, *sites), "all")["g"] == (sites[1],)
    assert choose_sites(spec_of(model, sites[0]), "all")["g"] == (sites[0],)
    for wrong in (0, -1, "first", True):
        with pytest.raises(InputError, match="sites"):
            choose_sites(spec_of(model, *sites), wrong)


class Tokens(nn.Module):
    """relu over tokens laid out as asked; the mask comes by name, by place or inverted."""

    def __init__(self, layout) -> None:
        super().__init__()
        self.layout = layout

    def forward(self, x, attention_mask=None, src_key_padding_mask=None):
        return F.relu(self.layout(x))


LAYOUTS = {
    "batch first": (lambda x: x, 2, lambda x: x),
    "tokens first": (lambda x: x.transpose(0, 1), 2, lambda x: x),
    "heads between": (lambda x: x.unflatten(2, (2, 2)).transpose(1, 2), 3, lambda x: x.unflatten(2, (2, 2))),
    "heads as units": (lambda x: x.unflatten(2, (4, 1)).transpose(1, 2), 1, lambda x: x),
    "flattened": (lambda x: x.flatten(0, 1), 1, lambda x: x),
}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("way", ["name", "place", "function"])
def test_padding_is_left_out(layout, way):
    """What stands in padding does not matter, wherever the axis of tokens is."""
    change, axis, rows = LAYOUTS[layout]
    model = Tokens(change)
    x = handmade.batches(6, 5, 4)[0]
    mask = torch.rand(6, 5, generator=torch.Generator().manual_seed(0)) > 0.4
    spoiled = torch.where(mask.unsqueeze(-1), x, 1e6)
    units = 2 if layout == "heads between" else 4
    seen = site("g", "", "aten.relu.default", axis=axis, width=units, positions=torch.arange(units).unsqueeze(1))
    spec = spec_of(model, seen)
    batch, where = {
        "name": ({"x": spoiled, "attention_mask": mask.long()}, "attention_mask"),
        "place": (((spoiled, mask),), 1),
        "function": ({"x": spoiled, "src_key_padding_mask": ~mask}, lambda i: ~i["src_key_padding_mask"]),
    }[way]
    found = collect(model, model, spec, [batch], mask=where)
    check(found[seen], *[F.relu(rows(x)[mask].reshape(-1, units))] * 2)


@pytest.mark.parametrize("least", [float("-inf"), torch.finfo(torch.float32).min])
def test_scores_that_an_attention_mask_blocks_are_left_out(least):
    class Scores(nn.Module):
        def forward(self, x, attention_mask=None):
            return x + torch.where(torch.ones(5, 5).tril().bool(), 0.0, least)

    x = torch.randn(6, 4, 5, 5, generator=torch.Generator().manual_seed(0))
    mask = torch.rand(6, 5, generator=torch.Generator().manual_seed(0)) > 0.4
    seen, model = site("g", "", "aten.add.Tensor", axis=1, nonlinear=False), Scores()
    rows = x.movedim(1, -1)
    for batch, kept in (({"x": x}, torch.ones(6, 5).bool()), ({"x": x, "attention_mask": mask}, mask)):
        found = collect(model, model, spec_of(model, seen), [batch])
        check(found[seen], *[rows[kept.unsqueeze(-1) & torch.ones(5, 5).tril().bool()]] * 2)


def test_what_has_no_axis_of_tokens_has_no_padding_and_wrong_masks_are_refused():
    model = Tokens(lambda x: x.sum(1))
    x, seen = handmade.batches(6, 5, 4)[0], site("g", "", "aten.relu.default", axis=1)
    spec, mask = spec_of(model, seen), torch.ones(6, 5)
    mask[:, 3:] = 0
    found = collect(model, model, spec, [{"x": x, "attention_mask": mask}])
    check(found[seen], *[F.relu(x.sum(1))] * 2)
    for wrong, message in ((mask - 1, "mask of a batch is none"), (mask[None], "is none"), (0 * mask, "padding only")):
        with pytest.raises(DataError, match=message):
            collect(model, model, spec, [{"x": x, "attention_mask": wrong}])
    with pytest.raises(InputError, match="no place of a mask"):
        collect(model, model, spec, [x], mask=1.5)


@pytest.mark.parametrize("which", ["A", "B"])
def test_nan_names_model_module_and_operator(which):
    a, b = two(handmade.ResNet)
    spoiled = a if which == "A" else b
    with torch.no_grad():
        spoiled.blocks[1].bn1.bias[2] = float("nan")
    with pytest.raises(NonFiniteError, match=rf"model {which} at module 'blocks.1'.*aten.relu.default") as caught:
        collect(a, b, handmade.resnet_spec(a), handmade.batches(4, 3, 8, 8))
    assert "batch 0" in str(caught.value)


class Branching(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(4, 4)

    def forward(self, x):
        h = self.fc(x)
        return F.relu(h) if x[0, 0] > 0 else torch.tanh(h)


def test_control_flow_that_changes_is_an_error():
    a, b = two(Branching)
    seen = site("g", "", "aten.relu.default")
    positive, negative = torch.ones(8, 4), -torch.ones(8, 4)
    for batches in ([positive, negative], [negative, positive]):
        with pytest.raises(DataError, match=r"depends on the data.*batch 1"):
            collect(a, b, spec_of(a, seen), batches)
    assert collect(a, b, spec_of(a, seen), [negative]) == {}


def test_two_models_that_branch_apart_are_an_error():
    class Depends(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc = nn.Linear(4, 4)

        def forward(self, x):
            return F.relu(x) if float(self.fc.bias[0]) > 0 else x

    a, b = Depends(), Depends()
    with torch.no_grad():
        a.fc.bias.fill_(1.0)
        b.fc.bias.fill_(-1.0)
    seen = site("g", "", "aten.relu.default")
    for first, second in itertools.permutations((a, b)):
        with pytest.raises(DataError, match="depends on the data"):
            collect(first, second, spec_of(a, seen), handmade.batches(8, 4))


def test_bad_data_and_bad_specs():
    a, b = two(handmade.MLP)
    spec = handmade.mlp_spec(a)
    with pytest.raises(DataError, match=r"data is empty.*without samples"):
        collect(a, b, spec, [torch.zeros(0, 6)])
    with pytest.raises(DataError, match="empty"):
        collect(a, b, spec, [])
    with pytest.raises(DataError, match="batch 1"):
        collect(a, b, spec, [torch.zeros(30, 6), torch.zeros(30, 5)])
    with pytest.raises(DataError, match="float64"):
        collect(a, b, spec, [torch.zeros(30, 6, dtype=torch.float64)])
    with pytest.raises(InputError, match="observation"):
        collect(a, b, spec, handmade.batches(30, 6), observe="during")
    wide = spec_of(a, site("g", "", handmade.RELU, width=99))
    with pytest.raises(MismatchError, match="99"):
        collect(a, b, wide, handmade.batches(30, 6))


def test_fewer_samples_than_units_is_one_warning():
    a, b = two(handmade.MLP)
    with pytest.warns(PyalignWarning, match="fewer samples than units in 2 groups") as caught:
        collect(a, b, handmade.mlp_spec(a), handmade.batches(5, 6, count=1))
    assert len([w for w in caught if "fewer" in str(w.message)]) == 1
    with warnings.catch_warnings():
        warnings.simplefilter("error", PyalignWarning)
        collect(a, b, handmade.mlp_spec(a), handmade.batches(20, 6, count=1))


def test_without_room_for_the_heap_block_all_goes_on(monkeypatch):
    from pyalign.statistics import heap

    assert heap.keep_heap(0, 0) is None and heap.keep_heap(1 << 40, heap.LARGEST + 1) is None

    def refuse(*_, **__):
        raise RuntimeError("DefaultCPUAllocator: not enough memory")

    monkeypatch.setattr(heap.torch, "empty", refuse)
    assert heap.keep_heap(1 << 20, 1 << 10) is None
