"""Text and sequences: embeddings, attention, recurrent cells, mixtures of experts; inputs and outputs of all shapes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .record import PERMUTATION, POSITIVE, Registry, affine, axis, bn, group, image, into, noise, out, out_bias, tokens

ARCHITECTURES = Registry()


class TextClassifier(nn.Module):
    """Embedding, masked mean over time, two dense layers; keyword inputs, dict output."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.fc1, self.fc2 = nn.Embedding(11, 8, padding_idx=0), nn.Linear(8, 9), nn.Linear(9, 3)

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> dict[str, Any]:
        x = self.embedding(input_ids)
        if attention_mask is not None:
            weight = attention_mask.unsqueeze(-1).to(x.dtype)
            x = (x * weight).sum(1) / weight.sum(1).clamp(min=1)
        else:
            x = x.mean(1)
        return {"logits": self.fc2(F.relu(self.fc1(x))), "hidden": None}


def _text_inputs() -> dict[str, Tensor]:
    ids = tokens()
    return {"input_ids": ids, "attention_mask": (ids != 0).long()}


ARCHITECTURES.add(
    "text_classifier",
    TextClassifier,
    _text_inputs,
    group(8, axis("embedding.weight", 1), into("fc1")),
    group(9, out_bias("fc1"), into("fc2"), kind=POSITIVE),
)


class BagOfWords(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.fc1, self.fc2 = nn.EmbeddingBag(11, 8, mode="mean"), nn.Linear(8, 9), nn.Linear(9, 3)

    def forward(self, ids: Tensor) -> Tensor:
        return self.fc2(torch.tanh(self.fc1(F.relu(self.embedding(ids)))))


ARCHITECTURES.add(
    "bag_of_words",
    BagOfWords,
    tokens,
    group(8, axis("embedding.weight", 1), into("fc1"), kind=POSITIVE),
    group(9, out_bias("fc1"), into("fc2")),
)


@dataclass
class Prediction:
    logits: Tensor
    extras: tuple[Tensor, dict[str, Tensor]]


class TwoInputs(nn.Module):
    """A dict of an image and numbers in, a dataclass of nested outputs out, ordinary Python between."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6)
        self.numbers, self.layers = nn.Linear(5, 6), nn.ModuleList(nn.Linear(6, 6) for _ in range(2))
        self.head, self.value = nn.Linear(6, 3), nn.Linear(6, 1)

    def forward(self, batch: dict[str, Any], repeat: int = 1) -> Prediction:
        h = F.relu(self.norm(self.conv(batch["image"]))).mean((2, 3))
        if batch.get("numbers") is not None:
            h = h + F.relu(self.numbers(batch["numbers"]))
        for layer in self.layers:
            for _ in range(repeat):
                h = h + F.relu(layer(h)) if h.shape[0] > 1 else h
        return Prediction(self.head(h), (self.value(h).squeeze(-1), {"sum": self.head(h).sum(-1)}))


ARCHITECTURES.add(
    "dict_in_dataclass_out",
    TwoInputs,
    lambda: {"batch": {"image": image(), "numbers": noise(2, 5)}, "repeat": 2},
    group(
        6, out("conv"), axis("conv.bias"), bn("norm"), out_bias("numbers", "layers.0", "layers.1"),
        into("layers.0", "layers.1", "head", "value"), kind=POSITIVE,
    ),
)  # fmt: skip


class Encoder(nn.Module):
    """torch's own TransformerEncoderLayer between an embedding and a classifier."""

    def __init__(self, activation: str, first: bool) -> None:
        super().__init__()
        self.embedding, self.position = nn.Embedding(11, 8), nn.Parameter(torch.randn(6, 8))
        self.layer = nn.TransformerEncoderLayer(
            8, 2, 12, dropout=0.0, activation=activation, batch_first=True, norm_first=first
        )
        self.fc1, self.fc2 = nn.Linear(8, 9), nn.Linear(9, 3)

    def forward(self, ids: Tensor) -> Tensor:
        x = self.layer(self.embedding(ids) + self.position)
        return self.fc2(F.relu(self.fc1(x.mean(1))))


for _name, _activation, _first, _kind in (
    ("post_relu", "relu", False, POSITIVE),
    ("pre_gelu", "gelu", True, PERMUTATION),
):
    ARCHITECTURES.add(
        f"transformer_{_name}",
        lambda activation=_activation, first=_first: Encoder(activation, first),
        tokens,
        group(12, out_bias("layer.linear1"), into("layer.linear2"), kind=_kind),
        group(
            8, axis("embedding.weight", 1), axis("position", 1), affine("layer.norm1", "layer.norm2"),
            axis("layer.self_attn.in_proj_weight", 1), out_bias("layer.self_attn.out_proj", "layer.linear2"),
            into("layer.linear1", "fc1"), at_least=True,
        ),
        group(9, out_bias("fc1"), into("fc2"), kind=POSITIVE),
        open=True,
    )  # fmt: skip


class HandAttention(nn.Module):
    """Two heads by reshape and matmul, scaled_dot_product_attention behind, cross-attention to a memory."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.memory = nn.Linear(5, 8), nn.Linear(5, 6)
        self.q, self.k, self.v, self.o = (nn.Linear(8, 8) for _ in range(4))
        self.cross = nn.MultiheadAttention(8, 2, kdim=6, vdim=6, batch_first=True)
        self.norm, self.head = nn.LayerNorm(8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        memory, x = F.relu(self.memory(x)), self.stem(x)
        q, k, v = (layer(x).unflatten(-1, (2, 4)).transpose(1, 2) for layer in (self.q, self.k, self.v))
        scores = (q @ k.transpose(-1, -2) / 2).softmax(-1)
        x = x + self.o((scores @ v).transpose(1, 2).flatten(2))
        x = x + F.scaled_dot_product_attention(x, x, x) + self.cross(x, memory, memory, need_weights=False)[0]
        return self.head(self.norm(x))


ARCHITECTURES.add(
    "attention_by_hand",
    HandAttention,
    lambda: noise(2, 4, 5),
    group(6, out_bias("memory"), axis("cross.k_proj_weight", 1), axis("cross.v_proj_weight", 1)),
    group(
        8, out_bias("stem", "o", "cross.out_proj"), into("q", "k", "v", "head"), affine("norm"),
        axis("cross.q_proj_weight", 1), at_least=True,
    ),
    open=True,
)  # fmt: skip


class Recurrent(nn.Module):
    """A 1d convolutional stem, an LSTM or GRU, a dense head."""

    def __init__(self, cell: type[nn.Module]) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv1d(3, 6, 3, padding=1), nn.BatchNorm1d(6)
        self.conv2, self.cell = nn.Conv1d(6, 7, 3, padding=1), cell(7, 5, batch_first=True)
        self.fc1, self.fc2 = nn.Linear(5, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        states, _ = self.cell(x.transpose(1, 2))
        return self.fc2(F.relu(self.fc1(states[:, -1])))


for _name, _cell in (("lstm", nn.LSTM), ("gru", nn.GRU)):
    ARCHITECTURES.add(
        f"recurrent_{_name}",
        lambda cell=_cell: Recurrent(cell),
        lambda: noise(2, 3, 5),
        group(6, out_bias("conv1"), bn("bn1"), into("conv2"), kind=POSITIVE),
        group(7, out_bias("conv2"), axis("cell.weight_ih_l0", 1), kind=POSITIVE),
        group(8, out_bias("fc1"), into("fc2"), kind=POSITIVE),
        open=True,
    )


class Expert(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(8, 7), nn.Linear(7, 8)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(F.relu(self.up(x)))


class Mixture(nn.Module):
    """Experts weighed densely, or routed top-2 with data-dependent indexing."""

    def __init__(self, sparse: bool) -> None:
        super().__init__()
        self.before, self.stem = nn.Linear(5, 6), nn.Linear(6, 8)
        self.router, self.experts = nn.Linear(8, 3), nn.ModuleList(Expert() for _ in range(3))
        self.after, self.head, self.sparse = nn.Linear(8, 9), nn.Linear(9, 3), sparse

    def routed(self, x: Tensor) -> Tensor:
        weights, chosen = self.router(x).softmax(-1).topk(2, dim=-1)
        result = torch.zeros_like(x)
        for i, expert in enumerate(self.experts):
            row, slot = torch.where(chosen == i)
            result.index_add_(0, row, expert(x[row]) * weights[row, slot, None])
        return result

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.stem(F.relu(self.before(x))))
        if self.sparse:
            mixed = self.routed(x)
        else:
            mixed = torch.einsum("be,bed->bd", self.router(x).softmax(-1), torch.stack([e(x) for e in self.experts], 1))
        return self.head(F.relu(self.after(x + mixed)))


_WITHIN = frozenset({("experts.*.up.weight", 1), ("experts.*.up.bias", 1), ("experts.*.down.weight", 2)})
_EXPERTS = [
    group(
        3, out_bias("router"), frozenset((f"experts.*.{part}.{what}", 0) for part in ("up", "down") for what in
        ("weight", "bias")),
    ),
    group(21, _WITHIN, kind=POSITIVE, outer="experts", blocks=3),
]  # fmt: skip
_STREAM = group(
    8, out_bias("stem"), into("router", "after"),
    frozenset({("experts.*.down.weight", 1), ("experts.*.down.bias", 1), ("experts.*.up.weight", 2)}), kind=POSITIVE,
)  # fmt: skip
_AROUND = [
    group(6, out_bias("before"), into("stem"), kind=POSITIVE), group(9, out_bias("after"), into("head"), kind=POSITIVE)
]  # fmt: skip
ARCHITECTURES.add("experts_dense", lambda: Mixture(False), lambda: noise(6, 5), *_AROUND, _STREAM, *_EXPERTS, open=True)
ARCHITECTURES.add("experts_sparse", lambda: Mixture(True), lambda: noise(6, 5), *_AROUND, _STREAM, *_EXPERTS, open=True)
