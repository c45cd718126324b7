"""Reading a compiled program: the text that XLA writes of it (HLO), as computations and how often each of them runs."""

from __future__ import annotations

import math
import re
import tempfile
from collections import defaultdict
from pathlib import Path

import jax

_SHAPE = re.compile(r"\b(pred|[a-z]+(\d+)\w*)\[([\d,]*)\]")
_CALLED = re.compile(r"\b(?:calls|to_apply|body)=%?([\w.-]+)")
_BRANCHES = re.compile(r"\b(?:branch_computations=\{|(?:true|false)_computation=)([^},]*(?:, ?%[^},]*)*)")
_WHILE = re.compile(r" while\(.*condition=%?([\w.-]+), body=%?([\w.-]+)")
_KNOWN_TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"\}')
_OPERANDS = re.compile(r"\(((?:[^()]|\([^()]*\))*)\)")
_NO_NAMES = re.compile(r"/\*.*?\*/|\{[^{}]*\}|\[[^\]]*\]")

ENTRY = "ENTRY"


def partitioned(lowered: jax.stages.Lowered) -> str:
    """The program of one device after SPMD partitioning, before the backend rewrites it: the collectives that sharding
    asks for, alike on CPU, GPU and TPU.

    Compiles the whole program, with jax's cache of compiled programs off: what comes from there is not partitioned
    again.

    Raises:
      RuntimeError: XLA writes no such program.
    """
    with tempfile.TemporaryDirectory() as folder:
        lowered.compile({"xla_dump_to": folder, "xla_dump_hlo_pass_re": "spmd.*", "xla_dump_hlo_as_text": True})
        found = sorted(Path(folder).glob("*.after_spmd-partitioning.*.txt"))
        if not found:
            raise RuntimeError(
                "XLA wrote no partitioned program: it came from a cache (set JAX_ENABLE_COMPILATION_CACHE=false),"
                " is for one device, or this XLA names its passes otherwise."
            )
        return found[-1].read_text(encoding="utf-8")


def computations(hlo: str) -> dict[str, list[str]]:
    """The lines of every computation, by name; the program's own is called `ENTRY`."""
    result: dict[str, list[str]] = {}
    lines: list[str] | None = None
    for line in hlo.splitlines():
        if line.endswith("{") and " -> " in line and not line.startswith((" ", "HloModule")):
            name = ENTRY if line.startswith(ENTRY) else line.split(" ", 1)[0].lstrip("%")
            lines = result.setdefault(name, [])
        elif line.startswith("}"):
            lines = None
        elif lines is not None:
            lines.append(line)
    return result


def times_run(computations: dict[str, list[str]]) -> dict[str, int]:
    """How often each computation runs in one run of the program; of a choice between several, each.

    Conditions of loops count 0: nothing of weight is in them.

    Raises:
      ValueError: a loop that is not a scan.
    """
    callers: dict[str, list[tuple[str, int]]] = defaultdict(list)
    for name, lines in computations.items():
        for line in lines:
            if " async-update(" in line or " async-done(" in line:  # named again there, where it was started
                continue
            called = [*_CALLED.findall(line), *branches(line)]
            if called:
                loop = _WHILE.search(line)
                trips = 1 if loop is None else _trip_count(line, computations[loop[1]])
                for other in called:
                    callers[other].append((name, trips))

    runs = {ENTRY: 1}

    def count(name: str) -> int:
        if name not in runs:
            runs[name] = sum(trips * count(caller) for caller, trips in callers[name])
        return runs[name]

    return {name: count(name) for name in computations}


def branches(line: str) -> list[str]:
    """The computations among which an instruction chooses."""
    return [name.strip().lstrip("%") for found in _BRANCHES.findall(line) for name in found.split(",")]


def _trip_count(loop: str, condition: list[str]) -> int:
    """Of a loop whose length the compiler wrote down, or that counts from 0 up to the one constant of its condition, as
    every scan does."""
    if known := _KNOWN_TRIPS.search(loop):
        return int(known[1])
    text = "\n".join(condition)
    limits = {int(number) for number in re.findall(r"s32\[\]\S* constant\((\d+)\)", text)}
    if "direction=LT" not in text or len(limits) != 1:
        raise ValueError(f"not the condition of a scan: {text}")
    return limits.pop()


def operands(call: str) -> list[str]:
    """Names of the operands of `(%a, %b), attributes…`."""
    found = _OPERANDS.match(call)
    text = "" if found is None else _NO_NAMES.sub("", found[1])
    return [operand.split()[-1].lstrip("%") for operand in text.split(",") if operand.strip()]


def array_bytes(shapes: str) -> list[int]:
    """Bytes of every array in a type, without the padding of its layout."""
    result = []
    for _, bits, dimensions in _SHAPE.findall(re.sub(r"\{[^{}]*\}", "", shapes)):
        count = math.prod(int(size) for size in dimensions.split(",") if size)
        result.append(math.ceil(count * int(bits or 8) / 8))
    return result
