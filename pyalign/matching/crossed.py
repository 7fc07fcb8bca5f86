"""Groups that are seen only beside units of others, whose samples correspond once those are in one order."""

from __future__ import annotations

from pyalign.symmetry import SymmetrySpec, Wreath

__all__ = ["crossed_groups"]


def crossed_groups(spec: SymmetrySpec) -> frozenset[str]:
    """The groups to be matched after all others, with those that move only together with them.

    Each has only sites that are crossed (`Site.crossed`). None where nothing would be left to be matched before.

    Args:
        spec: The symmetry.

    Example:
        >>> from pyalign import derive
        >>> import torch
        >>> model = torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.ReLU(), torch.nn.Linear(3, 1))
        >>> crossed_groups(derive(model, torch.randn(4, 2)))
        frozenset()
    """
    found = {site.group for site in spec.sites if site.crossed}
    top: dict[str, str] = {}
    for group in spec.outer_first():
        top[group.name] = top[group.structure.outer] if isinstance(group.structure, Wreath) else group.name
    late = frozenset(name for name in spec.groups if top[name] in {top[other] for other in found})
    return late if {site.group for site in spec.sites} - late else frozenset()
