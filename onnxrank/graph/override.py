"""Weights as inputs: one session then runs a model with any weights that are fed to it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx
from numpy.typing import NDArray

from onnxrank.graph import operators
from onnxrank.graph.constants import evaluate
from onnxrank.graph.edit import Edit, splice
from onnxrank.graph.model import Model
from onnxrank.graph.nodes import Namer, make_node, make_tensor
from onnxrank.graph.rewrite import names_of
from onnxrank.graph.sites import Site
from onnxrank.graph.weights import to_type


@dataclass(frozen=True, eq=False)
class Overridden:
    """A copy of a document whose sites read weights and shifts that a caller may feed.

    Attributes
    ----------
    proto : ModelProto
        Run without feeding any of them it computes what the original does.
    weights : mapping of str to str
        Input name of the weight, by site name.
    shifts : mapping of str to str
        Input name of the shift that is added to the output, by site name; not every operator
        has one.
    """

    proto: onnx.ModelProto
    sites: Mapping[str, Site]
    weights: Mapping[str, str]
    shifts: Mapping[str, str]
    model: Model

    def feeds(
        self, name: str, weight: NDArray[np.float64], shift: NDArray[np.float64] | None = None
    ) -> dict[str, NDArray[np.generic]]:
        """What to feed so that a site maps ``x -> x weight + shift``.

        Parameters
        ----------
        name : str
            The site.
        weight : ndarray of float64, shape (groups, d_in, d_out)
            Its matrix.
        shift : ndarray of float64, shape (groups, d_out), optional
            What to add to its output; not for sites that are not in `shifts`.
        """
        site = self.sites[name]
        where = f"{self.model.name}: node '{name}'"
        dtype = site.weight.dtype
        fed = {self.weights[name]: to_type(unmatrix(site, weight), dtype, where)}
        if shift is not None:
            node = self.model.index.producers[site.scope][site.output]
            operator = operators.operator(node)
            assert operator is not None and operator.spread is not None
            spread = operator.spread(self.model, site, node, shift)
            fed[self.shifts[name]] = to_type(spread, dtype, where)
        return fed


def unmatrix(site: Site, matrix: NDArray[np.float64]) -> NDArray[np.float64]:
    """The weight tensor that a matrix (groups, d_in, d_out) stands for, as the node reads it."""
    shape, perm = site.orientation.shape, site.orientation.perm
    turned = matrix.reshape([shape[axis] for axis in perm])
    return np.asarray(turned.transpose(np.argsort(perm)).reshape(site.weight.shape), np.float64)


def override(model: Model, sites: Sequence[Site]) -> Overridden:
    """Expose the weights of sites as inputs with defaults, and their shifts, which are zero."""
    namer = Namer(names_of(model.document))
    weights: dict[str, str] = {}
    shifts: dict[str, str] = {}
    tensors: list[onnx.TensorProto] = []
    edits: list[Edit] = []
    for site in sites:
        nodes = _exposed(model, site, namer, weights, shifts, tensors)
        edits.append(Edit(site.scope, site.output, nodes))
    proto = splice(model.document, edits, tensors)
    if proto.ir_version >= 4:  # before, every initializer has become an input already
        proto.graph.input.extend(
            onnx.helper.make_tensor_value_info(t.name, t.data_type, t.dims) for t in tensors
        )
    return Overridden(proto, {site.name: site for site in sites}, weights, shifts, model)


def _exposed(
    model: Model,
    site: Site,
    namer: Namer,
    weights: dict[str, str],
    shifts: dict[str, str],
    tensors: list[onnx.TensorProto],
) -> tuple[onnx.NodeProto, ...]:
    original = model.index.producers[site.scope][site.output]
    operator = operators.operator(original)
    assert operator is not None
    node = onnx.NodeProto()
    node.CopyFrom(original)
    weights[site.name] = namer(f"{site.name}/weight")
    tensors.append(make_tensor(weights[site.name], evaluate(model, site.weight)))
    node.input[site.operand] = weights[site.name]
    if operator.spread is None:
        return (node,)
    shifts[site.name] = namer(f"{site.name}/shift")
    zero = operator.spread(model, site, original, np.zeros((site.groups, site.d_out)))
    tensors.append(make_tensor(shifts[site.name], to_type(zero, site.weight.dtype, site.name)))
    node.output[0] = namer(f"{site.name}/unshifted")
    added = make_node(
        "Add", [node.output[0], shifts[site.name]], [site.output], namer(f"{site.name}/add")
    )
    return node, added
