"""How much data a tensor's shape and type ask for, and whether it has them."""

from __future__ import annotations

import math

import onnx

from onnxrank.errors import ModelError

# Bits an entry, and the field that holds entries where raw_data does not.
_KINDS = {
    "FLOAT": (32, "float_data"),
    "DOUBLE": (64, "double_data"),
    "COMPLEX64": (64, "float_data"),
    "COMPLEX128": (128, "double_data"),
    "INT64": (64, "int64_data"),
    "UINT32": (32, "uint64_data"),
    "UINT64": (64, "uint64_data"),
    **dict.fromkeys(("INT32",), (32, "int32_data")),
    **dict.fromkeys(("FLOAT16", "BFLOAT16", "INT16", "UINT16"), (16, "int32_data")),
    **dict.fromkeys(("INT8", "UINT8", "BOOL"), (8, "int32_data")),
    **dict.fromkeys(("FLOAT8E4M3FN", "FLOAT8E4M3FNUZ", "FLOAT8E5M2"), (8, "int32_data")),
    **dict.fromkeys(("FLOAT8E5M2FNUZ", "FLOAT8E8M0"), (8, "int32_data")),
    **dict.fromkeys(("INT4", "UINT4", "FLOAT4E2M1"), (4, "int32_data")),
    **dict.fromkeys(("INT2", "UINT2"), (2, "int32_data")),
}
_BY_NUMBER = {
    number: _KINDS[name] for name, number in onnx.TensorProto.DataType.items() if name in _KINDS
}
_AGAIN = "the model is damaged; export it again"


def check_size(tensor: onnx.TensorProto, external: int | None, at: str) -> None:
    """Refuse a tensor whose data do not fit its shape.

    Parameters
    ----------
    tensor : TensorProto
        Types that are not known here pass.
    external : int or None
        Bytes it has in another file, None if its data are inside.
    at : str
        Where it is, for the message.

    Raises
    ------
    ModelError
        The shape is impossible, or asks for other data than there are.
    """
    dims = list(tensor.dims)
    if any(dim < 0 for dim in dims):
        raise ModelError(f"negative dimension in {dims}", where=at, hint=_AGAIN)
    if math.prod(dim for dim in dims if dim) >= 2**63:
        raise ModelError(f"a tensor of shape {dims} is beyond all bounds", where=at, hint=_AGAIN)
    count = math.prod(dims)
    if tensor.data_type == onnx.TensorProto.STRING:
        _compare(dims, count, len(tensor.string_data), "entries", at)
    if tensor.data_type not in _BY_NUMBER:
        return
    bits, field = _BY_NUMBER[tensor.data_type]
    wanted = -(-count * bits // 8)
    if external is not None:
        _compare(dims, wanted, min(external, wanted), "bytes", at, external)
    elif tensor.HasField("raw_data"):
        _compare(dims, wanted, len(tensor.raw_data), "bytes", at)
    else:
        each = 2 if tensor.data_type in _PAIRS else 1
        packed = -(-count * bits // 8) if bits < 8 else count * each
        _compare(dims, packed, len(getattr(tensor, field)), "entries", at)


_PAIRS = (onnx.TensorProto.COMPLEX64, onnx.TensorProto.COMPLEX128)


def _compare(
    dims: list[int], wanted: int, held: int, what: str, at: str, shown: int | None = None
) -> None:
    if held != wanted:
        raise ModelError(
            f"shape {dims} needs {wanted} {what}, the data are {held if shown is None else shown}",
            where=at,
            hint=_AGAIN,
        )
