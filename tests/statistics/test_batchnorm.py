"""BatchNorm re-estimation: equal to torch where torch is right, and nothing else touched."""

import copy

import pytest
import torch
from torch import nn
from torch.optim.swa_utils import update_bn

from pyalign.errors import DataError, NonFiniteError
from pyalign.statistics import has_batchnorm, reestimate_batchnorm


def batches(sizes, channels=3, seed=0, spatial=()):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(n, channels, *spatial, generator=generator) * 3 + 1 for n in sizes]


def network():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 5, 3), nn.BatchNorm2d(5, momentum=0.3)
    )


def statistics(model):
    return [buffer.clone() for buffer in model.buffers()]


def test_equals_update_bn_on_equal_batches():
    data = batches([8, 8, 8], spatial=(6, 6))
    ours, theirs = network(), network()
    reestimate_batchnorm(ours, data)
    update_bn(data, theirs)
    for mine, torchs in zip(statistics(ours), statistics(theirs), strict=True):
        torch.testing.assert_close(mine, torchs)
    assert ours[1].num_batches_tracked == 3


@pytest.mark.parametrize(
    ("norm", "spatial"),
    [(nn.BatchNorm1d, ()), (nn.BatchNorm1d, (5,)), (nn.BatchNorm2d, (2, 3)), (nn.BatchNorm3d, (2, 2, 2)),
     (nn.SyncBatchNorm, (2, 3))],
)  # fmt: skip
def test_unequal_batches_pool_by_their_elements(norm, spatial):
    data = batches([64, 8, 2], spatial=spatial)
    module = norm(3)
    module.running_mean.fill_(float("nan"))
    reestimate_batchnorm(module, data)
    pooled = torch.cat([x.transpose(0, 1).flatten(1) for x in data], 1)
    torch.testing.assert_close(module.running_mean, pooled.mean(1))
    weights = torch.tensor([64.0, 8.0, 2.0]) / 74
    variances = torch.stack([x.transpose(0, 1).flatten(1).var(1) for x in data])
    torch.testing.assert_close(module.running_var, weights @ variances)


def test_subclasses_and_one_batch():
    class Renamed(nn.BatchNorm2d):
        pass

    module = Renamed(3)
    (x,) = batches([16], spatial=(2, 2))
    reestimate_batchnorm(module, iter([x]))
    torch.testing.assert_close(module.running_mean, x.mean((0, 2, 3)))


def test_only_batchnorm_trains_and_everything_returns():
    model = nn.Sequential(nn.BatchNorm1d(3), nn.Dropout(0.9), nn.Linear(3, 3), nn.BatchNorm1d(3, momentum=None))
    model.train()
    model[3].eval()
    before = copy.deepcopy(model)
    modes = [module.training for module in model.modules()]
    rng = torch.get_rng_state()
    seen = []
    model[1].register_forward_hook(lambda module, inputs, output: seen.append(torch.equal(inputs[0], output)))
    reestimate_batchnorm(model, batches([8, 8]))
    assert seen == [True, True]
    assert torch.equal(torch.get_rng_state(), rng)
    assert [module.training for module in model.modules()] == modes
    assert (model[0].momentum, model[3].momentum) == (0.1, None)
    assert not model[0]._forward_pre_hooks
    for mine, earlier in zip(model.parameters(), before.parameters(), strict=True):
        assert torch.equal(mine, earlier) and mine.requires_grad


def test_has_batchnorm():
    assert has_batchnorm(network())
    assert has_batchnorm(nn.InstanceNorm1d(3, track_running_stats=True))
    assert not has_batchnorm(nn.Sequential(nn.Linear(1, 1), nn.LayerNorm(3)))
    assert not has_batchnorm(nn.BatchNorm1d(3, track_running_stats=False))


def test_batchnorm_without_running_statistics_is_left_alone():
    model = nn.Sequential(nn.BatchNorm1d(3, track_running_stats=False), nn.BatchNorm1d(3))
    reestimate_batchnorm(model, batches([8]))
    assert model[0].running_mean is None
    assert model[1].running_mean.abs().max() < 1e-6


class WithAuxiliaryHead(nn.Module):
    def __init__(self):
        super().__init__()
        self.trunk, self.aux = nn.BatchNorm1d(3), nn.BatchNorm1d(3)
        self.aux.running_mean.fill_(7)

    def forward(self, x):
        return (self.trunk(x), self.aux(x)) if self.training else self.trunk(x)


def test_a_layer_that_sees_no_data_keeps_its_statistics():
    model = WithAuxiliaryHead().train()
    reestimate_batchnorm(model, batches([8]))
    assert torch.equal(model.aux.running_mean, torch.full((3,), 7.0))
    assert model.trunk.running_mean.abs().min() > 0


def test_shared_module_counts_each_call():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.norm = nn.BatchNorm1d(3, affine=False)

        def forward(self, x):
            return self.norm(x) + self.norm(x + 2)

    model = Twice()
    (x,) = batches([32])
    reestimate_batchnorm(model, [x])
    torch.testing.assert_close(model.norm.running_mean, x.mean(0) + 1)


@pytest.mark.parametrize("failure", ["empty", "shape", "one sample", "interrupt", "nan"])
def test_any_failure_leaves_the_model_as_it_was(failure):
    def interrupted():
        yield good
        raise KeyboardInterrupt

    (good,) = batches([8], spatial=(6, 6))
    data, error = {
        "empty": ([], DataError),
        "shape": ([good, torch.zeros(8, 2, 6, 6)], DataError),
        "one sample": ([good, torch.zeros(1, 3, 5, 5)], DataError),
        "interrupt": (interrupted(), KeyboardInterrupt),
        "nan": ([good, good * float("nan")], NonFiniteError),
    }[failure]
    model = network().train()
    before = statistics(model)
    with pytest.raises(error, match="BatchNorm '1'" if failure == "nan" else None):
        reestimate_batchnorm(model, data)
    assert all(torch.equal(mine, earlier) for mine, earlier in zip(statistics(model), before, strict=True))
    assert model[1].training and model[1].momentum == 0.1 and not model[1]._forward_pre_hooks
