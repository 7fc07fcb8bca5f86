"""Running states, windows, Fourier filters: values that are written part by part or seen from elsewhere in memory."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .record import PERMUTATION, SCALED, SIGNED, Registry, axis, group, into, noise, out_bias

ARCHITECTURES = Registry()


class StateSpace(nn.Module):
    """Heads with a decay of their own, inputs and outputs of the state shared by all heads, as in Mamba-2."""

    def __init__(self, heads: int = 3, width: int = 4, state: int = 5) -> None:
        super().__init__()
        self.sizes = (heads * width, state, state, heads)
        self.heads, self.width = heads, width
        self.first, self.last = nn.Linear(6, sum(self.sizes)), nn.Linear(heads * width, 2)
        self.decay, self.skip = nn.Parameter(torch.rand(heads)), nn.Parameter(torch.randn(heads))

    def forward(self, u: Tensor) -> Tensor:
        x, b, c, step = self.first(u).split(self.sizes, -1)
        x = F.silu(x).unflatten(-1, (self.heads, self.width))
        b, c = (F.pad(z[:, :, None].expand(-1, -1, self.heads, -1), (0, 0, 0, 0, 0, 1)) for z in (b, c))
        steps = F.pad(F.softplus(step), (0, 0, 0, 1))
        along = (steps * -self.decay.exp()).cumsum(1)
        mask = torch.exp(along[:, :, None] - along[:, None]).permute(0, 3, 1, 2).tril()
        x = F.pad(x, (0, 0, 0, 0, 0, 1))
        near = torch.einsum("blhn,bshn->blsh", c, b) * mask.permute(0, 2, 3, 1)
        y = torch.einsum("blsh,bshp->blhp", near, x * steps[..., None]) + self.skip[:, None] * x
        states = torch.einsum("blhn,blhp->bhpn", b, x)
        states = torch.cat([torch.zeros_like(states[:, None]), states[:, None]], 1)
        past = torch.einsum("bzh,bzhpn->bhpn", steps[:, :2], states)
        y = y + torch.einsum("blhn,bhpn->blhp", c, past)
        return self.last(y[:, :-1].flatten(2))


class Steps(nn.Module):
    """Two layers whose states live in one tensor and whose outputs are written step by step."""

    def __init__(self) -> None:
        super().__init__()
        self.read = nn.ModuleList([nn.Linear(5, 4), nn.Linear(5, 4)])
        self.write = nn.ModuleList([nn.Linear(4, 5), nn.Linear(4, 5)])
        self.decay = nn.ParameterList([torch.randn(4), torch.randn(4)])
        self.stem, self.head = nn.Linear(3, 5), nn.Linear(5, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = F.gelu(self.stem(x))
        states = torch.zeros(len(x), 4, 2, dtype=x.dtype) - 1.0
        for n in range(2):
            key, seen = self.read[n](x), torch.zeros(len(x), 4, x.shape[1], dtype=x.dtype).transpose(1, 2)
            state = states[:, :, n]
            for t in range(x.shape[1]):
                state = torch.maximum(state + self.decay[n], key[:, t])
                seen[:, t] = state
            states[:, :, n] = state
            x = x + self.write[n](seen)
        return self.head(x)


class Windows(nn.Module):
    """Local attention: windows of keys and values as strides, scores written into a wider table."""

    def __init__(self, heads: int = 3, width: int = 4) -> None:
        super().__init__()
        self.heads, self.width = heads, width
        self.q, self.k, self.v = (nn.Linear(5, heads * width) for _ in range(3))
        self.o = nn.Linear(heads * width, 2)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (
            layer(x).unflatten(-1, (self.heads, self.width)).transpose(1, 2).reshape(-1, x.shape[1], self.width)
            for layer in (self.q, self.k, self.v)
        )
        scores = torch.einsum("btd,btwd->btw", q[:, 1:], windows(k))
        table = torch.zeros(*scores.shape[:2], 4, dtype=x.dtype)
        table[:, :, :2] = scores
        table.unsqueeze_(1)
        table.squeeze_(1)
        y = torch.einsum("btw,btwd->btd", table[:, :, :3].softmax(-1)[..., :2], windows(v))
        return self.o(y.reshape(len(x), self.heads, -1, self.width).transpose(1, 2).flatten(2))


def windows(x: Tensor) -> Tensor:
    """Each step and the one before it, (b, t - 1, 2, d), as a view."""
    b, t, d = x.shape
    x = x.contiguous()
    return x.as_strided((b, t - 1, 2, d), (x.stride(0), x.stride(1), x.stride(1), x.stride(2)))


class Spectral(nn.Module):
    """A filter of its own for each channel and frequency, by Fourier transforms along time."""

    def __init__(self, along: int = 1) -> None:
        super().__init__()
        self.along = along
        self.first, self.last = nn.Linear(5, 6), nn.Linear(6, 2)
        self.filter = nn.Parameter(torch.randn(4, 6, 2) if along == 1 else torch.randn(7, 4, 2))

    def forward(self, x: Tensor) -> Tensor:
        x = torch.tanh(self.first(x))
        y = torch.fft.rfft(x, dim=self.along) * torch.view_as_complex(self.filter)
        y = torch.fft.irfft(y, n=x.shape[self.along], dim=self.along) + torch.fft.fft(x, dim=1).real
        return self.last(y)


ARCHITECTURES.add(
    "state_space_heads",
    StateSpace,
    lambda: noise(2, 4, 6),
    group(3, out_bias("first"), axis("decay"), axis("skip"), into("last"), kind=PERMUTATION),
    group(5, out_bias("first")),
)
ARCHITECTURES.add(
    "states_written_step_by_step",
    Steps,
    lambda: noise(2, 4, 3),
    group(5, out_bias("stem", "write.0", "write.1"), into("read.0", "read.1", "head"), kind=PERMUTATION),
    *(
        group(4, out_bias(f"read.{n}"), axis(f"decay.{n}"), into(f"write.{n}"), kind=PERMUTATION)
        for n in range(2)
    ),
)  # fmt: skip
ARCHITECTURES.add(
    "windows_of_strides",
    Windows,
    lambda: noise(2, 4, 5),
    group(3, out_bias("q", "k", "v"), into("o")),
    group(12, out_bias("q", "k"), kind=SCALED, outer="heads", blocks=3),
    group(12, out_bias("v"), into("o"), kind=SCALED, outer="heads", blocks=3),
)
ARCHITECTURES.add(
    "fourier_along_time",
    Spectral,
    lambda: noise(2, 6, 5),
    group(6, out_bias("first"), axis("filter", 1), into("last")),
)
ARCHITECTURES.add("fourier_along_units", lambda: Spectral(2), lambda: noise(2, 7, 5))


class Inserted(nn.Module):
    """Rows of an image among those of a text, put where a mask says."""

    def __init__(self) -> None:
        super().__init__()
        self.text, self.image, self.hidden, self.head = (nn.Linear(*n) for n in ((5, 6), (3, 6), (6, 7), (7, 2)))

    def forward(self, x: Tensor, y: Tensor, mask: Tensor) -> Tensor:
        x = self.text(x).masked_scatter(mask.unsqueeze(-1).expand(-1, -1, 6), self.image(y))
        return self.head(F.gelu(self.hidden(x)))


ARCHITECTURES.add(
    "rows_put_by_mask",
    Inserted,
    lambda: (noise(2, 4, 5), noise(3, 3), torch.tensor([[0, 1, 0, 1], [0, 0, 1, 0]]).bool()),
    group(6, out_bias("text", "image"), into("hidden")),
    group(7, out_bias("hidden"), into("head"), kind=PERMUTATION),
)


class Numbered(nn.Module):
    """Channels scattered to numbered places in time: the same for all channels, or others for each."""

    def __init__(self, alike: bool) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(5, 6), nn.Linear(6, 2)
        order = torch.stack([torch.randperm(4) for _ in range(6)], -1)
        self.register_buffer("order", order[:, :1].expand(-1, 6) if alike else order, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        h = torch.tanh(self.first(x))
        index = self.order.expand(len(x), -1, -1).contiguous()
        return self.last(torch.zeros_like(h).scatter(1, index, h) + torch.zeros_like(h).scatter_add_(1, index, h))


ARCHITECTURES.add(
    "scattered_alike",
    lambda: Numbered(True),
    lambda: noise(2, 4, 5),
    group(6, out_bias("first"), into("last"), kind=SIGNED),
)
ARCHITECTURES.add("scattered_differently", lambda: Numbered(False), lambda: noise(2, 4, 5))


class Decayed(nn.Module):
    """A persistent table of more steps than the input has: the rest of it stays, nobody else moves with it."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(5, 6), nn.Linear(6, 2)
        self.register_buffer("decay", torch.rand(9, 1))

    def forward(self, x: Tensor) -> Tensor:
        return self.last(torch.tanh(self.first(x)) * self.decay[: x.shape[1]])


ARCHITECTURES.add(
    "a_longer_table", Decayed, lambda: noise(2, 4, 5), group(6, out_bias("first"), into("last"), kind=SIGNED)
)
