"""`jukebox-jax export-openai`: a model folder as a checkpoint of the original."""

from __future__ import annotations

import argparse

from jukebox_jax.cli import arguments

DESCRIPTION = """Write a VQ-VAE or a prior as a checkpoint file of the original (needs the extra [torch])."""
EXAMPLE = """  jukebox-jax export-openai models/5b/level_2 --out prior_level_2.pth.tar
  jukebox-jax export-openai runs/my_prior --out my_prior.pth.tar --zip"""
IF_INTERRUPTED = "Nothing has been written; run the same command again."


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("folder", metavar="FOLDER", type=arguments.local_path, help="a model folder, or a run folder")
    parser.add_argument("--out", metavar="FILE", type=arguments.local_path, required=True, help="the file to write")
    parser.add_argument("--zip", action="store_true", help="in the container of newer torch versions")


def run(args: argparse.Namespace) -> None:
    from jukebox_jax.interop.openai import export_openai

    export_openai(args.folder, args.out, legacy=not args.zip)
    print(args.out)
