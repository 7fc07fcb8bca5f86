"""Data from the command line: a callable, an image folder, or scikit-learn's digits."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import torch

from pyalign.cli.answers import UsageError
from pyalign.cli.images import ImageFolder
from pyalign.cli.targets import call_user, is_target, resolve
from pyalign.demo.digits import Digits, batches, digits
from pyalign.errors import DataError, InputError
from pyalign.symmetry import map_tensors

__all__ = ["add_data_options", "load_data", "load_recalibration"]

FORMS = (
    "package.module:function or path/to/file.py:function that returns an iterable of batches; "
    "a folder with one folder of images per class; or digits, digits:train, digits:test (scikit-learn's)"
)
ONLY_IMAGES = ("size", "mean", "std", "gray")


def add_data_options(
    parser: argparse.ArgumentParser, *, required: bool = True, recalibrate: bool = False, purpose: str = ""
) -> None:
    """`--data` and what belongs to it; `--recalibrate` where BatchNorm statistics may be re-estimated."""
    group = parser.add_argument_group("data")
    group.add_argument("--data", metavar="DATA", required=required, help=f"{purpose}{FORMS}")
    if recalibrate:
        group.add_argument(
            "--recalibrate", metavar="DATA", nargs="?", const="", default=None,
            help="re-estimate BatchNorm statistics on this data; without a value, on --data",
        )  # fmt: skip
    group.add_argument("--batch", type=_positive, metavar="N", help="samples in a batch (default: 256)")
    group.add_argument("--limit", type=_positive, metavar="N", help="use N samples drawn at random (default: all)")
    group.add_argument("--size", type=_size, metavar="HxW", help="scale images to this size, such as 32 or 32x48")
    group.add_argument("--mean", type=_numbers, metavar="X,...", help="subtracted from pixels in [0, 1]")
    group.add_argument("--std", type=_numbers, metavar="X,...", help="pixels are divided by this after that")
    group.add_argument("--gray", action="store_true", default=None, help="one channel instead of three")
    group.add_argument("--seed", type=int, default=0, help="of every random choice (default: %(default)s)")


class _Moved:
    """Batches on a device, as often as they are asked for."""

    def __init__(self, make: Callable[[], Iterable[Any]], device: str) -> None:
        self._make, self._device = make, device

    def __iter__(self) -> Iterator[Any]:
        for batch in self._make():
            yield map_tensors(batch, lambda tensor: tensor.to(self._device))


def load_data(text: str, args: argparse.Namespace, *, shuffle: bool = False) -> Iterable[Any]:
    """The batches that `--data` names, on `--device`, readable any number of times.

    Args:
        text: One of the forms that `--help` lists.
        args: The options of `add_data_options`, and `device`.
        shuffle: Draw a new order of images or digits for every pass, from torch's global generator; a callable's
            batches come as they are.

    Raises:
        UsageError: The text has none of the forms, or options that do not belong to its form.
        InputError: The function fails or returns nothing iterable.
        DataError: The folder holds no images.
    """
    if text == "digits" or text.startswith("digits:"):
        _refuse(args, ONLY_IMAGES, "digits")
        return _Moved(lambda: _digits(text, args, shuffle), args.device)
    if is_target(text):
        _refuse(args, (*ONLY_IMAGES, "batch", "limit"), text)
        return _Moved(_Calls(text), args.device)
    if not Path(text).exists() and "/" not in text and "\\" not in text:
        raise UsageError(f"--data: {text!r} is none of: {FORMS}")
    if not Path(text).is_dir():
        raise DataError(f"--data: there is no folder {text}", expected=FORMS, do="look at the path")
    given = {name: getattr(args, name) for name in ("batch", "limit", *ONLY_IMAGES)}
    folder = ImageFolder(
        Path(text), seed=args.seed, shuffle=shuffle, **{key: value for key, value in given.items() if value is not None}
    )
    return _Moved(lambda: folder, args.device)


def load_recalibration(args: argparse.Namespace, data: Iterable[Any] | None) -> Iterable[Any] | None:
    """The batches of `--recalibrate`: None without it, those of `--data` when it has no value."""
    if args.recalibrate is None:
        return None
    if args.recalibrate == "":
        if data is None:
            raise UsageError("--recalibrate needs a value where there is no --data")
        return data
    return load_data(args.recalibrate, args)


class _Calls:
    """What the user's function returned; a one-pass iterator is made anew for every pass but the first."""

    def __init__(self, text: str) -> None:
        self._text, self._function = text, resolve(text, "--data")
        self._first: Iterable[Any] | None = self._call()

    def __call__(self) -> Iterable[Any]:
        if self._first is not None and not isinstance(self._first, Iterator):
            return self._first
        found, self._first = self._first or self._call(), None
        return found

    def _call(self) -> Iterable[Any]:
        found = call_user(self._function, self._text, "--data")
        if isinstance(found, (torch.Tensor, dict, str)) or not hasattr(found, "__iter__"):
            raise InputError(
                f"--data: {self._text}() returns no iterable of batches", given=type(found).__name__,
                expected="batches, each a tensor, an (inputs, targets) pair or a dict", do="return a list of batches",
            )  # fmt: skip
        return found  # type: ignore[no-any-return]


def _digits(text: str, args: argparse.Namespace, shuffle: bool) -> Iterable[Any]:
    images, labels = (tensor[: args.limit] for tensor in digits(text.partition(":")[2] or "all"))
    if shuffle:
        order = torch.randperm(len(labels))
        images, labels = images[order], labels[order]
    return batches(Digits(images, labels), size=args.batch or 256)


def _refuse(args: argparse.Namespace, names: tuple[str, ...], text: str) -> None:
    wrong = [f"--{name}" for name in names if getattr(args, name) is not None]
    if wrong:
        raise UsageError(f"{', '.join(wrong)} cannot be used with the data {text}")


def _positive(text: str) -> int:
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number above 0")
    return int(text)


def _size(text: str) -> tuple[int, int]:
    height, _, width = text.lower().partition("x")
    return _positive(height), _positive(width or height)


def _numbers(text: str) -> tuple[float, ...]:
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError as failure:
        raise argparse.ArgumentTypeError(f"{text!r} is no list of numbers such as 0.5,0.5,0.5") from failure
