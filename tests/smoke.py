"""What a wheel is tried with, right after it was built: every compiled operation against its reference, and doctor."""

from __future__ import annotations

import importlib
import os

import torch

from pyalign import cli, engine


def main() -> None:
    """Raise where something is not as it should be."""
    generator = torch.Generator().manual_seed(0)
    x, y = (torch.randn(9, n, 4, generator=generator) for n in (7, 7))
    answers = []
    for backend in ("cpu", "reference"):
        moments = engine.cross_moments(x, y, backend=backend)
        matched = engine.linear_assignment(moments.comoment, maximize=True, backend=backend)
        blend = engine.permuted_lerp(x, y, 0.3, [None, matched.perm, None], backend=backend)
        assert moments.backend == matched.backend == backend
        answers.append((moments.comoment, matched.perm, blend))
    for compiled, plain in zip(*answers, strict=True):
        torch.testing.assert_close(compiled, plain, rtol=1e-5, atol=1e-5)
    wanted = os.environ.get("PYALIGN_SMOKE_CUDA", "")
    if wanted:  # a wheel with CUDA imports where there is no driver, and says why it cannot run
        module = importlib.import_module("pyalign._cuda")
        assert wanted in module.build()["compiler"], module.build()
        print("cuda:", module.build(), module.why_not(0) or "can run")
    print("$ pyalign doctor")
    assert cli.main(["doctor"]) == 0
    print("all operations are as they should be")


if __name__ == "__main__":
    main()
