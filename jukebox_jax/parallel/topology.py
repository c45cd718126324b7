"""Topologies: which chips, in what shape, joined how; described without any of them at hand."""

from __future__ import annotations

import itertools
import math
import os
import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

import jax

from jukebox_jax.config import nearest
from jukebox_jax.errors import UserError
from jukebox_jax.parallel.peaks import peak
from jukebox_jax.parallel.plan import HBM_LIMITS

#: Tables of hardware.toml by the kind of chip, and single values.
Assumptions = Mapping[str, Any]
# What the runtime keeps of a GPU's memory; of TPUs the compiler says it.
_USABLE_OF_GPU = 0.95


@dataclass(frozen=True)
class Chip:
    """What a chip can do; all rates are per second.

    Attributes:
      kind, device_kind: by its short name, and by jax's.
      flops_per_second: dense bfloat16, at its peak.
      memory_bytes_per_second, memory_bytes: of the device's memory; of the latter what a program may use.
      link_bytes_per_second: of one link to a neighbour, or to the switch, in one direction.
      dcn_bytes_per_second: to other slices, or to GPUs behind another switch.
      matrix_unit: size of the tiles that products are computed in.
      matmul_efficiency: part of the peak that matrix units reach in the worst case.
      largest_gather_group, largest_scatter_group: chips beyond which the compiler sums instead (0: it does not).
      switched: whether all chips of a slice hang on one switch, in place of a torus.
      dollars_per_hour: list price; None: not known.
    """

    kind: str
    device_kind: str
    flops_per_second: float
    memory_bytes_per_second: float
    memory_bytes: int
    link_bytes_per_second: float
    dcn_bytes_per_second: float
    matrix_unit: int = 1
    matmul_efficiency: float = 1.0
    largest_gather_group: int = 0
    largest_scatter_group: int = 0
    switched: bool = False
    dollars_per_hour: float | None = None


@dataclass(frozen=True)
class Topology:
    """Slices of chips.

    Attributes:
      shape: of one slice: chips along each axis of its torus.
      wraps: which axes are rings.
      slices: joined by a data-centre network.
    """

    name: str
    chip: Chip
    shape: tuple[int, ...]
    wraps: tuple[bool, ...]
    slices: int = 1

    @property
    def chips(self) -> int:
        return self.slices * math.prod(self.shape)


@dataclass(frozen=True)
class DescribedDevice:
    """As much of a jax device as `parallel.mesh` looks at."""

    id: int
    platform: str
    device_kind: str
    coords: tuple[int, ...]
    slice_index: int
    process_index: int = 0
    core_on_chip: int = 0


def load_assumptions(path: os.PathLike | str | None = None) -> Assumptions:
    """The figures of hardware.toml, those of a file laid over them.

    Raises:
      UserError: the file cannot be read, or has a name or a kind of value that hardware.toml does not have.
    """
    text = resources.files("jukebox_jax.parallel").joinpath("hardware.toml").read_text(encoding="utf-8")
    known: dict[str, Any] = tomllib.loads(text)
    if path is None:
        return known
    try:
        own = tomllib.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}): name a TOML file.") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"{path} is no TOML ({error}): see hardware.toml for an example.") from None
    names = {name for table in known.values() if isinstance(table, dict) for name in table} | {"dollars_per_hour"}
    for name, value in own.items():
        if name not in known:
            raise UserError(f"{path}: there is no {name!r} in hardware.toml: {nearest(name, known)}")
        if isinstance(value, dict) != isinstance(known[name], dict):
            raise UserError(f"{path}: {name} is {'a table' if isinstance(known[name], dict) else 'a number'}: mend it.")
        for key, figure in value.items() if isinstance(value, dict) else [(name, value)]:
            if isinstance(value, dict) and key not in names:
                raise UserError(f"{path}: {name} has no {key!r} in hardware.toml: {nearest(key, names)}")
            if key not in ("device_kind", "shapes"):
                _check(f"{path}: {key}", key, figure)
    return {
        name: table | own.get(name, {}) if isinstance(table, dict) else own.get(name, table)
        for name, table in known.items()
    }


#: Figures that count something.
_WHOLE = ("wraps_at", "whole_cubes", "matrix_unit", "largest_gather_group", "largest_scatter_group", "domain")
_MAY_BE_ZERO = ("whole_cubes", "largest_gather_group", "largest_scatter_group", "dollars_per_hour")


def _check(where: str, key: str, figure: Any) -> None:
    number = isinstance(figure, int | float) and not isinstance(figure, bool) and math.isfinite(figure)
    whole = key not in _WHOLE or isinstance(figure, int)
    positive = number and (figure > 0 or (figure == 0 and key in _MAY_BE_ZERO))
    if not (number and whole and positive):
        kind = "whole number" if key in _WHOLE else "number"
        raise UserError(f"{where} = {figure!r}: give a {kind}, {'0 or more' if key in _MAY_BE_ZERO else 'above 0'}.")
    if key == "matmul_efficiency" and figure > 1:
        raise UserError(f"{where} = {figure!r}: give a part of the peak, at most 1.")


def parse_topology(text: str, assumptions: Assumptions | None = None) -> Topology:
    """Reads `v5e:8x8`, `2xv5p:4x4x4` (slices), or `gpu:8xh100`.

    Raises:
      UserError: there is no such topology; says which there are.
    """
    assumptions = load_assumptions() if assumptions is None else assumptions
    gpus = [kind for kind, table in assumptions.items() if isinstance(table, dict) and "domain" in table]
    tpus = {
        kind: table["shapes"] for kind, table in assumptions.items() if isinstance(table, dict) and "shapes" in table
    }
    if match := re.fullmatch(r"gpu:(\d+)x(\w+)", text):
        count, kind = int(match[1]), match[2]
        if kind in gpus and count >= 1:
            domain = min(count, assumptions[kind]["domain"])
            if count % domain == 0:
                chip = _chip(kind, assumptions)
                return Topology(text, chip, (domain,), (False,), count // domain)
    elif match := re.fullmatch(r"(?:(\d+)x)?(v?\w+):(\d+(?:x\d+)*)", text):
        slices, kind, shape = int(match[1] or 1), match[2], match[3]
        if kind in tpus and slices >= 1:
            sizes = tuple(map(int, shape.split("x")))
            if shape in tpus[kind] or (
                len(sizes) == 3 == tpus[kind][0].count("x") + 1 and all(n and n % 4 == 0 for n in sizes)
            ):
                wraps = tuple(size % assumptions[kind]["wraps_at"] == 0 for size in sizes)
                if assumptions[kind].get("whole_cubes") and not all(wraps):
                    wraps = (False,) * len(sizes)
                return Topology(text, _chip(kind, assumptions), sizes, wraps, slices)
    known = "; ".join(f"{kind}:{', '.join(shapes)}" for kind, shapes in tpus.items())
    raise UserError(
        f"There is no topology {text!r}: choose {known}; several slices as 2xv5p:4x4x4; or gpu:NxKIND with up to 8 or "
        f"multiples of 8 of {', '.join(gpus)}, as gpu:8xh100."
    )


def _chip(kind: str, assumptions: Assumptions) -> Chip:
    table = assumptions[kind]
    figures = peak(table["device_kind"])
    switched = "domain" in table
    usable = int(_USABLE_OF_GPU * figures.memory_bytes) if switched else HBM_LIMITS[table["device_kind"]]
    return Chip(
        kind=kind,
        device_kind=table["device_kind"],
        flops_per_second=float(figures.flops_per_second),
        memory_bytes_per_second=float(figures.memory_bytes_per_second),
        memory_bytes=usable,
        link_bytes_per_second=float(table["link_bytes_per_second"]),
        dcn_bytes_per_second=float(table["dcn_bytes_per_second"]),
        matrix_unit=table["matrix_unit"],
        matmul_efficiency=float(assumptions["matmul_efficiency"]),
        largest_gather_group=table.get("largest_gather_group", 0),
        largest_scatter_group=table.get("largest_scatter_group", 0),
        switched=switched,
        dollars_per_hour=float(table["dollars_per_hour"]) if table.get("dollars_per_hour") else None,
    )


def described_devices(topology: Topology) -> list[DescribedDevice]:
    """Devices with the coordinates that a mesh is laid out by, the first axis fastest, as TPUs number them."""
    platform = "gpu" if topology.chip.switched else "tpu"
    places = [place[::-1] for place in itertools.product(*(range(size) for size in reversed(topology.shape)))]
    if platform == "tpu":
        places = [(*place, 0)[:3] for place in places]  # every chip has three coordinates
    return [
        DescribedDevice(number, platform, topology.chip.device_kind, place, slice_index, slice_index)
        for number, (slice_index, place) in enumerate(itertools.product(range(topology.slices), places))
    ]


def require_compiler(topology: Topology) -> None:
    """Sees that the TPU compiler is there and fits jax.

    Raises:
      UserError: it is not, or does not, or the topology is no TPU's.
    """
    import importlib.metadata
    import importlib.util

    if topology.chip.switched:
        raise UserError(f"{topology.name}: GPUs are planned from the model alone: leave --compile out.")
    if importlib.util.find_spec("libtpu") is None:
        raise UserError('The TPU compiler is missing: pip install "jukebox-jax[tpu]" brings the one for this jax.')
    wanted = [
        requirement
        for requirement in importlib.metadata.requires("jax") or []
        if requirement.startswith("libtpu") and 'extra == "tpu"' in requirement
    ]
    pins = re.findall(r"==\s*([\d.]+)", wanted[0]) if wanted else []
    found = importlib.metadata.version("libtpu")
    if pins and not re.match(re.escape(pins[0].rstrip(".*")) + r"(\.|$)", found):
        raise UserError(
            f"libtpu {found} is not the compiler of jax {jax.__version__} (libtpu {pins[0]}): "
            f'pip install "jukebox-jax[tpu]" "jax[tpu]=={jax.__version__}" brings it.'
        )
