"""Models from the command line: a factory with a checkpoint, or a Hugging Face folder; and back to files."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import torch
from torch import nn

from pyalign import io
from pyalign.cli.answers import UsageError, check_file, check_target
from pyalign.cli.targets import call_user, resolve
from pyalign.errors import CheckpointError, InputError
from pyalign.symmetry import Alignment

__all__ = [
    "add_model_options",
    "add_pair_options",
    "check_output",
    "load_alignment",
    "load_model",
    "load_pair",
    "save_model",
]


def add_model_options(parser: argparse.ArgumentParser) -> None:
    """`--model` and what belongs to it."""
    group = parser.add_argument_group("model")
    group.add_argument(
        "--model",
        metavar="FACTORY",
        help="package.module:factory or path/to/file.py:factory, called to make the model, or a Hugging Face folder of "
        "the architecture; leave it out when the models are Hugging Face folders",
    )
    group.add_argument(
        "--model-options", metavar="JSON", type=_json_object, default={},
        help="keyword arguments of the factory, such as '{\"width\": 32}'",
    )  # fmt: skip
    group.add_argument(
        "--trust-remote-code",
        action="store_true",
        help="run model code that lies in a Hugging Face folder (never done without this)",
    )
    group.add_argument("--device", default="cpu", help="where the models run, such as cuda (default: %(default)s)")


def add_pair_options(parser: argparse.ArgumentParser) -> None:
    """`--a`, `--b` and `--model`."""
    add_model_options(parser)
    for side, note in (("a", ""), ("b", "; model B is brought to A")):
        parser.add_argument(
            f"--{side}", required=True, metavar="PATH",
            help=f"model {side.upper()}: .safetensors, .pt, .pth, .bin or .ckpt, or a Hugging Face folder{note}",
        )  # fmt: skip


def load_pair(args: argparse.Namespace) -> tuple[nn.Module, nn.Module]:
    """Models A and B."""
    return load_model(args, args.a, "--a"), load_model(args, args.b, "--b")


def load_model(args: argparse.Namespace, checkpoint: str | None, option: str) -> nn.Module:
    """One model in evaluation mode on `--device`.

    Args:
        args: The options of `add_model_options`.
        checkpoint: A file or a Hugging Face folder; None leaves the weights that `--model` comes with.
        option: Where the checkpoint was given, for errors.

    Raises:
        UsageError: Neither a factory nor a folder.
        InputError: The factory fails or makes no module, or the checkpoint cannot be read or does not fit.
    """
    if args.model is None:
        model = _from_folder(checkpoint, option, args.trust_remote_code)
    elif Path(args.model).is_dir():
        model = _from_folder(args.model, "--model", args.trust_remote_code)
        if checkpoint is not None:
            io.load_into(model, checkpoint)
    else:
        model = call_user(resolve(args.model, "--model"), args.model, "--model", **args.model_options)
        if not isinstance(model, nn.Module):
            raise InputError(
                f"--model: {args.model} makes no model", given=type(model).__name__, expected="a torch.nn.Module",
                do="name a function that returns one",
            )  # fmt: skip
        if checkpoint is not None:
            io.load_into(model, checkpoint)
    try:
        return model.eval().to(args.device)
    except (RuntimeError, AssertionError) as failure:
        raise InputError(
            f"--device: the model cannot be moved to {args.device!r} ({str(failure).splitlines()[0]})",
            expected="a device of this machine, such as cpu" + (" or cuda" if torch.cuda.is_available() else ""),
        ) from failure


def save_model(model: nn.Module, path: str, like: str) -> None:
    """Write a model in the form of the one it came from: a folder like a folder, else a file by its suffix."""
    if Path(like).is_dir():
        io.save_folder(model, path, like=like)
    else:
        io.save_state(model, path)


def check_output(path: str | None, like: str) -> None:
    """Refuse an output that could not be written before any work is done.

    Raises:
        UsageError: A file is to be written without a known suffix.
        InputError: Its place cannot be written to.
    """
    if Path(like).is_dir():
        check_target(path, "--out")
    else:
        check_file(path, "--out", (".safetensors", ".pt", ".pth", ".bin", ".ckpt"))


def load_alignment(path: str | None, model: nn.Module) -> Alignment | None:
    """The alignment in a file, checked to be of this model's architecture."""
    return None if path is None else Alignment.load(path, spec=model)


def _json_object(text: str) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except ValueError as failure:
        raise argparse.ArgumentTypeError(f"{text!r} is no JSON ({failure})") from failure
    if not isinstance(value, dict):
        raise argparse.ArgumentTypeError(f"{text!r} is no JSON object such as '{{\"width\": 32}}'")
    return value


def _from_folder(checkpoint: str | None, option: str, trust: bool) -> nn.Module:
    if checkpoint is None:
        raise UsageError("give --model with a factory, or a Hugging Face folder as the model")
    folder = Path(checkpoint)
    if not folder.is_dir():
        if not folder.exists():
            raise CheckpointError(f"{option}: there is no file or folder {folder}", do="look at the path")
        raise UsageError(f"{option}: {checkpoint} is a file, so --model must name the factory of its model")
    return _with_own_code(folder) if trust else io.load_model(folder)


def _with_own_code(folder: Path) -> nn.Module:
    """A model whose code lies in its folder, as its config.json maps it."""
    try:
        classes = json.loads((folder / "config.json").read_text(encoding="utf-8")).get("auto_map", {})
    except (OSError, ValueError) as failure:
        raise CheckpointError(f"{folder / 'config.json'} cannot be read ({failure})") from failure
    names = [name for name in classes if name.startswith("AutoModel")]
    if not names:
        return io.load_model(folder)
    try:
        import transformers
    except ImportError as missing:
        raise InputError("a Hugging Face folder needs transformers", do="pip install 'pyalign-nn[hf]'") from missing
    loader = getattr(transformers, names[0])
    try:
        model: nn.Module = loader.from_pretrained(folder, local_files_only=True, trust_remote_code=True)
    except Exception as failure:
        raise CheckpointError(
            f"{folder} cannot be loaded as {names[0]} ({type(failure).__name__}: {failure})"
        ) from failure
    return model.eval()
