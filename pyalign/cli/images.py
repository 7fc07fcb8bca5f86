"""A folder of images, one folder per class, as batches of tensors."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pyalign.errors import DataError, InputError, PyalignError

__all__ = ["ImageFolder"]

SUFFIXES = {".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"}
KEPT_BYTES = 2**31


@dataclass
class ImageFolder:
    """Batches (images, labels) out of `root/<class>/*.png`; classes are numbered in the order of their names.

    Args:
        root: The folder with one folder per class.
        batch: Images in a batch.
        size: (height, width) in pixels that every image is scaled to; None keeps sizes, which must then agree.
        mean: Subtracted from pixels in [0, 1], per channel or one for all.
        std: Divided by after that.
        limit: How many images, drawn at random over all classes; None takes all.
        seed: Decides the draw and the order.
        gray: One channel instead of three.
        shuffle: Draw a new order for every pass, from torch's global generator, as training wants it.

    Yields:
        Images (b, channels, h, w), float32, and labels (b,), int64.
    """

    root: Path
    batch: int = 256
    size: tuple[int, int] | None = None
    mean: Sequence[float] = (0.0,)
    std: Sequence[float] = (1.0,)
    limit: int | None = None
    seed: int = 0
    gray: bool = False
    shuffle: bool = False

    def __post_init__(self) -> None:
        self._pillow = _pillow()
        self.classes = sorted(p.name for p in self.root.iterdir() if p.is_dir() and not p.name.startswith("."))
        files = [
            (path, label)
            for label, name in enumerate(self.classes)
            for path in sorted((self.root / name).rglob("*"))
            if path.suffix.lower() in SUFFIXES
        ]
        if not files:
            raise DataError(
                f"{self.root} holds no images",
                given=f"{len(self.classes)} folders",
                expected=f"one folder per class with {', '.join(sorted(SUFFIXES))} files in it",
                do="name the folder above the classes",
            )
        channels = 1 if self.gray else 3
        if not {len(self.mean), len(self.std)} <= {1, channels} or min(self.std) <= 0:
            raise InputError(
                "--mean and --std do not fit the images",
                given=f"mean {list(self.mean)}, std {list(self.std)}",
                expected=f"1 or {channels} numbers each, std above 0",
            )
        order = torch.randperm(len(files), generator=torch.Generator().manual_seed(self.seed)).tolist()
        self._files = [files[k] for k in order[: self.limit]]
        self._kept: dict[int, Tensor] = {}
        self._kept_bytes = 0

    def __len__(self) -> int:
        return math.ceil(len(self._files) / self.batch)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        mean, std = (torch.tensor(list(x), dtype=torch.float32).view(1, -1, 1, 1) for x in (self.mean, self.std))
        count = len(self._files)
        for chosen in (torch.randperm(count) if self.shuffle else torch.arange(count)).split(self.batch):
            labels = [self._files[index][1] for index in chosen.tolist()]
            yield (self._pixels(chosen.tolist()).float() / 255 - mean) / std, torch.tensor(labels)

    def _pixels(self, chosen: Sequence[int]) -> Tensor:
        """The bytes of one batch."""
        images = [self._image(index) for index in chosen]
        shapes = {tuple(image.shape) for image in images}
        if len(shapes) > 1:
            raise DataError(
                f"the images in {self.root} are of different sizes",
                given=", ".join(f"{h} x {w}" for _, h, w in sorted(shapes)[:5]),
                expected="one size",
                do="give --size",
            )
        return torch.stack(images)

    def _image(self, index: int) -> Tensor:
        """The bytes of one image; decoded once, as long as all that is kept stays under 2 GiB."""
        if index in self._kept:
            return self._kept[index]
        image = self._decode(self._files[index][0])
        if self._kept_bytes + image.nbytes <= KEPT_BYTES:
            self._kept[index] = image
            self._kept_bytes += image.nbytes
        return image

    def _decode(self, path: Path) -> Tensor:
        try:
            with self._pillow.open(path) as file:
                image = file.convert("L" if self.gray else "RGB")
        except Exception as failure:  # Pillow raises many kinds for damaged files
            raise DataError(
                f"{path} cannot be read as an image ({type(failure).__name__}: {failure})", do="remove or replace it"
            ) from failure
        if self.size is not None and (image.height, image.width) != self.size:
            image = image.resize(self.size[::-1], self._pillow.Resampling.BILINEAR)
        flat = torch.frombuffer(bytearray(image.tobytes()), dtype=torch.uint8)
        return flat.view(image.height, image.width, -1).permute(2, 0, 1)


def _pillow() -> Any:
    try:
        from PIL import Image
    except ImportError as missing:
        raise PyalignError(
            "image folders need Pillow, which is not installed", do="pip install 'pyalign-nn[images]'"
        ) from missing
    return Image
