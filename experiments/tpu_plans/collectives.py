"""How much a compiled program sends between chips, read from its optimised HLO."""

from __future__ import annotations

import math
import re
from collections import defaultdict

_KINDS = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute")
_COLLECTIVE = re.compile(rf" = (.+?) ({'|'.join(_KINDS)})(?:-start)?\(.*?channel_id=(\d+)")
_SHAPE = re.compile(r"\b(pred|[a-z]+(\d+))\[([\d,]*)\]")
_CALLED = re.compile(r"(?:calls|to_apply|body)=%?([\w.-]+)")
_WHILE = re.compile(r" while\(.*condition=%?([\w.-]+), body=%?([\w.-]+)")
_LIST_OF_GROUPS = re.compile(r"replica_groups=\{\{([\d,]*)\}")
_EQUAL_GROUPS = re.compile(r"replica_groups=\[\d+,(\d+)\]")
_AXES_OF_A_MESH = re.compile(r"replica_groups=mesh\[([^\]]*)\](?:, device_ids=\(.*?\))? \{([^}]*)\}")


def bytes_sent(hlo: str) -> dict[str, float]:
    """Bytes that each chip sends in one run of the program, by "kind/chips in a group", the largest first.

    Counted as a ring sends them: of an array of B bytes over n chips, (n - 1) / n B for all-gather, reduce-scatter
    and all-to-all (B is the whole array), twice that for all-reduce, B for collective-permute. Loops count as often as
    they run. The pieces into which the compiler splits one collective share a channel and count once; an all-reduce
    that it fused with the slice that is taken of it is a reduce-scatter.
    """
    computations = _computations(hlo)
    runs = _times_run(computations)
    sent: dict[str, float] = defaultdict(float)
    seen: set[str] = set()
    for name, lines in computations.items():
        for line in lines:
            found = _COLLECTIVE.search(line)
            if found is None or not runs[name]:
                continue
            shapes, kind, channel = found.groups()
            piece = line if kind == "collective-permute" else channel  # permutes of one channel are several
            if piece in seen:
                continue
            seen.add(piece)
            chips, sizes = _group_size(line), _sizes(shapes)
            # Of (operands, results, …) the results are the larger half; an all-reduce has results only.
            size = max(sizes) if "-start(" in line and kind != "all-reduce" else sum(sizes)
            if kind == "reduce-scatter":
                size *= chips
            if name.startswith("all-reduce-scatter"):
                kind = "reduce-scatter"
            factor = {"all-reduce": 2 * (chips - 1) / chips, "collective-permute": 1.0}.get(kind, (chips - 1) / chips)
            sent[f"{kind}/{chips}"] += runs[name] * factor * size
    return dict(sorted(sent.items(), key=lambda item: -item[1]))


def _computations(hlo: str) -> dict[str, list[str]]:
    """The lines of every computation, by name; the program's own is called ENTRY."""
    result: dict[str, list[str]] = {}
    lines: list[str] | None = None
    for line in hlo.splitlines():
        if line.endswith("{") and line.startswith(("%", "ENTRY")):
            name = "ENTRY" if line.startswith("ENTRY") else line.split(" ", 1)[0].lstrip("%")
            lines = result.setdefault(name, [])
        elif line.startswith("}"):
            lines = None
        elif lines is not None:
            lines.append(line)
    return result


def _times_run(computations: dict[str, list[str]]) -> dict[str, float]:
    """How often each computation runs."""
    callers: dict[str, list[tuple[str, int]]] = defaultdict(list)
    for name, lines in computations.items():
        for line in lines:
            loop = _WHILE.search(line)
            trips = 1 if loop is None else _trip_count(computations[loop[1]])
            for called in _CALLED.findall(line):
                callers[called].append((name, trips))

    runs: dict[str, float] = {"ENTRY": 1}

    def count(name: str) -> float:
        if name not in runs:
            runs[name] = sum(trips * count(caller) for caller, trips in callers[name])
        return runs[name]

    return {name: count(name) for name in computations}


def _trip_count(condition: list[str]) -> int:
    """Of a loop that counts from 0 up to the one constant of its condition, as every scan does."""
    text = "\n".join(condition)
    limits = {int(number) for number in re.findall(r"s32\[\]\S* constant\((\d+)\)", text)}
    if "direction=LT" not in text or len(limits) != 1:
        raise ValueError(f"not the condition of a scan: {text}")
    return limits.pop()


def _group_size(line: str) -> int:
    """Chips that take part in one collective, from the forms `{{0,1},…}`, `[groups,size]<=…` and `mesh[…] {axes}`; of a
    permute 2."""
    if found := _LIST_OF_GROUPS.search(line):
        return found[1].count(",") + 1
    if found := _EQUAL_GROUPS.search(line):
        return int(found[1])
    if found := _AXES_OF_A_MESH.search(line):
        sizes = dict(re.findall(r"'([\w.-]+)'=(\d+)", found[1]))
        return math.prod(int(sizes[axis]) for axis in re.findall(r"'([\w.-]+)'", found[2]))
    if " collective-permute" in line:
        return 2
    raise ValueError(f"no groups of chips in: {line.strip()[:200]}")


def _sizes(shapes: str) -> list[int]:
    """Bytes of every array in a type."""
    result = []
    for _, bits, dimensions in _SHAPE.findall(re.sub(r"\{[^{}]*\}", "", shapes)):
        count = math.prod(int(size) for size in dimensions.split(",") if size)
        result.append(count * max(1, int(bits or 8) // 8))
    return result
