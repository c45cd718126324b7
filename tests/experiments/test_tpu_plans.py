"""What is counted in a compiled program: a program in the form of the TPU compiler, small enough to count by hand."""

from __future__ import annotations

import pytest

from experiments.tpu_plans.collectives import bytes_sent

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
  ROOT %gather.1 = bf16[8,4]{1,0:T(8,128)(2,1)} all-gather(%x), channel_id=7, replica_groups=[2,4]<=[8], dimensions={0}
}

%piece.2 (x: bf16[2,4]) -> bf16[8,4] {
  ROOT %gather.2 = bf16[8,4]{1,0:T(8,128)(2,1)} all-gather(%x), channel_id=7, replica_groups=[2,4]<=[8], dimensions={0}
}

%all-reduce-scatter.1 (x: f32[8,4]) -> f32[2,4] {
  %whole = f32[8,4]{1,0:T(8,128)} all-reduce(%x), channel_id=13, \
replica_groups=mesh['x'=4,'y'=2], device_ids=([2,4]T(1,0)) {'x'}, to_apply=%add
  ROOT %mine = f32[2,4]{1,0} dynamic-slice(%whole, %i, %zero), dynamic_slice_sizes={2,4}
}

%body (p: (s32[], f32[8,4])) -> (s32[], f32[8,4]) {
  %one = bf16[8,4] fusion(%x), kind=kCustom, calls=%piece.1
  %two = bf16[8,4] fusion(%one), kind=kCustom, calls=%piece.2
  %three = f32[2,4]{1,0} fusion(%two), kind=kCustom, calls=%all-reduce-scatter.1
  %both = (f32[8,4]{1,0}, /*index=1*/f32[4]{0}) all-reduce(%a, %b), channel_id=8, \
replica_groups=mesh['x'=2,'y'=4] {'y'}, to_apply=%add
}

ENTRY %main (x: f32[8,4]) -> f32[8,4] {
  %loop = (s32[], f32[8,4]) while(%t), condition=%condition, body=%body
  %start = (f32[2,4]{1,0}, f32[8,4]{1,0}) all-gather-start(%x), channel_id=9, replica_groups={{0,1,2,3},{4,5,6,7}}
  %halo = f32[8,4]{1,0} collective-permute(%x), channel_id=10, source_target_pairs={{0,1},{1,0}}
  %halo.2 = f32[8,4]{1,0} collective-permute(%x), channel_id=10, source_target_pairs={{0,2},{2,0}}
  %slices = f32[]{:T(128)} all-reduce(%y), channel_id=11, replica_groups={{0,4},{1,5}}, to_apply=%add
  %part = f32[2,4]{1,0} reduce-scatter(%z), channel_id=12, replica_groups={{0,1,2,3}}, to_apply=%add
}
"""


def test_what_is_sent_is_counted_by_kind_and_group():
    assert bytes_sent(LOOP) == pytest.approx(
        {
            "all-reduce/4": 24 * 2 * 3 / 4 * (8 * 4 + 4) * 4,
            "all-gather/4": 24 * 3 / 4 * 8 * 4 * 2 + 3 / 4 * 8 * 4 * 4,  # in the loop two pieces of one
            "collective-permute/2": 2 * 8 * 4 * 4,
            "reduce-scatter/4": 25 * 3 / 4 * 8 * 4 * 4,  # one fused, in the loop
            "all-reduce/2": 4,
        }
    )


def test_a_loop_without_a_known_length_is_not_counted_as_one():
    with pytest.raises(ValueError, match="not the condition of a scan"):
        bytes_sent(LOOP.replace("direction=LT", "direction=GT"))


def test_a_collective_of_unknown_groups_is_not_guessed():
    with pytest.raises(ValueError, match="no groups of chips"):
        bytes_sent(LOOP.replace("replica_groups={{0,4},{1,5}}", "replica_groups=new"))
