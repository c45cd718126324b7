"""Set e: logits after temperature and the top-k or top-p filter."""

from __future__ import annotations

from collections.abc import Iterator

import jax.numpy as jnp
import numpy as np

from experiments.parity.fixture import Reader
from experiments.parity.report import OTHER, Check
from jukebox_jax.errors import UserError
from jukebox_jax.sampling.drawing import SamplingConfig, filter_logits


def checks(recorded: Reader) -> Iterator[Check]:
    for index, case in enumerate(recorded.extra["cases"]):
        logits = jnp.asarray(recorded[case.get("input", "in/logits")][:, 0])
        filtered = np.asarray(filter_logits(logits / case["temp"], case["top_k"], case["top_p"]))[:, None]
        yield Check(case["key"], filtered, OTHER)
        if "kept" in case:
            yield Check(f"extra/cases/{index}/kept", np.isfinite(filtered).sum(axis=(1, 2)).tolist())
    yield Check("extra/both_top_k_and_top_p", "AssertionError" if _refuses_both() else "accepted")


def _refuses_both() -> bool:
    try:
        SamplingConfig(top_k=5, top_p=0.5)
    except UserError:
        return True
    return False
