"""Bundles on disk: what is in them, that they are whole, and what is refused."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Any

import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper

from onnxrank.errors import ModelError, OnnxRankError, WriteError
from onnxrank.serving import TARGETS, Bundle, bundle
from onnxrank.serving.kserve import service_name

from .models import (
    KINDS,
    fixed,
    half,
    model,
    saved,
    scalars,
    strings,
    text,
    value,
    vectors,
    with_default,
    with_external,
)

OWN = {
    "triton": {"README.md", "request.json", "m/config.pbtxt"},
    "kserve": {"README.md", "request.json", "m/config.pbtxt", "inference-service.yaml"},
    "mlserver": {
        "README.md",
        "request.json",
        "model-settings.json",
        "settings.json",
        "onnx_runtime.py",
        "requirements.txt",
    },
    "mlflow": {
        "README.md",
        "request.json",
        "MLmodel",
        "requirements.txt",
        "conda.yaml",
        "python_env.yaml",
    },
}


def home(target: str) -> str:
    """The folder of model.onnx in a bundle."""
    return "m/1/" if target in ("triton", "kserve") else ""


def config_of(proto: onnx.ModelProto, tmp_path: Path, max_batch: int | None = None) -> str:
    bundle(proto, "triton", tmp_path / "out", name="m", max_batch=max_batch)
    return (tmp_path / "out/m/config.pbtxt").read_text()


def digests(folder: Path) -> dict[str, str]:
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in folder.rglob("*")
        if path.is_file()
    }


@pytest.mark.parametrize("target", TARGETS)
def test_layout(target: str, tmp_path: Path) -> None:
    source = saved(text)(tmp_path)
    made = bundle(source, target, tmp_path / "out", name="m")
    found = {str(p.relative_to(tmp_path / "out")) for p in (tmp_path / "out").rglob("*")}
    assert {name for name in found if (tmp_path / "out" / name).is_file()} == set(made.files)
    assert set(made.files) == OWN[target] | {f"{home(target)}model.onnx"}
    copy = tmp_path / "out" / f"{home(target)}model.onnx"
    assert copy.read_bytes() == source.read_bytes()
    assert made.bytes == sum((tmp_path / "out" / name).stat().st_size for name in made.files)
    assert Bundle.from_dict(made.to_dict()) == made


@pytest.mark.parametrize("target", TARGETS)
def test_external_data_keep_their_paths(target: str, tmp_path: Path) -> None:
    (tmp_path / "source").mkdir()
    source = with_external(tmp_path / "source")
    made = bundle(source, target, tmp_path / "out", name="m")
    beside = {f"{home(target)}{name}" for name in ("weights/table.bin", "w.data", "model.onnx")}
    assert set(made.files) == OWN[target] | beside
    ort.InferenceSession(str(tmp_path / "out" / f"{home(target)}model.onnx"))


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("kind", KINDS)
def test_the_same_model_gives_the_same_bytes(kind: str, target: str, tmp_path: Path) -> None:
    source = KINDS[kind].write(tmp_path)
    for out in ("a", "b"):
        bundle(source, target, tmp_path / out, name="m")
    assert digests(tmp_path / "a") == digests(tmp_path / "b")


@pytest.mark.parametrize("target", TARGETS)
def test_the_readme_holds_three_commands(target: str, tmp_path: Path) -> None:
    bundle(text(), target, tmp_path / "out", name="m")
    lines = (tmp_path / "out/README.md").read_text().splitlines()
    assert [line for line in lines if line in ("Start:", "Ask:", "Stop:")] == [
        "Start:",
        "Ask:",
        "Stop:",
    ]
    assert lines.count("```sh") == 3


def test_name_and_version(tmp_path: Path) -> None:
    (tmp_path / "my model+1.onnx").write_bytes(text().SerializeToString())
    made = bundle(tmp_path / "my model+1.onnx", "triton", tmp_path / "a", version=7)
    assert made.name == "my_model_1"
    assert (tmp_path / "a/my_model_1/7/model.onnx").is_file()
    assert "versions: [ 7 ]" in (tmp_path / "a/my_model_1/config.pbtxt").read_text()
    bundle(tmp_path / "my model+1.onnx", "mlserver", tmp_path / "b", name="x.y", version=7)
    settings = json.loads((tmp_path / "b/model-settings.json").read_text())
    assert (settings["name"], settings["parameters"]["version"]) == ("x.y", "7")


def test_service_names_are_those_of_kubernetes() -> None:
    assert service_name("My_Model.v2") == "my-model-v2"
    assert service_name("3d") == "model-3d"
    assert service_name("_" * 80) == "model"
    assert len(service_name("a" * 80)) == 63


# --- Triton's configuration -------------------------------------------------------------------


def dims_of(config: str) -> dict[str, list[int]]:
    """Dims by tensor name, as written."""
    found = {}
    for block in config.split("put {")[1:]:
        name = block.split('name: "')[1].split('"')[0]
        dims = block.split("dims: [")[1].split("]")[0]
        found[name] = [int(size) for size in dims.split(",")]
    return found


@pytest.mark.parametrize("kind", KINDS)
def test_triton_dims_equal_those_of_onnxruntime(kind: str, tmp_path: Path) -> None:
    """The rule of Triton's onnxruntime backend, for outputs exact; scalars have dims 1."""
    source = KINDS[kind].write(tmp_path)
    bundle(source, "triton", tmp_path / "out", name="m")
    dims = dims_of((tmp_path / "out/m/config.pbtxt").read_text())
    session = ort.InferenceSession(str(source))
    for node in (*session.get_inputs(), *session.get_outputs()):
        shape = [size if isinstance(size, int) else -1 for size in node.shape]
        assert dims[node.name] == (shape or [1])


def test_triton_takes_shapes_that_the_graph_leaves_out(tmp_path: Path) -> None:
    assert dims_of(config_of(text(), tmp_path))["embedding"] == [-1, 48]


def test_a_batched_model_leaves_the_batch_out(tmp_path: Path) -> None:
    config = config_of(text(), tmp_path, max_batch=16)
    assert "max_batch_size: 16" in config
    assert "dynamic_batching { max_queue_delay_microseconds: 100 }" in config
    assert dims_of(config) == {"input_ids": [-1], "attention_mask": [-1], "embedding": [48]}


def test_batched_vectors_are_rows_of_one(tmp_path: Path) -> None:
    config = config_of(vectors(), tmp_path, max_batch=4)
    assert config.count("dims: [ 1 ]\n  reshape { shape: [ ] }") == 2
    request = json.loads((tmp_path / "out/request.json").read_text())
    assert request["inputs"][0]["shape"] == [1, 1]


def test_scalars_are_asked_with_one_dimension(tmp_path: Path) -> None:
    config = config_of(scalars(), tmp_path)
    assert "max_batch_size: 0" in config
    assert "reshape" not in config
    request = json.loads((tmp_path / "out/request.json").read_text())
    assert {entry["name"]: entry["shape"] for entry in request["inputs"]} == {
        "x": [1, 4],
        "scale": [1],
    }


def test_half_precision_is_asked_in_binary(tmp_path: Path) -> None:
    assert "TYPE_FP16" in config_of(half(), tmp_path)
    body = (tmp_path / "out/request.bin").read_bytes()
    readme = (tmp_path / "out/README.md").read_text()
    length = int(readme.split("Inference-Header-Content-Length: ")[1].split("'")[0])
    header = json.loads(body[:length])
    assert header["inputs"][0]["parameters"]["binary_data_size"] == len(body) - length == 16


def test_strings_are_type_string(tmp_path: Path) -> None:
    assert config_of(strings(), tmp_path).count("TYPE_STRING") == 4


def test_names_are_escaped(tmp_path: Path) -> None:
    name = 'a"b\\c\nd é'
    proto = model(
        [helper.make_node("Relu", [name], ["y"])],
        [value(name, TensorProto.FLOAT, ["n", 2])],
        [value("y", TensorProto.FLOAT, ["n", 2])],
    )
    config = config_of(proto, tmp_path)
    assert r'name: "a\042b\134c\012d \303\251"' in config
    parsed = parse(config)
    assert parsed.input[0].name == name


def test_bfloat16_is_for_triton_alone(tmp_path: Path) -> None:
    proto = model(
        [helper.make_node("Cast", ["x"], ["y"], to=TensorProto.BFLOAT16)],
        [value("x", TensorProto.FLOAT, ["n", 2])],
        [value("y", TensorProto.BFLOAT16, ["n", 2])],
    )
    assert "TYPE_BF16" in config_of(proto, tmp_path)
    for target in ("mlserver", "mlflow"):
        with pytest.raises(ModelError, match="output 'y': .* cannot hold BF16"):
            bundle(proto, target, tmp_path / target)


def parse(config: str) -> Any:
    """Read a configuration by Triton's own schema."""
    schema = pytest.importorskip(
        "tritonclient.grpc.model_config_pb2", reason="tritonclient[grpc] is not installed"
    )
    from google.protobuf import text_format

    return text_format.Parse(config, schema.ModelConfig())


@pytest.mark.parametrize("max_batch", [None, 8])
def test_triton_schema_reads_the_configuration(max_batch: int | None, tmp_path: Path) -> None:
    parsed = parse(config_of(text(), tmp_path, max_batch))
    assert (parsed.name, parsed.backend) == ("m", "onnxruntime")
    assert parsed.max_batch_size == (max_batch or 0)
    assert [i.name for i in parsed.input] == ["input_ids", "attention_mask"]
    assert list(parsed.output[0].dims) == ([48] if max_batch else [-1, 48])


@pytest.mark.parametrize("kind", KINDS)
def test_triton_schema_reads_every_kind(kind: str, tmp_path: Path) -> None:
    bundle(KINDS[kind].write(tmp_path), "triton", tmp_path / "out", name="m")
    parse((tmp_path / "out/m/config.pbtxt").read_text())


# --- Inputs with defaults -----------------------------------------------------------------------


def test_triton_has_optional_inputs(tmp_path: Path) -> None:
    config = config_of(with_default(), tmp_path)
    assert config.count("optional: true") == 1
    request = json.loads((tmp_path / "out/request.json").read_text())
    assert [entry["name"] for entry in request["inputs"]] == ["x"]


def test_optional_inputs_that_do_not_fit(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="input 'bias': MLflow cannot hold an optional"):
        bundle(with_default(), "mlflow", tmp_path / "a")
    with pytest.raises(ModelError, match="input 'bias': an optional input cannot be batched"):
        bundle(with_default(), "triton", tmp_path / "a", max_batch=2)
    assert os.listdir(tmp_path) == []


# --- What is refused ----------------------------------------------------------------------------


def counts_boxes() -> onnx.ModelProto:
    """Its output's first axis is open, and no batch."""
    return model(
        [helper.make_node("NonZero", ["x"], ["t"]), helper.make_node("Transpose", ["t"], ["y"])],
        [value("x", TensorProto.FLOAT, ["n", 3])],
        [value("y", TensorProto.INT64, ["boxes", 2])],
    )


@pytest.mark.parametrize(
    ("proto", "message"),
    [
        (scalars(), "input 'scale': it cannot be batched: a scalar"),
        (fixed(), "input 'image': it cannot be batched: its first axis is fixed to 1"),
        (counts_boxes(), "output 'y': it cannot be batched: 2 samples in give 6 rows out"),
    ],
    ids=["scalar", "fixed", "boxes"],
)
def test_batching_that_the_model_forbids(
    proto: onnx.ModelProto, message: str, tmp_path: Path
) -> None:
    with pytest.raises(ModelError, match=message):
        bundle(proto, "triton", tmp_path / "out", max_batch=4)
    bundle(proto, "triton", tmp_path / "out")


def test_mlserver_batches_only_what_it_can_join(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="'input_ids': MLServer cannot batch it"):
        bundle(text(), "mlserver", tmp_path / "out", max_batch=4)
    bundle(half(), "mlserver", tmp_path / "out", max_batch=4)
    settings = json.loads((tmp_path / "out/model-settings.json").read_text())
    assert settings["max_batch_size"] == 4


def test_mlflow_does_not_batch(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="does not batch"):
        bundle(text(), "mlflow", tmp_path / "out", max_batch=4)


def sequence_output() -> onnx.ModelProto:
    tensor = helper.make_tensor_type_proto(TensorProto.FLOAT, ["n", 2])
    output = helper.make_value_info("parts", helper.make_sequence_type_proto(tensor))
    node = helper.make_node("SequenceConstruct", ["x"], ["parts"])
    return model([node], [value("x", TensorProto.FLOAT, ["n", 2])], [output])


def optional_input() -> onnx.ModelProto:
    tensor = helper.make_tensor_type_proto(TensorProto.FLOAT, [2])
    entry = helper.make_value_info("maybe", helper.make_optional_type_proto(tensor))
    node = helper.make_node("OptionalHasElement", ["maybe"], ["has"])
    return model([node], [entry], [value("has", TensorProto.BOOL, [])], opset=18)


def unknown_rank() -> onnx.ModelProto:
    nodes = [helper.make_node("Reshape", ["x", "shape"], ["y"])]
    inputs = [value("x", TensorProto.FLOAT, ["n"]), value("shape", TensorProto.INT64, ["k"])]
    return model(nodes, inputs, [value("y", TensorProto.FLOAT, None)])


def float8() -> onnx.ModelProto:
    node = helper.make_node("Cast", ["x"], ["y"], to=TensorProto.FLOAT8E4M3FN)
    proto = model(
        [node],
        [value("x", TensorProto.FLOAT, ["n"])],
        [value("y", TensorProto.FLOAT8E4M3FN, ["n"])],
        opset=19,
    )
    return proto


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize(
    ("make", "message"),
    [
        (sequence_output, "output 'parts': a sequence .* cannot be served"),
        (optional_input, "input 'maybe': an optional value .* cannot be served"),
        (unknown_rank, "output 'y': not even its number of dimensions is known"),
        (float8, "output 'y': no server carries tensors of type float8e4m3fn"),
    ],
)
def test_what_no_server_holds(target: str, make: Any, message: str, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=message) as caught:
        bundle(make(), target, tmp_path / "out")
    assert caught.value.hint
    assert os.listdir(tmp_path) == []


def test_triton_refuses_zero_dims(tmp_path: Path) -> None:
    proto = model(
        [helper.make_node("Relu", ["x"], ["y"])],
        [value("x", TensorProto.FLOAT, ["n", 0])],
        [value("y", TensorProto.FLOAT, ["n", 0])],
    )
    with pytest.raises(ModelError, match="input 'x': Triton cannot hold a dimension of size 0"):
        bundle(proto, "triton", tmp_path / "out")


@pytest.mark.parametrize("name", ["", "a/b", "..", "-x", "a b", "é", "a\n", "x" * 129])
def test_names_that_are_no_names(name: str, tmp_path: Path) -> None:
    with pytest.raises(WriteError, match="cannot name a served model"):
        bundle(text(), "triton", tmp_path / "out", name=name)


@pytest.mark.parametrize("options", [{"version": 0}, {"max_batch": -1}])
def test_numbers_out_of_range(options: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(WriteError, match="out of range"):
        bundle(text(), "triton", tmp_path / "out", **options)


def test_unknown_targets_list_the_known(tmp_path: Path) -> None:
    with pytest.raises(WriteError, match="triton, kserve, mlserver, mlflow"):
        bundle(text(), "torchserve", tmp_path / "out")


# --- The folder ---------------------------------------------------------------------------------


def test_a_folder_with_anything_in_it_is_refused(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    bundle(text(), "mlflow", tmp_path / "out")
    before = digests(tmp_path)
    with pytest.raises(WriteError, match="not empty"):
        bundle(text(), "mlflow", tmp_path / "out")
    assert digests(tmp_path) == before
    (tmp_path / "file").touch()
    with pytest.raises(WriteError, match="no folder"):
        bundle(text(), "mlflow", tmp_path / "file")
    with pytest.raises(WriteError, match="does not exist"):
        bundle(text(), "mlflow", tmp_path / "no/out")


def test_a_failure_leaves_nothing(tmp_path: Path) -> None:
    def stop(done: int, total: int | None, what: str) -> None:
        raise KeyboardInterrupt

    (tmp_path / "source").mkdir()
    source = with_external(tmp_path / "source")
    with pytest.raises(KeyboardInterrupt):
        bundle(source, "triton", tmp_path / "out", progress=stop)
    assert os.listdir(tmp_path) == ["source"]


def test_a_full_disk_is_one_clear_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(handle: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(WriteError, match="No space left on device"):
        bundle(text(), "triton", tmp_path / "out")
    assert os.listdir(tmp_path) == []


def test_a_folder_that_others_can_read(tmp_path: Path) -> None:
    bundle(text(), "triton", tmp_path / "out")
    (tmp_path / "plain").mkdir()
    assert (tmp_path / "out").stat().st_mode == (tmp_path / "plain").stat().st_mode


def external_named(folder: Path, location: str) -> Path:
    folder.mkdir(parents=True)
    path = with_external(folder)
    proto = onnx.load(str(path), load_external_data=False)
    for tensor in proto.graph.initializer:
        for entry in tensor.external_data:
            if entry.value == "w.data":
                entry.value = location
    (folder / location).parent.mkdir(exist_ok=True)
    (folder / "w.data").rename(folder / location)
    path.write_bytes(proto.SerializeToString())
    return path


def test_external_data_that_would_hide_a_file_of_the_bundle(tmp_path: Path) -> None:
    source = external_named(tmp_path / "source", "MLmodel")
    with pytest.raises(WriteError, match="tensor 'w': the bundle has a file 'MLmodel'"):
        bundle(source, "mlflow", tmp_path / "out")
    bundle(source, "triton", tmp_path / "out")


def test_external_data_that_climb(tmp_path: Path) -> None:
    source = external_named(tmp_path / "source", "../source/other.data")
    with pytest.raises(OnnxRankError, match="tensor 'w': external data"):
        bundle(source, "triton", tmp_path / "out")
    assert not (tmp_path / "out").exists()
