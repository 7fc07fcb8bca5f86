"""Checkpoints of training: parameters, optimiser, random generators and the position in the data, in one file."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pyalign.errors import CheckpointError
from pyalign.symmetry.files import read_tensors, write_tensors

__all__ = ["History", "Progress", "RunFile"]

History = list[tuple[float, float]]

FORMAT = "pyalign-run-1"


@dataclass
class Progress:
    """How far a training has come.

    Args:
        step: Steps taken.
        epoch: Passes over the data that are complete.
        index: Batches read of the present pass.
        seconds: Time spent in training.
        scaler: State of the gradient scaler.
        optimizer: What of the optimiser's state is no tensor.
        history: t and loss of every step; t is -1 where there is no path.
    """

    step: int = 0
    epoch: int = 0
    index: int = 0
    seconds: float = 0.0
    scaler: dict[str, Any] = field(default_factory=dict)
    optimizer: dict[str, Any] = field(default_factory=dict)
    history: History = field(default_factory=list)


class RunFile:
    """The checkpoint of one run.

    Args:
        path: Where it lies or is to lie.
        identity: What identifies the run, as plain values.
    """

    def __init__(self, path: str | os.PathLike[str], identity: Mapping[str, Any]) -> None:
        self.path, self.identity = Path(path), json.loads(json.dumps(identity))
        self.saved: int | None = None

    def read(self) -> tuple[dict[str, Tensor], Progress] | None:
        """The tensors and the progress, or None where there is no such file.

        Raises:
            CheckpointError: It is damaged or belongs to another run; what differs is named.
        """
        if not self.path.exists():
            return None
        tensors, metadata = read_tensors(self.path, FORMAT, "a checkpoint of training")
        theirs = json.loads(metadata["identity"])
        differ = [key for key in {**theirs, **self.identity} if theirs.get(key) != self.identity.get(key)]
        if differ:
            shown = ", ".join(f"{key}={theirs.get(key)!r} instead of {self.identity.get(key)!r}" for key in differ[:4])
            raise CheckpointError(
                f"{self.path} is the checkpoint of another run",
                given=shown,
                expected="the settings, models and data of the run that wrote it",
                do="repeat them, or name another file",
            )
        progress = Progress(**json.loads(metadata["progress"]))
        progress.history = [(float(t), float(loss)) for t, loss in tensors["history"].tolist()]
        self.saved = progress.step
        return tensors, progress

    def write(self, tensors: Mapping[str, Tensor], optimizer: torch.optim.Optimizer, progress: Progress) -> None:
        """Replace the checkpoint, whole or not at all."""
        state = optimizer.state_dict()
        moments, numbers = {}, {}
        for index, entries in state["state"].items():
            for key, value in entries.items():
                if isinstance(value, Tensor):
                    moments[f"optimizer|{index}|{key}"] = value
                else:
                    numbers[f"{index}|{key}"] = value
        progress.optimizer = {"numbers": numbers, "groups": state["param_groups"]}
        record = {name: value for name, value in asdict(progress).items() if name != "history"}
        history = torch.tensor(progress.history, dtype=torch.float64).reshape(-1, 2)
        metadata = {"format": FORMAT, "identity": json.dumps(self.identity), "progress": json.dumps(record)}
        write_tensors(self.path, {**tensors, **moments, "history": history}, metadata)
        self.saved = progress.step

    @staticmethod
    def part(tensors: Mapping[str, Tensor], which: str) -> dict[str, Tensor]:
        """The tensors of one part, without its prefix."""
        start = f"{which}|"
        return {name.removeprefix(start): tensor for name, tensor in tensors.items() if name.startswith(start)}

    @staticmethod
    def into_optimizer(
        optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor], record: Mapping[str, Any]
    ) -> None:
        """Give an optimiser the state that a checkpoint holds."""
        entries: dict[int, dict[str, Any]] = {}
        for name, value in [*RunFile.part(tensors, "optimizer").items(), *record["numbers"].items()]:
            index, _, key = name.partition("|")
            entries.setdefault(int(index), {})[key] = value
        groups = []
        for own, stored in zip(optimizer.state_dict()["param_groups"], record["groups"], strict=True):
            groups.append({k: tuple(v) if isinstance(own.get(k), tuple) else v for k, v in stored.items()})
        optimizer.load_state_dict({"state": entries, "param_groups": groups})
