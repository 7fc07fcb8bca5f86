"""Records for figures and pages, made by hand."""

from pyalign.paths import Barrier


def barriers(accuracy=True):
    t = (0.0, 0.25, 0.5, 0.75, 1.0)
    rates = (0.98, 0.6, 0.2, 0.7, 0.96) if accuracy else None
    return {
        "not aligned": Barrier(t, (0.1, 1.0, 2.0, 0.9, 0.3), rates, 100),
        "aligned": Barrier(t, (0.1, 0.15, 0.2, 0.25, 0.3), (0.98, 0.97, 0.96, 0.96, 0.96) if accuracy else None, 100),
    }
