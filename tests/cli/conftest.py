"""A folder with a user's own module and two checkpoints of its factory."""

import pytest
import torch
from cli.helpers_cli import inside, write_nets
from torch import nn

from pyalign import io


@pytest.fixture
def workplace(tmp_path, monkeypatch):
    write_nets(tmp_path)
    for seed, name in enumerate(("a", "b", "c")):
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            io.save_state(nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3)), tmp_path / f"{name}.safetensors")
    monkeypatch.syspath_prepend(str(tmp_path))
    import sys

    monkeypatch.delitem(sys.modules, "nets_of_a_user", raising=False)
    with inside(tmp_path):
        yield tmp_path
