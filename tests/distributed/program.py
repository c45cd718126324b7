"""The toy, trained by one of several hosts; run as a program.

    program.py HOSTS RUN CONFIG [SLOW_FROM]

HOSTS as `--hosts` takes it, or "alone"; CONFIG is JSON with changes of the toy's TrainConfig. From batch SLOW_FROM on
every batch takes a while, so that a test can do something meanwhile; each is told on stdout.
"""

from __future__ import annotations

import contextlib
import json
import sys
import time

import jax
import numpy as np

from jukebox_jax.errors import UserError
from jukebox_jax.parallel import hosts
from jukebox_jax.training.devices import part_of_this_host
from tests.training import toy


def main(spec: str, run_dir: str, changes: str, slow_from: str = "1000000") -> None:
    config = toy.make_config(**json.loads(changes))
    together = contextlib.nullcontext() if spec == "alone" else hosts.join(hosts.parse_hosts(spec), 1.0)
    with together:
        part = part_of_this_host(config)

        def batches(position):
            for number, batch in enumerate(
                toy.make_batches(config.batch_size)(position), position // config.batch_size
            ):
                print(f"batch {number}", flush=True)
                if number >= int(slow_from):
                    time.sleep(0.2)
                yield {name: np.split(array, part.count)[part.index] for name, array in batch.items()}

        keywords = {"progress": False, "run_config": {"model": {"hidden": 24}, "train": {}}}
        state = toy.train(toy.make_task(), config, batches, run_dir, evaluate=lambda *_: {"loss": 0.5}, **keywords)
        print(f"end {int(state.step)} of {jax.process_count()}", flush=True)


if __name__ == "__main__":
    try:
        main(*sys.argv[1:])
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
