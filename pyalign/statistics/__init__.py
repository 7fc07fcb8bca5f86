"""Sums over samples: batches, streaming moments, collection at observation sites, BatchNorm re-estimation."""

from pyalign.statistics.batches import checked, outputs_of, split
from pyalign.statistics.batchnorm import has_batchnorm, reestimate_batchnorm
from pyalign.statistics.choices import expert_counts, selected_experts
from pyalign.statistics.collect import collect
from pyalign.statistics.moments import Moments
from pyalign.statistics.padding import padding_of
from pyalign.statistics.sites import choose_sites

__all__ = [
    "Moments",
    "checked",
    "choose_sites",
    "collect",
    "expert_counts",
    "has_batchnorm",
    "outputs_of",
    "padding_of",
    "reestimate_batchnorm",
    "selected_experts",
    "split",
]
