"""The state of every random generator that training draws from: taken, put back, and kept apart from the caller's."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor

__all__ = ["Randomness", "forked", "generators_of"]

CPU, CUDA, OWN, OTHERS = "torch", "cuda", "generator", "others"


class Randomness:
    """A snapshot of torch's generators (CPU, named CUDA devices, further ones), Python's and NumPy's.

    Args:
        tensors: What `take` and `pack` hold: states as byte tensors.
    """

    def __init__(self, tensors: Mapping[str, Tensor]) -> None:
        self.tensors = dict(tensors)

    @classmethod
    def take(cls, devices: Sequence[int], generators: Sequence[torch.Generator]) -> Randomness:
        """The states as they are now."""
        tensors = {CPU: torch.get_rng_state()}
        tensors |= {f"{CUDA}{i}": torch.cuda.get_rng_state(i) for i in devices}
        tensors |= {f"{OWN}{i}": generator.get_state().clone() for i, generator in enumerate(generators)}
        name, keys, *rest = np.random.get_state()
        others = json.dumps([random.getstate(), [name, np.asarray(keys).tolist(), *rest]])
        return cls({**tensors, OTHERS: torch.tensor(list(others.encode()), dtype=torch.uint8)})

    def put(self, devices: Sequence[int], generators: Sequence[torch.Generator]) -> None:
        """Set all generators to this state."""
        torch.set_rng_state(self.tensors[CPU])
        for i in devices:
            torch.cuda.set_rng_state(self.tensors[f"{CUDA}{i}"], i)
        for i, generator in enumerate(generators):
            generator.set_state(self.tensors[f"{OWN}{i}"])
        python, numpy = json.loads(bytes(self.tensors[OTHERS].tolist()))
        random.setstate((python[0], tuple(python[1]), python[2]))
        np.random.set_state(tuple(numpy))


@contextmanager
def forked(seed: int, devices: Sequence[int]) -> Iterator[None]:
    """Inside the block all global generators start from `seed`; after it they are as they were."""
    before = Randomness.take(devices, ())
    try:
        torch.default_generator.manual_seed(seed)
        for i in devices:
            with torch.cuda.device(i):
                torch.cuda.manual_seed(seed)
        random.seed(seed)
        np.random.seed(seed % 2**32)
        yield
    finally:
        before.put(devices, ())


def generators_of(data: Any) -> list[torch.Generator]:
    """The generators that a DataLoader, or anything built like one, draws its order from."""
    owners = [data, getattr(data, "sampler", None), getattr(getattr(data, "batch_sampler", None), "sampler", None)]
    found = [getattr(owner, "generator", None) for owner in owners]
    return list({id(g): g for g in found if isinstance(g, torch.Generator)}.values())
