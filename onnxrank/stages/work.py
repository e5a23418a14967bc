"""Work: how large tensors get, and how many rows a linear map sees, found by running a batch."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

import onnx

from onnxrank.graph.find import find_sites
from onnxrank.graph.model import Model
from onnxrank.graph.nodes import Namer, make_node
from onnxrank.graph.rewrite import names_of
from onnxrank.graph.scopes import MAIN
from onnxrank.graph.sites import Site
from onnxrank.linalg.layout import Patches
from onnxrank.runtime.batch import Batch, DataSource
from onnxrank.runtime.session import Run, execute, open_session


def rows_of_data(model: Model, source: DataSource, run: Run) -> dict[str, float]:
    """As `rows_of_batch`, of every site on the first batch."""
    sites, _ = find_sites(model)
    return rows_of_batch(model, sites, next(source.batches()), run)


def rows_of_batch(model: Model, sites: Sequence[Site], batch: Batch, run: Run) -> dict[str, float]:
    """Rows a sample, by site; sites in bodies of If, Loop and Scan are left out."""
    counted = {site.name: _counted(site) for site in sites if site.scope == MAIN}
    shapes = shapes_of(model, dict.fromkeys(tensor for tensor, _ in counted.values()), batch, run)
    return {
        name: math.prod(shapes[tensor]) / (length * batch.size)
        for name, (tensor, length) in counted.items()
    }


def shapes_of(
    model: Model, tensors: Iterable[str], batch: Batch, run: Run
) -> dict[str, tuple[int, ...]]:
    """Shapes of tensors of the main graph, as they are when a batch is run."""
    proto, names = _with_shapes(model, tensors)
    if not names:
        return {}
    session = open_session(proto, model.folder, run, name=model.name)
    found: list[Any] = execute(session, list(names.values()), batch.feeds, where=batch.where)
    return {n: tuple(map(int, shape)) for n, shape in zip(names, found, strict=True)}


def _counted(site: Site) -> tuple[str, int]:
    """A tensor that holds one vector a row, and the vector's length."""
    if isinstance(site.view.layout, Patches):
        return site.output, site.groups * site.d_out
    return site.view.tensor, site.groups * site.d_in


def _with_shapes(model: Model, tensors: Iterable[str]) -> tuple[onnx.ModelProto, dict[str, str]]:
    """A copy with the shapes of tensors as further outputs, taken right where they are made."""
    proto = onnx.ModelProto()
    proto.CopyFrom(model.document)
    namer = Namer(names_of(proto))
    names = {tensor: namer(f"{tensor}/shape") for tensor in tensors}
    nodes = list(proto.graph.node)
    made = {output for node in nodes for output in node.output}
    del proto.graph.node[:]
    proto.graph.node.extend(_shape_of(t, name) for t, name in names.items() if t not in made)
    for node in nodes:
        proto.graph.node.append(node)
        proto.graph.node.extend(_shape_of(t, names[t]) for t in node.output if t in names)
    for name in names.values():
        info = onnx.helper.make_tensor_value_info(name, onnx.TensorProto.INT64, [None])
        proto.graph.output.append(info)
    return proto, names


def _shape_of(tensor: str, name: str) -> onnx.NodeProto:
    return make_node("Shape", [tensor], [name], name)
