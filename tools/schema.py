"""Write docs/schema/*.json: JSON Schema (2020-12) of everything that is saved with a schema id.

    python tools/schema.py

Run it after a change of a saved result; a test holds the files to it.
"""

from __future__ import annotations

import dataclasses
import json
import types
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Union, get_args, get_origin, get_type_hints

from onnxrank.differentiable.records import Recovery
from onnxrank.record import Record
from onnxrank.results import Comparison, Plan, Report

FOLDER = Path(__file__).parents[1] / "docs" / "schema"
SAVED: tuple[type[Record], ...] = (Report, Plan, Comparison, Recovery)

_NAMES = {str: "string", int: "integer", float: "number", bool: "boolean", type(None): "null"}


def schema(kind: type[Record]) -> dict[str, Any]:
    """The schema of one saved record; the records in it stand under ``$defs``."""
    definitions: dict[str, Any] = {}
    _reference(kind, definitions)
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": kind.SCHEMA,
        **definitions.pop(kind.__name__),
        "$defs": dict(sorted(definitions.items())),
    }


def text(kind: type[Record]) -> str:
    """The file of one schema."""
    return json.dumps(schema(kind), indent=2) + "\n"


def _reference(kind: type, definitions: dict[str, Any]) -> dict[str, str]:
    if kind.__name__ not in definitions:
        definitions[kind.__name__] = {}  # now: a record may hold its own kind
        definitions[kind.__name__] = _object(kind, definitions)
    return {"$ref": f"#/$defs/{kind.__name__}"}


def _object(kind: type, definitions: dict[str, Any]) -> dict[str, Any]:
    """A record: what has no default is required, and nothing else may stand in it."""
    hints, fields = get_type_hints(kind), dataclasses.fields(kind)
    properties = {field.name: _type(hints[field.name], definitions) for field in fields}
    none = dataclasses.MISSING
    required = [f.name for f in fields if f.default is none and f.default_factory is none]
    schema_id = getattr(kind, "SCHEMA", "")
    if schema_id:
        properties = {"schema": {"const": schema_id}, **properties}
        required = ["schema", *required]
    return {
        "description": (kind.__doc__ or "").strip().splitlines()[0],
        "type": "object",
        "properties": properties,
        "required": required,
        "additionalProperties": False,
    }


def _type(kind: Any, definitions: dict[str, Any]) -> dict[str, Any]:
    origin, arguments = get_origin(kind), get_args(kind)
    if dataclasses.is_dataclass(kind):
        assert isinstance(kind, type)
        return _reference(kind, definitions)
    if origin in (Union, types.UnionType):
        parts = [_type(argument, definitions) for argument in arguments]
        if all(set(part) == {"type"} for part in parts):
            return {"type": [part["type"] for part in parts]}
        return {"anyOf": parts}
    if origin in (tuple, list):
        return {"type": "array", "items": _type(arguments[0], definitions)}
    if origin is Mapping:
        return {"type": "object", "additionalProperties": _type(arguments[1], definitions)}
    return {"type": _NAMES[kind]}


def main() -> None:
    """Write all files."""
    FOLDER.mkdir(exist_ok=True)
    for kind in SAVED:
        (FOLDER / f"{kind.__name__.lower()}.json").write_text(text(kind), encoding="utf-8")


if __name__ == "__main__":
    main()
