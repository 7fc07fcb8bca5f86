"""New weights out of aligned ones: the weighted average, and the repair of its statistics."""

import sys
from types import ModuleType

from pyalign.merge.average import merge

__all__ = ["merge"]


class _Room(ModuleType):
    """This room under its own name is also the function: `pyalign.merge` is both, whichever was imported first."""

    __call__ = staticmethod(merge)


sys.modules[__name__].__class__ = _Room
