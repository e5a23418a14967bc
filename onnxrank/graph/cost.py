"""What sites cost: parameters, multiply-accumulates, bytes. Numbers in, numbers out."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping

import onnx

from onnxrank.graph import external
from onnxrank.graph.model import Model
from onnxrank.graph.scopes import walk
from onnxrank.graph.sites import Site
from onnxrank.graph.weights import FLOATS

# Types of quantized weights; a vector of one of them is a zero point.
_NARROW = {
    value
    for name, value in onnx.TensorProto.DataType.items()
    if name in ("INT8", "UINT8", "INT4", "UINT4", "INT2", "UINT2") or name.startswith("FLOAT8")
}


def counts(tensor: onnx.TensorProto) -> bool:
    """Whether the entries of a stored tensor are parameters."""
    narrow = tensor.data_type in _NARROW and len(tensor.dims) > 1
    return tensor.data_type in FLOATS or narrow


def parameters(model: Model) -> int:
    """Entries of all float tensors and quantized weights that a model stores, each once."""
    return parameters_of(model.proto)


def parameters_of(proto: onnx.ModelProto) -> int:
    """As `parameters`, of a proto."""
    count = 0
    for _, graph in walk(proto.graph):
        held = [*graph.initializer, *(sparse.values for sparse in graph.sparse_initializer)]
        held += [
            attribute.t
            for node in graph.node
            if node.op_type == "Constant"
            for attribute in node.attribute
            if attribute.HasField("t")
        ]
        count += sum(math.prod(t.dims) for t in held if counts(t))
    return count


def factor_parameters(site: Site, rank: int) -> int:
    """Entries of the two factors of a site at `rank`."""
    return site.groups * rank * (site.d_in + site.d_out)


def pays(site: Site, rank: int) -> bool:
    """Whether two factors of `rank` are smaller than the dense weight."""
    return factor_parameters(site, rank) < site.parameters


def site_macs(site: Site, rows: float | None, rank: int | None = None) -> int | None:
    """Multiply-accumulates a sample, dense or at `rank`.

    Parameters
    ----------
    site : Site
        The map.
    rows : float or None
        Rows a sample gives, as measured; None takes what the model states.
    rank : int, optional
        Of the factor pair; None for the dense weight.

    Returns
    -------
    int or None
        None where the number of rows is not known.
    """
    rows = site.rows if rows is None else rows
    if rows is None:
        return None
    each = site.parameters if rank is None else factor_parameters(site, rank)
    return round(rows * each)


def model_macs(
    sites: Iterable[Site],
    rows: Mapping[str, float] | None = None,
    ranks: Mapping[str, int] | None = None,
) -> int | None:
    """Multiply-accumulates of all sites a sample; None if those of one are not known.

    Parameters
    ----------
    sites : iterable of Site
        All sites of the model.
    rows : mapping, optional
        Rows a sample, by site name, as measured.
    ranks : mapping, optional
        Rank by site name of the sites that are split.
    """
    total = 0
    for site in sites:
        macs = site_macs(site, (rows or {}).get(site.name), (ranks or {}).get(site.name))
        if macs is None:
            return None
        total += macs
    return total


def stored_bytes(model: Model) -> int:
    """Bytes of the model as stored: its own file and the external spans it uses."""
    spans = {
        (span.path, span.offset): span.length
        for tensor in external.tensors(model.proto)
        if external.is_external(tensor)
        for span in [external.place(tensor, model.folder, model.name)]
    }
    return int(model.proto.ByteSize()) + sum(spans.values())
