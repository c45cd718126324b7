"""Counts the floating-point operations that a function does: those of its matrix products and convolutions.

They are counted in the traced program as it is differentiated and rematerialised, so that what is computed twice counts
twice; loops count as often as they run. Elementwise work counts nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from math import prod
from typing import Any

import jax
from jax.extend.core import Jaxpr, JaxprEqn, jaxprs_in_params


def executed_flops(function: Callable, *arguments: Any) -> float:
    """Operations of one call; the arguments may be ShapeDtypeStructs."""
    return _count(jax.make_jaxpr(function)(*arguments).jaxpr)


def _count(jaxpr: Jaxpr) -> float:
    return sum(_count_one(equation) for equation in jaxpr.eqns)


def _count_one(equation: JaxprEqn) -> float:
    name, values = equation.primitive.name, equation.params
    if name == "dot_general":
        (contracted, _), _ = values["dimension_numbers"]
        left = equation.invars[0].aval.shape
        return 2.0 * prod(equation.outvars[0].aval.shape) * prod(left[axis] for axis in contracted)
    if name == "conv_general_dilated":
        numbers, kernel = values["dimension_numbers"], equation.invars[1].aval.shape
        _, channels, *spatial = (kernel[axis] for axis in numbers.rhs_spec)
        # Zeros inserted into the input are not multiplied with.
        whole = prod(equation.outvars[0].aval.shape) * channels * prod(spatial)
        return 2.0 * whole / prod(values["lhs_dilation"])
    if name == "cond":  # one of its branches runs, and those of one computation on several platforms do the same
        return max(_count(branch.jaxpr) for branch in values["branches"])
    times = values["length"] if name == "scan" else 1
    return times * sum(map(_count, jaxprs_in_params(values)))
