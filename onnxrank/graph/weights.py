"""The matrices of sites: read from the model, and written back in its own type."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from onnxrank.errors import ModelError
from onnxrank.graph.constants import evaluate
from onnxrank.graph.model import Model
from onnxrank.graph.sites import Site

FLOATS = (
    onnx.TensorProto.FLOAT,
    onnx.TensorProto.DOUBLE,
    onnx.TensorProto.FLOAT16,
    onnx.TensorProto.BFLOAT16,
)


def weight_matrix(model: Model, site: Site) -> NDArray[np.float64]:
    """The weight of a site, shape (groups, d_in, d_out).

    Raises
    ------
    ModelError
        It cannot be read, or holds NaN or infinity; the node is named.
    """
    raw = evaluate(model, site.weight)
    with np.errstate(invalid="ignore"):  # a NaN is reported below
        matrix = raw.astype(np.float64).reshape(site.orientation.shape)
    matrix = matrix.transpose(site.orientation.perm)
    if not np.isfinite(matrix).all():
        raise ModelError(
            f"weight '{site.weight.name}' holds NaN or infinity",
            where=f"{model.name}: node '{site.name}'",
            hint="the training or the export went wrong; or leave the node out with --exclude",
        )
    return np.ascontiguousarray(matrix.reshape(site.groups, site.d_in, site.d_out))


def unmatrix(site: Site, matrix: NDArray[np.float64]) -> NDArray[np.float64]:
    """The weight tensor that a matrix (groups, d_in, d_out) stands for, as the node reads it."""
    shape, perm = site.orientation.shape, site.orientation.perm
    turned = matrix.reshape([shape[axis] for axis in perm])
    return np.asarray(turned.transpose(np.argsort(perm)).reshape(site.weight.shape), np.float64)


def to_type(value: NDArray[Any], dtype: int, where: str) -> NDArray[Any]:
    """A float64 array in the model's own type, refusing overflow.

    Raises
    ------
    ModelError
        A value does not fit the type (beyond 65,504 in float16).
    """
    with np.errstate(over="ignore"):
        cast = value.astype(onnx.helper.tensor_dtype_to_np_dtype(dtype))
    if not np.isfinite(cast.astype(np.float64)).all():
        raise ModelError(
            f"a factor overflows {onnx.TensorProto.DataType.Name(dtype).lower()}",
            where=where,
            hint="leave the node out with --exclude",
        )
    return cast
