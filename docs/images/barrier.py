"""Makes README's barrier.png: the barrier curves of one run of the demo, BatchNorm re-estimated at every position.

Run it in an environment that has the `demo` extra: `.venv/bin/python docs/images/barrier.py`.
"""

from pathlib import Path

from pyalign.demo.study import METHODS, run
from pyalign.report import barrier_figure


def main() -> None:
    """Run the demo's study and draw its curves."""
    recalibrated = run().recalibrated
    order = ("naive", "weight", "activation")
    figure = barrier_figure({METHODS[method]: recalibrated[method] for method in order}, size=(8.6, 3.4))
    figure.savefig(Path(__file__).with_suffix(".png"), dpi=110)


if __name__ == "__main__":
    main()
