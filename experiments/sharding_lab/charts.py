"""Charts of the lab, as SVG."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence

from jukebox_jax.parallel.plan import GIB
from jukebox_jax.planning.plan import Row, recommended


def scaling_chart(best: Mapping[tuple[str, str], Sequence[Row]], strong: Mapping[str, Sequence[Row]]) -> str:
    """Left: one example a chip. Right: a fixed batch. MFU at worst of the fastest strategy, against chips."""
    figure, (weak_axis, strong_axis) = _figure(2)
    models = list(strong)
    for number, model in enumerate(models):
        for kind, line in (("v5e", ":"), ("v5p", "-"), ("v6e", "--")):
            some = [
                recommended(rows) for (name, place), rows in best.items() if name == model and place.startswith(kind)
            ]
            points = sorted((row.chips, 100 * row.mfu_worst) for row in some if row is not None)
            if points:
                weak_axis.plot(
                    *zip(*points, strict=True), line, marker="o", color=f"C{number}", label=f"{model}, {kind}"
                )
        points = sorted((row.chips, 100 * row.mfu_worst) for row in strong[model] if row.fits)
        if points:
            strong_axis.plot(*zip(*points, strict=True), marker="o", color=f"C{number}", label=f"{model}, v5p")
    weak_axis.set_title("one example a chip (codec: 2)")
    strong_axis.set_title("512 examples a step, v5p, one or two slices")
    for axis, chips in ((weak_axis, (16, 64, 128, 256, 512, 1024)), (strong_axis, (64, 128, 512, 1024))):
        axis.set(xlabel="chips", ylabel="modelled MFU at worst, %", ylim=(0, None))
        _log_ticks(axis, chips)
        axis.legend(fontsize=6, loc="upper left", bbox_to_anchor=(1, 1))
    return _svg(figure)


def crossover_chart(rows: Sequence[Row]) -> str:
    """Time of an example at worst, of each strategy's best row, against the examples of a step."""
    figure, axis = _figure(1)
    for strategy in sorted({row.combination.strategy for row in rows}):
        some = [row for row in rows if row.combination.strategy == strategy]
        points = sorted(
            (row.combination.batch_size, 1e3 * row.times.worst / row.combination.batch_size) for row in some
        )
        axis.plot(*zip(*points, strict=True), marker="o", label=strategy)
    chips = rows[0].chips
    axis.axvline(chips, color="grey", linewidth=1, linestyle=":")
    axis.set(xlabel=f"examples a step, on {chips} chips", ylabel="ms an example, at worst", ylim=(0, None))
    _log_ticks(axis, sorted({row.combination.batch_size for row in rows}))
    axis.legend()
    return _svg(figure)


def long_context_chart(rows: Sequence[Row]) -> str:
    """Memory and time of the long prior against its context."""
    figure, (memory_axis, time_axis) = _figure(2)
    for place in dict.fromkeys(row.topology for row in rows):
        some = [row for row in rows if row.topology == place]
        tokens = [int(row.model.split()[1]) for row in some]
        memory_axis.plot(tokens, [row.hbm_bytes_per_chip / GIB for row in some], marker="o", label=place)
        times = [
            1e6 * row.times.worst / (number * row.combination.batch_size)
            for row, number in zip(some, tokens, strict=True)
        ]
        time_axis.plot(tokens, times, marker="o", label=place)
    memory_axis.set_ylabel("modelled memory of a chip, GiB")
    time_axis.set_ylabel("µs a token at worst, all chips")
    for axis in (memory_axis, time_axis):
        axis.set(xlabel="tokens of context", ylim=(0, None))
        _log_ticks(axis, sorted({int(row.model.split()[1]) for row in rows}))
        axis.legend()
    return _svg(figure)


def _log_ticks(axis, values: Sequence[int]) -> None:
    """A logarithmic axis with the values that occur, written out."""
    from matplotlib.ticker import NullLocator

    axis.set_xscale("log")
    axis.set_xticks(values, [f"{value // 1024}k" if value >= 8192 else f"{value}" for value in values])
    axis.xaxis.set_minor_locator(NullLocator())


def _figure(columns: int):
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5.5 * columns, 4), layout="constrained")
    return figure, figure.subplots(1, columns)


def _svg(figure) -> str:
    import matplotlib as mpl

    text = io.StringIO()
    with mpl.rc_context({"svg.hashsalt": "jukebox_jax", "svg.fonttype": "none"}):
        figure.savefig(text, format="svg", metadata={"Date": None})
    return "\n".join(line.rstrip() for line in text.getvalue().splitlines()) + "\n"
