"""Random small networks: branches, sums, several outputs, nodes in any order."""

from __future__ import annotations

import numpy as np
import onnx
from hypothesis import strategies as st

from .build import info, make, node

WIDTH = 4


@st.composite
def networks(draw) -> onnx.ModelProto:
    """Maps, activations and sums over [n, WIDTH], from one or two inputs."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    inputs = {f"x{k}": info(f"x{k}", ["n", WIDTH]) for k in range(draw(st.integers(1, 2)))}
    made, nodes, constants = list(inputs), [], {}
    for k in range(draw(st.integers(1, 9))):
        kind = draw(st.sampled_from(["MatMul", "Gemm", "Add", "Relu", "Constant", "shared"]))
        first, second = draw(st.sampled_from(made)), draw(st.sampled_from(made))
        name, weight = f"t{k}", rng.standard_normal((WIDTH, WIDTH)).astype(np.float32) / 2
        if kind in ("MatMul", "Gemm"):
            constants[f"w{k}"] = weight
            nodes.append(node(kind, [first, f"w{k}"], [name], name=f"n{k}"))
        elif kind == "shared":  # its weight is one of several nodes
            constants["common"] = np.eye(WIDTH, dtype=np.float32)[::-1].copy()
            nodes.append(node("MatMul", [first, "common"], [name], name=f"n{k}"))
        elif kind == "Constant":  # made of constants alone, and read by one
            constants["one"] = np.ones((1, WIDTH), np.float32)
            nodes.append(node("Neg", ["one"], [f"c{k}"], name=f"neg{k}"))
            nodes.append(node("Add", [first, f"c{k}"], [name], name=f"n{k}"))
        else:
            both = [first] if kind == "Relu" else [first, second]
            nodes.append(node(kind, both, [name], name=f"n{k}"))
        made.append(name)
    read = {name for n in nodes for name in n.input}
    outputs = [name for name in made if name not in read and name not in inputs]
    inner = [name for name in made if name in read and name not in inputs]
    if inner and draw(st.booleans()):
        outputs.append(draw(st.sampled_from(inner)))
    if draw(st.booleans()):
        nodes = draw(st.permutations(nodes))
    return make(nodes, inputs, outputs, constants)


def feed(proto: onnx.ModelProto, rows: int = 3) -> dict[str, np.ndarray]:
    """Values of every input."""
    rng = np.random.default_rng(1)
    return {v.name: rng.standard_normal((rows, WIDTH), np.float32) for v in proto.graph.input}
