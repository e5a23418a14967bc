"""Folders that model servers load unchanged: Triton, KServe, MLServer, MLflow."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path

import onnx

from onnxrank.errors import WriteError
from onnxrank.graph.model import Model, load
from onnxrank.record import Record
from onnxrank.runtime.session import Run, open_session
from onnxrank.serving.folder import (
    check_place,
    copy_model,
    model_parts,
    staged_folder,
    write_files,
)
from onnxrank.serving.order import Layout, Order
from onnxrank.serving.sample import check_follows_batch, find_sample
from onnxrank.serving.signature import Signature, Tensor, check_batch, read_signature

TARGETS = ("triton", "kserve", "mlserver", "mlflow")

Progress = Callable[[int, "int | None", str], None]


@dataclass(frozen=True)
class Bundle(Record):
    """A folder that was written.

    Attributes
    ----------
    target : str
    directory : str
    name : str
        What clients call the model.
    version, max_batch : int
    signature : Signature
    files : tuple of str
        Paths in the folder.
    bytes : int
        Of all files together.
    sample_works : bool
        onnxruntime has run the model on the sample request.
    """

    target: str
    directory: str
    name: str
    version: int
    max_batch: int
    signature: Signature
    files: tuple[str, ...]
    bytes: int
    sample_works: bool


def bundle(
    model: str | os.PathLike[str] | onnx.ModelProto | Model,
    to: str,
    directory: str | os.PathLike[str],
    name: str | None = None,
    version: int = 1,
    max_batch: int | None = None,
    *,
    progress: Progress = lambda done, total, what: None,
) -> Bundle:
    """Write a folder that a model server loads unchanged.

    The model is copied byte by byte with its external data. The same model gives the same bytes.

    Parameters
    ----------
    model : path, ModelProto or Model
    to : {'triton', 'kserve', 'mlserver', 'mlflow'}
        The server it is for.
    directory : path
        A folder to make; an existing one must be empty.
    name : str, optional
        What clients call the model; the name of its file otherwise.
    version : int
    max_batch : int, optional
        Let the server run up to so many samples of different requests at once. Without it a
        request runs as it comes, with any batch that the model takes.

    Raises
    ------
    ModelError
        The model cannot be loaded, or holds what the target cannot: the tensor is named.
    WriteError
        The folder is not empty, or cannot be written.

    Examples
    --------
    >>> bundle("small.onnx", "triton", "repository")  # doctest: +SKIP
    """
    if to not in TARGETS:
        raise WriteError(f"target '{to}' is unknown", hint=f"one of {', '.join(TARGETS)}")
    place = Path(directory).absolute()
    loaded = load(model)
    check_place(place)
    order = _order(loaded, _name(name, loaded), version, max_batch or 0)
    layout: Layout = import_module(f"onnxrank.serving.{to}").lay_out(order)
    beside = Path(layout.model).parent
    taken = {os.path.relpath(file, beside) for file in (*layout.files, layout.model)}
    parts = model_parts(loaded, frozenset(taken))
    with staged_folder(place) as folder:
        write_files(folder, layout.files)
        copy_model(loaded, parts, folder / layout.model, progress)
        files = sorted(path for path in folder.rglob("*") if path.is_file())
        names = tuple(path.relative_to(folder).as_posix() for path in files)
        size = sum(path.stat().st_size for path in files)
    return Bundle(
        target=to,
        directory=str(directory),
        name=order.name,
        version=order.version,
        max_batch=order.max_batch,
        signature=order.signature,
        files=names,
        bytes=size,
        sample_works=order.sample.works,
    )


def _order(model: Model, name: str, version: int, max_batch: int) -> Order:
    """Read the model once, as a server will, and refuse what no server can hold."""
    import onnxruntime as ort

    if version < 1 or max_batch < 0:
        raise WriteError(
            f"version {version} or maximum batch {max_batch} is out of range",
            hint="a version is 1 or more, a batch 0 or more",
        )
    session = open_session(model.proto, model.folder, Run(), cpu_only=True, name=model.name)
    signature = read_signature(model, session)
    if max_batch:
        check_batch(model.name, signature)
        check_follows_batch(model.name, session, signature)
    return Order(
        name=name,
        version=version,
        max_batch=max_batch,
        source=model.name,
        sha256=model.sha256,
        signature=signature,
        sample=find_sample(session, signature),
        onnxruntime=".".join(ort.__version__.split(".")[:2]),
    )


def _name(asked: str | None, model: Model) -> str:
    """A name for folders, addresses and shells: letters, digits, and ._- within."""
    if asked is not None:
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}", asked):
            raise WriteError(
                f"'{asked}' cannot name a served model",
                hint="letters, digits, '.', '_' and '-', at most 128, a letter or digit first",
            )
        return asked
    stem = model.path.stem if model.path else model.name
    plain = re.sub(r"[^A-Za-z0-9._-]+", "_", stem).lstrip("._-")
    return plain[:128] or "model"


__all__ = ["TARGETS", "Bundle", "Signature", "Tensor", "bundle"]
