"""The search for group elements that bring one network to another: one method a file, all answer with an Alignment."""

from pyalign.matching.activation import ActivationMatching
from pyalign.matching.align import align
from pyalign.matching.experts import expert_orders
from pyalign.matching.pam import PAM, PAMAnswer
from pyalign.matching.problem import Method, Problem
from pyalign.matching.weight import WeightMatching

__all__ = ["PAM", "ActivationMatching", "Method", "PAMAnswer", "Problem", "WeightMatching", "align", "expert_orders"]
