"""Batches for training: epoch after epoch, with a position that can be come back to."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sized
from typing import Any

from pyalign.errors import DataError, InputError
from pyalign.paths.randomness import Randomness
from pyalign.statistics.batches import checked

__all__ = ["Feed"]


class Feed:
    """The batches of a training run.

    Args:
        data: Batches, read once per epoch.
        steps: Number of steps; None where `epochs` is given.
        epochs: Number of epochs; None where `steps` is given.
        take: Gives the state of all random generators.
        put: Sets them to a state.

    Raises:
        InputError: Not exactly one of `steps` and `epochs`, or no positive number.
    """

    def __init__(
        self, data: Iterable[Any], steps: int | None, epochs: int | None,
        take: Callable[[], Randomness], put: Callable[[Randomness], None],
    ) -> None:  # fmt: skip
        given = [n for n in (steps, epochs) if n is not None]
        if len(given) != 1 or isinstance(given[0], bool) or not isinstance(given[0], int) or given[0] < 1:
            raise InputError(
                "how long to train is not clear",
                given=f"steps={steps}, epochs={epochs}",
                expected="exactly one of them, an integer of at least 1",
                do="give steps= or epochs=",
            )
        self.data, self.steps, self.epochs = data, steps, epochs
        self.epoch = self.index = self.step = 0
        self.began: Randomness | None = None
        self._take, self._put = take, put

    @property
    def batches(self) -> int | None:
        """Batches of one epoch, None where the data does not tell."""
        return len(self.data) if isinstance(self.data, Sized) else None

    @property
    def total(self) -> int | None:
        """Steps of the whole run, None where that is not known."""
        if self.steps is not None:
            return self.steps
        return None if self.batches is None or self.epochs is None else self.epochs * self.batches

    @property
    def fraction(self) -> float:
        """The share of the run that lies before the present step, from 0 to 1."""
        if self.total is not None:
            return min(1.0, (self.step - 1) / self.total)
        return min(1.0, self.epoch / (self.epochs or 1))

    @property
    def done(self) -> bool:
        """Whether all steps have been taken."""
        return self.step == self.steps or (self.epochs is not None and self.epoch >= self.epochs)

    def resume(self, epoch: int, index: int, step: int, began: Randomness, now: Randomness) -> Iterator[Any]:
        """The batches from a position on: the epoch is begun as it was then, and what was seen is passed over."""
        self.epoch, self.index, self.step, self.began = epoch, index, step, began
        if self.done:
            self._put(now)  # what comes after this run draws on from here, as if the run had just ended
            return
        self._put(began)
        batches = self._open()
        for seen in range(index):
            if next(batches, None) is None:
                raise DataError(
                    "the data is shorter than when the run was interrupted",
                    given=f"{seen} batches in epoch {epoch}",
                    expected=f"more than {index}",
                    do="give the same data, or begin anew in another file",
                )
        self._put(now)
        yield from self._rest(batches)

    def __iter__(self) -> Iterator[Any]:
        """The batches from the beginning."""
        self.began = self._take()
        yield from self._rest(self._open())

    def _rest(self, batches: Iterator[Any]) -> Iterator[Any]:
        while True:
            for batch in batches:
                self.index += 1
                self.step += 1
                yield batch
                if self.step == self.steps:
                    return
            self.epoch, self.index = self.epoch + 1, 0
            if self.done:
                return
            if isinstance(self.data, Iterator):
                raise self._ran_out()
            self.began = self._take()
            batches = self._open()

    def _open(self) -> Iterator[Any]:
        try:
            yield from checked(self.data)
        except DataError:
            if self.epoch:
                raise self._ran_out() from None
            raise

    def _ran_out(self) -> DataError:
        wanted = f"{self.steps} steps" if self.steps is not None else f"{self.epochs} epochs"
        return DataError(
            f"the data ran out after step {self.step}, at the end of epoch {self.epoch}",
            given="data that can be read only once",
            expected=f"data for {wanted}",
            do="give a DataLoader or a list, or fewer steps",
        )
