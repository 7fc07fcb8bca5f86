"""Silent units of widened models: planted splits are found, the function stays, and the distance falls."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from pyalign.matching import share
from pyalign.symmetry import widen


def network(width: int, seed: int, activation: type[nn.Module] = nn.ReLU) -> nn.Sequential:
    torch.manual_seed(seed)
    convolution, norm = nn.Conv2d(2, width, 3), nn.BatchNorm2d(width)
    norm.weight.data.uniform_(0.5, 2.0)
    norm.bias.data.normal_()
    head = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, 2 * width), activation())
    return nn.Sequential(convolution, norm, activation(), head, nn.Linear(2 * width, 3)).eval()


def distance(a: nn.Module, b: nn.Module) -> float:
    return sum(float((p - q).detach().square().sum()) for p, q in zip(a.parameters(), b.parameters(), strict=True))


IMAGES = torch.randn(5, 2, 6, 6, generator=torch.Generator().manual_seed(0))


def test_planted_splits_are_found() -> None:
    """Half of the wide model's units are shares of the other half; then nothing is left of the distance."""
    narrow = network(4, 0)
    start = widen(narrow, network(8, 1), IMAGES).model
    wide, shares = widen(narrow, network(8, 1), IMAGES).model, torch.tensor([0.3, 0.5, 0.8, 0.6])
    with torch.no_grad():  # unit i and unit 4 + i: scale and shift of the norm are read, the head is written to
        for tensor in (wide[1].weight, wide[1].bias):
            whole = tensor[:4].clone()
            tensor[:4], tensor[4:] = whole * (1 - shares), whole * shares
        wide[1].running_mean[4:], wide[1].running_var[4:] = wide[1].running_mean[:4], wide[1].running_var[:4]
        wide[0].weight[4:], wide[0].bias[4:] = wide[0].weight[:4], wide[0].bias[:4]
        wide[3][2].weight[:, 4:] = wide[3][2].weight[:, :4]
    torch.testing.assert_close(wide(IMAGES), narrow(IMAGES))
    found = share(wide, start, IMAGES)
    assert found.filled["0"] == (4, 4)
    assert distance(wide, start) > 1 and distance(wide, found.model) < 1e-8
    torch.testing.assert_close(found.model(IMAGES), narrow(IMAGES))


def test_units_of_other_networks_are_shared_only_where_that_changes_nothing() -> None:
    for activation, shared in ((nn.LeakyReLU, True), (nn.GELU, False)):
        narrow, wide = network(4, 0, activation), network(9, 1, activation)
        start = widen(narrow, wide, IMAGES).model
        kept: dict[str, Tensor] = {n: t.clone() for n, t in start.state_dict().items()}
        found = share(wide, start, IMAGES)
        assert (sum(done for done, _ in found.filled.values()) > 0) == shared
        assert (found.after < found.before) == shared
        torch.testing.assert_close(found.model(IMAGES), narrow(IMAGES))
        assert all(torch.equal(t, kept[n]) for n, t in start.state_dict().items())
