"""What the instructions of a compiled program read from and write to a chip's memory, counted in its HLO."""

from __future__ import annotations

import re
from typing import NamedTuple

from jukebox_jax.parallel.hlo import ENTRY, array_bytes, branches, computations, operands, times_run

_INSTRUCTION = re.compile(r"\s+(ROOT )?%?([\w.-]+) = (.+?) ([a-z][a-z0-9-]*)(\(.*)")
_ARRAY = re.compile(r"[a-z]\w*\[[\d,]*\](?:\{([^{}]*)\})?")
_CALLED = re.compile(r"(?:calls|to_apply|body)=%?([\w.-]+)")
_ALIASING = re.compile(r"output_to_operand_aliasing=\{(.*?\))\}")
_HANDED_ON = re.compile(r"\{([\d, ]*)\}: \((\d+), \{\}\)")

_RUNS_OTHERS = ("while", "call", "conditional", "async-start")
# They move nothing, or name what others move.
_FREE = (
    *("parameter", "constant", "tuple", "get-tuple-element", "bitcast", "after-all", "partition-id", "replica-id"),
    *("async-update", "async-done", "opt-barrier", "add-dependency"),
)
_FREE_CALLS = ('"AllocateBuffer"', '"ConcatBitcast"')
_SLICES = ("slice", "dynamic-slice", "gather")


class _Instruction(NamedTuple):
    name: str
    type: str
    opcode: str
    operands: list[str]
    call: str  # from the operands on
    root: bool


Instructions = dict[str, _Instruction]
Program = dict[str, Instructions]


def hbm_bytes(hlo: str) -> float:
    """Bytes that one run of a program reads from and writes to a chip's memory.

    Every instruction reads its operands and writes its results; one that is fused reads the fusion's operands and
    writes its results, what is between them stays in registers. Of what is only sliced, the slices are read, and what
    is updated in place is written where it is updated. Loops count as often as they run. Arrays that the compiler put
    elsewhere (into the memory beside the cores, `S(1)` in a layout, or the host's) count only where they are copied
    from or to. The padding of layouts does not count, nor do the several rounds of a collective.

    Args:
      hlo: of an optimised program, as the backend fused and scheduled it.

    Raises:
      ValueError: a loop that is not a scan.
    """
    lines = computations(hlo)
    runs = times_run(lines)
    program = {name: _instructions(text) for name, text in lines.items()}
    total, waiting, seen = 0.0, [ENTRY], {ENTRY}
    while waiting:
        name = waiting.pop()
        for instruction in program[name].values():
            total += runs[name] * _moved(program, program[name], instruction)
            if instruction.opcode in _RUNS_OTHERS:
                others = {*_CALLED.findall(instruction.call), *branches(instruction.call)} - seen
                seen |= others
                waiting += others
    return total


def _instructions(lines: list[str]) -> Instructions:
    found = (_INSTRUCTION.match(line) for line in lines)
    read = (_Instruction(m[2], m[3], m[4], operands(m[5]), m[5], m[1] is not None) for m in found if m is not None)
    return {instruction.name: instruction for instruction in read}


def _moved(program: Program, around: Instructions, instruction: _Instruction) -> int:
    """By an instruction that is not fused, of a computation."""
    opcode = instruction.opcode
    if opcode in _FREE or opcode in _RUNS_OTHERS or any(target in instruction.call for target in _FREE_CALLS):
        return 0
    read = [sum(_sizes_in_memory(around[name].type)) for name in instruction.operands]
    written = _sizes_in_memory(instruction.type)
    if opcode == "fusion":
        return _moved_by_fusion(program, instruction, read, written)
    if opcode.endswith("-start"):
        return sum(read)
    if opcode.endswith("-done"):
        return sum(written)
    if opcode in _SLICES:
        part = sum(array_bytes(instruction.type))
        return min(part, read[0]) + sum(read[1:]) + sum(written)
    if opcode == "dynamic-update-slice":
        part = sum(array_bytes(around[instruction.operands[1]].type))
        return read[1] + min(part, sum(written))
    return sum(read) + sum(written)


def _moved_by_fusion(program: Program, fusion: _Instruction, read: list[int], written: list[int]) -> int:
    """Of operands and results of these sizes, what a fusion moves."""
    fused = program[_CALLED.search(fusion.call)[1]]
    # What an asynchronous collective hands from one fusion to the next is neither read nor written by them.
    aliasing = _ALIASING.search(fusion.call)
    handed_on = _HANDED_ON.findall(aliasing[1]) if aliasing else []
    results_of_others, operands_of_others = {int(r or 0) for r, _ in handed_on}, {int(o) for _, o in handed_on}
    total = 0
    for index, size in enumerate(read):
        if size and index not in operands_of_others:
            total += _read(program, fused, _parameter(fused, index), size)
    inside = _written(program, fused)
    for index, size in enumerate(written):
        if index not in results_of_others:
            # Where what is inside has another form than the fusion's result, whole arrays count.
            total += min(size, inside[index]) if len(inside) == len(written) else size
    return total


def _read(program: Program, fused: Instructions, name: str, whole: int) -> int:
    """Of a value inside a fusion with so many bytes, those that are used."""
    total = 0
    for user in fused.values():
        if name not in user.operands:
            continue
        if user.opcode in _SLICES and name not in user.operands[1:]:
            total += sum(array_bytes(user.type))
        elif user.opcode == "bitcast" and not user.root:
            total += _read(program, fused, user.name, whole)
        elif user.opcode == "fusion":
            inner = program[_CALLED.search(user.call)[1]]
            for index, operand in enumerate(user.operands):
                if operand == name:
                    total += _read(program, inner, _parameter(inner, index), whole)
        elif not (user in _updates_in_place(fused) and user.operands[0] == name):
            return whole
    return min(total, whole)


def _written(program: Program, fused: Instructions) -> list[int]:
    """Bytes of every result of a fusion."""
    sizes = []
    for name in _results(fused):
        source = _source(fused, name)
        if source.opcode == "dynamic-update-slice":
            sizes.append(sum(array_bytes(fused[source.operands[1]].type)))
        elif source.opcode == "fusion":
            sizes += _written(program, program[_CALLED.search(source.call)[1]])
        else:
            sizes += array_bytes(source.type)
    return sizes


def _updates_in_place(fused: Instructions) -> list[_Instruction]:
    sources = (_source(fused, name) for name in _results(fused))
    return [source for source in sources if source.opcode == "dynamic-update-slice"]


def _sizes_in_memory(shapes: str) -> list[int]:
    """Bytes of every array in a type; 0 of those that lie in another memory."""
    return [0 if "S(" in (array[1] or "") else sum(array_bytes(array[0])) for array in _ARRAY.finditer(shapes)]


def _parameter(instructions: Instructions, index: int) -> str:
    start = f"({index})"
    return next(i.name for i in instructions.values() if i.opcode == "parameter" and i.call.startswith(start))


def _results(instructions: Instructions) -> list[str]:
    root = next(instruction for instruction in instructions.values() if instruction.root)
    return root.operands if root.opcode == "tuple" else [root.name]


def _source(instructions: Instructions, name: str) -> _Instruction:
    """What a value was before it was only called otherwise."""
    while instructions[name].opcode == "bitcast":
        name = instructions[name].operands[0]
    return instructions[name]
