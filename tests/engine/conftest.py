"""Every engine test runs on poisoned memory, except those that trace, which must see torch as it is."""

from __future__ import annotations

import pytest


@pytest.fixture(autouse=True)
def poisoned_engine(request):
    if request.node.path.name != "test_operators.py":
        request.getfixturevalue("poisoned")


@pytest.fixture(params=["reference", "cpu"])
def backend(request):
    return request.param
