"""The search for group elements that bring one network to another: one method a file, all answer with an Alignment."""

from pyalign.matching.activation import ActivationMatching
from pyalign.matching.align import align
from pyalign.matching.checkpoints import align_folders
from pyalign.matching.experts import expert_orders
from pyalign.matching.learned import LearnedMatching
from pyalign.matching.pam import PAM, PAMAnswer
from pyalign.matching.problem import Method, Problem
from pyalign.matching.share import Sharing, share
from pyalign.matching.universe import Universe, universe
from pyalign.matching.weight import WeightMatching

__all__ = [
    "PAM",
    "ActivationMatching",
    "LearnedMatching",
    "Method",
    "PAMAnswer",
    "Problem",
    "Sharing",
    "Universe",
    "WeightMatching",
    "align",
    "align_folders",
    "expert_orders",
    "share",
    "universe",
]
