"""Writing: complete and verified, or nothing; never over the source."""

import os
import stat
from pathlib import Path

import numpy as np
import onnx
import pytest

from onnxrank.errors import ModelError, OnnxRankError, WriteError
from onnxrank.graph.files import check_output, staged, verify
from onnxrank.graph.find import find_sites
from onnxrank.graph.model import load
from onnxrank.graph.rewrite import rewrite

from .build import differ, full_rank, info, make, node, noise, run, single
from .test_external import K, model, point, save


def everything(folder):
    """Files below a folder with their content."""
    return {
        str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()
    }


def typed():
    """The model with typed outputs, as onnx's checker wants them."""
    proto = model()
    proto.graph.output[0].CopyFrom(info("y", ("n", 8)))
    return proto


def write(source, output, sites=None, inside=None):
    """Split at full rank, write, verify."""
    original = load(source)
    found, _ = find_sites(original)
    chosen = found if sites is None else [s for s in found if s.name in sites]
    proto = rewrite(original, [(s, full_rank(original, s)) for s in chosen])
    with staged(original, proto, Path(output)) as path:
        assert path.exists()
        verify(path, original)
        load(path)
        if inside:
            inside(path)
    return original


def same(source, output):
    x = {"x": noise(3, K, seed=8)}
    assert differ(run(Path(source), x), run(Path(output), x)) < 1e-5


def test_one_plain_file(tmp_path):
    source, output = tmp_path / "m.onnx", tmp_path / "out.onnx"
    onnx.save(typed(), source)
    before = source.read_bytes()
    write(source, output)
    same(source, output)
    assert set(everything(tmp_path)) == {"m.onnx", "out.onnx"}
    assert source.read_bytes() == before


@pytest.mark.parametrize("how", ["one", "many", "sub"])
@pytest.mark.parametrize("where", ["same folder", "other folder"])
@pytest.mark.parametrize("sites", [None, ["one"], []])
def test_external_data(tmp_path, how, where, sites):
    source = save(tmp_path / "in", how, typed())
    before = everything(tmp_path / "in")
    folder = tmp_path / "in" if where == "same folder" else tmp_path / "out"
    folder.mkdir(exist_ok=True)
    output = folder / "small.onnx"
    write(source, output, sites)
    same(source, output)
    after = everything(tmp_path / "in")
    assert {k: after[k] for k in before} == before
    written = onnx.load(output, load_external_data=False)
    places = {
        t.name: {e.key: e.value for e in t.external_data}
        for t in written.graph.initializer
        if t.data_location == onnx.TensorProto.EXTERNAL
    }
    for place in places.values():
        name = place["location"]
        assert not Path(name).is_absolute() and ".." not in Path(name).parts
        assert (folder / name).is_file() and name not in before
        assert int(place["offset"]) % 4096 == 0
    if how == "one":
        assert all(p["location"].startswith("small.onnx.") for p in places.values())
    if how == "sub" and len({p["location"] for p in places.values()}) > 1:
        assert all(p["location"].startswith("sub") for p in places.values())
    if sites:
        assert {n for n in places if "rank_in" in n}, "large factors stay outside the file"


def test_the_same_input_gives_the_same_bytes(tmp_path):
    source = save(tmp_path / "in", "one", typed())
    for k in (1, 2):
        (tmp_path / str(k)).mkdir()
        write(source, tmp_path / str(k) / "small.onnx")
    assert everything(tmp_path / "1") == everything(tmp_path / "2")
    write(source, tmp_path / "1" / "small.onnx")  # over itself
    assert everything(tmp_path / "1") == everything(tmp_path / "2")


def test_an_existing_output_is_replaced_in_one_step(tmp_path):
    source = save(tmp_path / "in", "one", typed())
    output = tmp_path / "small.onnx"
    output.write_bytes(b"old")

    def inside(_):
        assert output.read_bytes() == b"old"

    write(source, output, inside=inside)
    same(source, output)


@pytest.mark.parametrize("how", ["one", "many", "sub", "plain"])
@pytest.mark.parametrize("error", [KeyboardInterrupt, ModelError("x"), OSError("y"), SystemExit])
def test_an_interruption_leaves_nothing(tmp_path, how, error):
    if how == "plain":
        source = tmp_path / "in" / "m.onnx"
        source.parent.mkdir()
        onnx.save(typed(), source)
    else:
        source = save(tmp_path / "in", how, typed())
    out = tmp_path / "out"
    out.mkdir()
    (out / "small.onnx").write_bytes(b"old")

    def inside(_):
        raise error

    with pytest.raises(type(error) if isinstance(error, Exception) else error):
        write(source, out / "small.onnx", ["two"], inside=inside)
    assert everything(out) == {"small.onnx": b"old"}
    assert [p.name for p in out.iterdir()] == ["small.onnx"], "no folder stays either"


def test_an_interruption_spares_data_of_an_earlier_result(tmp_path):
    """The second run finds its data file there already; it belongs to the first."""
    source = save(tmp_path / "in", "one", typed())
    output = tmp_path / "small.onnx"
    write(source, output)
    before = everything(tmp_path)

    def inside(_):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write(source, output, inside=inside)
    assert everything(tmp_path) == before
    same(source, output)


def test_data_of_a_replaced_result_go(tmp_path):
    """Else every run with other settings would leave the weights of the last one behind."""
    source = save(tmp_path / "in", "one", typed())
    output = tmp_path / "small.onnx"
    write(source, output)
    first = set(tmp_path.glob("small.onnx.*.data"))
    (tmp_path / "small.onnx.0123456789ab.data").write_bytes(b"not ours")
    write(source, output, ["two"])
    left = {p.name for p in tmp_path.glob("small.onnx.*.data")}
    assert not left & {p.name for p in first} and "small.onnx.0123456789ab.data" in left
    same(source, output)


def test_an_interruption_after_the_rename_removes_nothing(tmp_path, monkeypatch):
    source = save(tmp_path / "in", "one", typed())
    output = tmp_path / "small.onnx"
    real = os.replace

    def replace(a, b):
        real(a, b)
        if Path(b) == output:
            raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", replace)
    with pytest.raises(KeyboardInterrupt):
        write(source, output)
    monkeypatch.undo()
    same(source, output)


def test_a_damaged_file_of_the_same_name_is_not_trusted(tmp_path):
    source = save(tmp_path / "in", "one", typed())
    output = tmp_path / "small.onnx"
    write(source, output)
    (data,) = tmp_path.glob("small.onnx.*.data")
    whole = data.read_bytes()
    data.write_bytes(whole[:-4096] + bytes(4096))
    write(source, output)
    assert data.read_bytes() == whole


def test_a_failing_disk_leaves_nothing(tmp_path, monkeypatch):
    source = save(tmp_path / "in", "many", typed())
    out = tmp_path / "out"
    out.mkdir()
    real, calls = os.replace, []

    def replace(a, b):
        calls.append(b)
        if len(calls) == 2:
            raise OSError(28, "No space left on device")
        real(a, b)

    monkeypatch.setattr(os, "replace", replace)
    with pytest.raises(WriteError, match="No space left on device"):
        write(source, out / "small.onnx")
    assert not list(out.iterdir())


def test_a_failing_rename_at_the_end_leaves_nothing(tmp_path, monkeypatch):
    source = tmp_path / "m.onnx"
    onnx.save(typed(), source)

    def replace(a, b):
        raise OSError(18, "Invalid cross-device link")

    monkeypatch.setattr(os, "replace", replace)
    with pytest.raises(WriteError, match="cannot be put in place: Invalid cross-device link"):
        write(source, tmp_path / "out.onnx")
    assert set(everything(tmp_path)) == {"m.onnx"}


def test_source_that_is_cut_while_it_is_copied(tmp_path):
    source = save(tmp_path / "in", "one", typed())
    original = load(source)
    data = tmp_path / "in" / "m.data"
    out = tmp_path / "out"
    out.mkdir()
    proto = onnx.ModelProto()
    proto.CopyFrom(original.proto)
    data.write_bytes(data.read_bytes()[:5000])
    with pytest.raises(OnnxRankError), staged(original, proto, out / "small.onnx"):
        pass
    assert not list(out.iterdir())


def test_outputs_that_are_refused(tmp_path):
    source = save(tmp_path, "sub", typed())
    original = load(source)
    data = next(tmp_path.glob("sub0/deep/*.bin"))
    (tmp_path / "alias.onnx").symlink_to(source)
    os.link(source, tmp_path / "hard.onnx")
    (tmp_path / "file").write_text("")
    for output, message in (
        (source, "is the model itself"),
        (tmp_path / "." / "m.onnx", "is the model itself"),
        (tmp_path / "sub0" / ".." / "m.onnx", "is the model itself"),
        (tmp_path / "alias.onnx", "is the model itself"),
        (tmp_path / "hard.onnx", "is the model itself"),
        (data, "is the model itself or its data"),
        (tmp_path / "none" / "m.onnx", "folder does not exist"),
        (tmp_path / "file" / "m.onnx", "folder does not exist"),
        (tmp_path / "sub0", "this is a folder"),
    ):
        with pytest.raises(WriteError, match=message):
            check_output(original, output)
    check_output(original, tmp_path / "new.onnx")


def test_a_bare_name_is_written_here(tmp_path, monkeypatch):
    source = save(tmp_path / "in", "one", typed())
    monkeypatch.chdir(tmp_path)
    write(source, Path("small.onnx"))
    same(source, tmp_path / "small.onnx")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_permissions(tmp_path):
    original = load(save(tmp_path / "in"))
    out = tmp_path / "out"
    out.mkdir()
    out.chmod(stat.S_IRUSR | stat.S_IXUSR)
    with pytest.raises(WriteError, match="permission denied"):
        check_output(original, out / "small.onnx")


def test_permissions_of_a_new_file_are_the_usual_ones(tmp_path):
    source = tmp_path / "m.onnx"
    onnx.save(typed(), source)
    old = os.umask(0o027)
    try:
        write(source, tmp_path / "out.onnx")
    finally:
        os.umask(old)
    assert stat.S_IMODE((tmp_path / "out.onnx").stat().st_mode) == 0o640


def test_odd_names(tmp_path):
    """Spaces, several dots, other scripts, and a long one."""
    source = save(tmp_path / "in", "one", typed())
    for name in (
        "a b.onnx",
        "v1.2.final.onnx",
        "\u6a21\u578b.onnx",
        "x" * 200 + ".onnx",
        "noending",
    ):
        write(source, tmp_path / name)
        same(source, tmp_path / name)


def test_untouched_external_tensors_keep_their_bytes(tmp_path):
    """All of them: of bodies, Constants, types other than float, empty ones."""
    proto = typed()
    proto.graph.initializer.extend(
        [
            onnx.numpy_helper.from_array(np.arange(2000), "ints"),
            onnx.numpy_helper.from_array(np.zeros((0, 3), np.float32), "empty"),
            onnx.numpy_helper.from_array(np.array(3.0), "scalar"),
        ]
    )
    source = save(tmp_path / "in", "one", proto)
    output = tmp_path / "small.onnx"
    write(source, output, ["two"])
    a, b = onnx.load(source), onnx.load(output)
    kept = {t.name: onnx.numpy_helper.to_array(t) for t in b.graph.initializer}
    for t in a.graph.initializer:
        assert np.array_equal(kept[t.name], onnx.numpy_helper.to_array(t)), t.name


def test_spans_that_tensors_share_and_orders_that_differ(tmp_path):
    """Two tensors over the same bytes; offsets that run backwards."""
    proto = typed()
    data = proto.graph.initializer[0].raw_data
    tied = onnx.TensorProto(name="tied", data_type=1, dims=[K, K])
    proto.graph.initializer.append(tied)
    (tmp_path / "w.data").write_bytes(bytes(4096) + data)
    for k in (0, 3):
        point(proto.graph.initializer[k], "w.data", offset=4096, length=len(data))
    onnx.save(proto, tmp_path / "m.onnx")
    write(tmp_path / "m.onnx", tmp_path / "small.onnx", ["two"])
    same(tmp_path / "m.onnx", tmp_path / "small.onnx")


def test_verify_is_as_strict_as_the_original_allows(tmp_path):
    good = tmp_path / "good.onnx"
    onnx.save(typed(), good)
    bad_proto = typed()
    bad_proto.graph.node[0].op_type = "NoSuchOperator"
    bad = tmp_path / "bad.onnx"
    onnx.save(bad_proto, bad)
    verify(good, load(good))
    with pytest.raises(ModelError, match="fails onnx's checker.*fault of onnxrank"):
        verify(bad, load(good))
    verify(bad, load(bad))  # it was no better before
    verify(good, load(typed()))


def test_declared_negative_dimensions(tmp_path):
    """The full check of onnx would end the process at the Slice."""
    proto = make(
        [node("MatMul", ["x", "w"], ["h"], name="n"), node("Slice", ["h", "s", "e", "s"], ["y"])],
        {"x": (-1, K)},
        ["y"],
        {"w": noise(K, K), "s": np.array([0]), "e": np.array([1])},
    )
    proto.graph.value_info.append(info("h", (-1, K)))
    proto.graph.output[0].CopyFrom(info("y", (-1, K)))
    onnx.save(proto, tmp_path / "m.onnx")
    write(tmp_path / "m.onnx", tmp_path / "small.onnx")
    same(tmp_path / "m.onnx", tmp_path / "small.onnx")


def test_lengths_of_names_do_not_matter_to_the_rest(tmp_path):
    """A model without a name or path can be written, too."""
    proto = single("MatMul", {"x": ("n", 4)}, {"w": noise(4, 4)}, ["x", "w"])
    proto.graph.output[0].CopyFrom(info("y", ("n", 4)))
    original = load(proto)
    result = rewrite(original, [(s, full_rank(original, s)) for s in find_sites(original)[0]])
    with staged(original, result, tmp_path / "out.onnx") as path:
        verify(path, original)
    assert load(tmp_path / "out.onnx").name == "out.onnx"


def test_subgraph_and_constant_tensors_move(tmp_path):
    proto = make(
        [
            node("Constant", [], ["c"], value=onnx.numpy_helper.from_array(noise(K, K))),
            node("MatMul", ["x", "c"], ["h"], name="n"),
            node("Relu", ["h"], ["y"]),
        ],
        {"x": ("n", K)},
        ["y"],
    )
    proto.graph.output[0].CopyFrom(info("y", ("n", K)))
    source = save(tmp_path / "in", "one", proto)
    write(source, tmp_path / "small.onnx", [])
    same(source, tmp_path / "small.onnx")
