"""Trains the toy that ships with the package: the demo's recipe, for longer, rounded to bfloat16.

    python -m experiments.train_toy --work runs/toy --out jukebox_jax/toy

The codec is rounded before the music is encoded, so that the priors learn the tokens of the very codec that ships.
Stages that are done are kept: the same command resumes. Prints the figures that `jukebox-jax demo` prints.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
from pathlib import Path

from jukebox_jax import api, demo, recipe
from jukebox_jax.checkpoint.models import CODEC_FOLDER, export_codec, export_prior, level_folder
from jukebox_jax.corpus.demo_corpus import demo_folder
from jukebox_jax.corpus.encode import encode_dataset
from jukebox_jax.corpus.prepare import prepare
from jukebox_jax.pipeline.dataset import open_dataset
from jukebox_jax.training.run import train_run

LICENCE = (
    "Apache-2.0, as jukebox_jax itself; trained on its embedded corpus, whose recordings are CC0, CC BY and CC BY-SA "
    "(jukebox_jax/corpus/demo_data/LICENSE.md)"
)


def main(arguments: list[str] | None = None) -> None:
    """Trains, exports to `--out`, and reports on the exported model."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work", type=Path, required=True, help="folder for data and runs")
    parser.add_argument("--out", type=Path, required=True, help="folder to write the toy to; replaced")
    parser.add_argument("--codec-steps", type=int, default=6000)
    # The coarser the level, the fewer the tokens, and the sooner a prior knows them by heart.
    parser.add_argument("--prior-steps", type=int, nargs=3, default=[3000, 4000, 1500], help="of levels 0, 1 and 2")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args(arguments)
    if args.out.exists() and any(args.out.iterdir()) and not (args.out / CODEC_FOLDER / "weights.npz").is_file():
        parser.error(f"{args.out} holds something that is not a toy: name another --out")

    data, runs, export = args.work / "data", args.work / "runs", args.work / "export"
    if not (data / "audio").exists():
        prepare(demo_folder(), data / "audio")
    train_run(
        recipe.codec_run(args.seed, recipe.Effort(None, (1, args.codec_steps))), data / "audio", runs / CODEC_FOLDER
    )
    codec_folder = export / CODEC_FOLDER
    if not codec_folder.exists():
        export_codec(runs / CODEC_FOLDER, codec_folder, LICENCE)
    if not (data / "tokens").exists():
        encode_dataset(data / "audio", codec_folder, data / "tokens")
    for level in reversed(recipe.LEVELS):
        run_dir, folder = runs / level_folder(level), export / level_folder(level)
        effort = recipe.Effort(prior_seconds=None, prior_steps=(1, args.prior_steps[level]))
        train_run(recipe.prior_run(level, args.seed, effort), data / "tokens", run_dir, codec_folder)
        if not folder.exists():
            export_prior(run_dir, folder, LICENCE)

    shutil.rmtree(args.out, ignore_errors=True)
    shutil.copytree(export, args.out)
    size = sum(path.stat().st_size for path in args.out.rglob("*") if path.is_file())
    model, tokens = api.load(args.out), open_dataset(data / "tokens")
    audio = open_dataset(data / "audio")
    pieces = demo.reconstruct_held_out(model, audio)
    figures = demo.codec_figures(model, pieces, tokens) | demo.prior_figures(model, tokens)
    json.dump({"bytes": size} | figures, sys.stdout, indent=1)
    print()


if __name__ == "__main__":
    main()
