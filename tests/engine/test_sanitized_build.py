"""The module under test is the one meant: watched by the sanitizers of .ci/sanitize, or else an ordinary build."""

from __future__ import annotations

import os
from pathlib import Path

from pyalign import _cpu

# What GCC and Clang call in code that they watch. UndefinedBehaviorSanitizer's are named after the kind of error.
CALLS = {"address": b"__asan_", "undefined": b"__ubsan_handle_", "thread": b"__tsan_func_entry"}


def test_the_module_is_watched_as_asked():
    wanted = os.environ.get("PYALIGN_SANITIZE", "")
    assert _cpu.build().get("sanitizer", "") == wanted
    binary = Path(_cpu.__file__).read_bytes()
    assert [name for name, call in CALLS.items() if call in binary] == [name for name in wanted.split(",") if name]
