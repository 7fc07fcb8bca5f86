"""What happens during training: adversarial examples, robust training, and the robust loss barrier along a path."""

from pyalign.train.attack import PGD, Normalised
from pyalign.train.fitting import fit
from pyalign.train.robust import RobustRecord, attacked, robust_measure

__all__ = ["PGD", "Normalised", "RobustRecord", "attacked", "fit", "robust_measure"]
