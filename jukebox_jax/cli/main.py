"""The command line: one parser, one place where mistakes become one line and an exit status."""

from __future__ import annotations

import argparse
import os
import sys
import warnings
from collections.abc import Sequence
from types import ModuleType
from typing import NoReturn

from jukebox_jax import __version__
from jukebox_jax.cli import (
    align,
    bench,
    demo,
    embed,
    encode,
    export,
    export_openai,
    import_openai,
    inspect,
    page,
    plan,
    prepare,
    reproduce,
    sample,
    train,
)
from jukebox_jax.errors import UserError

VERBS = (
    demo,
    inspect,
    prepare,
    train,
    encode,
    sample,
    page,
    export,
    reproduce,
    align,
    embed,
    import_openai,
    export_openai,
    plan,
    bench,
)  # in the order in which one meets them


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
            verb_name(verb),
            help=verb.DESCRIPTION.partition("\n")[0],
            description=verb.DESCRIPTION,
            epilog=f"example:\n{verb.EXAMPLE}",
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
        )
        verb.add_arguments(sub)
        sub.set_defaults(
            prog=sub.prog, run=verb.run, if_interrupted=verb.IF_INTERRUPTED, takes_config=takes_config(verb)
        )
    return parser


def verb_name(verb: ModuleType) -> str:
    """What one types for it."""
    return verb.__name__.rpartition(".")[2].replace("_", "-")


def takes_config(verb: ModuleType) -> bool:
    """Whether it has `--config`, and so takes `--config.KEY=VALUE`."""
    return getattr(verb, "TAKES_CONFIG", False)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command; returns its exit status: 0 done, 1 another song (`reproduce`), 2 what the user can mend, 130
    interrupted, 141 not read on."""
    _silence_libraries()
    status, if_interrupted = 0, ""
    try:
        with warnings.catch_warnings():
            warnings.showwarning = _print_warning
            plain, overrides = split_overrides(sys.argv[1:] if argv is None else argv)
            args, unknown = build_parser().parse_known_args(plain)
            if unknown:
                raise UserError(f"unrecognized arguments: {' '.join(unknown)} (see: {args.prog} --help)")
            if overrides and not args.takes_config:
                names = [verb_name(verb) for verb in VERBS if takes_config(verb)]
                raise UserError(f"{overrides[0]}: only {', '.join(names[:-1])} and {names[-1]} take a config.")
            args.overrides, if_interrupted = overrides, args.if_interrupted
            status = args.run(args) or 0
        sys.stdout.flush()  # here an error has an answer; at the interpreter's end it would be a traceback
    except UserError as error:
        _print_line("error", error)
        return 2
    except BrokenPipeError:  # whoever read our output wants no more of it
        _drop_unwritable_output()
        return 141  # as a shell reports SIGPIPE
    except OSError as error:
        _print_line("error", describe(error))
        _drop_unwritable_output()
        return 2
    except KeyboardInterrupt:
        print(f"\njukebox-jax: interrupted. {if_interrupted}".rstrip(), file=sys.stderr)
        return 130
    return status


def describe(error: OSError) -> str:
    """One sentence for what the system refused: path, reason, remedy."""
    if error.strerror is None:  # not from the system, so that no folder or disk can mend it
        return f"{type(error).__name__}: {error}"
    path = "" if error.filename is None else f"{os.fsdecode(error.filename)}: "
    return f"{path}{error.strerror}: choose another folder or free space."


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


def _print_line(kind: str, message: object) -> None:
    print(f"jukebox-jax: {kind}: {' '.join(str(message).splitlines())}", file=sys.stderr)


def _print_warning(message: Warning | str, *where: object) -> None:
    """`warnings.showwarning` without file and source line, which say nothing to who typed a command."""
    del where
    _print_line("warning", message)


def _drop_unwritable_output() -> None:
    """What standard output still holds and cannot write is dropped, or Python would complain once more at its end."""
    try:
        sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
