"""Where a shift of a site's output goes, and what that adds to the model."""

from __future__ import annotations

from math import prod

import numpy as np

from onnxrank.graph import operators
from onnxrank.graph.constants import WeightRef, resolve
from onnxrank.graph.model import Model
from onnxrank.graph.operators.matmul import following_bias
from onnxrank.graph.sites import Site


def shift_parameters(model: Model, site: Site) -> int:
    """Entries that a model stores in addition, at most, once the output of a site is shifted."""
    shape = _shape(model, site)
    if shape is None:
        return 0
    bias = constant_bias(model, site)
    if bias is None:
        return prod(shape)
    old = prod(bias.shape) if _alone(model, bias) else 0
    return prod(np.broadcast_shapes(bias.shape, shape)) - old


def takes_shift(model: Model, site: Site) -> bool:
    """Whether a bias of the model takes a shift of a site's output, so that nothing is added."""
    bias = constant_bias(model, site)
    return site.centers and bias is not None and shift_parameters(model, site) <= 0


def constant_bias(model: Model, site: Site) -> WeightRef | None:
    """The constant that is added to the output of a site, and only to it; None without one."""
    node = model.index.producers[site.scope][site.output]
    operator = operators.operator(node)
    assert operator is not None
    if operator.bias is None:
        follower = following_bias(model, site) if site.op in _FOLLOWED else None
        return None if follower is None else follower[2]
    index, _ = operator.bias
    if index >= len(node.input) or not node.input[index]:
        return None
    found = resolve(model, site.scope, node.input[index])
    return found if isinstance(found, WeightRef) else None


_FOLLOWED = ("MatMul", "com.microsoft.FusedMatMul")


def _shape(model: Model, site: Site) -> tuple[int, ...] | None:
    """Shape of what is added where the output is shifted; None where it cannot be."""
    node = model.index.producers[site.scope][site.output]
    operator = operators.operator(node)
    if operator is None or not site.centers:
        return None
    spread = operator.bias[1] if operator.bias else operator.spread
    if spread is None:
        return None
    return spread(model, site, node, np.zeros((site.groups, site.d_out))).shape


def _alone(model: Model, bias: WeightRef) -> bool:
    """Whether nothing but one node reads a constant, so that it goes when that has another."""
    index = model.index
    if index.overridable(bias.scope, bias.name):
        return False
    places = [(bias.scope, bias.name), *zip(bias.scopes, bias.chain, strict=True)]
    return all(
        len(index.uses(*place)) == 1 and place[1] not in index.named_elsewhere for place in places
    )
