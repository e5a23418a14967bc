"""How models are run: the options, opening an onnxruntime session, and running one step."""

from __future__ import annotations

import contextlib
import ctypes
import io
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import ml_dtypes
import numpy as np
import onnx

from onnxrank.errors import DataError, ModelError
from onnxrank.graph.precision import has_bfloat16, widened

if TYPE_CHECKING:
    import onnxruntime as ort

PROVIDERS = ("auto", "cpu", "cuda")
_CUDA = "CUDAExecutionProvider"
_CPU = "CPUExecutionProvider"


@dataclass(frozen=True)
class Run:
    """How to run a model.

    Attributes
    ----------
    provider : str
        ``auto`` (CUDA where a device works, else CPU), ``cpu`` or ``cuda`` (an error without one).
    threads : int
        Threads of one operator; 0 lets onnxruntime choose.
    memory : int
        Bytes that moments and one wave of activations may take together; 0 for no limit.
    batch_size : int
        Samples a step, where the model leaves its batch dimension open.
    samples : int or None
        Stop after this many samples.
    seed : int
        Seed of every random choice.
    rows : float or None
        Rows a dimension to aim at for each view (rows are drawn at random beyond it); None keeps
        every row.
    mask : str or None
        Name of the model input whose zeros mark padding.
    """

    provider: str = "auto"
    threads: int = 0
    memory: int = 0
    batch_size: int = 32
    samples: int | None = None
    seed: int = 0
    rows: float | None = None
    mask: str | None = None


@lru_cache(maxsize=1)
def cuda_available() -> bool:
    """Whether the driver sees a CUDA device: onnxruntime only tells what it was built for."""
    library = "nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1"
    try:
        driver = ctypes.CDLL(library)
        count = ctypes.c_int(0)
        return (
            driver.cuInit(0) == 0
            and driver.cuDeviceGetCount(ctypes.byref(count)) == 0
            and count.value > 0
        )
    except (OSError, AttributeError):
        return False


def open_session(
    proto: onnx.ModelProto,
    folder: Path | None,
    run: Run,
    *,
    cpu_only: bool = False,
    name: str = "model",
    lean: bool = False,
) -> ort.InferenceSession:
    """Load a model into onnxruntime.

    Parameters
    ----------
    proto : ModelProto
        The model; external tensors stay external.
    folder : Path or None
        Folder that external data are relative to.
    run : Run
        Provider and threads.
    cpu_only : bool
        Ignore the provider of `run`.
    name : str
        What to call the model in an error.
    lean : bool
        For one of many sessions that take turns: its idle threads do not wait busily, and it
        keeps no memory between steps.

    Raises
    ------
    ModelError
        If onnxruntime rejects the model, or a CUDA device was asked for and none works.
    """
    import onnxruntime as ort

    ort.set_default_logger_severity(4)
    wanted = "cpu" if cpu_only else provider_for(run)
    options, providers = _options(folder, run.threads, lean), _providers(wanted)
    try:
        session = ort.InferenceSession(proto.SerializeToString(), options, providers=providers)
    except Exception as error:
        if has_bfloat16(proto):
            session = _widened_session(proto, folder, options, providers, name)
        elif _FUSED_AWAY in str(error):
            session = _plain_session(proto, options, providers, name)
        else:
            raise _load_error(error, name) from error
    if run.provider == "cuda" and not cpu_only and provider_of(session) != "cuda":
        raise ModelError(
            "onnxruntime could not start its CUDA provider",
            hint="install the CUDA and cuDNN libraries it needs, or use --provider cpu",
        )
    return session


def _widened_session(
    proto: onnx.ModelProto,
    folder: Path | None,
    options: ort.SessionOptions,
    providers: list[Any],
    name: str,
) -> ort.InferenceSession:
    """Load a bfloat16 model as float32: many of its kernels are missing on the CPU."""
    import onnxruntime as ort

    wide = widened(proto, folder, name)
    try:
        return ort.InferenceSession(wide.SerializeToString(), options, providers=providers)
    except Exception as error:
        raise _load_error(error, name) from error


def _plain_session(
    proto: onnx.ModelProto, options: ort.SessionOptions, providers: list[Any], name: str
) -> ort.InferenceSession:
    """Load a model as it is: an optimization lost a tensor that is an output as well."""
    import onnxruntime as ort

    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    try:
        return ort.InferenceSession(proto.SerializeToString(), options, providers=providers)
    except Exception as error:
        raise _load_error(error, name) from error


def provider_for(run: Run) -> str:
    """``cuda`` or ``cpu``: what is wanted and there.

    Raises
    ------
    ModelError
        If ``cuda`` is asked for, and no device works.
    """
    import onnxruntime as ort

    asked = run.provider
    if asked not in PROVIDERS:
        raise ModelError(f"provider {asked!r} is unknown", hint=f"one of {', '.join(PROVIDERS)}")
    works = asked != "cpu" and _CUDA in ort.get_available_providers() and cuda_available()
    if asked == "cuda" and not works:
        raise ModelError("no CUDA device works here", hint="use --provider cpu or auto")
    return "cuda" if works else "cpu"


def provider_of(session: ort.InferenceSession) -> str:
    """``cuda`` or ``cpu``: what a session really runs on."""
    return "cuda" if _CUDA in session.get_providers() else "cpu"


def execute(
    session: ort.InferenceSession,
    names: Sequence[str],
    feeds: Mapping[str, Any],
    *,
    where: str,
) -> list[Any]:
    """Run one step and return the named outputs.

    Arrays are read-only views of onnxruntime's own memory where that is possible: they cost no
    copy, and the memory goes back once they are dropped.

    Raises
    ------
    DataError, ModelError
        If the step fails, with `where` (the file and batch).
    """
    try:
        if any(_is_opaque(value) for value in feeds.values()) or not _all_tensors(session, names):
            return list(session.run(list(names), dict(feeds)))
        fitting = _fitting(session, feeds)
        values = {name: _to_ort(value) for name, value in fitting.items()}
        found = [_from_ort(out) for out in session.run_with_ort_values(list(names), values)]
        # An input that is an output too is the caller's own memory, but not where it was copied.
        return found if fitting is feeds else [np.array(value) for value in found]
    except Exception as error:
        raise _run_error(error, where) from error


def _providers(wanted: str) -> list[Any]:
    if wanted == "cpu":
        return [_CPU]
    import onnxruntime as ort

    # It prints on stdout, where machine-readable output goes, when a library is missing.
    with contextlib.suppress(Exception), contextlib.redirect_stdout(io.StringIO()):
        ort.preload_dlls()
    return [(_CUDA, {"use_tf32": "0"}), _CPU]


def _options(folder: Path | None, threads: int, lean: bool) -> ort.SessionOptions:
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = threads
    # A pattern is kept for every combination of input shapes ever seen: memory that grows.
    options.enable_mem_pattern = False
    if lean:
        options.enable_cpu_mem_arena = False
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    if folder is not None:
        options.add_session_config_entry(
            "session.model_external_initializers_file_folder_path", str(folder)
        )
    return options


def _first_line(error: Exception) -> str:
    """Return onnxruntime's message without its prefix, on one line."""
    lines = str(error).strip().splitlines()
    text = lines[0] if lines else type(error).__name__
    text = re.sub(r"^\[ONNXRuntimeError\] : \d+ : \w+ : ", "", text)
    return re.sub(r"^/\S+:\d+ .*?\bwas false\. ", "", text).strip()


_FUSED_AWAY = "Failed to find node output"

_LOAD_HINTS = {
    "External data": "external data files must lie beside the model",
    "No Op registered": "a custom operator, or a newer opset than this onnxruntime knows",
    "Could not find an implementation": "this provider has no kernel for that type",
    "2GB": "save the model with external data",
    "Unsupported model IR version": "a newer onnxruntime may load it",
}


def _load_error(error: Exception, name: str) -> ModelError:
    text = _first_line(error)
    hint = next((hint for key, hint in _LOAD_HINTS.items() if key in text), "")
    return ModelError(f"onnxruntime cannot load it: {text}", where=name, hint=hint)


def _run_error(error: Exception, where: str) -> DataError | ModelError:
    text = _first_line(error)
    if type(error).__name__ in ("InvalidArgument", "ValueError"):
        return DataError(f"onnxruntime refuses the inputs: {text}", where=where)
    return ModelError(f"onnxruntime cannot run the model: {text}", where=where)


def _fitting(session: ort.InferenceSession, feeds: Mapping[str, Any]) -> Mapping[str, Any]:
    """Feeds in C order, bfloat16 as float32 where the session was widened."""
    taken = (*session.get_inputs(), *session.get_overridable_initializers())
    wide = {i.name for i in taken if i.type == "tensor(float)"}
    fitting = {}
    for name, value in feeds.items():
        widened = name in wide and value.dtype == ml_dtypes.bfloat16
        fitting[name] = value.astype(np.float32) if widened else value
        if not value.flags.c_contiguous:  # a scalar is; ascontiguousarray would give it an axis
            fitting[name] = np.ascontiguousarray(fitting[name])
    return feeds if all(fitting[name] is feeds[name] for name in feeds) else fitting


def _is_opaque(value: Any) -> bool:
    """Whether a feed is no numeric array: strings, sequences, maps."""
    return not isinstance(value, np.ndarray) or value.dtype.kind in "OSU"


def _all_tensors(session: ort.InferenceSession, names: Sequence[str]) -> bool:
    wanted = set(names)
    return all(o.type.startswith("tensor(") for o in session.get_outputs() if o.name in wanted)


def _to_ort(value: np.ndarray[Any, Any]) -> ort.OrtValue:
    import onnxruntime as ort

    if value.dtype == ml_dtypes.bfloat16:
        raw = value.view(np.uint16)
        return ort.OrtValue.ortvalue_from_numpy_with_onnx_type(raw, onnx.TensorProto.BFLOAT16)
    return ort.OrtValue.ortvalue_from_numpy(value)


def _from_ort(value: ort.OrtValue) -> Any:
    if value.data_type() == "tensor(string)" or value.device_name().lower() != "cpu":
        return value.numpy()
    if value.element_type() == onnx.TensorProto.BFLOAT16:
        return _bfloat16(value)
    if not hasattr(value, "__dlpack__"):  # an older onnxruntime: at the price of a copy
        return value.numpy()
    array = np.from_dlpack(value)
    return array.view(np.bool_) if value.element_type() == onnx.TensorProto.BOOL else array


def _bfloat16(value: ort.OrtValue) -> np.ndarray[Any, Any]:
    """Copy a tensor that numpy has no name for."""
    shape = tuple(value.shape())
    size = int(np.prod(shape))
    if not size:
        return np.zeros(shape, ml_dtypes.bfloat16)
    raw = np.ctypeslib.as_array((ctypes.c_uint16 * size).from_address(value.data_ptr()))
    copy: np.ndarray[Any, Any] = raw.reshape(shape).view(ml_dtypes.bfloat16).copy()
    return copy
