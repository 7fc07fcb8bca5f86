"""Makes README's barrier.png from a real run: the demo's two networks, aligned by activations and by weights.

Run it in an environment that has the `demo` extra: `.venv/bin/python docs/images/barrier.py`.
"""

from pathlib import Path

import pyalign
from pyalign.demo.digits import batches, digits
from pyalign.demo.training import train
from pyalign.report import barrier_figure

SEEDS = (0, 1)
CURVES = {"not aligned": None, "aligned by weights": "weight", "aligned by activations": "activation"}


def main() -> None:
    """Train, align, measure with BatchNorm re-estimated at every position, draw."""
    training, test = batches(digits("train")), batches(digits("test"))
    model_a, model_b = (train(digits("train"), seed) for seed in SEEDS)
    barriers = {}
    for name, method in CURVES.items():
        other = model_b if method is None else pyalign.align(model_a, model_b, training, method=method).apply(model_b)
        barriers[name] = pyalign.barrier(model_a, other, test, recalibrate=training)
    figure = barrier_figure(barriers, size=(8.6, 3.4))
    figure.savefig(Path(__file__).with_suffix(".png"), dpi=110)


if __name__ == "__main__":
    main()
