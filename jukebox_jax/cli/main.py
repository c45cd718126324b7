"""The command line: one parser, one place where mistakes become one line and an exit status."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from typing import NoReturn

from jukebox_jax import __version__
from jukebox_jax.cli import demo, encode, prepare, sample, train
from jukebox_jax.errors import UserError

VERBS = (demo, prepare, train, encode, sample)  # in the order in which one meets them


class _Parser(argparse.ArgumentParser):
    """A parser whose complaints are `UserError`s, so that all mistakes look alike."""

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message} (see: {self.prog} --help)")


def build_parser() -> argparse.ArgumentParser:
    """The parser of all verbs; it imports none of their work, so that --help answers at once."""
    parser = _Parser(
        prog="jukebox-jax",
        description="Music as raw audio: a three-level VQ-VAE, a top prior and two upsamplers, in JAX.",
        epilog="example:\n  jukebox-jax sample --demo --out songs\n\nmore about a verb:\n  jukebox-jax VERB --help",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"jukebox-jax {__version__}")
    verbs = parser.add_subparsers(title="verbs", metavar="VERB", required=True)
    for verb in VERBS:
        sub = verbs.add_parser(
            verb.__name__.rpartition(".")[2],
            help=verb.DESCRIPTION.partition("\n")[0],
            description=verb.DESCRIPTION,
            epilog=f"example:\n{verb.EXAMPLE}",
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
        )
        verb.add_arguments(sub)
        sub.set_defaults(run=verb.run, if_interrupted=verb.IF_INTERRUPTED)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command; returns its exit status: 0 done, 2 a mistake the user can mend, 130 interrupted."""
    _silence_libraries()
    if_interrupted = ""
    try:
        plain, overrides = split_overrides(sys.argv[1:] if argv is None else argv)
        args = build_parser().parse_args(plain)
        if overrides and "config" not in args:
            raise UserError(f"{overrides[0]}: only train takes a config.")
        args.overrides, if_interrupted = overrides, args.if_interrupted
        args.run(args)
    except UserError as error:
        print(f"jukebox-jax: error: {' '.join(str(error).splitlines())}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"\njukebox-jax: interrupted. {if_interrupted}".rstrip(), file=sys.stderr)
        return 130
    return 0


def split_overrides(argv: Sequence[str]) -> tuple[list[str], list[str]]:
    """Parts `--config.KEY=VALUE`, `--config.KEY VALUE` and `--config.SWITCH` from the rest, as `--config.KEY=VALUE`."""
    plain, overrides = [], []
    waiting = list(argv)
    while waiting:
        argument = waiting.pop(0)
        if not argument.startswith("--config."):
            plain.append(argument)
        elif "=" in argument:
            overrides.append(argument)
        else:
            value = waiting.pop(0) if waiting and not waiting[0].startswith("--") else "true"
            overrides.append(f"{argument}={value}")
    return plain, overrides


def _silence_libraries() -> None:
    """Keeps start-up notes of TensorFlow, gRPC and XLA off the screen; whoever sets these variables keeps the say."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    os.environ.setdefault("GRPC_VERBOSITY", "ERROR")
