"""Types of command-line values, and files they name: what no verb could use is refused before anything is loaded."""

from __future__ import annotations

import math
from argparse import ArgumentParser, ArgumentTypeError
from pathlib import Path

from jukebox_jax.errors import UserError


def seed(text: str) -> int:
    """A seed, as random keys take them: 32 bits without a sign."""
    value = int(text)
    if not 0 <= value < 2**32:
        raise ArgumentTypeError(f"{value} is no seed: give a whole number from 0 to {2**32 - 1}")
    return value


def count(text: str) -> int:
    """A whole number from 1."""
    value = int(text)
    if value < 1:
        raise ArgumentTypeError(f"{value} is too few: give at least 1")
    return value


def number(text: str) -> float:
    """A finite number above 0."""
    value = float(text)
    if not (math.isfinite(value) and value > 0):
        raise ArgumentTypeError(f"{text} is no length or strength: give a finite number above 0")
    return value


def local_path(text: str) -> Path:
    """A path on this machine. pathlib would take a URL for one, and fill a folder that is called "gs:"."""
    from jukebox_jax.remote import is_remote

    if is_remote(text):
        raise ArgumentTypeError(f"{text} is not on this machine: give a local path, and copy from or to the bucket")
    return Path(text)


def read_lyrics(path: Path) -> str:
    """The text of a --lyrics-file.

    Raises:
      UserError: it cannot be read, or is not UTF-8.
    """
    try:
        return path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise UserError(f"--lyrics-file {path} cannot be read ({error.strerror}): check the path.") from None
    except UnicodeDecodeError as error:
        raise UserError(f"--lyrics-file {path} is not UTF-8 text ({error.reason}): save it as that.") from None


def add_model(parser: ArgumentParser, holds: str = "folder that holds vqvae, level_0, level_1 and level_2") -> None:
    """The two ways to name a model, of which one must be taken: --demo, or --model FOLDER."""
    which = parser.add_mutually_exclusive_group(required=True)
    which.add_argument("--demo", action="store_true", help="the small trained model that ships with the package")
    which.add_argument("--model", metavar="FOLDER", type=local_path, help=holds)
