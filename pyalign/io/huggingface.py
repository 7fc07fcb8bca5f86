"""A Hugging Face folder as a module: the architecture that its config.json names, with or without its weights."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import torch
from torch import nn

from pyalign.errors import CheckpointError, InputError
from pyalign.symmetry import weightless

__all__ = ["bare_model", "example_of", "load_model"]


def load_model(folder: str | os.PathLike[str]) -> nn.Module:
    """Build the transformers model of a local folder; no download, and no code from the folder.

    Args:
        folder: Holds config.json with `architectures`, and the weights.

    Returns:
        The module, in evaluation mode.

    Raises:
        CheckpointError: config.json is missing, corrupt or names no architecture; the weights cannot be read.
        InputError: transformers is not installed, or does not have the architecture.
    """
    place = Path(folder)
    architecture = _architecture(place, _config(place))
    try:
        model: nn.Module = architecture.from_pretrained(place, local_files_only=True, trust_remote_code=False)
    except Exception as failure:  # transformers and the formats below it raise many kinds for one bad file
        reason = str(failure).strip().splitlines() or [""]
        raise CheckpointError(
            f"{place} cannot be loaded as {architecture.__name__} ({type(failure).__name__}: {reason[0]})",
            do="try load_state(folder), which names the file and tensor that is wrong",
        ) from failure
    return model.eval()


def bare_model(folder: str | os.PathLike[str]) -> nn.Module:
    """The transformers model of a local folder without its weights: parameters are on the meta device.

    Args:
        folder: Holds config.json with `architectures`; weights are not looked at.

    Returns:
        The module, in evaluation mode, which takes next to no memory; `pyalign.derive` takes it as it is.

    Raises:
        CheckpointError: config.json is missing or corrupt, or the weights are quantised.
        InputError: transformers is not installed, or does not have the architecture.
    """
    place = Path(folder)
    content = _config(place)
    if content.get("quantization_config"):
        raise CheckpointError(
            f"{place} is quantised, and quantised weights cannot be moved by matrices or compared",
            given=str(content["quantization_config"].get("quant_method", "a quantization_config in config.json")),
            expected="weights in float64, float32, float16 or bfloat16",
            do="align the checkpoint it was quantised from, and quantise the result",
        )
    architecture = _architecture(place, content)
    try:
        config = architecture.config_class.from_pretrained(place, local_files_only=True, trust_remote_code=False)
        with weightless():
            model: nn.Module = architecture(config)
    except Exception as failure:
        raise CheckpointError(
            f"{architecture.__name__} cannot be built from {place / 'config.json'} "
            f"({type(failure).__name__}: {failure})",
            do="compare config.json with that of the original model",
        ) from failure
    return model.eval()


def example_of(model: nn.Module) -> dict[str, Any]:
    """A small input that a transformers model takes, by its configuration.

    Raises:
        InputError: It takes neither token numbers nor images.
    """
    name, config = getattr(model, "main_input_name", ""), getattr(model, "config", None)
    if name == "input_ids":
        numbers = torch.arange(16).remainder(int(config.get_text_config().vocab_size)).unsqueeze(0)  # type: ignore[union-attr]
        example: dict[str, Any] = {"input_ids": numbers}
        if getattr(config, "is_encoder_decoder", False):
            example["decoder_input_ids"] = numbers
        return {**example, "use_cache": False} if hasattr(config, "use_cache") else example
    size = getattr(config, "image_size", 64)  # networks without one take images of any size
    if name == "pixel_values":
        height, width = (size, size) if isinstance(size, int) else size
        generator = torch.Generator().manual_seed(0)
        return {name: torch.randn(1, getattr(config, "num_channels", 3), height, width, generator=generator)}
    raise InputError(
        f"no example input is known for {type(model).__name__}",
        given=f"a model whose main input is {name!r}",
        expected="input_ids or pixel_values",
        do="pass example_inputs: a mapping of keyword arguments with which the model can be called",
    )


def _config(place: Path) -> dict[str, Any]:
    try:
        config = json.loads((place / "config.json").read_text(encoding="utf-8"))
        str(config["architectures"][0])
    except (OSError, ValueError, KeyError, TypeError, IndexError) as failure:
        raise CheckpointError(
            f"{place / 'config.json'} does not name the architecture of a model ({type(failure).__name__}: {failure})",
            expected='"architectures": ["..."]',
            do="name a folder that model.save_pretrained wrote",
        ) from failure
    return dict(config)


def _architecture(place: Path, config: dict[str, Any]) -> Any:
    name = str(config["architectures"][0])
    try:
        import transformers
    except ImportError as failure:
        raise InputError(
            "a Hugging Face folder needs the package transformers",
            given=f"{name} in {place}",
            do="pip install 'pyalign-nn[hf]'",
        ) from failure
    architecture = getattr(transformers, name, None)
    if architecture is None:
        raise InputError(
            f"transformers {transformers.__version__} does not know the architecture of {place}",
            given=name,
            expected="an architecture of the installed transformers",
            do="upgrade transformers, or build the model yourself and use load_into",
        )
    return architecture
