"""The main job on an embedded default: two networks trained on handwritten digits, aligned, compared; one page."""

from pyalign.demo.digits import Digits, batches, digits
from pyalign.demo.network import Network, network
from pyalign.demo.presentation import make_page, terminal_text
from pyalign.demo.study import Settings, Study, run
from pyalign.demo.training import accuracy, train

__all__ = [
    "Digits",
    "Network",
    "Settings",
    "Study",
    "accuracy",
    "batches",
    "digits",
    "make_page",
    "network",
    "run",
    "terminal_text",
    "train",
]
