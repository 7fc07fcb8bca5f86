"""`pyalign align`: model B in model A's coordinates."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pyalign.cli.answers import Answer, UsageError, check_file
from pyalign.cli.data import add_data_options, load_data
from pyalign.cli.models import add_pair_options, check_output, load_pair, save_model
from pyalign.matching import ActivationMatching, LearnedMatching, Method, WeightMatching, align, align_folders
from pyalign.symmetry import Alignment

__all__ = ["DESCRIPTION", "EXAMPLES", "HELP", "NAME", "add_options", "record_of", "run"]

NAME = "align"
HELP = "brings model B into model A's coordinates"
DESCRIPTION = """\
Finds the units of model B that correspond to those of model A, verifies that reordering them does not change
model B's function, and writes the reordered model B.

Two Hugging Face folders are aligned by --method weight without data and without loading either model: the symmetry
comes from config.json, weights are read and written one tensor at a time, and a model card says what was done.

--method learned goes on from weight matching by gradient descent on the loss between the models. It needs training
batches with targets, takes as long as training does, and is what transformers need.

Give --fold for trained language models: the scales of their norms differ, and would allow no more than a reordering of
the residual stream. It moves them into the weights that read them, in both models, so that the stream is turned as a
whole. What is written is of the same architecture, with scales of one; average it with the folded A (--out-a):
  pyalign align --a model-a --b model-b --method weight --fold --out b-aligned --out-a a-folded"""
EXAMPLES = (
    "pyalign align --model pyalign.demo:network --a a.safetensors --b b.safetensors --data digits:train \\",
    "    --out b_aligned.safetensors --save alignment.safetensors",
    "pyalign align --model pyalign.demo:network --a a.safetensors --b b.safetensors --data digits:train \\",
    "    --method learned --steps 5 --checkpoint learning.safetensors --out b_learned.safetensors",
)
METHODS: dict[str, Callable[..., Method]] = {
    "activation": ActivationMatching,
    "weight": WeightMatching,
    "learned": LearnedMatching,
}
OPTIONS = {
    "activation": ("observe", "similarity"),
    "weight": ("restarts",),
    "learned": ("steps", "epochs", "lr", "checkpoint"),
}
"""The options that are one method's own."""


def add_options(parser: argparse.ArgumentParser) -> None:
    """The options of this command."""
    add_pair_options(parser)
    parser.add_argument("--method", choices=tuple(METHODS), default="activation", help="default: %(default)s")
    parser.add_argument("--observe", choices=("after", "before"), help="activations after or before the nonlinearity")
    parser.add_argument("--similarity", choices=("correlation", "covariance", "second moment"), help="of activations")
    parser.add_argument(
        "--restarts",
        type=int,
        metavar="N",
        help="weight matching: searches with different orders, of which the best is kept",
    )
    length = parser.add_mutually_exclusive_group()
    length.add_argument("--steps", type=int, metavar="N", help="learned: batches to learn from (default: 1000)")
    length.add_argument("--epochs", type=int, metavar="N", help="learned: passes over the data, instead of --steps")
    parser.add_argument("--lr", type=float, metavar="X", help="learned: learning rate (default: 0.01)")
    parser.add_argument("--checkpoint", metavar="FILE", help="learned: written while it learns; a run goes on from it")
    parser.add_argument("--out", metavar="PATH", help="write the aligned model B, in the form that --b has")
    parser.add_argument(
        "--fold",
        action="store_true",
        help="two folders: move the scales of norms into the weights that read them, so that the residual stream may "
        "be turned; the choice for trained language models",
    )
    parser.add_argument("--out-a", metavar="FOLDER", help="with --fold: write model A with its scales folded")
    parser.add_argument("--save", metavar="FILE", help="write the alignment itself (.safetensors)")
    purpose = "what both models see (learned: with targets); weight matching uses the first batch only, and needs none "
    purpose += "for folders: "
    add_data_options(parser, required=False, purpose=purpose)


def run(args: argparse.Namespace) -> Answer:
    """Align, write, print the report."""
    check_output(args.out, args.b)
    check_file(args.save, "--save", (".safetensors",))
    check_file(args.checkpoint, "--checkpoint", (".safetensors",))
    method = _method(args)
    if _whole_checkpoints(args) and isinstance(method, WeightMatching):
        alignment = align_folders(
            args.a, args.b, args.out, fold=args.fold, out_a=args.out_a, method=method, seed=args.seed,
            progress=args.progress,
        )  # fmt: skip
        return _answer(args, alignment)
    if args.fold or args.out_a is not None:
        raise UsageError("--fold and --out-a are for two Hugging Face folders with --method weight, without --data")
    if args.data is None:
        raise UsageError("--data is needed, except for two Hugging Face folders with --method weight")
    model_a, model_b = load_pair(args)
    data = load_data(args.data, args, shuffle=args.method == "learned")
    alignment = align(model_a, model_b, data, method=method, seed=args.seed, progress=args.progress)
    aligned = alignment.apply(model_b)
    if args.out is not None:
        save_model(aligned, args.out, args.b)
    return _answer(args, alignment)


def _whole_checkpoints(args: argparse.Namespace) -> bool:
    """Whether both models are folders that can be streamed: no factory, no data, no code of theirs."""
    folders = Path(args.a).is_dir() and Path(args.b).is_dir()
    return folders and args.model is None and args.data is None and not args.trust_remote_code


def _answer(args: argparse.Namespace, alignment: Alignment) -> Answer:
    if args.save is not None:
        alignment.save(args.save)
    written = [path for path in (args.out, args.out_a, args.save) if path is not None]
    text = "\n".join([alignment.report(), *(f"wrote {path}" for path in written)])
    return Answer(text, {**record_of(alignment), "written": written})


def record_of(alignment: Alignment) -> dict[str, Any]:
    """An alignment for machines, without its permutations."""
    groups = [
        {
            "name": group.name,
            "size": group.size,
            "moved": alignment.moved.get(group.name, 0.0),
            "correlation_before": alignment.correlation_before.get(group.name),
            "correlation_after": alignment.correlation_after.get(group.name),
        }
        for group in alignment.spec.groups.values()
    ]
    kept = ("method", "objective", "worst_gap", "backends", "seconds", "notes")
    return {**{name: getattr(alignment, name) for name in kept}, "groups": groups}


def _method(args: argparse.Namespace) -> Method:
    own = OPTIONS[args.method]
    given = {name: getattr(args, name) for names in OPTIONS.values() for name in names}
    given = {name: value for name, value in given.items() if value is not None}
    wrong = [f"--{name}" for name in given if name not in own]
    if wrong:
        raise UsageError(f"{', '.join(wrong)} cannot be used with --method {args.method}")
    return METHODS[args.method](**given)
