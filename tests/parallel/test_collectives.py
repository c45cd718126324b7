"""What is counted in a compiled program: a program in the form of the TPU compiler, small enough to count by hand."""

from __future__ import annotations

import pytest

from jukebox_jax.parallel.collectives import Message, messages

LOOP = """
HloModule jit_step

%add (a: f32[], b: f32[]) -> f32[] {
  ROOT %sum = f32[] add(%a, %b)
}

%condition (p: (s32[], f32[8,4])) -> pred[] {
  %limit = s32[]{:T(128)} constant(24)
  %i = s32[]{:T(128)} get-tuple-element(%p), index=0
  ROOT %lt = pred[]{:T(512)} compare(%i, %limit), direction=LT
}

%piece.1 (x: bf16[2,4]) -> bf16[8,4] {
  ROOT %gather.1 = bf16[8,4]{1,0:T(8,128)(2,1)} all-gather(%x), channel_id=7, replica_groups=[2,4]<=[8], \
dimensions={0}, frontend_attributes={chain_id="3"}
}

%piece.2 (x: bf16[2,4]) -> bf16[8,4] {
  ROOT %gather.2 = bf16[8,4]{1,0:T(8,128)(2,1)} all-gather(%x), channel_id=7, replica_groups=[2,4]<=[8], \
dimensions={0}, frontend_attributes={chain_id="3"}
}

%all-reduce-scatter.1 (x: f32[8,4]) -> f32[2,4] {
  %whole = f32[8,4]{1,0:T(8,128)} all-reduce(%x), channel_id=1, \
replica_groups=mesh['x'=4,'y'=2], device_ids=([2,4]T(1,0)) {'x'}, to_apply=%add
  ROOT %mine = f32[2,4]{1,0} dynamic-slice(%whole, %i, %zero), dynamic_slice_sizes={2,4}
}

%all-reduce-scatter.2 (x: f32[8,4]) -> f32[2,4] {
  %whole.2 = f32[8,4]{1,0:T(8,128)} all-reduce(%x), channel_id=1, \
replica_groups=mesh['x'=4,'y'=2], device_ids=([2,4]T(1,0)) {'x'}, to_apply=%add
  ROOT %mine.2 = f32[2,4]{1,0} dynamic-slice(%whole.2, %i, %zero), dynamic_slice_sizes={2,4}
}

%body (p: (s32[], f32[8,4])) -> (s32[], f32[8,4]) {
  %one = bf16[8,4] fusion(%x), kind=kCustom, calls=%piece.1
  %two = bf16[8,4] fusion(%one), kind=kCustom, calls=%piece.2
  %three = f32[2,4]{1,0} fusion(%two), kind=kCustom, calls=%all-reduce-scatter.1
  %four = f32[2,4]{1,0} fusion(%two), kind=kCustom, calls=%all-reduce-scatter.2
  %both = (f32[8,4]{1,0}, /*index=1*/f32[4]{0}) all-reduce(%a, %b), channel_id=8, \
replica_groups=mesh['x'=2,'y'=4] {'y'}, to_apply=%add
}

ENTRY %main (x: f32[8,4]) -> f32[8,4] {
  %loop = (s32[], f32[8,4]) while(%t), condition=%condition, body=%body
  %start = (f32[2,4]{1,0}, f32[8,4]{1,0}) all-gather-start(%x), channel_id=9, replica_groups={{0,1,2,3},{4,5,6,7}}
  %halo = f32[8,4]{1,0} collective-permute(%x), channel_id=10, source_target_pairs={{0,1},{1,2},{2,3}}
  %halo.2 = f32[8,4]{1,0} collective-permute(%x), channel_id=10, source_target_pairs={{0,4},{4,0}}
  %halo.3 = f32[8,4]{1,0} collective-permute(%x), channel_id=10, source_target_pairs={{0,0}}
  %slices = f32[]{:T(128)} all-reduce(%y), channel_id=11, replica_groups={{0,4},{1,5}}, to_apply=%add
  %part = f32[2,4]{1,0} reduce-scatter(%z), channel_id=12, replica_groups={{0,1,2,3}}, to_apply=%add
}
"""
SIZES = (2, 4, 1, 1)


def test_what_is_sent_is_counted_by_kind_and_axes():
    counted = {(message.kind, message.axes): message.bytes_sent for message in messages(LOOP, SIZES)}
    assert counted == pytest.approx(
        {
            ("all-reduce", ("fsdp",)): 24 * 2 * 3 / 4 * (8 * 4 + 4) * 4,
            # In the loop two pieces of one, and one at the end.
            ("all-gather", ("fsdp",)): 24 * 3 / 4 * 8 * 4 * 2 + 3 / 4 * 8 * 4 * 4,
            ("collective-permute", ("fsdp",)): 8 * 4 * 4,
            ("collective-permute", ("replica",)): 8 * 4 * 4,
            # Two fused ones in the loop, which share a channel but are no pieces of one.
            ("reduce-scatter", ("fsdp",)): (2 * 24 + 1) * 3 / 4 * 8 * 4 * 4,
            ("all-reduce", ("replica",)): 4,
        }
    )


def one(line: str, sizes: tuple[int, ...] = (2, 2, 2, 1)) -> Message:
    (message,) = messages(f"ENTRY %main (x: f32[8]) -> f32[8] {{\n  {line}\n}}\n", sizes)
    return message


@pytest.mark.parametrize(
    ("groups", "axes"),
    [
        ("replica_groups={{0,1},{2,3},{4,5},{6,7}}", ("sequence",)),
        ("replica_groups={{0,2},{1,3},{4,6},{5,7}}", ("fsdp",)),
        ("replica_groups={}", ("replica", "fsdp", "sequence")),
        ("replica_groups=[4,2]<=[8]", ("sequence",)),
        ("replica_groups=[2,4]<=[8]", ("fsdp", "sequence")),
        ("replica_groups=[1,8]<=[8]", ("replica", "fsdp", "sequence")),
        ("replica_groups=[4,2]<=[2,4]T(1,0)", ("replica",)),
        ("replica_groups=[4,2]<=[2,2,2]T(0,2,1)", ("fsdp",)),
        ("replica_groups=[2,4]<=[4,2]T(1,0)", ("replica", "fsdp")),
        ("replica_groups=mesh['a'=2,'b'=4] {'b'}", ("fsdp", "sequence")),
        ("replica_groups=mesh['a'=2,'b'=4] {'a'}", ("replica",)),
        ("replica_groups=mesh['a'=2,'b'=2,'c'=2] {'a','c'}", ("replica", "sequence")),
        ("replica_groups=mesh['a'=4,'b'=2], device_ids=([2,4]T(1,0)) {'a'}", ("fsdp", "sequence")),
        ("replica_groups=mesh['a'=2,'b'=4], device_ids=(0,2,4,6,1,3,5,7) {'a'}", ("sequence",)),
        # Parts of an axis: of 8 = 2 × 2 × 2 the middle one, and the last one.
        ("replica_groups=mesh['a'=8] {'a':(2)2}", ("fsdp",)),
        ("replica_groups=mesh['a'=8] {'a':(4)2}", ("sequence",)),
        # No product of axes: neighbours on a line through all.
        ("replica_groups={{0,3},{1,2}}", ("fsdp", "sequence")),
    ],
)
def test_every_form_of_groups_says_which_axes(groups, axes):
    message = one(f"%x.1 = f32[8]{{0}} all-to-all(%x), channel_id=1, {groups}, dimensions={{0}}")
    assert message.axes == axes


@pytest.mark.parametrize(
    ("pairs", "axes"),
    [("{{0,1},{2,3}}", ("sequence",)), ("{{0,4},{1,5}}", ("replica",)), ("{{1,2}}", ("fsdp", "sequence"))],
)
def test_pairs_of_a_permute_say_which_axes(pairs, axes):
    assert one(f"%x.1 = f32[8]{{0}} collective-permute(%x), source_target_pairs={pairs}").axes == axes


@pytest.mark.parametrize(
    ("line", "kind", "size"),
    [
        # Two arrays of 8 and 4 bytes, gathered from halves.
        ("((bf16[2], bf16[1]), (bf16[4], bf16[2])) all-gather-start(%a, %b)", "all-gather", (8 + 4) / 2),
        ("(f32[8]{0}, f32[6]{0}) all-reduce-start(%a, %b)", "all-reduce", 2 * (32 + 24) / 2),
        ("((f32[8]{0}), f32[4]{0}) reduce-scatter-start(%a)", "reduce-scatter", 32 / 2),
        ("((s8[8]{0}), s8[8]{0}, u32[]{:S(2)}) all-to-all-start(%a)", "all-to-all", 8 / 2),
        ("(s4[16]{0}, s4[16]{0}) all-to-all(%a, %b)", "all-to-all", 16 / 2),
        ("pred[8]{0:T(512)} all-gather(%a)", "all-gather", 8 / 2),
    ],
)
def test_what_starts_and_ends_apart_counts_once(line, kind, size):
    assert one(f"%x.1 = {line}, channel_id=1, replica_groups=[4,2]<=[8]") == Message(kind, ("sequence",), size)


def test_asynchronous_computations_are_followed_once():
    program = """
%wrapped (x: f32[8]) -> f32[4] {
  ROOT %r = f32[4]{0} reduce-scatter(%x), channel_id=1, replica_groups=[4,2]<=[8], to_apply=%add
}

ENTRY %main (x: f32[8]) -> f32[4] {
  %s = ((f32[8]{0}), f32[4]{0}, u32[]) async-start(%x), calls=%wrapped
  ROOT %d = f32[4]{0} async-done(%s), calls=%wrapped
}
"""
    assert messages(program, (2, 2, 2, 1)) == [Message("reduce-scatter", ("sequence",), 16.0)]


def test_a_loop_whose_length_the_compiler_wrote_down():
    known = LOOP.replace("direction=LT", "direction=GT").replace(
        "body=%body", 'body=%body, backend_config={"known_trip_count":{"n":"24"}}'
    )
    assert messages(known, SIZES) == messages(LOOP, SIZES)


def test_a_loop_without_a_known_length_is_not_counted_as_one():
    with pytest.raises(ValueError, match="not the condition of a scan"):
        messages(LOOP.replace("direction=LT", "direction=GT"), SIZES)


def test_a_collective_of_unknown_groups_is_not_guessed():
    with pytest.raises(ValueError, match="no groups of chips"):
        messages(LOOP.replace("replica_groups={{0,4},{1,5}}", "replica_groups=new"), SIZES)
