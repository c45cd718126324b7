"""From spoken clips to a trained cascade of one level, stage by stage; what is done is kept."""

from __future__ import annotations

from pathlib import Path

from experiments.lyric_alignment import models, speech
from jukebox_jax.checkpoint.models import CODEC_FOLDER, level_folder
from jukebox_jax.corpus.encode import encode_dataset
from jukebox_jax.corpus.plan import PlanSettings
from jukebox_jax.corpus.prepare import PrepareSettings, prepare
from jukebox_jax.corpus.song import SongSettings
from jukebox_jax.training.run import train_run


def train(work: Path, effort: models.Effort, seed: int = 0) -> None:
    """Fills `work` with `clips`, `audio`, `tokens` and `model`; the same call goes on where another ended.

    Raises:
      UserError: there is no espeak-ng, or `work` was filled with another effort.
    """
    clips, audio, tokens, cascade = (work / name for name in ("clips", "audio", "tokens", "model"))
    if not clips.exists():
        counts = {"train": effort.train_clips, "validation": effort.test_clips}
        speech.write_clips(clips, counts, models.CLIP_SAMPLES, models.HOP, seed)
    if not audio.exists():
        # Clips of the same few words in the same voice are near enough to one another to be taken for copies.
        settings = PrepareSettings(SongSettings(speech.SAMPLE_RATE, channels=1), PlanSettings(near_duplicates=False))
        prepare(clips, audio, settings)
    train_run(models.codec_run(effort), audio, cascade / CODEC_FOLDER)
    if not tokens.exists():
        encode_dataset(audio, cascade / CODEC_FOLDER, tokens)
    train_run(models.prior_run(effort), tokens, cascade / level_folder(0), cascade / CODEC_FOLDER)
