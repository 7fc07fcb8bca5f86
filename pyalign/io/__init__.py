"""Checkpoints: safetensors, PyTorch files (weights only) and Hugging Face folders, one tensor in memory at a time."""

from pyalign.io.fit import load_into
from pyalign.io.folders import save_folder
from pyalign.io.huggingface import bare_model, load_model
from pyalign.io.naming import Naming, naming
from pyalign.io.reader import StateReader
from pyalign.io.states import load_state, open_state, save_state

__all__ = [
    "Naming",
    "StateReader",
    "bare_model",
    "load_into",
    "load_model",
    "load_state",
    "naming",
    "open_state",
    "save_folder",
    "save_state",
]
