"""The shared images and trained networks that studies run on; nothing is downloaded."""

from __future__ import annotations

import importlib.util
import io
import os
import tarfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
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
