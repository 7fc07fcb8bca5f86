"""The Alignment record: what it does to modules, state dicts and optimisers, and how it is kept on disk."""

import copy
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import pyalign
from pyalign.errors import CheckpointError, InputError, MismatchError
from pyalign.symmetry import Alignment, Kind, SymmetrySpec, state_of


def network() -> nn.Module:
    torch.manual_seed(0)
    layers = [
        nn.Conv2d(3, 8, 3),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Conv2d(8, 6, 3, groups=2),
        nn.Flatten(),
        nn.Linear(24, 4),
    ]
    return nn.Sequential(*layers).double()


X = torch.randn(5, 3, 6, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


@pytest.fixture
def model() -> nn.Module:
    model = network()
    model(X)
    return model.eval()


@pytest.fixture
def spec(model: nn.Module) -> SymmetrySpec:
    return pyalign.derive(model, X)


def states_equal(a: dict[str, Tensor], b: dict[str, Tensor], tolerance: float = 0.0) -> bool:
    return list(a) == list(b) and all(
        torch.allclose(a[n].double(), b[n].double(), rtol=tolerance, atol=tolerance) for n in a
    )


def test_apply_gives_a_new_module_of_the_same_function(model: nn.Module, spec: SymmetrySpec) -> None:
    before = copy.deepcopy(model.state_dict())
    moved = spec.random(3).apply(model)
    assert states_equal(before, model.state_dict())
    assert not states_equal(before, moved.state_dict())
    torch.testing.assert_close(moved(X), model(X), rtol=1e-12, atol=1e-12)


def test_inverse_and_composition_act_as_they_should(model: nn.Module, spec: SymmetrySpec) -> None:
    g, h = spec.random(1), spec.random(2)
    state = state_of(model)
    assert states_equal(g.inverse().apply(g.apply(state)), state, 1e-12)
    assert states_equal(g.compose(h).apply(state), g.apply(h.apply(state)), 1e-12)
    assert spec.identity().is_identity
    assert not g.is_identity


def test_comparison_of_states_can_fail(model: nn.Module) -> None:
    state = state_of(model)
    assert not states_equal(state, {**state, "0.bias": state["0.bias"] + 1e-3}, 1e-6)


@pytest.mark.parametrize("kind", [Kind.PERMUTATION, Kind.SCALED], ids=str)
@pytest.mark.parametrize("optimizer", ["sgd", "adam", "adamw"])
def test_training_goes_on_the_same_after_moving_the_optimiser(optimizer: str, kind: Kind, spec: SymmetrySpec) -> None:
    """Moving weights and momenta commutes with a step: of SGD under signs too, of Adam under permutations."""
    if kind is Kind.SCALED:
        kind = Kind.SIGNED if optimizer == "sgd" else Kind.PERMUTATION
    g = spec.random(4, kind)
    model = network()
    build = {
        "sgd": lambda m: torch.optim.SGD(m.parameters(), lr=0.05, momentum=0.9),
        "adam": lambda m: torch.optim.Adam(m.parameters(), lr=0.01),
        "adamw": lambda m: torch.optim.AdamW(m.parameters(), lr=0.01),
    }[optimizer]

    def step(m: nn.Module, o: torch.optim.Optimizer) -> None:
        o.zero_grad()
        m(X).square().sum().backward()
        o.step()

    first = build(model)
    step(model, first)
    moved = g.apply(model)
    second = build(moved)
    second.load_state_dict(g.apply(first.state_dict(), parameters=model))
    step(model, first)
    step(moved, second)
    assert states_equal(g.apply(state_of(model)), state_of(moved), 1e-10)


def test_momenta_move_with_the_inverse_scale(spec: SymmetrySpec) -> None:
    """The gradient of f(x / s) is 1/s of the gradient of f: checked against autograd."""
    g = spec.random(5)
    model = network().eval()
    moved = g.apply(model)
    for m in (model, moved):
        m(X).square().sum().backward()
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0, momentum=0.9)
    optimizer.step()
    state = g.apply(optimizer.state_dict(), parameters=[n for n, _ in model.named_parameters()])
    for index, parameter in enumerate(moved.parameters()):
        torch.testing.assert_close(state["state"][index]["momentum_buffer"], parameter.grad, rtol=1e-9, atol=1e-9)


def test_an_optimiser_needs_its_parameters(spec: SymmetrySpec) -> None:
    optimizer = torch.optim.SGD(network().parameters(), lr=0.1, momentum=0.9)
    with pytest.raises(InputError, match="parameters="):
        spec.identity().apply(optimizer.state_dict())
    with pytest.raises(MismatchError, match="does not belong"):
        spec.identity().apply(optimizer.state_dict(), parameters=["0.weight"])


def by_kind(model: nn.Module) -> list[dict]:
    """Two groups, as for weight decay: an order that is not the model's, with neighbours of one shape changed."""
    flat = [p for p in model.parameters() if p.dim() < 2]
    return [{"params": flat[::-1]}, {"params": [p for p in model.parameters() if p.dim() > 1], "weight_decay": 0.1}]


OPTIMISERS = {
    "groups": lambda m: torch.optim.AdamW(by_kind(m), lr=0.01, amsgrad=True),
    "named": lambda m: torch.optim.Adam(sorted(m.named_parameters()), lr=0.01),
    "trained only": lambda m: torch.optim.SGD([p for p in m.parameters() if p.requires_grad], lr=0.05, momentum=0.9),
}


@pytest.mark.parametrize("build", OPTIMISERS)
def test_an_optimiser_in_an_order_of_its_own(build: str, model: nn.Module, spec: SymmetrySpec) -> None:
    """Nothing is taken for what it is not: training goes on the same, whatever the order of the parameters."""
    model[0].bias.requires_grad_(False)
    g = spec.random(4, Kind.PERMUTATION)

    def step(m: nn.Module, o: torch.optim.Optimizer) -> None:
        o.zero_grad()
        m(X).square().sum().backward()
        o.step()

    first = OPTIMISERS[build](model)
    step(model, first)
    moved = g.apply(model)
    for state in (
        g.apply(first, parameters=model),
        *([g.apply(first.state_dict()), g.apply(first.state_dict(), parameters=model)] if build == "named" else []),
        *([g.apply(first.state_dict(), parameters=model)] if build == "trained only" else []),
    ):
        now, then = copy.deepcopy(model), copy.deepcopy(moved)
        one, two = OPTIMISERS[build](now), OPTIMISERS[build](then)
        one.load_state_dict(copy.deepcopy(first.state_dict()))  # torch would share the tensors
        two.load_state_dict(state)
        step(now, one)
        step(then, two)
        assert states_equal(g.apply(state_of(now)), state_of(then), 1e-10)


def test_the_order_of_several_groups_is_not_guessed(model: nn.Module, spec: SymmetrySpec) -> None:
    g, optimizer = spec.random(4), torch.optim.SGD(by_kind(model), lr=0.1, momentum=0.9)
    with pytest.raises(InputError, match="2 parameter groups without names"):
        g.apply(optimizer.state_dict(), parameters=model)
    with pytest.raises(InputError, match="parameters=model"):
        g.apply(optimizer)
    with pytest.raises(MismatchError, match="not a copy of it"):
        g.apply(optimizer, parameters=copy.deepcopy(model))


def test_save_and_load_give_the_same_alignment(model: nn.Module, spec: SymmetrySpec, tmp_path: Path) -> None:
    g = spec.random(6)
    g.save(tmp_path / "g.safetensors")
    for expected in (None, spec, model):
        again = Alignment.load(tmp_path / "g.safetensors", expected)
        assert states_equal(again.apply(state_of(model)), g.apply(state_of(model)))
        assert again.method == g.method
        assert again.spec.fingerprint == spec.fingerprint
        assert again.spec.report() == spec.report()


def test_loading_for_another_architecture_is_an_error(spec: SymmetrySpec, tmp_path: Path) -> None:
    other = nn.Sequential(nn.Linear(3, 5), nn.ReLU(), nn.Linear(5, 2))
    spec.random(0).save(tmp_path / "g.safetensors")
    with pytest.raises(MismatchError, match="another"):
        Alignment.load(tmp_path / "g.safetensors", pyalign.derive(other, torch.randn(2, 3)))
    with pytest.raises(MismatchError):
        Alignment.load(tmp_path / "g.safetensors", other)
    with pytest.raises(MismatchError):
        spec.random(0).apply(other)


def test_damaged_files_are_refused(spec: SymmetrySpec, tmp_path: Path) -> None:
    path = tmp_path / "g.safetensors"
    spec.random(0).save(path)
    content = path.read_bytes()
    for damaged in (content[: len(content) // 2], b"", b"not a file of tensors" * 10):
        path.write_bytes(damaged)
        with pytest.raises(CheckpointError):
            Alignment.load(path)
    with pytest.raises(CheckpointError):
        Alignment.load(tmp_path / "missing.safetensors")


def test_a_failed_save_leaves_the_old_file(spec: SymmetrySpec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "g.safetensors"
    spec.random(0).save(path)
    old = path.read_bytes()

    def full(*args: object, **kwargs: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("pyalign.symmetry.files.save_file", full)
    with pytest.raises(OSError, match="No space"):
        spec.random(1).save(path)
    assert path.read_bytes() == old
    assert [p.name for p in tmp_path.iterdir()] == ["g.safetensors"]


def test_elements_must_fit_the_spec(spec: SymmetrySpec) -> None:
    with pytest.raises(MismatchError, match="do not fit"):
        Alignment(spec, {})


def test_report_names_every_group(spec: SymmetrySpec) -> None:
    text = spec.random(0).report()
    assert all(name in text for name in spec.groups)
