"""The trained transformers of the study: a character GPT on tinyshakespeare and a ViT on CIFAR-10, one file a seed.

python -m benchmarks.studies.transformer_ends --network vit --seeds 1 2 --work runs/transformers
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from benchmarks.studies.data import Absent, Augmented, architecture, cifar10, pair, shared_folder
from pyalign._atomic import replacing
from pyalign.train import fit

CONTEXT = 128
TRAINED = 1_000_000
"""Characters of tinyshakespeare that are trained on; the rest is for tests."""


@dataclass(frozen=True)
class Recipe:
    """How the networks of one architecture are trained."""

    steps: int
    batch: int
    lr: float
    weight_decay: float
    warm: float


RECIPES = {
    "vit": Recipe(steps=1000, batch=128, lr=1e-3, weight_decay=0.05, warm=0.1),
    "gpt": Recipe(steps=1500, batch=32, lr=1e-3, weight_decay=0.01, warm=0.05),
}


def warm_cosine(warm: float) -> Callable[[float], float]:
    """A linear rise over a share of the training, then half a cosine to 1 %."""

    def factor(fraction: float) -> float:
        if fraction < warm:
            return (fraction + 1e-3) / warm
        return 0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * (fraction - warm) / (1 - warm)))

    return factor


def characters() -> Tensor:
    """Tinyshakespeare as character ids, in the order of `sorted(set(text))`.

    Raises:
        Absent: The text is not there.
    """
    path = shared_folder() / "data" / "tinyshakespeare.txt"
    if not path.is_file():
        raise Absent(f"no text: {path} is missing")
    text = path.read_text(encoding="utf-8")
    order = {character: index for index, character in enumerate(sorted(set(text)))}
    return torch.tensor([order[character] for character in text])


def windows(text: Tensor, starts: Tensor) -> tuple[Tensor, Tensor]:
    """Inputs and targets (n, 128): the characters from each start, and those that follow them."""
    at = starts.unsqueeze(1) + torch.arange(CONTEXT)
    return text[at], text[at + 1]


class Windows:
    """Batches of windows that begin anywhere in the training text, drawn from a generator of its own."""

    def __init__(self, text: Tensor, size: int, batches: int, seed: int) -> None:
        self.text, self.size, self.batches = text[:TRAINED], size, batches
        self.generator = torch.Generator().manual_seed(seed)

    def __len__(self) -> int:
        return self.batches

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        for _ in range(self.batches):
            yield windows(self.text, torch.randint(TRAINED - CONTEXT, (self.size,), generator=self.generator))


def held_out(text: Tensor, count: int = 512, size: int = 64) -> list[tuple[Tensor, Tensor]]:
    """The test windows of the shared pairs: cut from the rest of the text at every 128th character."""
    rest = text[TRAINED:]
    x, y = windows(rest, torch.arange(count) * CONTEXT)
    return list(zip(x.split(size), y.split(size), strict=True))


def trained(network: str, seed: int, work: Path, steps: int | None = None) -> nn.Module:
    """The network of a seed, trained or read back; a training that was stopped goes on.

    Args:
        network: "gpt" or "vit".
        seed: Of its weights and of its batches.
        work: Where its file lies.
        steps: Of training; None: as many as the recipe says.
    """
    from safetensors.torch import load_file, save_file

    recipe, final = RECIPES[network], work / f"{network}-{seed}.safetensors"
    steps = recipe.steps if steps is None else steps
    work.mkdir(parents=True, exist_ok=True)
    with torch.random.fork_rng([]):
        torch.manual_seed(seed)
        model = architecture(network)
    if not final.is_file():
        data: Augmented | Windows
        if network == "vit":
            data = Augmented(cifar10("train", 50000, seed=0), recipe.batch, seed=1000 + seed)
        else:
            data = Windows(characters(), recipe.batch, steps, seed=1000 + seed)
        fit(
            model, data, steps=steps, optimizer=torch.optim.AdamW, lr=recipe.lr,
            weight_decay=recipe.weight_decay, schedule=warm_cosine(recipe.warm), clip=1.0, seed=seed,
            checkpoint=work / f"{network}-{seed}.training.safetensors", every=100,
        )  # fmt: skip
        with replacing(final) as temporary:
            save_file(model.state_dict(), temporary)
    model.load_state_dict(load_file(final))
    return model.eval()


def ends(network: str, seeds: Sequence[int], work: Path, steps: int | None = None) -> list[nn.Module]:
    """Networks of one architecture: the shared pair, where there is one, and one for each seed (see `trained`)."""
    shared = list(pair(network)) if network == "gpt" else []
    return shared + [trained(network, seed, work, steps) for seed in seeds]


def main(arguments: Sequence[str] | None = None) -> int:
    """Train what is missing."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--network", choices=list(RECIPES), default="vit")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--work", type=Path, default=Path("runs/transformers"))
    options = parser.parse_args(arguments)
    try:
        for seed in options.seeds:
            trained(options.network, seed, options.work)
    except Absent as reason:
        print(f"skipped: {reason}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
