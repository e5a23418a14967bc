"""Fine-tuning end to end: it learns, changes nothing but factors, and never makes worse."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from click.testing import CliRunner, Result
from onnx import numpy_helper

pytest.importorskip("torch", reason="torch is not installed: pip install '.[finetune]'")

from onnxrank.cli import main  # noqa: E402
from onnxrank.differentiable.factors import factors  # noqa: E402
from onnxrank.differentiable.records import Recovery  # noqa: E402
from onnxrank.finetune import finetune  # noqa: E402
from onnxrank.graph.model import load  # noqa: E402
from onnxrank.runtime.session import Run  # noqa: E402

from ..stages.networks import NETWORKS, data  # noqa: E402

RUN = Run(provider="cpu", threads=1)


def run(*words: object) -> Result:
    return CliRunner().invoke(main, [str(word) for word in words])


def made(folder: Path, name: str, share: float = 0.4, **more: object) -> tuple[Path, Path, Path]:
    """A network, what compress makes of it without compensation, and data."""
    network, shape = NETWORKS[name]
    return compressed(folder, network(), data(shape, n=512, **more), share)


def compressed(folder: Path, proto: onnx.ModelProto, samples, share: float, *extra: str):
    paths = tuple(folder / name for name in ("model.onnx", "small.onnx", "data.npz"))
    onnx.save(proto, paths[0])
    np.savez(paths[2], **samples)
    words = ["compress", paths[0], paths[1], "--data", paths[2], "--params", share]
    result = run(*words, "--no-compensate", "--allow-unstable", "--align", 1, *extra)
    assert result.exit_code == 0, result.output
    return paths


def outputs(path: Path, feeds: dict) -> np.ndarray:
    return ort.InferenceSession(str(path)).run(None, feeds)[0]


@pytest.mark.parametrize(("name", "noise"), [("mlp", 0.05), ("encoder", 0.05), ("convnet", 0.3)])
def test_it_learns_from_the_original(name: str, noise: float, tmp_path: Path) -> None:
    model, small, samples = made(tmp_path, name, noise=noise)
    better = tmp_path / "better.onnx"
    found = finetune(model, small, better, samples, steps=200, rate=0.003, run=RUN)
    assert found.chosen and found.settings["loss"] == "classes"
    losses = {point.step: point.loss for point in found.checkpoints}
    assert losses[found.chosen] < 0.8 * losses[0]
    assert found.before is not None and found.after is not None
    assert found.after.top1_agreement >= found.before.top1_agreement


def test_nothing_changes_but_the_factors(tmp_path: Path) -> None:
    model, small, samples = made(tmp_path, "mlp")
    better = tmp_path / "better.onnx"
    assert finetune(model, small, better, samples, steps=40, rate=0.003, run=RUN).chosen
    before, after = onnx.load(small), onnx.load(better)
    trained = factors(load(small))
    stored = {tensor.name: tensor for tensor in before.graph.initializer}
    changed = 0
    for tensor in after.graph.initializer:
        if tensor.name in trained:
            changed += tensor.raw_data != stored[tensor.name].raw_data
            assert len(tensor.raw_data) == len(stored[tensor.name].raw_data)
            tensor.raw_data = stored[tensor.name].raw_data
    assert changed == len(trained)
    assert after.SerializeToString(deterministic=True) == small.read_bytes()


def test_the_same_command_gives_the_same_bytes(tmp_path: Path) -> None:
    model, small, samples = made(tmp_path, "mlp")
    places = [tmp_path / "one.onnx", tmp_path / "two.onnx"]
    for place in places:
        assert finetune(model, small, place, samples, steps=20, rate=0.003, run=RUN).chosen
    assert places[0].read_bytes() == places[1].read_bytes()


def test_a_model_that_cannot_get_better_is_not_written(tmp_path: Path) -> None:
    """A layer of which nothing is lost is as good as the original, up to rounding."""
    model, small, samples = made(tmp_path, "mlp", 0.9, noise=0.0, rank=2)
    better, report = tmp_path / "better.onnx", tmp_path / "r.json"
    words = ["finetune", model, small, better, "--data", samples, "--steps", 1, "--rate", 10]
    result = run(*words, "--threads", 1, "--json", report)
    assert result.exit_code == 1, result.output
    assert "No checkpoint" in result.stderr and "Nothing is written" in result.stderr
    assert not better.exists() and not list(tmp_path.glob(".*"))
    found = Recovery.load(report)
    assert found.chosen is None and len(found.checkpoints) == 2


def test_labels_in_place_of_the_original(tmp_path: Path) -> None:
    network, shape = NETWORKS["mlp"]
    samples = data(shape, n=512)
    onnx.save(network(), tmp_path / "first.onnx")
    samples["__label__"] = outputs(tmp_path / "first.onnx", samples).argmax(1)
    model, small, path = compressed(tmp_path, network(), samples, 0.4)
    better = tmp_path / "better.onnx"
    words = [
        "finetune",
        model,
        small,
        better,
        "--data",
        path,
        "--labels",
        "--steps",
        80,
        "--rate",
        0.003,
    ]
    result = run(*words, "--threads", 1, "--json", "-")
    assert result.exit_code == 0, result.output
    found = Recovery.from_dict(json.loads(result.stdout))
    points = {point.step: point for point in found.checkpoints}
    assert found.settings["loss"] == "labels"
    assert points[found.chosen].loss < points[0].loss
    assert points[found.chosen].accuracy >= points[0].accuracy


def test_labels_must_be_there(tmp_path: Path) -> None:
    model, small, samples = made(tmp_path, "mlp")
    result = run("finetune", model, small, tmp_path / "b.onnx", "--data", samples, "--labels")
    assert result.exit_code == 2 and "__label__" in result.stderr


def test_outputs_that_are_no_classes(tmp_path: Path) -> None:
    """Maps of features: the relative squared error falls."""
    network, shape = NETWORKS["encoder"]
    proto = network()
    hidden = next(n for n in proto.graph.node if n.op_type == "ReduceMean").input[0]
    proto.graph.output[0].name = hidden
    proto.graph.output[0].type.tensor_type.ClearField("shape")
    model, small, samples = compressed(tmp_path, proto, data(shape, n=256), 0.4)
    found = finetune(model, small, tmp_path / "b.onnx", samples, steps=200, rate=0.003, run=RUN)
    assert found.settings["loss"] == "outputs" and found.checkpoints[0].agreement is None
    before, after = (c.outputs[hidden].relative_l2 for c in (found.before, found.after))
    assert after < before


def test_half_precision_is_trained_in_single_and_stored_as_half(tmp_path: Path) -> None:
    network, shape = NETWORKS["mlp"]
    proto = network()
    for tensor in proto.graph.initializer:
        value = numpy_helper.to_array(tensor).astype(np.float16)
        tensor.CopyFrom(numpy_helper.from_array(value, tensor.name))
    for info in (*proto.graph.input, *proto.graph.output):
        info.type.tensor_type.elem_type = onnx.TensorProto.FLOAT16
    samples = {"x": data(shape, n=512)["x"].astype(np.float16)}
    model, small, path = compressed(tmp_path, proto, samples, 0.4)
    better = tmp_path / "better.onnx"
    found = finetune(model, small, better, path, steps=60, rate=0.003, run=RUN)
    assert found.chosen
    kinds = {t.data_type for t in onnx.load(better).graph.initializer}
    assert kinds == {t.data_type for t in onnx.load(small).graph.initializer}
    assert found.after.outputs["y"].relative_l2 < found.before.outputs["y"].relative_l2


def test_external_data_stay_external(case, tmp_path: Path) -> None:
    folder = tmp_path / "big"
    folder.mkdir()
    place, small, better = (folder / f"{name}.onnx" for name in ("model", "small", "better"))
    proto = onnx.load(case.model)
    onnx.save(proto, place, save_as_external_data=True, location="w.data", size_threshold=64)
    words = ["--data", case.data, "--params", 0.1, "--no-compensate", "--allow-unstable"]
    assert run("compress", place, small, *words).exit_code == 0
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    assert finetune(place, small, better, case.data, steps=40, rate=0.003, run=RUN).chosen
    assert before.items() <= {path.name: path.read_bytes() for path in folder.iterdir()}.items()
    assert len(list(folder.glob("better.onnx.*.data"))) == 1
    outside = [
        {t.name for t in onnx.load(path, load_external_data=False).graph.initializer
         if t.data_location == onnx.TensorProto.EXTERNAL}
        for path in (small, better)
    ]  # fmt: skip
    assert outside[0] == outside[1] and factors(load(small)).keys() & outside[0]


def test_a_fixed_batch_is_kept(tmp_path: Path) -> None:
    network, shape = NETWORKS["mlp"]
    proto = network()
    for info in (*proto.graph.input, *proto.graph.output):
        info.type.tensor_type.shape.dim[0].dim_value = 4
    model, small, samples = compressed(tmp_path, proto, data(shape, n=256), 0.4)
    found = finetune(model, small, tmp_path / "b.onnx", samples, steps=30, rate=0.003, run=RUN)
    assert found.chosen and found.data.samples + 32 <= 256


def test_what_no_gradient_goes_through_is_named(tmp_path: Path) -> None:
    network, shape = NETWORKS["mlp"]
    proto = network()
    head = proto.graph.node[-1]
    proto.graph.node.insert(
        len(proto.graph.node) - 1,
        onnx.helper.make_node("Hardmax", [head.input[0]], ["hard"], name="sharp"),
    )
    proto.graph.node[-1].input[0] = "hard"
    model, small, samples = compressed(tmp_path, proto, data(shape, n=256), 0.6)
    result = run("finetune", model, small, tmp_path / "b.onnx", "--data", samples)
    assert result.exit_code == 2
    assert "Hardmax node 'sharp'" in result.stderr and "no gradient" in result.stderr
    assert not (tmp_path / "b.onnx").exists()


def test_another_function_is_not_trained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from onnxrank.differentiable import operators

    model, small, samples = made(tmp_path, "mlp")
    monkeypatch.setitem(operators.OPERATORS, "Tanh", lambda a, x: x.sigmoid())
    result = run("finetune", model, small, tmp_path / "b.onnx", "--data", samples)
    assert result.exit_code == 2 and "against onnxruntime" in result.stderr


def test_a_model_without_factors_is_refused(tmp_path: Path) -> None:
    model, _, samples = made(tmp_path, "mlp")
    result = run("finetune", model, model, tmp_path / "b.onnx", "--data", samples)
    assert result.exit_code == 2 and "onnxrank compress" in result.stderr


def test_neither_model_is_overwritten(tmp_path: Path) -> None:
    model, small, samples = made(tmp_path, "mlp")
    for place in (model, small):
        before = place.read_bytes()
        result = run("finetune", model, small, place, "--data", samples)
        assert result.exit_code == 2 and place.read_bytes() == before
