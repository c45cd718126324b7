"""Trains a small prior on speech, and measures how well its attention tells when each word is spoken.

    python -m experiments.lyric_alignment --work runs/lyric_alignment            # train and measure
    python -m experiments.lyric_alignment --work runs/lyric_alignment --readme   # and put the figures into README.md

What is done is kept in the work folder: the same command goes on from there. Needs espeak-ng.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from pathlib import Path

from experiments.lyric_alignment.measure import measure
from experiments.lyric_alignment.models import Effort
from experiments.lyric_alignment.report import table
from experiments.lyric_alignment.training import train
from jukebox_jax.errors import UserError

HERE = Path(__file__).parent
_BEGIN, _END = "<!-- measured -->\n", "<!-- end of measured -->\n"


def main(arguments: list[str] | None = None) -> int:
    """Returns the exit status: 2 for what the user can mend."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True, help="folder for clips, data and models")
    for field in dataclasses.fields(Effort):
        flag = f"--{field.name.replace('_', '-')}"
        parser.add_argument(flag, type=int, default=field.default, help=f"({field.default})")
    parser.add_argument("--seed", type=int, default=0, help="of the clips (0)")
    parser.add_argument("--readme", action="store_true", help="put table, picture and results.json into this folder")
    args = parser.parse_args(arguments)
    effort = Effort(**{field.name: getattr(args, field.name) for field in dataclasses.fields(Effort)})
    try:
        train(args.work, effort, args.seed)
    except UserError as error:
        print(f"lyric_alignment: error: {error}", file=sys.stderr)
        return 2
    figures, shown, clip = measure(args.work)
    figures = {"effort": dataclasses.asdict(effort), "seed": args.seed} | figures
    text = table(figures, shown.words, clip.words)
    print(text)
    out = HERE if args.readme else args.work
    (out / "results.json").write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")
    shown.save(out / "alignment.png")
    if args.readme:
        readme = HERE / "README.md"
        before, rest = readme.read_text(encoding="utf-8").split(_BEGIN)
        readme.write_text(f"{before}{_BEGIN}\n{text}\n\n{_END}{rest.split(_END)[1]}", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
