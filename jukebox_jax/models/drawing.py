"""Drawing a model's parameters one after another: XLA compiles hundreds of draws in one program for a minute."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
from jax.extend import core
from jaxtyping import Array, Key

PyTree = Any


def draw(init: Callable[[Key[Array, ""]], PyTree], key: Key[Array, ""]) -> PyTree:
    """`init(key)`, operation by operation, without those that no parameter needs, such as the model's forward pass.

    A draw is compiled once for each shape that parameters have, and not again for another key or model.
    """
    closed, shapes = jax.make_jaxpr(init, return_shape=True)(key)
    jaxpr, needed, equations = closed.jaxpr, set(), []
    _need(needed, jaxpr.outvars)
    for equation in reversed(jaxpr.eqns):
        if not needed.isdisjoint(equation.outvars):
            equations.append(equation)
            _need(needed, equation.invars)
    drawn = core.ClosedJaxpr(jaxpr.replace(eqns=equations[::-1]), closed.consts)
    return jax.tree.unflatten(jax.tree.structure(shapes), core.jaxpr_as_fun(drawn)(key))


def _need(needed: set[core.Var], atoms: list[Any]) -> None:
    needed.update(atom for atom in atoms if isinstance(atom, core.Var))
