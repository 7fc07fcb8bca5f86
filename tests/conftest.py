"""Fixtures for all rooms: the device, few threads, and memory that is NaN until someone writes it."""

from __future__ import annotations

import pytest
import torch
from hypothesis import settings

# The same examples in every run, few of them where the engine is slow because it is watched (.ci/sanitize);
# `--hypothesis-profile=search` looks for new ones, for as long as it takes.
settings.register_profile("fixed", derandomize=True, deadline=None, database=None)
settings.register_profile("few", settings.get_profile("fixed"), max_examples=25)
settings.register_profile("search", max_examples=3000, deadline=None, print_blob=True)
settings.load_profile("fixed")


def pytest_addoption(parser):
    parser.addoption("--device", default="cpu", help="device of the tests that can run on any: cpu (default) or cuda")


def pytest_collection_modifyitems(items):
    if torch.cuda.is_available():
        return
    skip = pytest.mark.skip(reason="no CUDA device on this machine")
    for item in items:
        if item.get_closest_marker("gpu"):  # not item.keywords, which hold the names of folders too
            item.add_marker(skip)


@pytest.fixture(scope="session")
def device(request):
    name = request.config.getoption("--device")
    if name.startswith("cuda") and not torch.cuda.is_available():
        pytest.skip("no CUDA device on this machine")
    return torch.device(name)


@pytest.fixture(autouse=True)
def few_threads(request):
    """Two threads meet the engine's parallel paths; one elsewhere, where small sums would wait for each other."""
    before = torch.get_num_threads()
    torch.set_num_threads(2 if "engine" in request.path.parts else 1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def poisoned(monkeypatch):
    """Fill what torch.empty and torch.empty_like give with NaN (or the least integer): an unwritten entry shows."""

    def poison(tensor):
        if tensor.dtype.is_floating_point or tensor.dtype.is_complex:
            return tensor.fill_(float("nan"))
        return tensor if tensor.dtype == torch.bool else tensor.fill_(torch.iinfo(tensor.dtype).min)

    for name in ("empty", "empty_like"):
        original = getattr(torch, name)
        monkeypatch.setattr(torch, name, lambda *args, _make=original, **options: poison(_make(*args, **options)))
