"""Damage models at random, by bytes and by fields, and see that the graph room stays calm.

Used by the bounded test here and by ``tools/fuzz.py``, which goes on for as long as it is told.
"""

from __future__ import annotations

import random
import time
import tracemalloc
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import onnx
from google.protobuf.descriptor import FieldDescriptor as Field
from google.protobuf.message import Message

from onnxrank.errors import OnnxRankError
from onnxrank.graph.cost import parameters, stored_bytes
from onnxrank.graph.find import find_sites, find_units
from onnxrank.graph.model import load
from onnxrank.graph.probe import probe
from onnxrank.graph.rewrite import rewrite
from onnxrank.graph.sites import Selection

from . import corpus

NUMBERS = [
    0,
    1,
    -1,
    2,
    3,
    7,
    16,
    17,
    255,
    2**15,
    2**31 - 1,
    2**31,
    2**32,
    2**62,
    2**63 - 1,
    -(2**63),
]
WORDS = [
    *"x a/b ... ij,jk->ik ai.onnx com.microsoft Conv MatMul Identity Transpose Reshape".split(),
    *"DequantizeLinear Loop If perm axis".split(),
    "",
    "\u6a21",
    "y" * 300,
]
INTEGERS = {Field.CPPTYPE_INT32, Field.CPPTYPE_INT64, Field.CPPTYPE_UINT32, Field.CPPTYPE_UINT64}
FRACTIONS = {Field.CPPTYPE_FLOAT, Field.CPPTYPE_DOUBLE}


def by_bytes(data: bytes, rng: random.Random) -> bytes:
    """Flip, cut, repeat, overwrite or remove bytes."""
    damaged = bytearray(data)
    for _ in range(rng.choice([1, 1, 2, 5, 20])):
        if not damaged:
            break
        at, length = rng.randrange(len(damaged)), rng.choice([1, 1, 4, 16, 200])
        kind = rng.randrange(6)
        if kind == 0:
            damaged[at] ^= 1 << rng.randrange(8)
        elif kind == 1:
            damaged[at : at + length] = rng.randbytes(length)
        elif kind == 2:
            del damaged[at : at + length]
        elif kind == 3:
            damaged[at:at] = damaged[max(0, at - length) : at]
        elif kind == 4:
            damaged[at : at + length] = bytes([rng.choice([0, 0x7F, 0xFF])]) * length
        else:
            del damaged[at:]
    return bytes(damaged)


def by_fields(proto: onnx.ModelProto, rng: random.Random) -> onnx.ModelProto:
    """Change fields of a copy: any message, any field, to anything its type can hold."""
    damaged = onnx.ModelProto()
    damaged.CopyFrom(proto)
    for _ in range(rng.choice([1, 1, 2, 3, 8])):
        message = _descend(damaged, rng)
        fields = list(message.DESCRIPTOR.fields)
        set_ones = [field for field, _ in message.ListFields()]
        field = rng.choice(set_ones if set_ones and rng.random() < 0.8 else fields)
        _change(message, field, rng, damaged)
    return damaged


def _descend(message: Message, rng: random.Random) -> Message:
    """A message somewhere in the tree; nodes, attributes and tensors are met often."""
    while True:
        below = []
        for field, value in message.ListFields():
            if field.type == Field.TYPE_MESSAGE:
                below += list(value) if _repeated(field) else [value]
        if not below or rng.random() < 0.15:
            return message
        message = rng.choice(below)


def _repeated(field: Any) -> bool:
    return bool(field.is_repeated)


def _change(message: Message, field: Any, rng: random.Random, root: onnx.ModelProto) -> None:
    if _repeated(field):
        values = getattr(message, field.name)
        kind = rng.randrange(4)
        if len(values) and kind == 0:
            del values[rng.randrange(len(values))]
        elif len(values) and kind == 1:
            values.append(values[rng.randrange(len(values))])
        elif len(values) and kind == 2:
            at = rng.randrange(len(values))
            if field.type == Field.TYPE_MESSAGE:
                values[at].CopyFrom(values[rng.randrange(len(values))])
            else:
                values[at] = _value(field, rng, root)
        elif field.type == Field.TYPE_MESSAGE:
            values.add()
        else:
            values.append(_value(field, rng, root))
    elif field.type == Field.TYPE_MESSAGE:
        if rng.random() < 0.5:
            message.ClearField(field.name)
        else:
            getattr(message, field.name).SetInParent()
    elif rng.random() < 0.2:
        message.ClearField(field.name)
    else:
        setattr(message, field.name, _value(field, rng, root))


def _value(field: Any, rng: random.Random, root: onnx.ModelProto) -> Any:
    if field.cpp_type == Field.CPPTYPE_ENUM:
        return rng.choice([v.number for v in field.enum_type.values])
    if field.cpp_type in INTEGERS:
        value = rng.choice(NUMBERS)
        narrow = field.cpp_type in (Field.CPPTYPE_INT32, Field.CPPTYPE_UINT32)
        value = value % 2**31 if narrow else value
        return abs(value) % 2**63 if field.cpp_type == Field.CPPTYPE_UINT64 else value
    if field.cpp_type in FRACTIONS:
        return rng.choice([0.0, -1.0, 1e30, float("nan"), float("inf")])
    text = rng.choice(WORDS if rng.random() < 0.4 else _names(root) or WORDS)
    if field.type == Field.TYPE_BYTES:
        return rng.choice([b"", b"\xff\xfe", b"abcd", text.encode(), bytes(64)])
    return text


def _names(root: onnx.ModelProto) -> list[str]:
    names = [n for node in root.graph.node for n in (*node.input, *node.output, node.op_type)]
    return [n for n in names if isinstance(n, str)]


def examine(source: onnx.ModelProto | Path) -> str:
    """All that is done to a model without running it; says how it ended.

    Raises whatever is no OnnxRankError.
    """
    try:
        model = load(source)
        parameters(model)
        stored_bytes(model)
        sites, skips = find_sites(model, Selection(quantized=True, overridable=True))
        assert all(skip.reason and skip.code for skip in skips)
        units = find_units(model, sites)
        assert sum(len(unit.sites) for unit in units) == len(sites)
        names = [s.name for s in sites]
        assert len(set(names)) == len(names), names
        views = {site.view: site.d_in for site in sites}
        probe(model, list(views), views, reduce=True)
    except OnnxRankError as error:
        assert str(error) and "\n" not in str(error)
        return "refused"
    damaged = 0
    for site in sites:
        if site.hold:
            continue
        try:
            pair = corpus.factors(model, site)
            written = rewrite(model, [(site, pair)], {"onnxrank.version": "0"})
            written.SerializeToString()
        except OnnxRankError as error:
            assert str(error)
            damaged += 1
    return "sites" if sites else "no sites"


def seeds(largest: int = 30_000) -> list[onnx.ModelProto]:
    """Small models of many kinds to damage."""
    from .test_functions import twice
    from .test_microsoft import transformer
    from .test_probe import K
    from .test_recurrent import recurrent
    from .test_scopes import rich

    assert K
    found = [rich(), twice(), transformer(), recurrent("LSTM", "bidirectional", peep=True)[0]]
    for case in corpus.fixtures():
        if isinstance(case.model, Path) and case.model.stat().st_size < largest:
            found.append(onnx.load(case.model, load_external_data=False))
    return found


class Limits:
    """Seconds and bytes that one model may take."""

    def __init__(self, seconds: float, megabytes: float) -> None:
        self.seconds, self.megabytes = seconds, megabytes

    def run(self, source: onnx.ModelProto | Path) -> str:
        """As `examine`, within the limits."""
        tracemalloc.start()
        began = time.process_time()
        try:
            ended = examine(source)
            peak = tracemalloc.get_traced_memory()[1] / 2**20
        finally:
            tracemalloc.stop()
        took = time.process_time() - began
        assert took < self.seconds, f"{took:.1f} s"
        assert peak < self.megabytes, f"{peak:.0f} MB"
        return ended


def damaged(
    models: Sequence[onnx.ModelProto], seed: int, count: int
) -> Iterator[tuple[str, onnx.ModelProto | bytes]]:
    """`count` damaged models, the same for the same seed: what was done, and the result."""
    for k in range(count):
        rng = random.Random(f"{seed}-{k}")
        proto = rng.choice(models)
        if k % 2:
            yield f"{seed}-{k} fields", by_fields(proto, rng)
        else:
            yield f"{seed}-{k} bytes", by_bytes(proto.SerializeToString(), rng)
