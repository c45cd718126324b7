"""What accelerators can do at best, as their makers publish it, by the name that jax gives them."""

from __future__ import annotations

from dataclasses import dataclass

GB, GIB = 1e9, 2.0**30


@dataclass(frozen=True)
class Peak:
    """Of one jax device: dense bfloat16 FLOP/s, and the bandwidth (bytes/s) and size (bytes) of its memory."""

    flops_per_second: float
    memory_bytes_per_second: float
    memory_bytes: float


_V5E = Peak(197e12, 819 * GB, 16 * GIB)
_V5P = Peak(459e12, 2765 * GB, 95 * GIB)
_V6E = Peak(918e12, 1638 * GB, 32 * GIB)

#: By `jax.Device.device_kind`, in full: a part of a GPU (MIG) has a name that only begins like that of the whole.
# TPU: the "key chip specifications" of cloud.google.com/tpu/docs/v3, /v4, /v5e, /v5p, /v6e and /tpu7x. A chip of v3 and
# 7x is two devices to jax, each with half of its figures.
# NVIDIA: the data sheets of A100, H100, H200 and HGX B200; half of what they give "with sparsity".
PEAKS = {
    "TPU v3": Peak(123e12 / 2, 900 * GB / 2, 32 * GIB / 2),
    "TPU v4": Peak(275e12, 1200 * GB, 32 * GIB),
    "TPU v5 lite": _V5E,
    "TPU v5e": _V5E,
    "TPU v5": _V5P,
    "TPU v5p": _V5P,
    "TPU v6 lite": _V6E,
    "TPU v6e": _V6E,
    "TPU7x": Peak(2307e12 / 2, 7380 * GB / 2, 192 * GIB / 2),
    "NVIDIA A100-SXM4-40GB": Peak(312e12, 1555 * GB, 40 * GB),
    "NVIDIA A100-PCIE-40GB": Peak(312e12, 1555 * GB, 40 * GB),
    "NVIDIA A100-SXM4-80GB": Peak(312e12, 2039 * GB, 80 * GB),
    "NVIDIA A100 80GB PCIe": Peak(312e12, 1935 * GB, 80 * GB),
    "NVIDIA H100 80GB HBM3": Peak(1979e12 / 2, 3350 * GB, 80 * GB),
    "NVIDIA H100 PCIe": Peak(1513e12 / 2, 2000 * GB, 80 * GB),
    "NVIDIA H200": Peak(1979e12 / 2, 4800 * GB, 141 * GB),
    "NVIDIA B200": Peak(4500e12 / 2, 8000 * GB, 180 * GB),
}


def peak(device_kind: str) -> Peak | None:
    """The figures of a kind of device (`jax.Device.device_kind`), or None if it is not in the table, as no CPU is."""
    return PEAKS.get(device_kind)
