"""What the cost model says of a step that was measured, given what its devices can do."""

from __future__ import annotations

from jukebox_jax.errors import UserError
from jukebox_jax.parallel.measured import Rates
from jukebox_jax.parallel.topology import Chip, Topology
from jukebox_jax.planning.bench import Row
from jukebox_jax.planning.bench_report import Prediction
from jukebox_jax.planning.layouts import Run
from jukebox_jax.planning.plan import modelled


def predict(run: Run, row: Row) -> Prediction | None:
    """Times by the rates that were measured on the row's own devices, all of which worked at once; None where nothing
    was measured."""
    if row.measured is None:
        return None
    topology = measured_topology(row.measured.device_kind, row.measured.devices, row.measured.rates)
    try:
        found = modelled("measured", run, row.combination, topology)
    except UserError:  # as `single`, of more devices than it uses
        return None
    return Prediction(found.times.best, found.times.worst, found.hbm_bytes_per_chip)


def measured_topology(device_kind: str, devices: int, rates: Rates) -> Topology:
    """Devices that all reach one another, with the rates that were measured: their memory is not limited here."""
    chip = Chip(
        kind="measured",
        device_kind=device_kind,
        flops_per_second=rates.matmul_flops_per_second,
        memory_bytes_per_second=rates.read_bytes_per_second,
        memory_bytes=2**62,
        link_bytes_per_second=rates.sent_bytes_per_second or float("inf"),
        dcn_bytes_per_second=float("inf"),
        switched=True,
    )
    return Topology(f"{devices} × {device_kind}", chip, (devices,), (False,))
