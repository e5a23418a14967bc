"""Frozen data with a JSON form: dataclasses to plain values and back, and files in one step.

A record that stands in a file of its own carries a schema id. Unknown numbers are None, and so
are floats that JSON cannot hold.
"""

from __future__ import annotations

import dataclasses
import json
import math
import os
import re
import tempfile
import types
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Union, get_args, get_origin, get_type_hints

from onnxrank.errors import OnnxRankError, WriteError

if TYPE_CHECKING:
    from typing_extensions import Self


# A list of numbers, as json indents it; strings hold no line breaks, so it is never inside one.
_NUMBERS = re.compile(r"\[\n\s+[-+.\deE]+(,\n\s+[-+.\deE]+)*\n\s+\]")


class Record:
    """What results share: the JSON form. Subclasses are frozen dataclasses."""

    SCHEMA: ClassVar[str] = ""

    def to_dict(self) -> dict[str, Any]:
        """Plain lists, dictionaries, strings and numbers; with the schema id if there is one."""
        plain = _plain(self)
        assert isinstance(plain, dict)
        return plain

    @classmethod
    def from_dict(cls, plain: Mapping[str, Any]) -> Self:
        """Read what `to_dict` gave; unknown keys are ignored, missing ones take their default.

        Raises
        ------
        OnnxRankError
            If the schema is another one, or a field is missing or of the wrong type.
        """
        result = _decode(cls, plain, cls.__name__.lower())
        assert isinstance(result, cls)
        return result

    def to_json(self) -> str:
        """The JSON text, indented, with a final newline."""
        text = json.dumps(self.to_dict(), indent=2, allow_nan=False, ensure_ascii=False)
        return _NUMBERS.sub(_one_line, text) + "\n"

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the JSON text; an existing file is replaced in one step."""
        write_text(path, self.to_json())

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Self:
        """Read a file that `save` wrote."""
        try:
            plain = json.loads(Path(path).read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise OnnxRankError(f"cannot be read as JSON: {error}", where=str(path)) from error
        return cls.from_dict(plain)


def _one_line(found: re.Match[str]) -> str:
    return re.sub(r"\s+", "", found[0]).replace(",", ", ")


def write_text(path: str | os.PathLike[str], text: str) -> None:
    """Write a text file in one step: a reader sees the old content or the new one.

    Raises
    ------
    WriteError
        If the folder does not exist or cannot be written to.
    """
    target = Path(path)
    if target.exists() and not target.is_file():  # a pipe or device cannot be replaced
        _stream(target, text)
        return
    temporary = ""
    try:
        handle, temporary = tempfile.mkstemp(prefix=f".{target.name}.", dir=target.parent)
        with os.fdopen(handle, "w", encoding="utf-8", newline="") as stream:
            stream.write(text)
            stream.flush()
            os.fsync(stream.fileno())
        os.chmod(temporary, 0o666 & ~_umask())
        os.replace(temporary, target)
    except BaseException as error:
        if temporary:
            Path(temporary).unlink(missing_ok=True)
        if isinstance(error, OSError):
            raise WriteError(f"cannot be written: {error.strerror}", where=str(path)) from error
        raise


def check_place(path: str | os.PathLike[str]) -> None:
    """Refuse, before any work, a file that could not be written.

    Raises
    ------
    WriteError
        The folder does not exist or is read-only, or the path is a folder.
    """
    target = Path(path)
    if target.is_dir():
        raise WriteError("this is a folder", where=str(path), hint="name a file in it")
    if not target.parent.is_dir():
        raise WriteError(
            "its folder does not exist", where=str(path), hint=f"make {target.parent} first"
        )
    if not os.access(target.parent, os.W_OK | os.X_OK):
        raise WriteError("cannot be written: permission denied", where=str(path))


def _stream(target: Path, text: str) -> None:
    try:
        with target.open("w", encoding="utf-8", newline="") as stream:
            stream.write(text)
    except OSError as error:
        raise WriteError(f"cannot be written: {error.strerror}", where=str(target)) from error


def _umask() -> int:
    """The process's umask, which can only be read by setting it."""
    mask = os.umask(0o077)
    os.umask(mask)
    return mask


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        plain = {item.name: _plain(getattr(value, item.name)) for item in dataclasses.fields(value)}
        schema = getattr(value, "SCHEMA", "")
        return {"schema": schema, **plain} if schema else plain
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def _decode(kind: Any, value: Any, where: str) -> Any:
    """Rebuild a value of the annotated type `kind` from its plain form."""
    origin, arguments = get_origin(kind), get_args(kind)
    if dataclasses.is_dataclass(kind):
        return _decode_dataclass(kind, value, where)
    if origin in (Union, types.UnionType):
        if value is None and type(None) in arguments:
            return None
        present = [argument for argument in arguments if argument is not type(None)]
        if len(present) == 1:
            return _decode(present[0], value, where)
        matching = [argument for argument in present if _fits(argument, value)]
        return _decode(matching[0] if matching else present[0], value, where)
    if origin is tuple and isinstance(value, list):
        return tuple(_decode(arguments[0], item, f"{where}[{i}]") for i, item in enumerate(value))
    if origin is list and isinstance(value, list):
        return [_decode(arguments[0], item, f"{where}[{i}]") for i, item in enumerate(value)]
    if origin is Mapping and isinstance(value, Mapping):
        return {key: _decode(arguments[1], item, f"{where}.{key}") for key, item in value.items()}
    if _fits(kind, value):
        return value
    expected = getattr(kind, "__name__", str(kind))
    raise OnnxRankError(f"expected {expected}, found {value!r}", where=where)


def _decode_dataclass(kind: Any, value: Any, where: str) -> Any:
    if not isinstance(value, Mapping):
        raise OnnxRankError(f"expected an object, found {value!r}", where=where)
    schema = getattr(kind, "SCHEMA", "")
    if schema and value.get("schema") != schema:
        raise OnnxRankError(f"expected schema {schema}, found {value.get('schema')!r}", where=where)
    hints = get_type_hints(kind)
    present = {}
    for item in dataclasses.fields(kind):
        optional = (
            item.default is not dataclasses.MISSING
            or item.default_factory is not dataclasses.MISSING
        )
        if item.name in value:
            present[item.name] = _decode(hints[item.name], value[item.name], f"{where}.{item.name}")
        elif not optional:
            raise OnnxRankError("missing", where=f"{where}.{item.name}")
    return kind(**present)


def _fits(kind: Any, value: Any) -> bool:
    if get_origin(kind) is list:
        return isinstance(value, list)
    if kind is float:
        return isinstance(value, (int, float)) and not isinstance(value, bool)
    if kind is int:
        return isinstance(value, int) and not isinstance(value, bool)
    return isinstance(kind, type) and isinstance(value, kind)
