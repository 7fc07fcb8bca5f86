"""Sums over samples: batches, streaming moments, collection at observation sites, BatchNorm re-estimation."""

from pyalign.statistics.batches import checked, outputs_of, split
from pyalign.statistics.batchnorm import has_batchnorm, reestimate_batchnorm

__all__ = ["checked", "has_batchnorm", "outputs_of", "reestimate_batchnorm", "split"]
