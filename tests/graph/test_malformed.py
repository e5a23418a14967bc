"""Damaged models: one clear error, or a reason, in bounded time and memory."""

import time
import tracemalloc

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from onnxrank.errors import ModelError, OnnxRankError
from onnxrank.graph.find import find_sites, find_units
from onnxrank.graph.model import load
from onnxrank.graph.rewrite import rewrite

from . import fuzz
from .build import codes, const, info, make, node, noise, single
from .test_functions import twice
from .test_probe import choose, loop

K = 4
OPT = {"x": (3, K)}


def good(**more):
    return single("MatMul", OPT, {"w": noise(K, K)}, ["x", "w"], **more)


def refused(proto, message):
    with pytest.raises(ModelError, match=message) as caught:
        load(proto)
    assert "\n" not in str(caught.value)


def quick(proto, seconds=3.0, megabytes=50.0):
    return fuzz.Limits(seconds, megabytes).run(proto)


@pytest.mark.parametrize(
    "data,message",
    [
        (b"", "the file is empty"),
        (b"hello world, this is no model", "not an ONNX model"),
        (b"\x00" * 100, "not an ONNX model"),
        (b"\xff" * 100, "not an ONNX model"),
        (b"PK\x03\x04" + b"x" * 100, "not an ONNX model"),
        (good().SerializeToString()[:-7], "not an ONNX model"),
        (
            b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n",
            "not an ONNX model",
        ),
    ],
)
def test_files_that_are_no_model(tmp_path, data, message):
    path = tmp_path / "m.onnx"
    path.write_bytes(data)
    refused(path, message)


def test_paths(tmp_path):
    refused(tmp_path / "none.onnx", "no such file")
    refused(tmp_path, "this is a folder")
    (tmp_path / "dangling").symlink_to(tmp_path / "none")
    refused(tmp_path / "dangling", "no such file")
    refused("a\0b", "cannot be read")
    refused("x" * 5000, "cannot be read")


def test_a_named_pipe_is_not_waited_for(tmp_path):
    import os

    os.mkfifo(tmp_path / "pipe.onnx")
    refused(tmp_path / "pipe.onnx", "this is no regular file")


def test_frames():
    model = good()
    model.ClearField("graph")
    refused(model, "no graph in it")
    model = good()
    model.ir_version = 0
    refused(model, "no graph in it")
    model = good()
    del model.graph.output[:]
    refused(model, "no outputs")
    model = good()
    del model.opset_import[:]
    refused(model, "no operator set is imported")


def chain(*nodes, outputs=("y",), constants=None):
    return make(nodes, OPT, outputs, constants or {"w": noise(K, K)})


def test_graphs_that_do_not_hold_together():
    refused(chain(node("Relu", ["z"], ["y"], name="r")), "node 'r' reads tensor 'z', which nothing")
    refused(chain(node("Relu", ["x"], ["z"])), "output 'y' is made by nothing")
    refused(chain(node("Relu", ["x"], ["y"]), node("Neg", ["x"], ["y"])), "'y' is made twice")
    refused(chain(node("Relu", ["x"], ["x"]), node("Relu", ["x"], ["y"])), "'x' is made twice")
    refused(chain(node("Relu", ["x"], ["w"]), node("Neg", ["w"], ["y"])), "'w' is made twice")
    refused(
        chain(
            node("Add", ["x", "b"], ["a"]), node("Relu", ["a"], ["b"]), node("Neg", ["b"], ["y"])
        ),
        "cycle through",
    )
    refused(chain(node("Relu", ["y"], ["y"])), "cycle through")
    model = good()
    model.graph.input.append(info("x", (1,)))
    refused(model, "'x' is made twice")
    model = good()
    model.graph.output.append(info("", (1,)))
    refused(model, "output '' is made by nothing")


def test_cycles_through_bodies():
    inner = choose([node("Identity", ["late"], ["t"])], [node("Neg", ["x"], ["e"])], key="c")
    model = make([inner, node("Relu", ["y"], ["late"])], {**OPT, "c": info("c", (), 9)}, ["y"])
    refused(model, "cycle through")
    model = make(
        [
            choose(
                [node("Relu", ["b"], ["a"]), node("Relu", ["a"], ["b"]), node("Neg", ["b"], ["t"])],
                [node("Neg", ["x"], ["e"])],
            )
        ],
        {**OPT, "c": info("c", (), 9)},
        ["y"],
    )
    refused(model, "y.then_branch: .*cycle through")


def test_unsorted_nodes_are_no_cycle():
    """onnxruntime sorts them itself."""
    model = chain(node("Relu", ["h"], ["y"]), node("MatMul", ["x", "w"], ["h"], name="n"))
    assert codes(model) == {"n": "site"}
    nodes = [node("Relu", [f"h{k}"], [f"h{k + 1}"]) for k in range(500)]
    shuffled = [nodes[k] for k in np.random.default_rng(0).permutation(500)]
    load(make(shuffled, {"h0": (1,)}, ["h500"]))


def tensor(**fields):
    made = TensorProto(name="w", data_type=1, dims=[K, K])
    made.raw_data = noise(K, K).tobytes()
    for name, value in fields.items():
        made.ClearField(name)
        if isinstance(value, list):
            getattr(made, name).extend(value)
        elif value is not None:
            setattr(made, name, value)
    return made


@pytest.mark.parametrize(
    "fields,message",
    [
        ({"dims": [K, K + 1]}, "needs 80 bytes, the data are 64"),
        ({"dims": [K, K - 1]}, "needs 48 bytes, the data are 64"),
        ({"dims": [-K, -K]}, "negative dimension"),
        ({"dims": [2**62, 2**62]}, "beyond all bounds"),
        ({"dims": [2**62]}, "needs .* bytes, the data are 64"),
        ({"dims": [2**31, 2**31], "raw_data": None}, "needs .* entries, the data are 0"),
        ({"dims": [2**62, 2**62, 0], "raw_data": b""}, "beyond all bounds"),
        ({"raw_data": b""}, "needs 64 bytes, the data are 0"),
        ({"raw_data": b"123"}, "needs 64 bytes, the data are 3"),
        ({"raw_data": None}, "needs 16 entries, the data are 0"),
        ({"raw_data": None, "float_data": [1.0] * 15}, "needs 16 entries, the data are 15"),
        ({"raw_data": None, "float_data": [1.0] * 17}, "needs 16 entries, the data are 17"),
        ({"raw_data": None, "int32_data": [1] * 16}, "needs 16 entries, the data are 0"),
        ({"data_type": 11}, "needs 128 bytes, the data are 64"),
    ],
)
def test_tensors_that_lie(fields, message):
    refused(
        make([node("MatMul", ["x", "w"], ["y"], name="n")], OPT, ["y"], [tensor(**fields)]), message
    )
    held = node("Constant", [], ["w"], value=tensor(**fields))
    refused(make([held, node("MatMul", ["x", "w"], ["y"], name="n")], OPT, ["y"]), message)


def test_types_that_are_not_known():
    """Newer than the installed onnx, or nonsense: a reason, as for any type but floats."""
    for kind in (0, 40, 999, -1):
        held = tensor(data_type=kind)
        model = make([node("MatMul", ["x", "w"], ["y"], name="n")], OPT, ["y"], [held])
        assert codes(model) == {"n": "type"}


@pytest.mark.parametrize(
    "dtype", [1, 10, 11, 16, 2, 3, 4, 5, 6, 7, 9, 12, 13, 14, 15, 17, 21, 22, 23]
)
def test_tensors_of_every_type_pass(dtype):
    """Both ways of holding the data: raw, and in the typed field."""
    values = np.zeros(6)
    for raw in (False, True):
        if raw:
            made = const("t", values.astype(helper.tensor_dtype_to_np_dtype(dtype)))
        else:
            made = helper.make_tensor("t", dtype, (2, 3), values.astype(int).tolist())
        model = good(opset=21, ir=10)
        model.graph.initializer.append(made)
        load(model)
    model = good()
    model.graph.initializer.append(helper.make_tensor("s", TensorProto.STRING, (2,), [b"a", b"b"]))
    load(model)


def test_declared_shapes_that_lie():
    """They are the model's own statements; nothing is built on them but counts of rows."""
    for shape in ((2**62, 2**62), (-5, 3), (3, 77), (), (1, 2, 3, 4, 5), (0, 0)):
        model = good()
        model.graph.input[0].CopyFrom(info("x", shape))
        model.graph.value_info.append(info("y", (2**62,) * 9))
        assert quick(model) == "sites"


def test_huge_shapes_are_not_allocated():
    """Constants that would be enormous if anybody made them."""
    big = np.array([2**40, 2**20], np.int64)
    for op, inputs in (("ConstantOfShape", ["s"]), ("Expand", ["v", "s"]), ("Tile", ["v", "s"])):
        model = make(
            [node(op, inputs, ["w"]), node("MatMul", ["x", "w"], ["y"], name="n")],
            OPT,
            ["y"],
            {"s": big, "v": noise(1, 1)},
        )
        quick(model)
    model = make(
        [
            node("Range", ["a", "b", "c"], ["r"]),
            node("Reshape", ["w", "r"], ["v"]),
            node("MatMul", ["x", "v"], ["y"], name="n"),
        ],
        OPT,
        ["y"],
        {"a": np.int64(0), "b": np.int64(2**40), "c": np.int64(1), "w": noise(K, K)},
    )
    quick(model)


EQUATIONS = [
    *("ij,jk->ik" * 1000, "," * 10000, "i" * 10**5, "\u00e9,->", "->", "ij,jk->ik,", ">-"),
    *("ij;jk->ik", "ij,jk=>ik", "..,..->..", "i...j...,jk->ik"),
]
ABSURD = {
    "Conv": [
        {"group": "2"}, {"group": 2.5}, {"group": 2**62}, {"group": -1}, {"kernel_shape": [3]},
        {"pads": [2**62] * 4}, {"strides": [2**62] * 2}, {"dilations": [2**62] * 2},
        {"auto_pad": "\u00e9"}, {"auto_pad": 5}, {"strides": [-1, -1]},
    ],
    "Gemm": [
        {"alpha": "1"}, {"transA": "yes"}, {"transB": 2}, {"alpha": float("nan")}, {"beta": 3},
        {"alpha": [1.0]}, {"transA": -1},
    ],
    "MatMul": [{"transA": 1}, {"alpha": 3.0}, {"unknown": "x"}],
    "Einsum": [
        *({"equation": e} for e in EQUATIONS),
        {"equation": 5},
        {},
    ],
    "LSTM": [
        {"hidden_size": "5"}, {"hidden_size": -5}, {"direction": "sideways"}, {"layout": 7},
        {"layout": "1"},
    ],
}  # fmt: skip
SHAPES = {"Conv": (4, 4, 3, 3), "LSTM": (1, 4 * K, K)}


@pytest.mark.parametrize("op", ABSURD)
def test_attributes_of_absurd_values(op):
    for attrs in ABSURD[op]:
        model = single(
            op,
            {"x": None},
            {"w": noise(*SHAPES.get(op, (K, K)))},
            ["x", "w"] + ["w"] * (op == "LSTM"),
            **attrs,
        )
        assert quick(model) in ("sites", "no sites"), attrs
        answer = codes(model)
        assert answer, attrs
    for broken in ({"ref_attr_name": "a"}, {"type": 0}, {"type": 99}):
        for attrs in ABSURD[op][:1]:
            model = single(
                op, {"x": None}, {"w": noise(*SHAPES.get(op, (K, K)))}, ["x", "w"], **attrs
            )
            for attribute in model.graph.node[0].attribute:
                for name, value in broken.items():
                    if name != "type" or value == 0:
                        setattr(attribute, name, value)
            assert codes(model)


def test_inputs_that_are_missing_or_too_many():
    for op in (
        "Conv",
        "Gemm",
        "MatMul",
        "Einsum",
        "LSTM",
        "ConvTranspose",
        "Gather",
        "BatchNormalization",
    ):
        for order in (
            [],
            ["x"],
            ["", ""],
            ["", "w"],
            ["x", ""],
            ["w"] * 30,
            ["x", "w"] + [""] * 30,
            ["w", "w"],
        ):
            model = single(op, OPT, {"w": noise(K, K)}, order)
            assert quick(model) in ("sites", "no sites"), (op, order)
        for outputs in ([], [""], ["y", "z", "q", "r", "s"]):
            made = node(op, ["x", "w"], outputs, name="n")
            model = make([made, node("Relu", ["x"], ["out"])], OPT, ["out"], {"w": noise(K, K)})
            assert quick(model) in ("sites", "no sites"), (op, outputs)


def test_nodes_without_outputs_that_hold_bodies():
    branch = helper.make_graph(
        [node("MatMul", ["x", "w"], ["t"], name="n")], "b", [], [info("t", None)]
    )
    nodes = [
        helper.make_node("If", ["c"], [], then_branch=branch, else_branch=branch) for _ in range(2)
    ]
    model = make(
        [*nodes, node("Relu", ["x"], ["y"])],
        {**OPT, "c": info("c", (), 9)},
        ["y"],
        {"w": noise(K, K)},
    )
    assert quick(model) == "no sites"


def test_bodies_of_odd_holders():
    """A Loop that is none: no body inputs, no scan count, bodies under other names."""
    body = helper.make_graph(
        [node("MatMul", ["x", "w"], ["t"], name="n")], "b", [], [info("t", None)]
    )
    for op in ("Loop", "Scan", "If", "Relu", "Custom"):
        for attribute in ("body", "then_branch", "else", "b\u00f6dy"):
            held = helper.make_node(op, ["x"], ["y"], **{attribute: body})
            quick(make([held], OPT, ["y"], {"w": noise(K, K)}))


def test_names_that_are_no_text(tmp_path):
    """Bytes that are not UTF-8, in every place a name can have."""
    model = make(
        [
            node("MatMul", ["xxxx", "wwww"], ["hhhh"], name="nnnn"),
            choose(
                [node("Neg", ["hhhh"], ["tttt"])],
                [node("Abs", ["hhhh"], ["eeee"])],
                names=("tttt", "eeee"),
            ),
        ],
        {"xxxx": (3, K), "c": info("c", (), 9)},
        ["y"],
        {"wwww": noise(K, K)},
    )
    data = model.SerializeToString()
    for word in (b"xxxx", b"wwww", b"hhhh", b"nnnn", b"tttt", b"MatMul", b"then_branch"):
        path = tmp_path / "m.onnx"
        path.write_bytes(data.replace(word, b"\xff" * len(word)))
        refused(path, "is not UTF-8")


def test_text_that_is_no_text_elsewhere(tmp_path):
    """Doc strings and the like are not touched, so they may hold anything."""
    model = good()
    model.doc_string = model.graph.doc_string = model.graph.name = "DDDD"
    model.producer_name = model.domain = "DDDD"
    model.metadata_props.add(key="DDDD", value="DDDD")
    model.graph.node[0].doc_string = "DDDD"
    model.graph.initializer[0].doc_string = "DDDD"
    path = tmp_path / "m.onnx"
    path.write_bytes(model.SerializeToString().replace(b"DDDD", b"\xff" * 4))
    assert quick(path) == "sites"


def test_names_of_control_characters():
    """A message stays one line, and cannot steer a terminal."""
    model = chain(node("Relu", ["a\nb\x1b[31m"], ["y"]))
    with pytest.raises(ModelError) as caught:
        load(model)
    assert "'a\\nb\\x1b[31m'" in str(caught.value)


@pytest.mark.slow
def test_many_identities_on_a_weight():
    nodes = [node("Identity", [f"w{k}" if k else "w"], [f"w{k + 1}"]) for k in range(100_000)]
    reads = [node("MatMul", ["x", f"w{k}"], [f"y{k}"]) for k in (1, 50, 5000, 100_000)]
    model = make([*nodes, *reads], OPT, ["y1", "y50", "y5000", "y100000"], {"w": noise(K, K)})
    began = time.process_time()
    answer = codes(model)
    assert time.process_time() - began < 40
    assert answer == {
        "y1": "site",
        "y50": "site",
        "y5000": "constant_kind",
        "y100000": "constant_kind",
    }


@pytest.mark.slow
def test_a_hundred_thousand_nodes_in_a_row():
    nodes = [node("Relu", [f"h{k}"], [f"h{k + 1}"]) for k in range(100_000)]
    model = make(
        [*nodes, node("MatMul", ["h100000", "w"], ["y"], name="n")],
        {"h0": (3, K)},
        ["y"],
        {"w": noise(K, K)},
    )
    began = time.process_time()
    assert codes(model) == {"n": "site"}
    assert time.process_time() - began < 40


def nested(depth):
    nodes, name = [node("MatMul", ["x", "w"], ["t0"], name="n")], "t0"
    for k in range(depth):
        graph = helper.make_graph(nodes, "g", [], [onnx.ValueInfoProto(name=name)])
        nodes, name = [node("If", ["c"], [f"t{k + 1}"], then_branch=graph)], f"t{k + 1}"
    return make(nodes, {**OPT, "c": info("c", (), 9)}, [name], {"w": noise(K, K)})


@pytest.mark.parametrize("depth", [5, 25])
def test_nesting(depth):
    assert quick(nested(depth)) == "sites"


def test_nesting_beyond_what_protobuf_parses(tmp_path):
    data = good().graph.SerializeToString()
    for _ in range(200):  # a graph in an attribute of a node of a graph, by hand
        attribute = _field(6, data) + _field(1, b"g") + bytes([0xA0, 0x01, 5])
        data = _field(1, _field(5, attribute) + _field(2, b"q")) + _field(12, _field(1, b"q"))
    path = tmp_path / "m.onnx"
    path.write_bytes(bytes([8, 8]) + _field(7, data) + _field(8, bytes([16, 17])))
    refused(path, "not an ONNX model")


def _field(number, data):
    size, length = len(data), b""
    while True:
        length += bytes([size & 127 | (128 if size > 127 else 0)])
        size >>= 7
        if not size:
            return bytes([number << 3 | 2]) + length + data


def test_wide_bodies_do_not_multiply():
    """Many branches in many branches: time grows with the size of the model alone."""

    def tree(level, name):
        if not level:
            return [node("MatMul", ["x", "w"], [name], name=f"n{name}")]
        branches = {
            branch: helper.make_graph(
                tree(level - 1, f"{name}{branch[0]}"),
                "g",
                [],
                [onnx.ValueInfoProto(name=f"{name}{branch[0]}")],
            )
            for branch in ("then_branch", "else_branch")
        }
        return [node("If", ["c"], [name], **branches)]

    model = make(tree(9, "r"), {**OPT, "c": info("c", (), 9)}, ["r"], {"w": noise(K, K)})
    began = time.process_time()
    sites, _ = find_sites(load(model))
    assert len(sites) == 512 and time.process_time() - began < 20


def test_memory_stays_with_the_model():
    """A large weight is not copied to find sites."""
    model = single("MatMul", OPT, {"w": np.zeros((K, 2**20), np.float32)}, ["x", "w"])
    tracemalloc.start()
    find_sites(load(model))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    # The fingerprint of a ModelProto needs its bytes once.
    assert peak < 40 * 2**20


def test_training_and_functions_may_be_damaged_too():
    model = twice()
    model.functions[0].node[0].input[0] = "nothing"
    quick(model)
    model = twice()
    model.functions[0].ClearField("opset_import")
    quick(model)
    model = twice()
    model.functions.append(model.functions[0])
    quick(model)
    model = twice()
    del model.graph.node[0].input[1:]
    quick(model)
    model = good()
    model.training_info.add().algorithm.node.append(node("Relu", ["z"], ["z"]))
    assert quick(model) == "sites"


def test_a_loop_without_a_body():
    model = make(
        [loop(["h"], [], [node("MatMul", ["h", "w"], ["h_out"], name="n")], inputs=["m", "", "x"])],
        {**OPT, "m": info("m", (), 7)},
        ["h_final"],
        {"w": noise(K, K)},
    )
    inner = model.graph.node[0].attribute[0]
    for field in ("input", "output", "node"):
        damaged = onnx.ModelProto()
        damaged.CopyFrom(model)
        damaged.graph.node[0].attribute[0].g.ClearField(field)
        try:
            quick(damaged)
        except OnnxRankError:
            pass
    inner.type = onnx.AttributeProto.FLOAT
    assert codes(model) == {}


def test_damaged_at_random(tmp_path):
    """A fixed number of models, the same every time; ``tools/fuzz.py`` goes on."""
    path = tmp_path / "m.onnx"
    ended = set()
    for name, model in fuzz.damaged(fuzz.seeds(largest=8_000), seed=7, count=600):
        if isinstance(model, bytes):
            path.write_bytes(model)
        try:
            ended.add(fuzz.examine(path if isinstance(model, bytes) else model))
        except Exception as error:
            raise AssertionError(f"{name}: {type(error).__name__}: {error}") from error
    assert ended == {"refused", "sites", "no sites"}


def test_time_grows_with_the_number_of_nodes():
    """Finding sites among four times the nodes takes some four times as long, not sixteen."""

    def took(count):
        nodes, constants = [], {"w0": noise(K, K), "w1": noise(K, K)}
        for k in range(count):
            nodes += [
                node("Identity", [f"w{k % 2}"], [f"i{k}"]),
                node("MatMul", [f"h{k}", f"i{k}"], [f"m{k}"]),
                node("Add", [f"m{k}", f"h{k}"], [f"h{k + 1}"]),
            ]
        model = make(nodes, {"h0": (3, K)}, [f"h{count}"], constants)
        began = time.process_time()
        loaded = load(model)
        sites, _ = find_sites(loaded)
        units = find_units(loaded, sites)
        written = rewrite(loaded, [(s, fuzz.corpus.factors(loaded, s)) for s in sites[:200]])
        assert len(sites) == count and len(units) == 2 and len(written.graph.node) > count
        return time.process_time() - began

    took(100)
    small, large = min(took(800) for _ in range(3)), min(took(3200) for _ in range(3))
    assert large < 12 * small
