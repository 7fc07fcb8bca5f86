"""The networks of the study on mixtures of experts, their text, and their training; runs resume from their files."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from tqdm.auto import tqdm

from benchmarks.studies.data import Absent, architecture, shared_folder
from pyalign._atomic import replacing


@dataclass(frozen=True)
class Text:
    """Character ids for training and for testing; windows of `length` characters."""

    train: Tensor
    test: Tensor
    length: int

    def draw(self, count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Random training windows and the characters that follow each of theirs, (count, length) both."""
        starts = torch.randint(len(self.train) - self.length - 1, (count,), generator=generator)
        rows = torch.stack([self.train[s : s + self.length + 1] for s in starts.tolist()])
        return rows[:, :-1], rows[:, 1:]

    def batches(self, windows: int, size: int) -> list[tuple[Tensor, Tensor]]:
        """Consecutive test windows in batches; targets flattened as the losses take them."""
        rows = self.test[: windows * self.length + 1]
        x, y = rows[:-1].reshape(windows, self.length), rows[1:].reshape(windows, self.length)
        return list(zip(x.split(size), y.split(size), strict=True))


@dataclass(frozen=True)
class Drawn:
    """Batches of random training windows, the same in every pass."""

    text: Text
    batch: int
    steps: int
    seed: int = 77

    def __len__(self) -> int:
        return self.steps

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        generator = torch.Generator().manual_seed(self.seed)
        return (self.text.draw(self.batch, generator) for _ in range(self.steps))


def tinyshakespeare(length: int) -> Text:
    """The text, its first million characters for training.

    Raises:
        Absent: It is not there.
    """
    path = shared_folder() / "data" / "tinyshakespeare.txt"
    if not path.is_file():
        raise Absent(f"no text: {path} is missing")
    text = path.read_text()
    number = {c: i for i, c in enumerate(sorted(set(text)))}
    ids = torch.tensor([number[c] for c in text])
    return Text(ids[:1_000_000], ids[1_000_000:], length)


class Mixture(nn.Module):
    """Experts of two layers with a router: dense, the two best, or the two best and an expert that all share.

    Args:
        width: Of the stream.
        hidden: Units of each expert.
        kind: "dense", "top2" or "shared".
        experts: How many there are.
    """

    def __init__(self, width: int, hidden: int, kind: str, experts: int = 4) -> None:
        super().__init__()
        self.kind, self.gate = kind, nn.Linear(width, experts)
        self.experts = nn.ModuleList(_expert(width, hidden) for _ in range(experts))
        self.shared = _expert(width, hidden) if kind == "shared" else None

    def forward(self, x: Tensor) -> Tensor:
        """Every expert's answer, weighted; those that were not chosen count nothing."""
        return self.combined(x, self.gate(x), [expert(x) for expert in self.everyone()])

    def everyone(self) -> list[nn.Module]:
        """The experts, the shared one last."""
        return [*self.experts, *([] if self.shared is None else [self.shared])]

    def combined(self, x: Tensor, scores: Tensor, answers: list[Tensor]) -> Tensor:
        """The answers of all experts weighted by the router's scores, that of the shared one whole."""
        if self.kind == "dense":
            weight = scores.softmax(-1)
        else:
            best, index = scores.topk(2, -1)
            weight = torch.zeros_like(scores).scatter(-1, index, best.softmax(-1))
        chosen = zip(weight.unbind(-1), answers, strict=False)
        out = sum((w.unsqueeze(-1) * answer for w, answer in chosen), torch.zeros_like(x))
        return out if self.shared is None else out + answers[-1]


class Averaged(nn.Module):
    """Two matched mixtures halfway: the mean of their routers' weights, and of their experts' answers (not weights)."""

    def __init__(self, one: Any, two: Any) -> None:
        super().__init__()
        self.one, self.two = one, two

    def forward(self, x: Tensor) -> Tensor:
        """Expert by expert the mean of both answers, weighted by the router whose weights are the mean of both."""
        pairs = zip(self.one.everyone(), self.two.everyone(), strict=True)
        answers = [(first(x) + second(x)) / 2 for first, second in pairs]
        return self.one.combined(x, (self.one.gate(x) + self.two.gate(x)) / 2, answers)


@dataclass(frozen=True)
class Training:
    """How mixtures begin and are trained.

    Args:
        hidden: Units of each expert in a frozen network.
        deviation: Of the normal distribution the first weights are drawn from, biases being 0; None: as torch draws.
        decay: Of weights, as AdamW has it; biases have none.
        lr: The largest rate.
    """

    hidden: int = 256
    deviation: float | None = None
    decay: float = 0.01
    lr: float = 3e-3


def _expert(width: int, hidden: int) -> nn.Module:
    return nn.Sequential(nn.Linear(width, hidden), nn.GELU(), nn.Linear(hidden, width))


def transplanted(kind: str, layers: str, seed: int, how: Training) -> nn.Module:
    """The trained character GPT with mixtures in the place of its first or of all FFNs; all else frozen.

    Raises:
        Absent: The trained network is not there.
    """
    model: Any = architecture("gpt")
    model.load_state_dict(load_file(shared_folder() / "pairs" / "gpt_a.safetensors"))
    model.requires_grad_(False)
    torch.manual_seed(seed)
    for block in list(model.blocks)[: 1 if layers == "first" else None]:
        block.mlp = Mixture(block.ln1.normalized_shape[0], how.hidden, kind)
        for layer in (m for m in block.mlp.modules() if isinstance(m, nn.Linear) and how.deviation is not None):
            nn.init.normal_(layer.weight, std=how.deviation)
            nn.init.zeros_(layer.bias)
    return model.eval()


def scratch(kind: str, seed: int, width: int, depth: int) -> nn.Module:
    """A small character GPT whose FFNs all are mixtures, untrained."""
    torch.manual_seed(seed)
    model = type(architecture("gpt"))(d=width, h=4, L=depth)
    for block in model.blocks:
        block.mlp = Mixture(width, 2 * width, kind)
    return model.eval()


def trained(
    model: nn.Module,
    text: Text,
    path: Path,
    *,
    steps: int,
    batch: int,
    seed: int,
    how: Training,
    balance: float = 0.01,
) -> nn.Module:
    """The model after training; from its file where it was trained before, from a checkpoint where it was begun.

    Args:
        model: Trained in place.
        text: The characters.
        path: File of the trained weights.
        steps: Of AdamW, with the rate falling to zero as a cosine.
        batch: Windows in a step.
        seed: Of the order of the text.
        how: Rate and decay.
        balance: Weight of the loss that keeps the experts equally busy (used in training only).
    """
    if path.is_file():
        model.load_state_dict(load_file(path))
        return model.eval()
    own = [p for p in model.parameters() if p.requires_grad]
    decayed = {"params": [p for p in own if p.dim() > 1], "weight_decay": how.decay}
    rest = {"params": [p for p in own if p.dim() < 2], "weight_decay": 0.0}
    optimizer = torch.optim.AdamW([decayed, rest], lr=how.lr, betas=(0.9, 0.95))
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    generator, first = torch.Generator().manual_seed(seed), 0
    halfway = path.with_suffix(".checkpoint")
    if halfway.is_file():
        saved = torch.load(halfway, weights_only=True)
        model.load_state_dict(saved["model"])
        optimizer.load_state_dict(saved["optimizer"])
        schedule.load_state_dict(saved["schedule"])
        generator.set_state(saved["generator"])
        first = saved["step"]
    busy: list[Tensor] = []
    hooks = [m.register_forward_hook(lambda m, a, _: busy.append(_imbalance(m, a[0]))) for m in _mixtures(model)]
    bar = tqdm(range(first, steps), initial=first, total=steps, desc=path.stem, disable=None, leave=False)
    for step in bar:
        x, y = text.draw(batch, generator)
        busy.clear()
        loss = F.cross_entropy(model(x).flatten(0, 1), y.flatten()) + balance * sum(busy)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        if step % 100 == 99:
            parts = {"model": model, "optimizer": optimizer, "schedule": schedule}
            state = {k: copy.deepcopy(v.state_dict()) for k, v in parts.items()}
            with replacing(halfway) as temporary:
                torch.save({**state, "generator": generator.get_state(), "step": step + 1}, temporary)
    for hook in hooks:
        hook.remove()
    with replacing(path) as temporary:
        save_file({n: t.contiguous() for n, t in model.state_dict().items()}, temporary)
    halfway.unlink(missing_ok=True)
    return model.eval()


def _mixtures(model: nn.Module) -> list[Mixture]:
    return [m for m in model.modules() if isinstance(m, Mixture)]


def _imbalance(mixture: Any, x: Tensor) -> Tensor:
    """Experts times the sum of (share of the tokens, mean score): 1 where all are equally busy (Switch, eq. 4)."""
    scores = mixture.gate(x).flatten(0, -2).softmax(-1)
    share = F.one_hot(scores.topk(2, -1).indices, scores.shape[-1]).double().mean((0, 1)).to(scores)
    return scores.shape[-1] * (share * scores.mean(0)).sum()
