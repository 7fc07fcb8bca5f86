"""Models that compute unusual things with units: normalise, gate, compare, generate weights, or escape to Python."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from .dense import Perceptron
from .record import PERMUTATION, POSITIVE, Registry, axis, group, image, into, noise, out, out_bias

ARCHITECTURES = Registry()
vectors = lambda: noise(5, 6)  # noqa: E731
FIRST, SECOND = out_bias("fc1") | into("fc2"), out_bias("fc2") | into("fc3")


def written(h: Tensor, mask: Tensor, value: float) -> Tensor:
    """`h` with `value` written in place where the mask holds."""
    h = h.clone()
    h[mask] = value
    return h


class Between(Perceptron):
    """A perceptron with some function between its first activation and its second layer."""

    def __init__(self, function: Callable[[nn.Module, Tensor], Tensor]) -> None:
        super().__init__(nn.ReLU())
        self.function = function
        self.register_buffer("hidden_constant", torch.linspace(0.5, 1.5, 9, dtype=torch.float64), persistent=False)
        self.plain = torch.linspace(0.5, 1.5, 9, dtype=torch.float64)

    def forward(self, x: Tensor) -> Tensor:
        h = self.function(self, F.relu(self.fc1(x)))
        return self.fc3(F.relu(self.fc2(h)))


_MOVES = {
    "softmax_over_units": (lambda m, h: h.softmax(-1), PERMUTATION),
    "log_softmax_over_units": (lambda m, h: F.log_softmax(h, -1), PERMUTATION),
    "unit_length": (lambda m, h: F.normalize(h, dim=-1), PERMUTATION),
    "centred": (lambda m, h: h - h.mean(-1, keepdim=True), PERMUTATION),
    "standardised": (lambda m, h: (h - h.mean(1, True)) / (h.var(1, keepdim=True) + 1).sqrt(), PERMUTATION),
    "thresholded": (lambda m, h: torch.where(h > 0.5, h, torch.zeros_like(h)), PERMUTATION),
    "masked_fill": (lambda m, h: h.masked_fill(h < 0.2, -1.0), PERMUTATION),
    "written_where_small": (lambda m, h: written(h, h < 0.2, -1.0), PERMUTATION),
    "zeroed_where_negative": (lambda m, h: written(h - h.mean(0), h < 0.3 * h.mean(0), 0.0), None),
    "written_by_row": (lambda m, h: written(h, h.sum(-1) > 1.0, 0.0), None),
    "clamped": (lambda m, h: h.clamp(0.1, 0.6), PERMUTATION),
    "shifted": (lambda m, h: h + 1.5, PERMUTATION),
    "squared": (lambda m, h: h**2, None),
    "divided_by_self": (lambda m, h: h / (1 + h.abs()), PERMUTATION),
    "relative_to_best": (lambda m, h: h / h.amax(-1, keepdim=True).clamp(min=1e-3), PERMUTATION),
    "scaled_by_number": (lambda m, h: 2.5 * h, POSITIVE),
    "detached": (lambda m, h: h.detach() * 0.5 + h.clone() * 0.5, POSITIVE),
    "without_gradient": (lambda m, h: torch.no_grad()(lambda: h * 2)(), POSITIVE),
    "checkpointed": (lambda m, h: checkpoint(torch.relu, h, use_reentrant=False), POSITIVE),
    "other_precision": (lambda m, h: h.to(torch.float64).contiguous().type_as(h), POSITIVE),
    "minimum_with_self": (lambda m, h: torch.minimum(h, 2 * h) + torch.maximum(h, 0.5 * h), None),
    "over_the_batch": (lambda m, h: h - h.mean(0) + h.cumsum(0) + h.roll(1, 0), POSITIVE),
    "turned_twice": (lambda m, h: h.t().unsqueeze(0).squeeze(0).t()[:, None, :].expand(-1, 2, -1).sum(1), POSITIVE),
}
for _name, (_function, _kind) in _MOVES.items():
    ARCHITECTURES.add(
        _name, lambda function=_function: Between(function), vectors,
        group(9, FIRST, kind=_kind), group(7, SECOND, kind=POSITIVE),
    )  # fmt: skip

# A constant that differs between units and does not belong to the state cannot move: the axis stays.
_PINS = {
    "constant_in_forward": lambda m, h: h * torch.linspace(0.5, 1.5, 9, dtype=h.dtype),
    "constant_attribute": lambda m, h: h * m.plain,
    "constant_not_saved": lambda m, h: h + m.hidden_constant,
    "constant_from_list": lambda m, h: h * torch.tensor([0.1 * i for i in range(9)], dtype=h.dtype),
    "constant_position": lambda m, h: h * torch.arange(9).sin().to(h.dtype),
    "cumulative_sum": lambda m, h: h.cumsum(-1),
    "neighbours": lambda m, h: F.avg_pool1d(h[:, None], 3, 1, 1).squeeze(1),
    "convolution_over_units": lambda m, h: F.conv1d(h[:, None], h.new_tensor([[[0.3, 1.0, 0.5]]]), padding=1)[:, 0],
    "local_response": lambda m, h: F.local_response_norm(h[:, :, None], 3).squeeze(-1),
    "differences": lambda m, h: F.pad(h.diff(dim=-1), (0, 1)),
}
for _name, _function in _PINS.items():
    ARCHITECTURES.add(
        _name, lambda function=_function: Between(function), vectors, group(7, SECOND, kind=POSITIVE)
    )  # fmt: skip

# An implementer may follow these, in full or in part, or leave the first axis alone; what is derived must hold.
_FREE = {
    "uniform_constant": lambda m, h: h + torch.ones(9, dtype=h.dtype),
    "rolled": lambda m, h: h.roll(1, -1),
    "flipped": lambda m, h: h.flip(-1),
    "reordered": lambda m, h: h[:, [3, 1, 4, 0, 5, 8, 2, 6, 7]],
    "sorted": lambda m, h: h.sort(-1).values,
    "best_units": lambda m, h: h * torch.zeros_like(h).scatter(1, h.topk(4, -1).indices, 1.0),
    "spectrum": lambda m, h: torch.fft.fft(h).real,
    "one_unit_gates": lambda m, h: h * h[:, 3:4],
    "one_unit_escapes": lambda m, h: h * (1 + h[0, 3].item()),
    "best_unit_escapes": lambda m, h: h * (1 + int(h.sum(0).argmax())),
    "as_numpy": lambda m, h: h * torch.from_numpy(h.detach().numpy().cumsum(-1).copy()),
    "as_list": lambda m, h: h * float(h.tolist()[0][2]),
    "outer_product": lambda m, h: (h[:, :, None] * h[:, None, :]).tril().sum(-1),
    "gram": lambda m, h: h @ (h.t() @ h),
    "kronecker": lambda m, h: torch.kron(h, torch.tensor([[1.0]], dtype=h.dtype)),
    "half_negated": lambda m, h: torch.cat([h[:, :4], -h[:, 4:]], -1),
    "written_slot": lambda m, h: h.index_fill(1, torch.tensor([2]), 0.0),
}
for _name, _function in _FREE.items():
    ARCHITECTURES.add(
        _name, lambda function=_function: Between(function), vectors, group(7, SECOND, kind=POSITIVE), open=True
    )

# A number that leaves the tensors carries no label: no class that changes it may remain.
ARCHITECTURES.add(
    "number_escapes", lambda: Between(lambda m, h: h / h.abs().max().item() if h.sum() > 0 else h), vectors,
    group(9, FIRST, kind=PERMUTATION), group(7, SECOND, kind=POSITIVE), otherwise=(group(7, SECOND, kind=POSITIVE),),
)  # fmt: skip

# Every size is equal, so nothing can be told apart by its length.
ARCHITECTURES.add(
    "all_sizes_equal", lambda: Perceptron(nn.GELU(), (4, 4, 4, 4)), lambda: noise(4, 4),
    group(4, FIRST, kind=PERMUTATION), group(4, SECOND, kind=PERMUTATION),
)  # fmt: skip


class HiddenOutput(Perceptron):
    """The first hidden layer is itself an output; of the second only a symmetric function is."""

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        h = F.relu(self.fc1(x))
        g = F.relu(self.fc2(h))
        return self.fc3(g), h, g.norm(dim=-1)


ARCHITECTURES.add("hidden_output", lambda: HiddenOutput(nn.ReLU()), vectors, group(7, SECOND, kind=PERMUTATION))


class Unused(Perceptron):
    """Layers and parameters that forward never touches."""

    def __init__(self) -> None:
        super().__init__(nn.ReLU())
        self.forgotten, self.spare = nn.Linear(7, 7), nn.Parameter(torch.zeros(9))
        self.register_buffer("steps", torch.zeros((), dtype=torch.long))


ARCHITECTURES.add("unused_parameters", Unused, vectors, group(9, FIRST, kind=POSITIVE), group(7, SECOND, kind=POSITIVE))


class ChannelAndSpace(nn.Module):
    """CBAM: a shared MLP on mean and maximum gates channels; mean and maximum over channels gate pixels."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.conv2, self.fc = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 6, 3), nn.Linear(6, 4)
        self.mlp, self.space = nn.Sequential(nn.Linear(8, 5), nn.ReLU(), nn.Linear(5, 8)), nn.Conv2d(2, 1, 3, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.conv1(x))
        gate = torch.sigmoid(self.mlp(x.mean((2, 3))) + self.mlp(x.amax((2, 3))))
        x = x * gate[..., None, None]
        summary = torch.cat([x.mean(1, keepdim=True), x.max(1, keepdim=True)[0]], 1)
        x = x * torch.sigmoid(self.space(summary))
        return self.fc(F.relu(self.conv2(x)).mean((2, 3)))


ARCHITECTURES.add(
    "channel_and_space_gates", ChannelAndSpace, image,
    group(8, out_bias("conv1", "mlp.2"), into("mlp.0", "conv2"), kind=PERMUTATION),
    group(5, out_bias("mlp.0"), into("mlp.2"), kind=POSITIVE), group(6, out_bias("conv2"), into("fc"), kind=POSITIVE),
)  # fmt: skip


class Algebra(nn.Module):
    """einsum in both orders, a low-rank update beside a weight, a quadratic form, distances to prototypes."""

    def __init__(self) -> None:
        super().__init__()
        shapes = {"w1": (9, 6), "w2": (9, 8), "a": (8, 3), "b": (3, 8), "base": (8, 8), "form": (8, 8), "proto": (4, 8)}
        for name, shape in shapes.items():
            setattr(self, name, nn.Parameter(torch.randn(shape) / 3))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        h = F.relu(torch.einsum("bi,oi->bo", x, self.w1))
        h = F.relu(torch.einsum("bi,io->bo", h, self.w2))
        g = F.gelu(F.linear(h, self.base + self.a @ self.b))
        return ((g @ self.form) * g).sum(-1), (g[:, None] - self.proto).pow(2).sum(-1)


ARCHITECTURES.add(
    "algebra", Algebra, vectors,
    group(9, axis("w1"), axis("w2"), kind=POSITIVE),
    group(8, axis("w2", 1), axis("base", 1), axis("b", 1), kind=POSITIVE),
    group(3, axis("a", 1), axis("b")),
    group(8, axis("base"), axis("a"), axis("form"), axis("form", 1), axis("proto", 1), kind=PERMUTATION),
)  # fmt: skip


class Cosine(nn.Module):
    """Cosine classifier: both the features and the weight rows are brought to unit length."""

    def __init__(self) -> None:
        super().__init__()
        self.fc1, self.weight = nn.Linear(6, 9), nn.Parameter(torch.randn(4, 9))
        self.scale = nn.Parameter(torch.ones(()))

    def forward(self, x: Tensor) -> Tensor:
        h = F.relu(self.fc1(x))
        return self.scale.exp() * F.linear(h / h.norm(dim=-1, keepdim=True), F.normalize(self.weight, dim=1))


ARCHITECTURES.add("cosine_classifier", Cosine, vectors, group(9, out_bias("fc1"), axis("weight", 1), kind=PERMUTATION))


class Graph(nn.Module):
    """Message passing: rows are gathered and added along edges, a dense adjacency multiplies from the left."""

    def __init__(self) -> None:
        super().__init__()
        self.fc1, self.fc2, self.fc3 = nn.Linear(6, 9), nn.Linear(9, 7), nn.Linear(7, 4)

    def forward(self, x: Tensor, edges: Tensor, adjacency: Tensor) -> Tensor:
        h = F.relu(self.fc1(x))
        h = h + torch.zeros_like(h).index_add_(0, edges[1], h[edges[0]])
        h = F.relu(adjacency @ self.fc2(h))
        return self.fc3(h)


ARCHITECTURES.add(
    "graph", Graph,
    lambda: (noise(5, 6), torch.tensor([[0, 1, 2, 4, 3], [1, 2, 3, 0, 0]]), noise(5, 5)),
    group(9, FIRST, kind=POSITIVE), group(7, SECOND, kind=POSITIVE),
)  # fmt: skip


class Highway(nn.Module):
    """Learned interpolation between a stream and its update; learned scalars."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.new, self.gate, self.head = (
            nn.Linear(6, 8), nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 4),
        )  # fmt: skip
        self.gain = nn.Parameter(torch.ones(1))

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for _ in range(2):
            x = torch.lerp(x, self.gain * torch.tanh(self.new(x)), torch.sigmoid(self.gate(x)))
        return self.head(x)


ARCHITECTURES.add("highway", Highway, vectors, group(8, out_bias("stem", "new", "gate"), into("new", "gate", "head")))


class Warped(nn.Module):
    """A spatial transformer: the image of features is resampled on a grid that the features choose."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.locate = nn.Conv2d(3, 6, 3), nn.Linear(6, 6)
        self.conv2, self.fc = nn.Conv2d(6, 7, 3), nn.Linear(7, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.conv1(x))
        grid = F.affine_grid(self.locate(x.mean((2, 3))).view(-1, 2, 3), list(x.shape), align_corners=False)
        x = F.grid_sample(x, 0.3 * grid, align_corners=False)
        return self.fc(F.relu(self.conv2(x)).mean((2, 3)))


ARCHITECTURES.add(
    "spatial_transformer", Warped, image,
    group(6, out_bias("conv1"), into("locate", "conv2"), kind=POSITIVE),
    group(7, out_bias("conv2"), into("fc"), kind=POSITIVE),
)  # fmt: skip


class Hyper(nn.Module):
    """One network writes the weight of another."""

    def __init__(self) -> None:
        super().__init__()
        self.code, self.fc1, self.fc2 = nn.Parameter(torch.randn(5)), nn.Linear(5, 7), nn.Linear(7, 54)
        self.head = nn.Linear(9, 4)

    def forward(self, x: Tensor) -> Tensor:
        weight = self.fc2(F.relu(self.fc1(self.code))).view(9, 6)
        return self.head(F.relu(F.linear(x, weight)))


ARCHITECTURES.add(
    "hypernetwork", Hyper, vectors,
    group(7, FIRST, kind=POSITIVE), open=True,
)  # fmt: skip


class Bilinear(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.both = nn.Linear(6, 8), nn.Linear(6, 7), nn.Bilinear(8, 7, 9)
        self.fc1, self.fc2 = nn.Linear(9, 5), nn.Linear(5, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.relu(self.fc1(F.relu(self.both(F.relu(self.a(x)), F.relu(self.b(x)))))))


ARCHITECTURES.add("bilinear", Bilinear, vectors, group(5, out_bias("fc1"), into("fc2"), kind=POSITIVE), open=True)


class GlobalFilter(nn.Module):
    """GFNet: a learned complex filter per channel in the Fourier domain of space."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.filter = nn.Conv2d(3, 6, 2, 2), nn.Parameter(torch.randn(6, 4, 3, 2))
        self.conv, self.fc = nn.Conv2d(6, 7, 3), nn.Linear(7, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.fft.rfft2(self.stem(x)) * torch.view_as_complex(self.filter)
        return self.fc(F.relu(self.conv(torch.fft.irfft2(x, s=(4, 4)))).mean((2, 3)))


ARCHITECTURES.add(
    "global_filter", GlobalFilter, image, group(7, out_bias("conv"), into("fc"), kind=POSITIVE), open=True
)


class ParameterCollections(nn.Module):
    """Weights in a ParameterList and a ParameterDict, (in, out) as GPT-2 stores them, addmm and baddbmm."""

    def __init__(self) -> None:
        super().__init__()
        self.weights = nn.ParameterList([torch.randn(6, 9) / 3, torch.randn(9, 7) / 3])
        self.biases = nn.ParameterDict({"first": torch.randn(9), "second": torch.randn(1, 7)})
        self.head = nn.Linear(7, 4)

    def forward(self, x: Tensor) -> Tensor:
        h = F.relu(torch.addmm(self.biases["first"], x, self.weights[0]))
        h = torch.baddbmm(self.biases["second"].unsqueeze(0), h.unsqueeze(0), self.weights[1].unsqueeze(0))
        return self.head(F.relu(h[0]))


ARCHITECTURES.add(
    "parameter_collections", ParameterCollections, vectors,
    group(9, axis("weights.0", 1), axis("biases.first"), axis("weights.1"), kind=POSITIVE),
    group(7, axis("weights.1", 1), axis("biases.second", 1), into("head"), kind=POSITIVE),
)  # fmt: skip


class Constrained(nn.Module):
    """Efficient channel attention: a convolution along the channel axis fixes it, its neighbours still move."""

    def __init__(self) -> None:
        super().__init__()
        self.conv0, self.conv1, self.slide = nn.Conv2d(3, 5, 3), nn.Conv2d(5, 8, 3), nn.Conv1d(1, 1, 3, padding=1)
        self.conv2, self.fc = nn.Conv2d(8, 6, 3), nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.conv1(F.relu(self.conv0(x))))
        gate = self.slide(x.mean((2, 3)).unsqueeze(1)).sigmoid().transpose(1, 2).unsqueeze(-1)
        return self.fc(F.relu(self.conv2(x * gate)).mean((2, 3)))


ARCHITECTURES.add(
    "efficient_channel_attention", Constrained, image,
    group(5, out_bias("conv0"), into("conv1"), kind=POSITIVE), group(6, out_bias("conv2"), into("fc"), kind=POSITIVE),
)  # fmt: skip


class NormOptions(nn.Module):
    """BatchNorm without statistics, over time and over vectors; a cumulative average; a weight scaled in forward."""

    def __init__(self) -> None:
        super().__init__()
        self.fc1, self.bn1 = nn.Linear(6, 8), nn.BatchNorm1d(8, track_running_stats=False)
        self.fc2, self.bn2, self.fc3 = nn.Linear(8, 7, bias=False), nn.BatchNorm1d(7, momentum=None), nn.Linear(7, 4)

    def forward(self, x: Tensor) -> Tensor:
        h = F.relu(self.bn1(self.fc1(x).transpose(1, 2)).transpose(1, 2))
        h = F.linear(h, self.fc2.weight * 0.5 / self.fc2.weight.numel() ** 0.5)
        return self.fc3(F.relu(self.bn2(h.flatten(0, 1))))


ARCHITECTURES.add(
    "batchnorm_options", NormOptions, lambda: noise(3, 4, 6),
    group(8, out_bias("fc1", "bn1"), into("fc2"), kind=POSITIVE),
    group(
        7, out("fc2"), out_bias("bn2"), axis("bn2.running_mean"), axis("bn2.running_var"), into("fc3"), kind=POSITIVE
    ),
)  # fmt: skip
