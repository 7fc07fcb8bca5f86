"""Kernels compiled at run time by Triton, one file per operation, under the operation's own name.

The folder is installed as `pyalign.kernels`. `pyalign.engine.dispatch` imports a kernel only when a tensor asks for it,
so that a machine without Triton loses nothing.
"""
