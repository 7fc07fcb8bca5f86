"""Files are written whole or not at all."""

import copy
import os
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

import pyalign
from pyalign._atomic import replacing
from pyalign.errors import InputError, WriteError


@pytest.mark.parametrize("failure", [OSError(28, "No space left on device"), KeyboardInterrupt(), ValueError()])
def test_a_failure_leaves_the_old_file_and_nothing_else(tmp_path: Path, failure: BaseException) -> None:
    target = tmp_path / "x.bin"
    target.write_text("old")
    with pytest.raises(type(failure)), replacing(target) as temporary:
        temporary.write_text("half")
        raise failure
    assert target.read_text() == "old"
    assert os.listdir(tmp_path) == ["x.bin"]


def test_success_replaces_and_follows_links(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    target, link = tmp_path / "real" / "x.bin", tmp_path / "link.bin"
    target.write_text("old")
    link.symlink_to(target)
    with replacing(link) as temporary:
        temporary.write_text("new")
    assert link.is_symlink()
    assert target.read_text() == "new"
    assert target.stat().st_mode & 0o777 == 0o666 & ~umask()


def umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def test_folders_and_devices_are_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for target in (tmp_path, tmp_path / "pipe"):
        with pytest.raises(InputError, match="cannot write"), replacing(target):
            pass


def kept(name: str, path: Path) -> None:
    """Write what pyalign keeps in files of its own."""
    torch.manual_seed(0)
    a, b = (nn.Sequential(nn.Linear(6, 40), nn.ReLU(), nn.Linear(40, 3)) for _ in range(2))
    data = [(torch.randn(8, 6), torch.arange(8) % 3)]
    if name == "alignment":
        pyalign.derive(a, data[0][0]).random(0).save(path)
    elif name == "curve":
        pyalign.Curve(a, b).save(path)
    elif name == "training":
        pyalign.curve(a, b, data, steps=1, checkpoint=path)
    else:
        c = copy.deepcopy(b)
        c[0].bias.data.add_(1.0)
        pyalign.plane(a, b, c, data, resolution=2, checkpoint=path.with_suffix(".json"))


@pytest.mark.skipif(sys.platform == "win32", reason="needs resource limits")
@pytest.mark.parametrize("name", ["alignment", "curve", "training", "plane"])
def test_a_full_disk_is_told_as_such_and_leaves_what_was_there(tmp_path: Path, name: str) -> None:
    import resource
    import signal

    target = tmp_path / "kept.safetensors"
    kept(name, target)
    (written,) = tmp_path.iterdir()
    before, limits = written.read_bytes(), resource.getrlimit(resource.RLIMIT_FSIZE)
    if name in ("training", "plane"):
        written.unlink()  # or it would go on from there
    earlier = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (20, limits[1]))
        with pytest.raises(WriteError, match=r"kept\..* cannot be written .*What to do: look at the free space"):
            kept(name, target)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, earlier)
    assert [file.read_bytes() for file in tmp_path.iterdir()] == ([] if name in ("training", "plane") else [before])
