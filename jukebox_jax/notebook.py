"""What notebooks show: players, a training run as it goes, plans as tables. Needs the extra [notebook].

Cells stay short because what they need lives here, where tests see it.
"""

from __future__ import annotations

import contextlib
import html
import io
import os
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jukebox_jax.export.curves import metric_points
from jukebox_jax.parallel.topology import load_assumptions, parse_topology
from jukebox_jax.planning.layouts import Run, strategies
from jukebox_jax.planning.page import as_html
from jukebox_jax.planning.plan import Question, Row, advice, best_layouts, recommended, rows
from jukebox_jax.song import Song
from jukebox_jax.training.telemetry import METRICS_FILE, read_metrics

if TYPE_CHECKING:
    from matplotlib.figure import Figure

#: Metrics of a run that are drawn, with those of held-out music: the first that its rows have.
LOSSES = ("bits_per_token", "loss")


# ---- Training as it goes --------------------------------------------------------------------------------------------


@contextlib.contextmanager
def watch(run_dir: os.PathLike | str, every_seconds: float = 2.0) -> Iterator[None]:
    """Shows the loss of a training run, and how many codes of its codebooks are in use, while the block trains it.

    The picture is drawn anew from the run's metrics every so often, and a last time at the end. Outside a notebook
    nothing is shown.
    """
    handle = _display_handle()
    if handle is None:
        yield
        return
    run_dir, done = Path(run_dir), threading.Event()

    def follow() -> None:
        while not done.wait(every_seconds):
            _show(handle, run_dir)

    follower = threading.Thread(target=follow, daemon=True)
    follower.start()
    try:
        yield
    finally:
        done.set()
        follower.join()
        _show(handle, run_dir)


def training_figure(run_dir: os.PathLike | str) -> Figure:
    """Loss against steps, of training batches and (dots) of held-out music, and for a codec the codes in use."""
    from matplotlib.figure import Figure

    metrics = read_metrics(run_dir)
    name = next((name for name in LOSSES if any(row.get(name) is not None for row in metrics)), LOSSES[-1])
    usage = sorted({key for row in metrics for key in row if key.startswith("usage_l")})
    figure = Figure(figsize=(9 if usage else 5, 2.8), layout="constrained")
    axes = figure.subplots(1, 2 if usage else 1, squeeze=False)[0]
    axes[0].plot(*_series(metrics, name), linewidth=1, alpha=0.6, label="training batches")
    axes[0].plot(*_series(metrics, f"eval_{name}"), "o-", label="held-out music")
    axes[0].set(xlabel="steps", ylabel=name.replace("_", " "), title=Path(run_dir).name)
    axes[0].legend(frameon=False)
    for key in usage:
        axes[1].plot(*_series(metrics, key), label=f"level {int(key.removeprefix('usage_l')) - 1}")
    if usage:
        axes[1].set(xlabel="steps", ylabel="codes in use", ylim=(0, None))
        axes[1].legend(frameon=False)
    return figure


def _series(metrics: Sequence[dict[str, Any]], name: str) -> tuple[list[int], list[float]]:
    pairs = metric_points(metrics, name)
    return [step for step, _ in pairs], [value for _, value in pairs]


def _display_handle() -> Any:
    """A place in the cell's output that can be drawn anew; None outside a notebook."""
    try:
        from IPython import get_ipython
        from IPython.display import HTML, display
    except ImportError:
        return None
    if get_ipython() is None:
        return None
    return display(HTML("<p>Waiting for the first steps…</p>"), display_id=True)


def _show(handle: Any, run_dir: Path) -> None:
    from IPython.display import Image

    if (run_dir / METRICS_FILE).exists():
        picture = io.BytesIO()
        training_figure(run_dir).savefig(picture, format="png", dpi=100)
        handle.update(Image(data=picture.getvalue(), format="png"))


# ---- Listening ------------------------------------------------------------------------------------------------------


def listen(songs: Song | Sequence[Song], levels: Sequence[int] = (0,)) -> Any:
    """Players of songs, one for each of the levels (0 is the finished sound), for the end of a cell."""
    from IPython.display import HTML, Audio

    songs = [songs] if isinstance(songs, Song) else songs
    lines = []
    for number, song in enumerate(songs):
        for level in levels:
            player = Audio(song.levels[level], rate=song.sample_rate, normalize=False)._repr_html_()
            name = f"song {number}" + (f", level {level}" if len(levels) > 1 else "")
            lines.append(f"<tr><td>{html.escape(name)}</td><td>{player}</td></tr>")
    return HTML(f"<table>{''.join(lines)}</table>")


# ---- Planning -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Plan:
    """Rows of a plan with the advice for each topology; a notebook shows it as a page."""

    rows: tuple[Row, ...]
    advice: tuple[str, ...]

    @property
    def best(self) -> Row | None:
        """Of all rows that fit, the one that is fastest at worst."""
        return recommended(self.rows)

    def _repr_html_(self) -> str:
        page = html.escape(as_html(self.rows, self.advice), quote=True)
        return f'<iframe srcdoc="{page}" style="width: 100%; height: 40em; border: 0" title="Sharding plan"></iframe>'


def plan(
    run: Run,
    topologies: Sequence[str],
    *,
    name: str = "model",
    strategy: str = "all",
    batch_size: int | None = None,
    remats: Sequence[str] = (),
    assumptions: os.PathLike | str | None = None,
) -> Plan:
    """The best mesh of every strategy for a run's training step on each topology, by the model alone.

    Args:
      topologies: as `v5p:4x4x4`, `2xv5p:8x8x8` or `gpu:8xh100`.
      batch_size: examples of a step over all chips; None: the config's.
      remats: of a prior: any of none, block, dots, offload; empty: the config's.
      assumptions: a TOML file laid over `parallel/hardware.toml`, as for prices.

    Raises:
      UserError: an unknown topology or strategy.
    """
    figures = load_assumptions(None if assumptions is None else Path(assumptions))
    question = Question(name, run, strategies(strategy), batch_size, tuple(remats), "all")
    found: list[Row] = []
    told = []
    for topology in (parse_topology(text, figures) for text in topologies):
        some = best_layouts(list(rows(question, topology)))
        found += some
        told.append(advice(topology, some))
    return Plan(tuple(found), tuple(told))
