"""The shared images and trained networks that studies run on; nothing is downloaded."""

from __future__ import annotations

import importlib.util
import io
import os
import tarfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

MEAN = (0.4914, 0.4822, 0.4465)
STD = (0.2470, 0.2435, 0.2616)


class Absent(Exception):
    """The shared folder or one of its files is not on this machine."""


def shared_folder() -> Path:
    """The folder with `data` and `pairs`: $PYALIGN_SHARED, or `shared` beside the checkout.

    Raises:
        Absent: It is in neither place.
    """
    beside = Path(__file__).resolve().parents[3] / "shared"
    folder = Path(os.environ.get("PYALIGN_SHARED", beside))
    if not (folder / "pairs").is_dir():
        raise Absent(f"no trained networks in {folder}: set PYALIGN_SHARED to the folder that holds `pairs` and `data`")
    return folder


@dataclass(frozen=True)
class Images:
    """Images (n, 3, 32, 32) in the normalisation of the trained networks, and their classes (n,)."""

    x: Tensor
    y: Tensor

    def batches(self, size: int) -> list[tuple[Tensor, Tensor]]:
        """Consecutive batches of at most `size` images."""
        return list(zip(self.x.split(size), self.y.split(size), strict=True))

    def take(self, count: int, generator: torch.Generator) -> Images:
        """A random subset."""
        chosen = torch.randperm(len(self.y), generator=generator)[:count]
        return Images(self.x[chosen], self.y[chosen])


def cifar10(part: str, count: int, seed: int) -> Images:
    """`count` random images of `train` or `test`, read from the image-folder archive.

    Only the chosen images are decoded; which ones depends on the seed alone.

    Raises:
        Absent: The archive is not there.
    """
    archive = shared_folder() / "data" / "cifar10.tar.xz"
    if not archive.is_file():
        raise Absent(f"no images: {archive} is missing")
    files = _files(archive, part)
    names = sorted(files)
    classes = {name: label for label, name in enumerate(sorted({n.split("/")[-2] for n in names}))}
    order = torch.randperm(len(names), generator=torch.Generator().manual_seed(seed))[:count]
    chosen = [names[i] for i in order.tolist()]
    pixels = torch.stack([_decode(files[name]) for name in chosen])
    x = (pixels.float() / 255 - torch.tensor(MEAN)) / torch.tensor(STD)
    labels = torch.tensor([classes[name.split("/")[-2]] for name in chosen])
    return Images(x.permute(0, 3, 1, 2).contiguous(), labels)


def image_folder(folder: Path, part: str, count: int | None, seed: int, size: int = 32) -> Images:
    """Random images of `folder/part`, which has one folder of images a class, scaled to `size` x `size`.

    Raises:
        Absent: There are no images.
    """
    from PIL import Image

    names = sorted(path for path in (folder / part).glob("*/*") if path.suffix.lower() in (".jpg", ".jpeg", ".png"))
    if not names:
        raise Absent(f"no images in {folder / part}, which should have one folder of images a class")
    classes = {name: label for label, name in enumerate(sorted({path.parent.name for path in names}))}
    order = torch.randperm(len(names), generator=torch.Generator().manual_seed(seed))[:count].tolist()
    pixels = []
    for index in order:
        with Image.open(names[index]) as image:
            pixels.append(torch.from_numpy(np.array(image.convert("RGB").resize((size, size)))))
    x = (torch.stack(pixels).float() / 255 - torch.tensor(MEAN)) / torch.tensor(STD)
    return Images(x.permute(0, 3, 1, 2).contiguous(), torch.tensor([classes[names[i].parent.name] for i in order]))


class Augmented:
    """Shuffled batches with random shifts of up to 4 pixels and mirroring, drawn from a generator of its own.

    Args:
        images: What is drawn from.
        size: Images in a batch; a last short one is left out.
        seed: Of the order and the augmentations of all epochs.
        change: Done to each batch of images at last, such as moving them to a device.
    """

    def __init__(self, images: Images, size: int, seed: int, change: Callable[[Tensor], Tensor] = lambda x: x) -> None:
        self.images, self.size, self.change = images, size, change
        self.generator = torch.Generator().manual_seed(seed)

    def __len__(self) -> int:
        return len(self.images.y) // self.size

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        order = torch.randperm(len(self.images.y), generator=self.generator)
        for chosen in order[: len(self) * self.size].split(self.size):
            x = self.images.x[chosen]
            rows, columns = (torch.randint(9, (2,), generator=self.generator)).tolist()
            x = F.pad(x, (4, 4, 4, 4))[:, :, rows : rows + x.shape[2], columns : columns + x.shape[3]]
            mirrored = torch.rand(len(x), generator=self.generator) < 0.5
            x = torch.where(mirrored.reshape(-1, 1, 1, 1), x.flip(3), x)
            yield self.change(x), self.images.y[chosen].to(self.change(x[:0]).device)


_CONTENT: dict[tuple[Path, str], dict[str, bytes]] = {}


def _files(archive: Path, part: str) -> dict[str, bytes]:
    """The encoded images of one part by path, in memory (20 MB), so that several draws unpack once."""
    if (archive, part) not in _CONTENT:
        found: dict[str, dict[str, bytes]] = {}
        with tarfile.open(archive) as tar:
            for member in tar:
                pieces = Path(member.name).parts
                if member.isfile() and member.name.endswith(".jpg") and len(pieces) >= 3:
                    opened = tar.extractfile(member)
                    assert opened is not None
                    found.setdefault(pieces[-3], {})["/".join(pieces[-3:])] = opened.read()
        _CONTENT.update({(archive, name): files for name, files in found.items()})
    return _CONTENT.get((archive, part), {})


def _decode(content: bytes) -> Tensor:
    from PIL import Image

    with Image.open(io.BytesIO(content)) as image:
        return torch.from_numpy(np.array(image.convert("RGB")))


def pair(name: str) -> tuple[nn.Module, nn.Module]:
    """Two independently trained networks of one architecture, in evaluation mode.

    Raises:
        Absent: Their checkpoints are not there.
    """
    from safetensors.torch import load_file

    folder = shared_folder() / "pairs"
    models = []
    for which in "ab":
        checkpoint = folder / f"{name}_{which}.safetensors"
        if not checkpoint.is_file():
            raise Absent(f"no trained network: {checkpoint} is missing")
        model = architecture(name)
        model.load_state_dict(load_file(checkpoint))
        models.append(model.eval())
    return models[0], models[1]


def architecture(name: str) -> nn.Module:
    """An untrained network of one of the shared architectures, its weights drawn from torch's global generator.

    Raises:
        Absent: The architectures are not there.
    """
    return _zoo(shared_folder() / "pairs" / "zoo.py")[name]()


def _zoo(path: Path) -> dict[str, Callable[[], nn.Module]]:
    spec = importlib.util.spec_from_file_location("pyalign_study_zoo", path)
    if spec is None or spec.loader is None or not path.is_file():
        raise Absent(f"no architectures: {path} is missing")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.ZOO
