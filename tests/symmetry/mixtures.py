"""Mixtures of experts as people write them: one layer, many routers, many ways to send tokens to experts."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

WIDTH, HIDDEN, EXPERTS, TOP = 6, 5, 4, 2


def after(logits: Tensor, layer: Mixture) -> tuple[Tensor, Tensor]:
    """Softmax over the chosen."""
    top, index = logits.topk(TOP, -1)
    return top.softmax(-1), index


def before(logits: Tensor, layer: Mixture) -> tuple[Tensor, Tensor]:
    """Softmax over all, not renormalised."""
    weight, index = logits.softmax(-1).topk(TOP, -1)
    return weight, index


def renormalised(logits: Tensor, layer: Mixture) -> tuple[Tensor, Tensor]:
    weight, index = before(logits, layer)
    return weight / weight.sum(-1, keepdim=True), index


def corrected(logits: Tensor, layer: Mixture) -> tuple[Tensor, Tensor]:
    """Sigmoid, and a bias that counts for the choice only."""
    scores = logits.sigmoid()
    index = (scores + layer.correction).topk(TOP, -1).indices
    weight = scores.gather(-1, index)
    return weight / weight.sum(-1, keepdim=True), index


def limited(logits: Tensor, layer: Mixture) -> tuple[Tensor, Tensor]:
    """The best experts of the best pair of neighbours."""
    scores = logits.softmax(-1)
    pairs = scores.view(len(scores), 2, -1).amax(-1)
    chosen = torch.zeros_like(pairs).scatter_(1, pairs.topk(1, -1).indices, 1.0)
    weight, index = (scores * chosen.repeat_interleave(EXPERTS // 2, 1)).topk(TOP, -1)
    return weight, index


def top1(logits: Tensor, layer: Mixture) -> tuple[Tensor, Tensor]:
    weight, index = logits.softmax(-1).max(-1, keepdim=True)
    return weight, index


def noisy(logits: Tensor, layer: Mixture) -> tuple[Tensor, Tensor]:
    return after(logits + torch.randn_like(logits) if layer.training else logits, layer)


def dense(logits: Tensor, layer: Mixture) -> tuple[Tensor, Tensor]:
    return logits.softmax(-1), torch.arange(EXPERTS).expand(len(logits), -1)


ROUTERS = (after, before, renormalised, corrected, limited, top1, noisy, dense)


def masked(x: Tensor, weight: Tensor, index: Tensor, layer: Mixture) -> Tensor:
    """All experts see all tokens; most of what they say is multiplied by zero."""
    full = torch.zeros(len(x), EXPERTS, dtype=x.dtype).scatter(-1, index, weight)
    return sum((full[:, e : e + 1] * layer.expert(e, x) for e in range(EXPERTS)), torch.zeros_like(x))


def looped(x: Tensor, weight: Tensor, index: Tensor, layer: Mixture) -> Tensor:
    """Each expert sees its own tokens."""
    out = torch.zeros_like(x)
    for e in range(EXPERTS):
        token, place = torch.where(index == e)
        out.index_add_(0, token, layer.expert(e, x[token]) * weight[token, place, None])
    return out


def counted(x: Tensor, weight: Tensor, index: Tensor, layer: Mixture) -> Tensor:
    """Masks of one-hot vectors, experts without tokens passed over."""
    out, mask = torch.zeros_like(x), F.one_hot(index, EXPERTS).permute(2, 1, 0)
    for e in range(EXPERTS):
        place, token = torch.where(mask[e])
        if token.numel():
            out[token] += layer.expert(e, x[token]) * weight[token, place].unsqueeze(-1)
    return out


def gathered(x: Tensor, weight: Tensor, index: Tensor, layer: Mixture) -> Tensor:
    """Every token brings the weights of its experts."""
    h = torch.einsum("td,tkhd->tkh", x, layer.up[index]) + layer.bias[index]
    return torch.einsum("tkh,tkdh,tk->td", F.gelu(h), layer.down[index], weight)


def combined(x: Tensor, weight: Tensor, index: Tensor, layer: Mixture) -> Tensor:
    """All experts as one batched product, combined by one-hot vectors."""
    full = (F.one_hot(index, EXPERTS).to(x.dtype) * weight.unsqueeze(-1)).sum(1)
    h = F.gelu(torch.bmm(x.expand(EXPERTS, -1, -1), layer.up.mT) + layer.bias.unsqueeze(1))
    return torch.einsum("te,etd->td", full, torch.bmm(h, layer.down.mT))


SENDERS: dict[Callable[..., Tensor], bool] = {
    masked: True,
    looped: True,
    counted: True,
    gathered: False,
    combined: False,
}
"""Ways to send tokens to experts -> whether the experts are modules in a list (else stacked tensors)."""


class Mixture(nn.Module):
    """Tokens, one mixture of experts with an expert that all share, and a readout."""

    def __init__(self, route: Callable[..., tuple[Tensor, Tensor]], send: Callable[..., Tensor]) -> None:
        super().__init__()
        self.route, self.send = route, send
        self.write, self.read = nn.Linear(3, WIDTH), nn.Linear(WIDTH, 2)
        self.gate = nn.Linear(WIDTH, EXPERTS)
        self.shared, self.share = (
            nn.Sequential(nn.Linear(WIDTH, 7), nn.SiLU(), nn.Linear(7, WIDTH)),
            nn.Linear(WIDTH, 1),
        )
        self.register_buffer("correction", 0.1 * torch.randn(EXPERTS))
        if SENDERS[send]:
            self.experts = nn.ModuleList(
                nn.Sequential(nn.Linear(WIDTH, HIDDEN), nn.GELU(), nn.Linear(HIDDEN, WIDTH)) for _ in range(EXPERTS)
            )
        else:
            self.up = nn.Parameter(torch.randn(EXPERTS, HIDDEN, WIDTH))
            self.bias = nn.Parameter(torch.randn(EXPERTS, HIDDEN))
            self.down = nn.Parameter(torch.randn(EXPERTS, WIDTH, HIDDEN))

    def expert(self, e: int, x: Tensor) -> Tensor:
        return self.experts[e](x)

    def forward(self, x: Tensor) -> Tensor:
        x = self.write(x.flatten(0, -2))
        weight, index = self.route(self.gate(x), self)
        mixed = self.send(x, weight, index, self) + self.share(x).sigmoid() * self.shared(x)
        return self.read(x + mixed)
