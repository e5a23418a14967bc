"""External data: read lazily, from inside the model's folder alone, whole or not at all."""

import os
import shutil

import numpy as np
import onnx
import pytest

from onnxrank.errors import ModelError
from onnxrank.graph import external
from onnxrank.graph.constants import evaluate
from onnxrank.graph.find import find_sites
from onnxrank.graph.model import load

from .build import const, differ, make, node, noise, run, split

K = 32


def model():
    return make(
        [
            node("MatMul", ["x", "a"], ["h"], name="one"),
            node("Constant", [], ["c"], value=const("", noise(K, K, seed=3))),
            node("MatMul", ["h", "c"], ["g"], name="two"),
            node("Gemm", ["g", "b", "bias"], ["y"], name="three", transB=1),
        ],
        {"x": ("n", K)},
        ["y"],
        {"a": noise(K, 2 * K)[:, :K].copy(), "b": noise(8, K), "bias": noise(8)},
    )


def save(folder, how="one", proto=None):
    folder.mkdir(exist_ok=True, parents=True)
    proto = proto or model()
    path = folder / "m.onnx"
    if how == "one":
        onnx.save(
            proto,
            path,
            save_as_external_data=True,
            location="m.data",
            size_threshold=0,
            convert_attribute=True,
        )
    elif how == "many":
        onnx.save(
            proto, path, save_as_external_data=True, all_tensors_to_one_file=False, size_threshold=0
        )
    else:
        for k, t in enumerate(external.tensors(proto)):
            place = folder / f"sub{k % 2}" / "deep"
            place.mkdir(parents=True, exist_ok=True)
            (place / f"w{k}.bin").write_bytes(t.raw_data)
            point(t, f"sub{k % 2}/deep/w{k}.bin")
        onnx.save(proto, path)
    return path


def point(tensor, location, **more):
    tensor.ClearField("raw_data")
    tensor.data_location = onnx.TensorProto.EXTERNAL
    del tensor.external_data[:]
    for key, value in {"location": location, **more}.items():
        tensor.external_data.add(key=key, value=str(value))


@pytest.mark.parametrize("how", ["one", "many", "sub"])
def test_read(tmp_path, how):
    path = save(tmp_path, how)
    loaded = load(path)
    assert loaded.folder == tmp_path.resolve()
    assert not any(t.raw_data for t in loaded.proto.graph.initializer)
    sites, _ = find_sites(loaded)
    for site, value in zip(
        sites, (noise(K, 2 * K)[:, :K], noise(K, K, seed=3), noise(8, K)), strict=True
    ):
        assert np.array_equal(evaluate(loaded, site.weight), value)


def test_a_proto_needs_its_folder(tmp_path):
    path = save(tmp_path)
    proto = onnx.load(path, load_external_data=False)
    with pytest.raises(ModelError, match="folder is not known.*give the path"):
        load(proto)
    assert len(find_sites(load(proto, tmp_path))[0]) == 3


def changed(tmp_path, **entries):
    """The saved model with other external entries for its first weight."""
    path = save(tmp_path / "m")
    proto = onnx.load(path, load_external_data=False)
    old = {e.key: e.value for e in proto.graph.initializer[0].external_data}
    point(proto.graph.initializer[0], **{**old, **entries})
    path.write_bytes(proto.SerializeToString())
    return path


@pytest.mark.parametrize(
    "location",
    ["../out.data", "a/../../out.data", "/etc/passwd", "link", "sub/link", "linked/out.data"],
)
def test_data_outside_the_folder_are_refused(tmp_path, location):
    (tmp_path / "out.data").write_bytes(bytes(10**5))
    path = changed(tmp_path, location=location)
    folder = path.parent
    (folder / "a").mkdir()
    (folder / "sub").mkdir()
    (folder / "link").symlink_to(tmp_path / "out.data")
    (folder / "sub" / "link").symlink_to("../../out.data")
    (folder / "linked").symlink_to(tmp_path)
    with pytest.raises(ModelError, match="leave the model's folder.*move the data"):
        load(path)


@pytest.mark.parametrize(
    "entries,message",
    [
        ({"location": "none.data"}, "'none.data' not found.*put the file into"),
        ({"location": ""}, "without a location"),
        ({"location": "a\0b"}, "without a location"),
        ({"location": "x" * 5000}, "no usable path|not found"),
        ({"location": "."}, "not found"),
        ({"offset": "abc"}, "no number"),
        ({"offset": "-4096"}, "wanted from byte -4096"),
        ({"offset": "999999999"}, "truncated"),
        ({"offset": str(2**70)}, "truncated"),
        ({"length": "-1"}, "wanted"),
        ({"length": "999999999"}, "truncated"),
        ({"length": "12"}, "needs 4096 bytes, the data are 12"),
        ({"length": "1.5"}, "no number"),
    ],
)
def test_damaged_entries(tmp_path, entries, message):
    with pytest.raises(ModelError, match=message) as caught:
        load(changed(tmp_path, **entries))
    assert "tensor 'a'" in str(caught.value)


def test_truncated_and_missing_files(tmp_path):
    path = save(tmp_path)
    data = (tmp_path / "m.data").read_bytes()
    (tmp_path / "m.data").write_bytes(data[:100])
    with pytest.raises(ModelError, match="m.data' has 100 bytes"):
        load(path)
    (tmp_path / "m.data").unlink()
    with pytest.raises(ModelError, match="'m.data' not found"):
        load(path)
    (tmp_path / "m.data").mkdir()
    with pytest.raises(ModelError, match="'m.data' not found"):
        load(path)


def test_data_that_vanish_while_working(tmp_path):
    path = save(tmp_path)
    loaded = load(path)
    sites, _ = find_sites(loaded)
    (tmp_path / "m.data").unlink()
    with pytest.raises(ModelError, match="not found"):
        evaluate(loaded, sites[0].weight)


def test_no_length_and_no_offset(tmp_path):
    """Both are optional: from the start, to the end."""
    proto = model()
    (tmp_path / "a.bin").write_bytes(proto.graph.initializer[0].raw_data)
    point(proto.graph.initializer[0], "a.bin")
    onnx.save(proto, tmp_path / "m.onnx")
    loaded = load(tmp_path / "m.onnx")
    sites, _ = find_sites(loaded)
    assert np.array_equal(evaluate(loaded, sites[0].weight), noise(K, 2 * K)[:, :K])


def test_links_of_a_download_cache(tmp_path):
    """Model and data are links into one folder, where they bear other names."""
    blobs, snapshot = tmp_path / "blobs", tmp_path / "snapshots" / "abc"
    snapshot.mkdir(parents=True)
    path = save(blobs)
    os.rename(path, blobs / "0001")
    os.rename(blobs / "m.data", blobs / "0002")
    (snapshot / "m.onnx").symlink_to("../../blobs/0001")
    (snapshot / "m.data").symlink_to("../../blobs/0002")
    written, sites = split(snapshot / "m.onnx")
    assert len(sites) == 3
    loaded = load(snapshot / "m.onnx")
    assert loaded.folder == blobs.resolve() and loaded.path == snapshot / "m.onnx"
    x = {"x": noise(2, K)}
    bare = onnx.ModelProto()
    bare.CopyFrom(loaded.proto)
    onnx.load_external_data_for_model(bare, str(blobs))
    kept = onnx.ModelProto()
    kept.CopyFrom(written)
    onnx.load_external_data_for_model(kept, str(blobs))
    assert differ(run(bare, x), run(kept, x)) < 1e-5
    # Data that lead elsewhere are still refused.
    (snapshot / "m.data").unlink()
    shutil.copy(blobs / "0002", tmp_path / "elsewhere")
    (snapshot / "m.data").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(ModelError, match="leave the model's folder"):
        load(snapshot / "m.onnx")


def test_a_link_to_the_model_alone(tmp_path):
    path = save(tmp_path / "real")
    (tmp_path / "link.onnx").symlink_to(path)
    assert len(find_sites(load(tmp_path / "link.onnx"))[0]) == 3


def test_functions_and_training_may_have_external_tensors(tmp_path):
    proto = model()
    held = node("Constant", [], ["w"], value=const("", noise(2)))
    proto.functions.append(
        onnx.helper.make_function(
            "f", "F", ["x"], ["w"], [held], [onnx.helper.make_opsetid("", 17)]
        )
    )
    point(proto.functions[0].node[0].attribute[0].t, "../x")
    (tmp_path / "m.onnx").write_bytes(proto.SerializeToString())
    with pytest.raises(ModelError, match="leave the model's folder"):
        load(tmp_path / "m.onnx")
