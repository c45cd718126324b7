"""The codebook: nearest codes, straight-through gradients, learning by moving averages (spec: VQ-VAE, section 3)."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Bool, Float, Int


@struct.dataclass
class Codebook:
    """Codes with the moving averages that they are computed from. A pytree passed in and out, never mutated."""

    codes: Float[Array, "v e"]
    sums: Float[Array, "v e"]
    counts: Float[Array, " v"]
    initialised: Bool[Array, ""]

    @classmethod
    def empty(cls, codes: int, width: int) -> Codebook:
        """A codebook that takes its codes from the first batch it sees."""
        zeros = jnp.zeros((codes, width), jnp.float32)
        return cls(zeros, zeros, jnp.zeros((codes,), jnp.float32), jnp.asarray(False))

    @classmethod
    def restored(cls, codes: Float[Array, "v e"], expected_count: float) -> Codebook:
        """Statistics rebuilt from codes alone, as a checkpoint without them needs: every code used equally."""
        counts = jnp.full((codes.shape[0],), expected_count, jnp.float32)
        return cls(codes, codes * expected_count, counts, jnp.asarray(True))


@struct.dataclass
class Quantised:
    """What quantising latents gives: codes (b, u), their vectors with straight-through gradient (b, u, e), commitment
    loss (mean squared error to the latents) and the metrics of the spec, all of one level."""

    codes: Int[Array, "b u"]
    vectors: Float[Array, "b u e"]
    commit_loss: Float[Array, ""]
    metrics: dict[str, Float[Array, ""]]


@struct.dataclass
class RandomRows:
    """The random draws of one update: rows (v, e) that replace dead codes, and rows that initialise the codebook.

    `index`, if given, is the code of every latent, in place of the nearest: between copies of one latent, which a small
    first batch initialises the codebook with, rounding decides.
    """

    restart: Float[Array, "v e"]
    init: Float[Array, "v e"]
    index: Int[Array, "b u"] | None = None


def nearest(
    latents: Float[Array, "b u e"], codes: Float[Array, "v e"]
) -> tuple[Int[Array, "b u"], Float[Array, "b u"]]:
    """The nearest code of every latent (the first on exact ties) and its squared distance.

    Float32 in exactly this association, because near-ties are decided by rounding.
    """
    x = latents.reshape(-1, latents.shape[-1]).astype(jnp.float32)
    codes_t = codes.T
    distance = (
        jnp.sum(x**2, axis=-1, keepdims=True)
        - 2 * jnp.matmul(x, codes_t, precision="highest")
        + jnp.sum(codes_t**2, axis=0, keepdims=True)
    )
    index = jnp.argmin(distance, axis=-1)
    best = jnp.take_along_axis(distance, index[:, None], axis=-1)[:, 0]
    return index.astype(jnp.int32).reshape(latents.shape[:-1]), best.reshape(latents.shape[:-1])


def look_up(codes: Float[Array, "v e"], index: Int[Array, "b u"]) -> Float[Array, "b u e"]:
    """The code vectors of an array of codes."""
    return jnp.take(codes, index, axis=0)


def draw_rows(key: Array, latents: Float[Array, "b u e"], codes: int) -> RandomRows:
    """Random encoder outputs for restarts and for initialisation.

    Where there are fewer latents than codes they are tiled, with Gaussian noise of std 0.01 / sqrt(e).
    """
    x = jax.lax.stop_gradient(latents).reshape(-1, latents.shape[-1])
    width = x.shape[-1]

    def draw(key: Array) -> Float[Array, "v e"]:
        permute, noise = jax.random.split(key)
        rows = x
        if x.shape[0] < codes:
            rows = jnp.tile(x, (-(-codes // x.shape[0]), 1))
            rows = rows + jax.random.normal(noise, rows.shape) * (0.01 / width**0.5)
        return rows[jax.random.permutation(permute, rows.shape[0])[:codes]]

    restart, init = jax.random.split(key)
    return RandomRows(draw(restart), draw(init))


def quantise_and_learn(
    codebook: Codebook, latents: Float[Array, "b u e"], rows: RandomRows, decay: float, threshold: float
) -> tuple[Quantised, Codebook]:
    """One training step of the bottleneck: quantise with the old codes, then update them.

    A codebook not yet initialised takes its codes from `rows.init` first. A code whose moving count is below
    `threshold` is replaced by a random row, at every step; its statistics are not reset. Under a mesh the sums run
    over the global batch, because the arrays are global.
    """
    x = jax.lax.stop_gradient(latents).reshape(-1, latents.shape[-1])
    old = jax.tree.map(
        lambda fresh, kept: jnp.where(codebook.initialised, kept, fresh),
        Codebook(rows.init, rows.init, jnp.ones_like(codebook.counts), jnp.asarray(True)),
        codebook.replace(initialised=jnp.asarray(True)),
    )
    index, best = nearest(jax.lax.stop_gradient(latents), old.codes)
    if rows.index is not None:
        index = rows.index

    flat = index.reshape(-1)
    batch_sums = jnp.zeros_like(old.sums).at[flat].add(x)
    batch_counts = jnp.zeros_like(old.counts).at[flat].add(1.0)
    sums = decay * old.sums + (1 - decay) * batch_sums
    counts = decay * old.counts + (1 - decay) * batch_counts
    used = (counts >= threshold)[:, None]
    codes = jnp.where(used, sums / jnp.where(used, counts[:, None], 1.0), rows.restart)

    quantised = _straight_through(latents, old.codes, index)
    probability = batch_counts / jnp.sum(batch_counts)
    metrics = {
        "fit": jnp.mean(best),
        "pn": jnp.sqrt(jnp.mean(jnp.square(x - jnp.mean(x)))),
        "entropy": -jnp.sum(probability * jnp.log(probability + 1e-8)),
        "used_curr": jnp.sum(batch_counts >= threshold).astype(jnp.float32),
        "usage": jnp.sum(used).astype(jnp.float32),
        "dk": jnp.sqrt(jnp.mean(jnp.square(codes - old.codes))),
    }
    return quantised.replace(metrics=metrics), Codebook(codes, sums, counts, jnp.asarray(True))


def quantise(codes: Float[Array, "v e"], latents: Float[Array, "b u e"]) -> Quantised:
    """Quantising outside training: vectors carry no gradient, and there are no metrics."""
    index, _ = nearest(jax.lax.stop_gradient(latents), codes)
    quantised = _straight_through(latents, codes, index)
    return quantised.replace(vectors=jax.lax.stop_gradient(quantised.vectors))


def _straight_through(latents, codes, index) -> Quantised:
    vectors = look_up(codes, index)
    commit_loss = jnp.mean(jnp.square(jax.lax.stop_gradient(vectors) - latents))
    vectors = latents + jax.lax.stop_gradient(vectors - latents)
    return Quantised(index, vectors, commit_loss, {})
