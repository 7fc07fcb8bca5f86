"""The training loop of paths: one objective, one optimiser, checkpoints from which a run goes on to the bit."""

from __future__ import annotations

import inspect
import math
import os
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor
from tqdm.auto import tqdm

from pyalign.errors import InputError, NonFiniteError
from pyalign.paths.blend import is_finite
from pyalign.paths.feed import Feed
from pyalign.paths.randomness import Randomness, forked, generators_of
from pyalign.paths.resume import History, Progress, RunFile

__all__ = ["Callback", "Objective", "Schedule", "Settings", "Step", "train"]

Schedule = Callable[[float], float]


class Step(NamedTuple):
    """One step of training, as a callback sees it: numbered from 1; t is None where there is no path."""

    step: int
    epoch: int
    t: float | None
    loss: float
    lr: float


Callback = Callable[[Step], Any]


class Objective(Protocol):
    """What is trained."""

    @property
    def parameters(self) -> list[Tensor]:
        """The leaves that the optimiser changes in place."""
        ...

    @property
    def generator(self) -> torch.Generator:
        """What the objective draws from besides the global generators."""
        ...

    @property
    def t(self) -> float | None:
        """Where on the path the latest loss was taken."""
        ...

    def loss(self, batch: Any, index: int, scale: float) -> Tensor:
        """The loss of a batch, whose backward fills the gradients; `scale` is what it will be multiplied by."""
        ...

    def stepped(self, lr: float) -> None:
        """Called after every step of the optimiser."""
        ...

    def tensors(self) -> dict[str, Tensor]:
        """Everything that training changes, parameters included, by name: overwritten in place on resuming."""
        ...

    def record(self) -> dict[str, Any]:
        """What identifies the objective, as plain values: a checkpoint of another one is refused."""
        ...


@dataclass(frozen=True)
class Settings:
    """How an objective is trained; see `pyalign.curve` for what the settings mean."""

    lr: float
    optimizer: Callable[..., torch.optim.Optimizer]
    steps: int | None = None
    epochs: int | None = None
    schedule: Schedule = field(default=lambda _: 1.0)
    clip: float | None = None
    precision: torch.dtype | None = None
    seed: int = 0
    checkpoint: str | os.PathLike[str] | None = None
    every: int = 500
    callback: Callback | None = None
    progress: bool | None = None

    def __post_init__(self) -> None:
        if self.precision not in (None, torch.bfloat16, torch.float16):
            raise InputError(
                "unknown precision", given=str(self.precision), expected="torch.bfloat16, torch.float16 or None"
            )
        if not (isinstance(self.lr, (int, float)) and math.isfinite(self.lr) and self.lr >= 0):
            raise InputError("lr is no learning rate", given=f"lr={self.lr!r}", expected="a finite number, 0 or more")
        if self.clip is not None and not self.clip > 0.0:
            raise InputError("gradients cannot be clipped so", given=f"clip={self.clip!r}", expected="above 0, or None")
        if isinstance(self.every, bool) or not isinstance(self.every, int) or self.every < 1:
            raise InputError(
                "checkpoints cannot be that often", given=f"every={self.every!r}", expected="1 step or more"
            )

    def record(self) -> dict[str, Any]:
        """The settings as plain values, without what cannot be compared."""
        kept = ("lr", "steps", "epochs", "clip", "seed")
        return {**{name: getattr(self, name) for name in kept}, "precision": str(self.precision)}


def train(objective: Objective, data: Iterable[Any], settings: Settings, name: str) -> tuple[dict[str, Any], History]:
    """Train to the end, or from the checkpoint to the end.

    Args:
        objective: What is trained, in place.
        data: Batches; see `pyalign.curve`.
        settings: How.
        name: Shown by the progress bar.

    Returns:
        What happened, as plain values: the settings, the steps taken, the seconds; and t and loss of every step.

    Raises:
        DataError: The data is empty or runs out.
        NonFiniteError: The loss became NaN or infinite.
        CheckpointError: The checkpoint is damaged or belongs to another run.
        InputError: Gradients cannot be taken, in inference mode.
    """
    if torch.is_inference_mode_enabled():
        raise InputError(
            "nothing can be trained in inference mode", given="torch.inference_mode()", do="leave it, or use no_grad"
        )
    devices = sorted({p.device.index or 0 for p in objective.parameters if p.is_cuda})
    with forked(settings.seed, devices), torch.enable_grad():
        run = _Run(objective, data, settings, devices)
        run.run(name)
    seconds = run.progress.seconds + time.perf_counter() - run.began
    return {**run.identity, "taken": run.feed.step, "seconds": seconds}, run.progress.history


class _Run:
    """The state of one training: everything that a checkpoint holds."""

    def __init__(self, objective: Objective, data: Iterable[Any], settings: Settings, devices: list[int]) -> None:
        self.objective, self.settings, self.devices = objective, settings, devices
        self.generators = [objective.generator, *generators_of(data)]
        self.optimizer = settings.optimizer(objective.parameters, lr=settings.lr)
        closure = inspect.signature(self.optimizer.step).parameters.get("closure")
        if closure is not None and closure.default is inspect.Parameter.empty:
            raise InputError(
                "the optimiser evaluates the loss several times a step",
                given=type(self.optimizer).__name__,
                expected="one whose step() takes no closure",
                do="use SGD or Adam, for example",
            )
        device = objective.parameters[0].device.type
        self.scaler = torch.amp.GradScaler(device, enabled=settings.precision is torch.float16)
        self.feed = Feed(data, settings.steps, settings.epochs, self._take, self._put)
        chosen = {key: str(value) for key, value in self.optimizer.defaults.items()}
        self.identity = {
            **settings.record(),
            "optimizer": {"name": type(self.optimizer).__name__, **chosen},
            **objective.record(),
        }
        self.file = None if settings.checkpoint is None else RunFile(settings.checkpoint, self.identity)
        self.progress = Progress()
        self.pending: tuple[Step, Tensor] | None = None
        self.began = time.perf_counter()

    def run(self, name: str) -> None:
        """Take all steps."""
        batches = self._batches()
        hidden = None if self.settings.progress is None else not self.settings.progress
        with tqdm(
            desc=name, unit="step", total=self.feed.total, initial=self.feed.step, disable=hidden, leave=False
        ) as bar:
            for batch in batches:
                self._step(batch)
                bar.update()
                if self.settings.callback is not None and self._settle(bar):
                    break
                if self.file is not None and self.feed.step % self.settings.every == 0:
                    self._settle(bar)
                    self._save()
            self._settle(bar)
        if self.file is not None:
            self._save()
        else:
            self._sound()

    def _batches(self) -> Iterator[Any]:
        found = None if self.file is None else self.file.read()
        if found is None:
            return iter(self.feed)
        tensors, self.progress = found
        mine = self.objective.tensors()
        with torch.no_grad():
            for key, tensor in mine.items():
                tensor.copy_(tensors[f"objective|{key}"])
        RunFile.into_optimizer(self.optimizer, tensors, self.progress.optimizer)
        if self.progress.scaler:
            self.scaler.load_state_dict(self.progress.scaler)
        place = self.progress
        snapshots = [Randomness(RunFile.part(tensors, which)) for which in ("began", "now")]
        self.feed.step = place.step
        return self.feed.resume(place.epoch, place.index, place.step, *snapshots)

    def _step(self, batch: Any) -> None:
        lr = self.settings.lr * self.settings.schedule(self.feed.fraction)
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        self.optimizer.zero_grad(set_to_none=True)
        loss = self.objective.loss(batch, self.feed.index - 1, float(self.scaler.get_scale()))
        # The value of the previous step is read only now, so that a GPU never waits for the next one to be launched.
        self._settle(None)
        step = Step(self.feed.step, self.feed.epoch, self.objective.t, math.nan, lr)
        self.pending = (step, loss.detach())
        self.scaler.scale(loss).backward()
        if self.settings.clip is not None:
            self.scaler.unscale_(self.optimizer)
            torch.nn.utils.clip_grad_norm_(self.objective.parameters, self.settings.clip)
        if loss.device.type == "cpu":
            self._check(step, loss)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.objective.stepped(lr)

    def _settle(self, bar: tqdm[Any] | None) -> bool:
        """Read the loss of the latest step, stop at one that is not finite, tell the callback; say whether it ends."""
        if self.pending is None:
            return False
        (step, loss), self.pending = self.pending, None
        self._check(step, loss)
        value = float(loss)
        self.progress.history.append((-1.0 if step.t is None else step.t, value))
        if bar is not None:
            bar.set_postfix_str(f"loss {value:.4f}", refresh=False)
        return self.settings.callback is not None and bool(self.settings.callback(step._replace(loss=value)))

    def _check(self, step: Step, loss: Tensor) -> None:
        value = float(loss.detach())
        if not math.isfinite(value):
            where = "" if step.t is None else f", t={step.t:.6g}"
            raise self._stopped(f"the loss became {value} at step {step.step}{where}", step.lr)

    def _stopped(self, what: str, lr: float) -> NonFiniteError:
        kept = "no checkpoint was asked for"
        if self.file is not None and self.file.saved is not None:
            kept = f"the checkpoint {self.file.path} of step {self.file.saved} is kept"
        return NonFiniteError(
            what,
            given=f"epoch {self.feed.epoch}, lr={lr:g}; {kept}",
            expected="finite numbers",
            do="lower lr, clip gradients with clip=, or use precision=torch.bfloat16 instead of float16",
        )

    def _save(self) -> None:
        assert self.file is not None and self.feed.began is not None
        self._sound()
        now = time.perf_counter()
        self.progress.seconds, self.began = self.progress.seconds + now - self.began, now
        self.progress.step, self.progress.epoch, self.progress.index = self.feed.step, self.feed.epoch, self.feed.index
        self.progress.scaler = self.scaler.state_dict()
        tensors = {f"objective|{name}": tensor for name, tensor in self.objective.tensors().items()}
        tensors |= {f"began|{name}": tensor for name, tensor in self.feed.began.tensors.items()}
        tensors |= {f"now|{name}": tensor for name, tensor in self._take().tensors.items()}
        self.file.write(tensors, self.optimizer, self.progress)

    def _sound(self) -> None:
        # A gradient may be NaN where the loss was not: such weights are no answer, and must not replace the last good.
        if not all(is_finite(parameter.detach()) for parameter in self.objective.parameters):
            lr = float(self.optimizer.param_groups[0]["lr"])
            raise self._stopped(
                f"the weights became NaN or infinite by step {self.feed.step}, t={self.objective.t}", lr
            )

    def _take(self) -> Randomness:
        return Randomness.take(self.devices, self.generators)

    def _put(self, randomness: Randomness) -> None:
        randomness.put(self.devices, self.generators)
