"""Data that come as complete feeds: loaders, iterables, readers, ONNX test sets, random numbers."""

from __future__ import annotations

import importlib
import importlib.util
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Set
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from google.protobuf.message import DecodeError

from onnxrank.errors import DataError
from onnxrank.graph.model import TensorInfo
from onnxrank.runtime.check import numpy_dtype

Feeds = Iterator[Mapping[str, Any]]
Opener = Callable[[], Feeds]

OPEN_SIZE = 32


class Passes:
    """Opens one pass over Python data after the other, where the data allow more than one.

    Parameters
    ----------
    data : object
        An iterable of dicts, a function that returns one, or an object with ``get_next`` (as
        onnxruntime's CalibrationDataReader), rewound by its ``rewind`` if it has that.
    """

    def __init__(self, data: Any) -> None:
        self._data = data
        self._opened = False

    def __call__(self) -> Feeds:
        """Start a pass."""
        again, self._opened = self._opened, True
        if hasattr(self._data, "get_next"):
            if again and not hasattr(self._data, "rewind"):
                raise _spent("give the reader a method rewind()")
            if again:
                self._data.rewind()
            return iter(self._data.get_next, None)
        if callable(self._data):
            return Passes(self._data())()
        if not isinstance(self._data, Iterable):
            raise DataError(f"a loader must give dicts of arrays, not {type(self._data).__name__}")
        feeds = iter(self._data)
        if again and feeds is self._data:
            raise _spent("pass a list, or a function that starts anew")
        return feeds


def load_function(spec: str) -> Callable[[], Any]:
    """Return the function that ``loader.py:function`` or ``module:function`` names."""
    place, _, name = spec.rpartition(":")
    try:
        module = (
            _load_file(Path(place)) if place.endswith(".py") else importlib.import_module(place)
        )
    except DataError:
        raise
    except Exception as error:
        raise DataError(
            f"it cannot be imported: {type(error).__name__}: {error}", where=place
        ) from error
    function = getattr(module, name, None)
    if not callable(function):
        raise DataError(f"there is no function {name!r}", where=place)
    return function  # type: ignore[no-any-return]


def is_function(spec: str) -> bool:
    """Whether a data argument has the form of ``loader.py:function`` or ``module:function``."""
    place, colon, name = spec.rpartition(":")
    if not colon or not name.isidentifier():
        return False
    return place.endswith(".py") or all(part.isidentifier() for part in place.split("."))


def test_sets(folder: Path) -> list[Path]:
    """Folders with ``input_*.pb``, in order: the folder itself, or its ``test_data_set_*``."""
    found = [p for p in folder.glob("test_data_set_*") if any(p.glob("input_*.pb"))]
    if not found and any(folder.glob("input_*.pb")):
        found = [folder]
    return sorted(found, key=_number)


def read_test_set(folder: Path, inputs: Sequence[TensorInfo]) -> dict[str, Any]:
    """Return one feed; tensors that bear no input's name are taken by their number."""
    known = {info.name for info in inputs}
    feed = {}
    for path in sorted(folder.glob("input_*.pb"), key=_number):
        number = _number(path)[0]
        try:
            name, value = _read_value(path, inputs[number] if number < len(inputs) else None)
        except (DecodeError, ValueError, TypeError, OSError) as error:
            raise DataError(f"it cannot be read: {error}", where=str(path)) from error
        if name not in known and number < len(inputs):
            name = inputs[number].name
        feed[name] = value
    return feed


def random_feeds(
    samples: int, inputs: Sequence[TensorInfo], batch_size: int, seed: int
) -> Iterator[dict[str, Any]]:
    """Feeds of random numbers, for smoke tests: integers are 0 or 1, open sizes `OPEN_SIZE`."""
    leading = {info.shape[0] for info in inputs if info.shape}
    for number, batch in enumerate(random_sizes(samples, inputs, batch_size)):
        rng = np.random.default_rng([seed, number])
        yield {
            info.name: _random(info, _shape(info, batch, leading), rng)
            for info in inputs
            if not info.optional
        }


def random_sizes(samples: int, inputs: Sequence[TensorInfo], batch_size: int) -> Iterator[int]:
    """Samples of each random feed: whole batches where the model fixes them."""
    leading = (info.shape[0] for info in inputs if info.shape)
    fixed = next((dim for dim in leading if isinstance(dim, int) and dim > 0), 0)
    for start in range(0, samples, fixed or batch_size):
        yield fixed or min(batch_size, samples - start)


def _spent(hint: str) -> DataError:
    return DataError(
        "the data can be read only once, and are needed again",
        hint=f"{hint}, or raise --memory so that one pass is enough",
    )


def _load_file(path: Path) -> Any:
    if not path.is_file():
        raise DataError("there is no such file", where=str(path))
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.path.insert(0, str(path.parent.resolve()))
    try:
        spec.loader.exec_module(module)
    finally:
        sys.path.pop(0)
    return module


def _number(path: Path) -> tuple[int, str]:
    digits = re.findall(r"\d+", path.stem)
    return (int(digits[-1]) if digits else 0, path.name)


def _read_value(path: Path, info: TensorInfo | None) -> tuple[str, Any]:
    """Name and value of a stored tensor, sequence or optional."""
    content = path.read_bytes()
    if info is None or info.dtype:
        tensor = onnx.TensorProto.FromString(content)
        return tensor.name, _text(onnx.numpy_helper.to_array(tensor))
    sequence = onnx.SequenceProto.FromString(content)
    return sequence.name, onnx.numpy_helper.to_list(sequence)


def _text(array: Any) -> Any:
    """Strings are bytes in a TensorProto."""
    if array.dtype.kind != "O":
        return array
    texts = [v.decode("utf8") if isinstance(v, bytes) else v for v in array.reshape(-1)]
    return np.array(texts, dtype=object).reshape(array.shape)


def _shape(info: TensorInfo, batch: int, leading: Set[int | str | None]) -> list[int]:
    """Return a shape for an input: what leads some input, here or there, is the batch."""
    if info.shape is None or not info.dtype:
        raise DataError(f"random data need a declared shape and type of input {info.name!r}")
    sizes = [OPEN_SIZE if dim is None or dim not in leading else batch for dim in info.shape]
    if info.shape:
        sizes[0] = batch
    return [
        dim if isinstance(dim, int) else size for dim, size in zip(info.shape, sizes, strict=True)
    ]


def _random(info: TensorInfo, shape: Sequence[int], rng: np.random.Generator) -> Any:
    if info.dtype == onnx.TensorProto.STRING:
        return np.full(shape, "a", dtype=object)
    dtype = numpy_dtype(info)
    if dtype.kind in "iub":
        return rng.integers(0, 2, shape).astype(dtype)
    return rng.standard_normal(shape, np.float32).astype(dtype)
