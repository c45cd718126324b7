"""What devices do at best: of one here, and of several in a process of their own."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import jax
from fake_devices import xla_flags

from jukebox_jax.parallel import measured

PROGRAM = """
import json, jax
from jukebox_jax.parallel import measured
devices = jax.devices()
run, part = measured.gather(devices, 2**12)
result = run()
rates = measured.measure_rates(devices, "float32", 1)
print(json.dumps({
    "part": part,
    "held": sorted({shard.data.nbytes for shard in result.addressable_shards}),
    "sum": float(measured.all_reduce(devices)()),
    "sent": rates.sent_bytes_per_second,
    "waiting": rates.collective_seconds,
}))
"""


def test_a_product_is_one_and_reads_are_of_the_matrix():
    one = jax.devices()[:1]
    product = measured.matmul(one, 64, "float32")()
    assert product.shape == (1, 64, 64)
    assert float(product[0, 3, 5]) == 64
    assert measured.read(one, 2**20)().shape == (1, 2**20 // 4 // 4096, 1)
    assert measured.matmul_flops(64) == 2 * 64**3


def test_several_devices_exchange_what_is_counted():
    environment = {**os.environ, "JAX_PLATFORMS": "cpu", "XLA_FLAGS": xla_flags(4)}
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM], capture_output=True, text=True, env=environment, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert (found["part"], found["held"], found["sum"]) == (2**10, [2**12], 4)
    assert found["sent"] > 1e6  # bytes a second
    assert 0 < found["waiting"] < 1
