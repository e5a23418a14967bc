from dataclasses import replace
from pathlib import Path

import ml_dtypes
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from onnxrank.errors import DataError, ModelError
from onnxrank.runtime import session as sessions
from onnxrank.runtime.session import Run, cuda_available, execute, open_session, provider_of

from .cases import identity, info, mlp, model

CPU = Run(provider="cpu", threads=1)


def test_cuda_is_a_plain_answer():
    assert cuda_available() in (True, False)


def test_external_data_are_found_beside_the_model(tmp_path, monkeypatch):
    onnx.save(
        mlp(),
        tmp_path / "m.onnx",
        save_as_external_data=True,
        location="m.data",
        size_threshold=0,
    )
    proto = onnx.load(tmp_path / "m.onnx", load_external_data=False)
    monkeypatch.chdir("/")
    opened = open_session(proto, tmp_path, CPU)
    x = np.ones((2, 8), np.float32)
    plain = execute(open_session(mlp(), None, CPU), ["y"], {"x": x}, where="")
    assert (execute(opened, ["y"], {"x": x}, where="")[0] == plain[0]).all()
    (tmp_path / "m.data").unlink()
    with pytest.raises(ModelError, match="m: onnxruntime cannot load it: .*must lie beside"):
        open_session(proto, tmp_path, CPU, name="m")


def test_what_onnxruntime_rejects_is_one_line(capfd):
    proto = mlp()
    proto.graph.node[0].op_type = "Nothing"
    with pytest.raises(ModelError) as caught:
        open_session(proto, None, CPU, name="m.onnx")
    text = str(caught.value)
    assert text.startswith("m.onnx: onnxruntime cannot load it: ") and "Nothing" in text
    assert "\n" not in text and "[ONNXRuntimeError]" not in text and "custom operator" in text
    assert capfd.readouterr() == ("", "")


def test_providers(monkeypatch):
    assert provider_of(open_session(mlp(), None, CPU)) == "cpu"
    with pytest.raises(ModelError, match="provider 'tpu' is unknown .one of auto, cpu, cuda"):
        open_session(mlp(), None, replace(CPU, provider="tpu"))
    monkeypatch.setattr(sessions, "cuda_available", lambda: False)
    with pytest.raises(ModelError, match="no CUDA device works here .use --provider cpu"):
        open_session(mlp(), None, replace(CPU, provider="cuda"))
    assert provider_of(open_session(mlp(), None, Run(provider="auto"))) == "cpu"
    cuda = replace(CPU, provider="cuda")
    assert provider_of(open_session(mlp(), None, cuda, cpu_only=True)) == "cpu"


def test_a_device_that_fails_to_start_is_told(monkeypatch, capfd):
    if cuda_available():
        pytest.skip("there is a device")
    import onnxruntime

    if "CUDAExecutionProvider" not in onnxruntime.get_available_providers():
        pytest.skip("this onnxruntime knows no CUDA")
    monkeypatch.setattr(sessions, "cuda_available", lambda: True)
    with pytest.raises(ModelError, match="could not start its CUDA provider"):
        open_session(mlp(), None, replace(CPU, provider="cuda"))
    assert provider_of(open_session(mlp(), None, Run(provider="auto"))) == "cpu"
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(
    "kind", ["FLOAT", "DOUBLE", "FLOAT16", "BFLOAT16", "INT64", "UINT8", "BOOL"]
)
@pytest.mark.parametrize("shape", [(3, 4), (0, 4), ()])
def test_every_type_passes_unchanged(kind, shape):
    dtype = getattr(TensorProto, kind)
    proto = identity(("x", dtype, [None] * len(shape)))
    value = np.array(np.arange(np.prod(shape, dtype=int)).reshape(shape) % 2).astype(
        helper.tensor_dtype_to_np_dtype(dtype)
    )
    (out,) = execute(open_session(proto, None, CPU), ["x_out"], {"x": value}, where="")
    assert out.dtype == value.dtype and out.shape == shape
    np.testing.assert_array_equal(out.astype(np.float32), value.astype(np.float32))


def test_text_and_views_that_are_not_contiguous():
    proto = identity(("t", TensorProto.STRING, ["n"]), ("x", TensorProto.FLOAT, ["n", "m"]))
    feeds = {"t": np.array(["a", "bc"]), "x": np.arange(6, dtype=np.float32).reshape(3, 2).T}
    text, x = execute(open_session(proto, None, CPU), ["t_out", "x_out"], feeds, where="")
    assert text.tolist() == ["a", "bc"]
    np.testing.assert_array_equal(x, feeds["x"])
    (x,) = execute(
        open_session(identity(("x", TensorProto.FLOAT, ["n", "m"])), None, CPU),
        ["x_out"],
        {"x": feeds["x"]},
        where="",
    )
    np.testing.assert_array_equal(x, feeds["x"])


def test_an_input_that_is_an_output_outlives_its_copy_in_c_order():
    proto = identity(("x", TensorProto.FLOAT, ["n", "m"]))
    proto.graph.output.add(name="x")
    opened = open_session(proto, None, CPU)
    x = np.arange(1 << 16, dtype=np.float32).reshape(256, 256).T
    found = [execute(opened, ["x"], {"x": x + k}, where="")[0] for k in range(4)]
    for k, value in enumerate(found):
        np.testing.assert_array_equal(value, x + k)


def test_outputs_outlive_their_session():
    opened = open_session(mlp(), None, CPU)
    x = np.ones((500, 8), np.float32)
    (y,) = execute(opened, ["y"], {"x": x}, where="")
    before = y.copy()
    del opened
    execute(open_session(mlp(1), None, CPU), ["y"], {"x": x}, where="")
    np.testing.assert_array_equal(y, before)


def test_bad_inputs_name_the_batch():
    opened = open_session(mlp(), None, CPU)
    with pytest.raises(DataError, match="d.npz, batch 3: onnxruntime refuses the inputs"):
        execute(opened, ["y"], {"x": np.ones((2, 9), np.float32)}, where="d.npz, batch 3")
    with pytest.raises(DataError, match="refuses the inputs"):
        execute(opened, ["y"], {}, where="")


def test_kernels_that_are_missing_for_bfloat16_run_in_float32():
    bf16 = TensorProto.BFLOAT16
    proto = model(
        [helper.make_node("MatMul", ["x", "w"], ["y"], "mm")],
        [info("x", ["n", 4], bf16)],
        [info("y", ["n", 4], bf16)],
        [helper.make_tensor("w", bf16, [4, 4], np.eye(4).reshape(-1).tolist())],
    )
    opened = open_session(proto, None, CPU)
    x = np.ones((2, 4), ml_dtypes.bfloat16)
    assert (execute(opened, ["y"], {"x": x}, where="")[0].astype(np.float32) == 1).all()


def test_folder_may_be_relative(tmp_path, monkeypatch):
    onnx.save(
        mlp(), tmp_path / "m.onnx", save_as_external_data=True, location="d", size_threshold=0
    )
    monkeypatch.chdir(tmp_path)
    proto = onnx.load("m.onnx", load_external_data=False)
    assert open_session(proto, Path("."), CPU)
