"""Small models, built here."""

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

FLOAT = TensorProto.FLOAT


def info(name, shape, dtype=FLOAT):
    return helper.make_tensor_value_info(name, dtype, shape)


def constant(name, array):
    return numpy_helper.from_array(np.asarray(array), name)


def model(nodes, inputs, outputs, constants=(), opset=17, domains=()):
    graph = helper.make_graph(nodes, "graph", inputs, outputs, list(constants))
    imports = [helper.make_opsetid("", opset), *(helper.make_opsetid(d, 1) for d in domains)]
    return helper.make_model(graph, opset_imports=imports, ir_version=8)


def mlp(seed=0, widths=(8, 16, 4), batch="n", scale=1.0):
    """x [n, widths[0]] through linear maps with Relu between; views are x, h1, ..."""
    rng = np.random.default_rng(seed)
    nodes, constants, name = [], [], "x"
    for k, (d_in, d_out) in enumerate(zip(widths, widths[1:], strict=False)):
        weight = scale * rng.standard_normal((d_in, d_out)) / np.sqrt(d_in)
        constants.append(constant(f"w{k}", weight.astype(np.float32)))
        last = k == len(widths) - 2
        nodes.append(
            helper.make_node("MatMul", [name, f"w{k}"], ["y" if last else f"z{k}"], f"mm{k}")
        )
        if not last:
            nodes.append(helper.make_node("Relu", [f"z{k}"], [f"h{k + 1}"], f"relu{k}"))
        name = f"h{k + 1}"
    return model(
        nodes, [info("x", [batch, widths[0]])], [info("y", [batch, widths[-1]])], constants
    )


def identity(*inputs):
    """A model that copies its inputs: (name, dtype, shape) each."""
    return model(
        [helper.make_node("Identity", [name], [f"{name}_out"]) for name, _, _ in inputs],
        [info(name, shape, dtype) for name, dtype, shape in inputs],
        [onnx.ValueInfoProto(name=f"{name}_out") for name, _, _ in inputs],
    )
