"""What may move without changing the function: transforms, axis bindings, the spec, derive, verify, declare, apply."""

from pyalign.symmetry.alignment import Alignment
from pyalign.symmetry.calls import call, map_tensors, state_of, tensors_of
from pyalign.symmetry.declare import declare
from pyalign.symmetry.derive import derive, untouched
from pyalign.symmetry.fold import Folding, fold
from pyalign.symmetry.groups import AxisBinding, FixedAxis, Flat, Group, Role, Side, Site, Wreath
from pyalign.symmetry.kinds import Kind
from pyalign.symmetry.linear import BlockLinear
from pyalign.symmetry.spec import SymmetrySpec
from pyalign.symmetry.transforms import ScaledPermutation, Transform
from pyalign.symmetry.verify import Verification, sound, verify
from pyalign.symmetry.weightless import weightless
from pyalign.symmetry.widen import Widening, widen

__all__ = [
    "Alignment",
    "AxisBinding",
    "BlockLinear",
    "FixedAxis",
    "Flat",
    "Folding",
    "Group",
    "Kind",
    "Role",
    "ScaledPermutation",
    "Side",
    "Site",
    "SymmetrySpec",
    "Transform",
    "Verification",
    "Widening",
    "Wreath",
    "call",
    "declare",
    "derive",
    "fold",
    "map_tensors",
    "sound",
    "state_of",
    "tensors_of",
    "untouched",
    "verify",
    "weightless",
    "widen",
]
