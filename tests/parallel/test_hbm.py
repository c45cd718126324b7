"""What a program reads and writes, against programs that are small enough to count by hand."""

from __future__ import annotations

import pytest

from jukebox_jax.parallel.hbm import hbm_bytes

# A loop over the layers of stacked weights, in the form of the TPU compiler.
LOOP = """
HloModule jit_step, is_scheduled=true

%condition (p: (s32[], bf16[24,8,16], bf16[24,4,16], bf16[4,8])) -> pred[] {
  %p.0 = (s32[]{:T(128)}, bf16[24,8,16], bf16[24,4,16], bf16[4,8]) parameter(0)
  %limit = s32[]{:T(128)} constant(24)
  %i.0 = s32[]{:T(128)} get-tuple-element(%p.0), index=0
  ROOT %lt = pred[]{:T(512)} compare(%i.0, %limit), direction=LT
}

%slicing (all: bf16[24,8,16], i: s32[]) -> bf16[8,16] {
  %all = bf16[24,8,16]{2,1,0:T(8,128)(2,1)} parameter(0)
  %i.1 = s32[]{:T(128)S(6)} parameter(1)
  %zero = s32[]{:T(128)} constant(0)
  %layer = bf16[1,8,16]{2,1,0:T(8,128)(2,1)} dynamic-slice(%all, %i.1, %zero, %zero), dynamic_slice_sizes={1,8,16}
  ROOT %flat = bf16[8,16]{1,0:T(8,128)(2,1)} bitcast(%layer)
}

%multiplying (x: bf16[4,8], w: bf16[8,16]) -> (bf16[4,16], f32[4]) {
  %x.1 = bf16[4,8]{1,0:T(8,128)(2,1)} parameter(0)
  %w.1 = bf16[8,16]{1,0:T(8,128)(2,1)} parameter(1)
  %dot = bf16[4,16]{1,0:T(8,128)(2,1)} convolution(%x.1, %w.1), dim_labels=bf_io->bf
  %start = f32[]{:T(128)} constant(0)
  %sums = f32[4]{0:T(128)} reduce(%dot, %start), dimensions={1}, to_apply=%add
  ROOT %results = (bf16[4,16]{1,0:T(8,128)(2,1)}, f32[4]{0:T(128)S(1)}) tuple(%dot, %sums)
}

%keeping (stack: bf16[24,4,16], y: bf16[4,16], i: s32[]) -> bf16[24,4,16] {
  %stack = bf16[24,4,16]{2,1,0:T(8,128)(2,1)} parameter(0)
  %y.1 = bf16[4,16]{1,0:T(8,128)(2,1)} parameter(1)
  %i.2 = s32[]{:T(128)S(6)} parameter(2)
  %zero.1 = s32[]{:T(128)} constant(0)
  %row = bf16[1,4,16]{2,1,0:T(8,128)(2,1)} bitcast(%y.1)
  ROOT %kept = bf16[24,4,16]{2,1,0:T(8,128)(2,1)} dynamic-update-slice(%stack, %row, %i.2, %zero.1, %zero.1)
}

%body (p: (s32[], bf16[24,8,16], bf16[24,4,16], bf16[4,8])) -> (s32[], bf16[24,8,16], bf16[24,4,16], bf16[4,8]) {
  %p.1 = (s32[]{:T(128)S(6)}, bf16[24,8,16]{2,1,0}, bf16[24,4,16]{2,1,0}, bf16[4,8]{1,0}) parameter(0)
  %i = s32[]{:T(128)S(6)} get-tuple-element(%p.1), index=0
  %weights = bf16[24,8,16]{2,1,0:T(8,128)(2,1)} get-tuple-element(%p.1), index=1
  %outputs = bf16[24,4,16]{2,1,0:T(8,128)(2,1)} get-tuple-element(%p.1), index=2
  %x = bf16[4,8]{1,0:T(8,128)(2,1)} get-tuple-element(%p.1), index=3
  %w = bf16[8,16]{1,0:T(8,128)(2,1)} fusion(%weights, %i), kind=kLoop, calls=%slicing
  %both = (bf16[4,16]{1,0:T(8,128)(2,1)}, f32[4]{0:T(128)S(1)}) fusion(%x, %w), kind=kOutput, calls=%multiplying
  %y = bf16[4,16]{1,0:T(8,128)(2,1)} get-tuple-element(%both), index=0
  %next = bf16[24,4,16]{2,1,0:T(8,128)(2,1)} fusion(%outputs, %y, %i), kind=kLoop, calls=%keeping
  ROOT %again = (s32[]{:T(128)S(6)}, bf16[24,8,16]{2,1,0}, bf16[24,4,16]{2,1,0}, bf16[4,8]{1,0}) tuple(%i, %weights, \
%next, %x)
}

ENTRY %main (w: bf16[24,8,16], x: bf16[4,8]) -> bf16[24,4,16] {
  %w.2 = bf16[24,8,16]{2,1,0:T(8,128)(2,1)} parameter(0)
  %x.2 = bf16[4,8]{1,0:T(8,128)(2,1)} parameter(1)
  %room = bf16[24,4,16]{2,1,0:T(8,128)(2,1)} custom-call(), custom_call_target="AllocateBuffer"
  %first = s32[]{:T(128)S(6)} constant(0)
  %carry = (s32[]{:T(128)S(6)}, bf16[24,8,16]{2,1,0}, bf16[24,4,16]{2,1,0}, bf16[4,8]{1,0}) tuple(%first, %w.2, %room, \
%x.2)
  %loop = (s32[]{:T(128)S(6)}, bf16[24,8,16]{2,1,0}, bf16[24,4,16]{2,1,0}, bf16[4,8]{1,0}) while(%carry), \
condition=%condition, body=%body
  ROOT %result = bf16[24,4,16]{2,1,0:T(8,128)(2,1)} get-tuple-element(%loop), index=2
}
"""


def test_loops_read_slices_and_write_in_place():
    slicing = 2 * 8 * 16 * 2  # a layer is read, and written where the product finds it
    multiplying = (4 * 8 + 8 * 16 + 4 * 16) * 2  # the sums stay beside the cores
    keeping = 2 * 4 * 16 * 2  # a row of the stack
    assert hbm_bytes(LOOP) == 24 * (slicing + multiplying + keeping)


def entry(*lines: str, before: str = "") -> str:
    return "\n".join([before, "ENTRY %main (x: f32[8,4]) -> f32[8,4] {", *(f"  {line}" for line in lines), "}", ""])


X = "%x = f32[8,4]{1,0:T(8,128)} parameter(0)"
INDEX = "%i = s32[]{:T(128)S(6)} parameter(1)"


@pytest.mark.parametrize(
    ("lines", "size"),
    [
        ([X, "ROOT %y = f32[4,8]{1,0} transpose(%x), dimensions={1,0}"], 2 * 128),
        ([X, "ROOT %y = f32[4,8]{1,0} bitcast(%x)"], 0),
        # Fetched into the memory beside the cores and used there.
        (
            [
                X,
                "%s = (f32[8,4]{1,0:T(8,128)S(1)}, f32[8,4]{1,0:T(8,128)}, u32[]{:S(2)}) copy-start(%x)",
                "%d = f32[8,4]{1,0:T(8,128)S(1)} copy-done(%s)",
                "ROOT %y = f32[4,8]{1,0:T(8,128)S(1)} transpose(%d), dimensions={1,0}",
            ],
            128,
        ),
        # Two rows of eight, read and written; updates, read and written.
        ([X, INDEX, "ROOT %y = f32[2,4]{1,0} dynamic-slice(%x, %i, %i), dynamic_slice_sizes={2,4}"], 2 * 32),
        (
            [
                X,
                INDEX,
                "%u = f32[2,4]{1,0} parameter(2)",
                "ROOT %y = f32[8,4]{1,0} dynamic-update-slice(%x, %u, %i, %i)",
            ],
            2 * 32,
        ),
        # A gather reads its shard and writes the whole.
        (
            [
                X,
                "%s = (f32[8,4]{1,0}, f32[32,4]{1,0}) all-gather-start(%x), replica_groups=[1,4]<=[4], dimensions={0}",
                "ROOT %y = f32[32,4]{1,0} all-gather-done(%s)",
            ],
            128 + 512,
        ),
    ],
)
def test_single_instructions(lines, size):
    assert hbm_bytes(entry(*lines)) == size


def test_a_fusion_reads_what_it_uses_more_than_slices_of_whole():
    fused = """
%fused (a: f32[8,4]) -> f32[8,4] {
  %a = f32[8,4]{1,0} parameter(0)
  %part = f32[2,4]{1,0} slice(%a), slice={[0:2], [0:4]}
  %wide = f32[8,4]{1,0} broadcast(%part), dimensions={0,1}
  ROOT %sum = f32[8,4]{1,0} add(%a, %wide)
}
"""
    assert hbm_bytes(entry(X, "ROOT %y = f32[8,4]{1,0} fusion(%x), kind=kLoop, calls=%fused", before=fused)) == 2 * 128


def test_fusions_in_fusions_read_slices_too():
    fused = """
%inner (b: f32[8,4]) -> f32[2,4] {
  %b = f32[8,4]{1,0} parameter(0)
  ROOT %part = f32[2,4]{1,0} slice(%b), slice={[0:2], [0:4]}
}

%fused (a: f32[8,4]) -> f32[2,4] {
  %a = f32[8,4]{1,0} parameter(0)
  %p = f32[2,4]{1,0} fusion(%a), kind=kLoop, calls=%inner
  ROOT %n = f32[2,4]{1,0} negate(%p)
}
"""
    assert hbm_bytes(entry(X, "ROOT %y = f32[2,4]{1,0} fusion(%x), kind=kOutput, calls=%fused", before=fused)) == 2 * 32


def test_a_value_that_a_fusion_in_a_fusion_only_calls_otherwise_is_read():
    fused = """
%inner (b: f32[8,4]) -> f32[32] {
  %b = f32[8,4]{1,0} parameter(0)
  ROOT %flat = f32[32]{0} bitcast(%b)
}

%fused (a: f32[8,4]) -> f32[32] {
  %a = f32[8,4]{1,0} parameter(0)
  %p = f32[32]{0} fusion(%a), kind=kLoop, calls=%inner
  ROOT %n = f32[32]{0} negate(%p)
}
"""
    assert hbm_bytes(entry(X, "ROOT %y = f32[32]{0} fusion(%x), kind=kOutput, calls=%fused", before=fused)) == 2 * 128


def test_what_a_collective_hands_from_fusion_to_fusion_is_not_moved():
    fused = """
%piece (a: f32[8,4], g: f32[32,4], c: f32[2,4]) -> (f32[2,4], f32[8,4], f32[32,4]) {
  %a = f32[8,4]{1,0} parameter(0)
  %g = f32[32,4]{1,0} parameter(1)
  %c = f32[2,4]{1,0} parameter(2)
  %gather = f32[32,4]{1,0} all-gather(%a), channel_id=1, replica_groups=[1,4]<=[4], dimensions={0}
  %n = f32[2,4]{1,0} negate(%c)
  ROOT %t = (f32[2,4]{1,0}, f32[8,4]{1,0}, f32[32,4]{1,0}) tuple(%n, %a, %gather)
}
"""
    lines = [
        X,
        "%g.1 = f32[32,4]{1,0} parameter(1)",
        "%c.1 = f32[2,4]{1,0} parameter(2)",
        "ROOT %y = (f32[2,4]{1,0}, f32[8,4]{1,0}, f32[32,4]{1,0}) fusion(%x, %g.1, %c.1), kind=kOutput, "
        "output_to_operand_aliasing={{1}: (0, {}), {2}: (1, {})}, calls=%piece",
    ]
    assert hbm_bytes(entry(*lines, before=fused)) == 2 * 32


def test_of_a_choice_every_branch_counts():
    branch = (
        "%{0} (a: f32[8,4]) -> f32[8,4] {{\n  %a.{0} = f32[8,4] parameter(0)\n"
        "  ROOT %r.{0} = f32[8,4] copy(%a.{0})\n}}\n"
    )
    lines = [
        X,
        INDEX,
        "%y = f32[8,4] conditional(%i, %x, %x), branch_computations={%one, %two}",
        "ROOT %z = f32[8,4] conditional(%i, %x, %x), true_computation=%three, false_computation=%four",
    ]
    before = "\n".join(branch.format(name) for name in ("one", "two", "three", "four"))
    assert hbm_bytes(entry(*lines, before=before)) == 4 * 2 * 128
