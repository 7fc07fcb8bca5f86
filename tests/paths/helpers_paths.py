"""Small networks and batches that the tests of paths share."""

import torch
from torch import nn


def classifier(seed, *, norm=True, dropout=0.0):
    torch.manual_seed(seed)
    layers = [nn.Linear(6, 8), *([nn.BatchNorm1d(8)] if norm else []), nn.ReLU(), nn.Dropout(dropout), nn.Linear(8, 3)]
    return nn.Sequential(*layers)


def labelled(sizes=(16, 16, 5), seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [(torch.randn(n, 6, generator=generator), torch.randint(3, (n,), generator=generator)) for n in sizes]


def same(given, expected):
    """Whether two states agree bit by bit."""
    return list(given) == list(expected) and all(torch.equal(given[name], expected[name]) for name in expected)
