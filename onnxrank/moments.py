"""Moments of every view of one model, in two folds: mergeable, and a file."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import secrets
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnxrank.errors import MomentsError, WriteError
from onnxrank.graph.scopes import Scope
from onnxrank.graph.sites import View
from onnxrank.linalg.gram import SecondMoment
from onnxrank.linalg.layout import Axis, Layout, Patches

SCHEMA = "onnxrank.moments/1"
_KEY = "onnxrank"

Folds = tuple[SecondMoment, SecondMoment]
_LAYOUTS: dict[str, type[Axis] | type[Patches]] = {"axis": Axis, "patches": Patches}


@dataclass(frozen=True)
class DataInfo:
    """Where moments came from.

    Attributes
    ----------
    source : str
        What the user named: a file, a folder, a loader.
    samples : int
        Samples that were run.
    seconds : float
        Wall time of collecting.
    provider : str
        ``cpu`` or ``cuda``.
    meaningless : bool
        True for ``random:N`` data, whose ranks say nothing.
    parts : tuple of str
        A digest of the samples of every run that went in, whatever their order: moments of the
        same data are not added twice.
    """

    source: str
    samples: int
    seconds: float
    provider: str
    meaningless: bool = False
    parts: tuple[str, ...] = ()


@dataclass(frozen=True)
class Cursor:
    """Where an interrupted collection goes on.

    Attributes
    ----------
    settings : str
        Data and settings; only the same ones can go on.
    done : mapping of View to int
        Batches each view has seen.
    """

    settings: str
    done: Mapping[View, int]


@dataclass(frozen=True, eq=False)
class Moments:
    """Second moments by view, in two folds, with what is needed to trust them.

    Attributes
    ----------
    model_sha256 : str
        Fingerprint of the model they belong to.
    views : mapping of View to (SecondMoment, SecondMoment)
        Fold A and fold B; their sum is the whole.
    data : DataInfo
        Where they came from.
    cursor : Cursor or None
        Where to go on; None once all data were seen.
    """

    model_sha256: str
    views: Mapping[View, Folds]
    data: DataInfo
    cursor: Cursor | None = field(default=None)

    @property
    def complete(self) -> bool:
        """Whether all data were seen."""
        return self.cursor is None

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write a safetensors file, whole or not at all.

        Raises
        ------
        WriteError
            If the file cannot be written; an existing one is then left as it was.
        """
        arrays, record = _arrays(self.views), _record(self)
        record["checksum"] = _checksum(record, arrays.values())
        _write(Path(path), arrays, record)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Moments:
        """Read a file that `save` wrote.

        Raises
        ------
        MomentsError
            If it is missing, damaged, or of another format.
        """
        where = str(path)
        record, arrays = _read(Path(path))
        if record.get("schema") != SCHEMA:
            found = record.get("schema", "no schema")
            raise MomentsError(f"it holds {found}, not {SCHEMA}", where=where)
        if record.pop("checksum", None) != _checksum(record, arrays.values()):
            raise MomentsError("it is damaged: its checksum does not match", where=where)
        try:
            return _moments(record, arrays)
        except (KeyError, IndexError, TypeError, ValueError) as error:
            raise MomentsError(f"it is damaged: {error}", where=where) from error


def merge(moments: Sequence[Moments]) -> Moments:
    """Add moments of disjoint data.

    Raises
    ------
    MomentsError
        If they belong to different models or views, are unfinished, or share data.
    """
    if not moments:
        raise MomentsError("there are no moments to merge")
    first = moments[0]
    for other in moments:
        _check_fit(first, other)
    views = {
        view: (_total(m.views[view][0] for m in moments), _total(m.views[view][1] for m in moments))
        for view in first.views
    }
    return Moments(first.model_sha256, views, _merged_info(moments))


def _check_fit(first: Moments, other: Moments) -> None:
    where = other.data.source
    if other.model_sha256 != first.model_sha256:
        raise MomentsError("these moments belong to another model", where=where)
    if other.cursor is not None:
        raise MomentsError(
            "these moments are unfinished", where=where, hint="collect them to the end first"
        )
    if set(other.views) != set(first.views):
        raise MomentsError(
            f"they hold other layers than those of {first.data.source}",
            where=where,
            hint="collect with the same --include and --exclude",
        )
    for view, (fold, _) in first.views.items():
        if fold.gram.shape != other.views[view][0].gram.shape:
            raise MomentsError(
                f"the moments of tensor {view.tensor!r} differ in shape", where=where
            )


def _merged_info(moments: Sequence[Moments]) -> DataInfo:
    infos = [m.data for m in moments]
    repeated = [part for part, n in Counter(p for i in infos for p in i.parts).items() if n > 1]
    if repeated:
        names = ", ".join(i.source for i in infos if repeated[0] in i.parts)
        raise MomentsError(
            f"the same data would be added twice: {names}", hint="give each shard once"
        )
    return DataInfo(
        source=", ".join(dict.fromkeys(info.source for info in infos)),
        samples=sum(info.samples for info in infos),
        seconds=sum(info.seconds for info in infos),
        provider="+".join(dict.fromkeys(info.provider for info in infos)),
        meaningless=any(info.meaningless for info in infos),
        parts=tuple(part for info in infos for part in info.parts),
    )


def _total(folds: Iterable[SecondMoment]) -> SecondMoment:
    """Sum of second moments, in two arrays however many there are."""
    n = 0
    total: NDArray[np.float64] | None = None
    gram: NDArray[np.float64] | None = None
    for fold in folds:
        n += fold.n
        if total is None or gram is None:
            total, gram = fold.sum.copy(), fold.gram.copy()
        else:
            total += fold.sum
            gram += fold.gram
    assert total is not None and gram is not None
    return SecondMoment(n, total, gram)


def _arrays(views: Mapping[View, Folds]) -> dict[str, NDArray[np.float64]]:
    """What a file holds: of the symmetric matrices, one triangle."""
    return {
        f"{index}.{fold}.{kind}": array
        for index, folds in enumerate(views.values())
        for fold, moment in zip("ab", folds, strict=True)
        for kind, array in (("gram", _pack(moment.gram)), ("sum", moment.sum))
    }


def _pack(gram: NDArray[np.float64]) -> NDArray[np.float64]:
    """Upper triangles, row by row: (groups, d (d + 1) / 2)."""
    return np.concatenate([gram[:, i, i:] for i in range(gram.shape[1])], axis=1)


def _unpack(packed: NDArray[np.float64], d: int) -> NDArray[np.float64]:
    gram = np.empty((packed.shape[0], d, d))
    if packed.shape[1] != d * (d + 1) // 2:
        raise ValueError(f"{packed.shape[1]} entries are no triangle of {d}")
    start = 0
    for i in range(d):
        row = packed[:, start : start + d - i]
        gram[:, i, i:] = row
        gram[:, i:, i] = row
        start += d - i
    return gram


def _checksum(record: Mapping[str, Any], arrays: Iterable[NDArray[np.float64]]) -> str:
    digest = hashlib.sha256(json.dumps(record, sort_keys=True).encode())
    for array in arrays:
        digest.update(np.ascontiguousarray(array).data)
    return digest.hexdigest()


def _record(moments: Moments) -> dict[str, Any]:
    """What a file says beside its arrays."""
    views, cursor = list(moments.views), moments.cursor
    return {
        "schema": SCHEMA,
        "model_sha256": moments.model_sha256,
        "views": [_view_to_json(view) for view in views],
        "rows": [[fold.n for fold in folds] for folds in moments.views.values()],
        "data": asdict(moments.data),
        "cursor": cursor and {**vars(cursor), "done": [cursor.done.get(v, 0) for v in views]},
    }


def _moments(record: Mapping[str, Any], arrays: Mapping[str, NDArray[np.float64]]) -> Moments:
    views = [_view_from_json(view) for view in record["views"]]
    data, cursor = record["data"], record["cursor"]

    def moment(index: int, fold: int) -> SecondMoment:
        name = f"{index}.{'ab'[fold]}"
        total = arrays[f"{name}.sum"]
        gram = _unpack(arrays[f"{name}.gram"], total.shape[1])
        return SecondMoment(record["rows"][index][fold], total, gram)

    return Moments(
        record["model_sha256"],
        {view: (moment(k, 0), moment(k, 1)) for k, view in enumerate(views)},
        DataInfo(**{**data, "parts": tuple(data["parts"])}),
        cursor and Cursor(**{**cursor, "done": dict(zip(views, cursor["done"], strict=True))}),
    )


def _view_to_json(view: View) -> dict[str, Any]:
    kind = next(name for name, layout in _LAYOUTS.items() if isinstance(view.layout, layout))
    return {
        "scope": view.scope.path,
        "tensor": view.tensor,
        "layout": {"kind": kind, **asdict(view.layout)},
    }


def _view_from_json(value: Mapping[str, Any]) -> View:
    given = dict(value["layout"])
    kind = _LAYOUTS[given.pop("kind")]
    known = {f.name for f in dataclasses.fields(kind)}
    if set(given) != known:
        raise ValueError(f"a layout of {sorted(given)}")
    values: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in given.items()}
    layout: Layout = kind(**values)
    scope = Scope(tuple((output, attribute) for output, attribute in value["scope"]))
    return View(scope, value["tensor"], layout)


def _write(path: Path, arrays: Mapping[str, NDArray[Any]], record: Mapping[str, Any]) -> None:
    from safetensors import SafetensorError
    from safetensors.numpy import save_file

    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    try:
        # One key: the library writes several in an order that changes. It takes memory as it lies.
        metadata = {_KEY: json.dumps(record, sort_keys=True)}
        save_file({k: np.ascontiguousarray(v) for k, v in arrays.items()}, temporary, metadata)
        with temporary.open("r+b") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except (OSError, SafetensorError) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise WriteError(f"cannot be written: {reason}", where=str(path)) from error
    finally:
        with suppress(OSError):
            temporary.unlink()


def _read(path: Path) -> tuple[dict[str, Any], dict[str, NDArray[np.float64]]]:
    """Record and arrays, the latter in the order they were written."""
    from safetensors import SafetensorError, safe_open

    try:
        with path.open("rb") as file:
            file.read(1)
        with safe_open(path, framework="numpy") as stored:
            record = dict(json.loads((stored.metadata() or {}).get(_KEY, "{}")))
            names = sorted(stored.keys(), key=_place)
            return record, {name: stored.get_tensor(name) for name in names}
    except OSError as error:
        raise MomentsError(f"cannot be read: {error.strerror}", where=str(path)) from error
    except (SafetensorError, ValueError, TypeError, KeyError) as error:
        raise MomentsError("this is no moments file, or it is damaged", where=str(path)) from error


def _place(name: str) -> tuple[int, str]:
    index, _, rest = name.partition(".")
    return (int(index), rest)
