"""Dense networks: perceptrons, gated units, autoencoders, RMSNorm residual nets."""

from __future__ import annotations

import itertools

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .record import PERMUTATION, POSITIVE, SIGNED, Axes, Registry, affine, axis, group, into, noise, out, out_bias

ARCHITECTURES = Registry()
vectors = lambda: noise(5, 6)  # noqa: E731


class Perceptron(nn.Module):
    def __init__(self, activation: nn.Module, widths: tuple[int, ...] = (6, 9, 7, 4)) -> None:
        super().__init__()
        self.fc1, self.fc2, self.fc3 = (nn.Linear(a, b) for a, b in itertools.pairwise(widths))
        self.act = activation

    def forward(self, x: Tensor) -> Tensor:
        return self.fc3(self.act(self.fc2(self.act(self.fc1(x)))))


def _perceptron_groups(kind: str | None) -> list:
    return [
        group(9, out_bias("fc1"), into("fc2"), kind=kind),
        group(7, out_bias("fc2"), into("fc3"), kind=kind),
    ]


for _name, _activation, _kind in (
    ("relu", nn.ReLU, POSITIVE),
    ("leaky_relu", nn.LeakyReLU, POSITIVE),
    ("tanh", nn.Tanh, SIGNED),
    ("gelu", nn.GELU, PERMUTATION),
    ("silu", nn.SiLU, PERMUTATION),
    ("sigmoid", nn.Sigmoid, PERMUTATION),
    ("softplus", nn.Softplus, PERMUTATION),
    ("elu", nn.ELU, PERMUTATION),
    ("relu6", nn.ReLU6, PERMUTATION),
    ("hardswish", nn.Hardswish, PERMUTATION),
    ("mish", nn.Mish, PERMUTATION),
    ("identity", nn.Identity, None),
):
    ARCHITECTURES.add(
        f"mlp_{_name}",
        lambda activation=_activation: Perceptron(activation()),
        vectors,
        *_perceptron_groups(_kind),
    )


class PReLUNet(nn.Module):
    """Slopes per unit on one layer, one shared slope on the other."""

    def __init__(self) -> None:
        super().__init__()
        self.fc1, self.fc2, self.fc3 = nn.Linear(6, 9), nn.Linear(9, 7), nn.Linear(7, 4)
        self.slopes, self.slope = nn.PReLU(9), nn.PReLU()

    def forward(self, x: Tensor) -> Tensor:
        return self.fc3(self.slope(self.fc2(self.slopes(self.fc1(x)))))


ARCHITECTURES.add(
    "mlp_prelu",
    PReLUNet,
    vectors,
    group(9, out_bias("fc1"), out("slopes"), into("fc2"), kind=POSITIVE),
    group(7, out_bias("fc2"), into("fc3"), kind=POSITIVE),
)


class FusedGate(nn.Module):
    """One projection for gate and value, cut by chunk (gate first) or by F.glu (gate last)."""

    def __init__(self, glu: bool) -> None:
        super().__init__()
        self.stem, self.both, self.down, self.head = (
            nn.Linear(6, 8), nn.Linear(8, 20), nn.Linear(10, 8), nn.Linear(8, 4),
        )  # fmt: skip
        self.glu = glu

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x).relu()
        both = self.both(x)
        if self.glu:
            hidden = F.glu(both, dim=-1)
        else:
            gate, value = both.chunk(2, dim=-1)
            hidden = F.silu(gate) * value
        return self.head(F.relu(x + self.down(hidden)))


for _name, _glu in (("swiglu_fused", False), ("glu_fused", True)):
    ARCHITECTURES.add(
        _name,
        lambda glu=_glu: FusedGate(glu),
        vectors,
        group(8, out_bias("stem", "down"), into("both", "head"), kind=POSITIVE),
        group(10, out_bias("both"), into("down")),
    )


class SeparateGate(nn.Module):
    """SwiGLU with two projections, behind hand-written or built-in RMSNorm, on a residual stream."""

    def __init__(self, norm: type[nn.Module]) -> None:
        super().__init__()
        self.embed = nn.Linear(6, 8, bias=False)
        self.norm1, self.norm2 = norm(8), norm(8)
        self.gate, self.up, self.down = (
            nn.Linear(8, 12, bias=False), nn.Linear(8, 12, bias=False), nn.Linear(12, 8, bias=False),
        )  # fmt: skip
        self.head = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        h = self.norm1(x)
        x = x + self.down(F.silu(self.gate(h)) * self.up(h))
        return self.head(self.norm2(x))


class HandRMSNorm(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        scale = torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6)
        return x * scale * self.weight


for _name, _norm in (("builtin", nn.RMSNorm), ("by_hand", HandRMSNorm)):
    ARCHITECTURES.add(
        f"swiglu_rmsnorm_{_name}",
        lambda norm=_norm: SeparateGate(norm),
        vectors,
        group(8, out("embed", "norm1", "norm2", "down"), into("gate", "up", "head")),
        group(12, out("gate", "up"), into("down")),
    )


class TiedAutoencoder(nn.Module):
    """Encoder and decoder share one matrix: a scale would have to equal its inverse."""

    def __init__(self, activation: nn.Module) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(9, 6))
        self.up, self.down = nn.Parameter(torch.randn(9)), nn.Parameter(torch.randn(6))
        self.act = activation

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        code = self.act(F.linear(x, self.weight, self.up))
        return {"reconstruction": F.linear(code, self.weight.t(), self.down)}


for _name, _activation, _kind in (("relu", nn.ReLU, PERMUTATION), ("tanh", nn.Tanh, SIGNED)):
    ARCHITECTURES.add(
        f"tied_autoencoder_{_name}",
        lambda activation=_activation: TiedAutoencoder(activation()),
        vectors,
        group(9, axis("weight"), axis("up"), kind=_kind),
    )


class TiedModules(nn.Module):
    """Two layers hold one parameter; two more are one module under two names."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.a, self.b, self.head = (
            nn.Linear(6, 8), nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 4),
        )  # fmt: skip
        self.b.weight = self.a.weight
        self.c = self.a

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.stem(x))
        for layer in (self.a, self.b, self.c):
            x = F.relu(layer(x))
        return self.head(x)


ARCHITECTURES.add(
    "tied_modules",
    TiedModules,
    vectors,
    group(8, out_bias("stem", "a"), axis("b.bias"), into("a", "head"), kind=POSITIVE),
)


class SharedTwice(nn.Module):
    """One module called twice on one stream (a recurrence), one called on two inputs (a siamese encoder)."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Sequential(nn.Linear(6, 7), nn.ReLU(), nn.Linear(7, 9))
        self.step, self.head = nn.Linear(9, 9), nn.Linear(9, 4)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        h = F.relu(self.encoder(x) - self.encoder(y))
        for _ in range(2):
            h = F.relu(self.step(h))
        return self.head(h)


ARCHITECTURES.add(
    "shared_twice",
    SharedTwice,
    lambda: (noise(5, 6), noise(6, 5).t().contiguous() + 1),
    group(7, out_bias("encoder.0"), into("encoder.2"), kind=POSITIVE),
    group(9, out_bias("encoder.2", "step"), into("step", "head"), kind=POSITIVE),
)


class DeepNorm(nn.Module):
    """LayerNorm in front of each layer, dropout behind, a learned vector on the stream."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.shift = nn.Linear(6, 8), nn.Parameter(torch.zeros(8))
        self.norms = nn.ModuleList(nn.LayerNorm(8) for _ in range(2))
        self.ups = nn.ModuleList(nn.Linear(8, 10) for _ in range(2))
        self.downs = nn.ModuleList(nn.Linear(10, 8) for _ in range(2))
        self.head, self.drop = nn.Linear(8, 4), nn.Dropout(0.2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x) + self.shift
        for norm, up, down in zip(self.norms, self.ups, self.downs, strict=True):
            x = x + self.drop(down(self.drop(F.gelu(up(norm(x))))))
        return self.head(x)


def _stream() -> Axes:
    return (
        out_bias("stem", "downs.0", "downs.1") | axis("shift") | affine("norms.0", "norms.1")
        | into("ups.0", "ups.1", "head")
    )  # fmt: skip


ARCHITECTURES.add(
    "mlp_layernorm_residual",
    DeepNorm,
    vectors,
    group(8, _stream()),
    group(10, out_bias("ups.0"), into("downs.0"), kind=PERMUTATION),
    group(10, out_bias("ups.1"), into("downs.1"), kind=PERMUTATION),
    train=False,
)
