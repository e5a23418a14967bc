"""A model of 2.5 GB with external data: time and memory of each step, beside onnx.load + onnx.save.

    python tools/bench/large.py [--width 1024 --blocks 40 --fan 4] [--samples 64] [--folder DIR]

The model is a chain of blocks with residual adds; the products of a block (`fan` of them, each
width x 4 width, float32) read one input, whose energy falls like a power of its dimensions.
Weights are external, in one file. Every step is a process of its own; the folder is removed at
the end.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path
from typing import Any

import common

ROWS = 64  # of each sample
WIDE = 4  # outputs of a product, in widths


def build(folder: str, width: int, blocks: int, fan: int, samples: int, decay: float) -> int:
    """Write model.onnx with model.data, and samples; return the bytes of both files."""
    import numpy as np
    from onnx import TensorProto, helper

    rng = np.random.default_rng(0)
    place = Path(folder)
    nodes, tensors, offset = [], [], 0
    stream = "x"
    with open(place / "model.data", "wb") as file:
        for block in range(blocks):
            made = []
            for branch in range(fan):
                name = f"block{block}/weight{branch}"
                weight = rng.standard_normal((width, WIDE * width), np.float32)
                weight *= 0.5 / np.sqrt(width * fan * WIDE)
                file.write(weight.tobytes())
                tensor = TensorProto(name=name, data_type=TensorProto.FLOAT, dims=weight.shape)
                tensor.data_location = TensorProto.EXTERNAL
                for key, value in (("location", "model.data"), ("offset", offset),
                                   ("length", weight.nbytes)):  # fmt: skip
                    tensor.external_data.add(key=key, value=str(value))
                tensors.append(tensor)
                offset += weight.nbytes
                out = f"block{block}/product{branch}"
                parts = [f"{out}/part{k}" for k in range(WIDE)]
                nodes.append(helper.make_node("MatMul", [stream, name], [out], out))
                nodes.append(helper.make_node("Split", [out], parts, f"{out}/split", axis=-1))
                made += parts
            total = f"block{block}/sum"
            nodes.append(helper.make_node("Sum", [stream, *made], [total], total))
            stream = total
    shape = ["samples", ROWS, width]
    graph = helper.make_graph(
        nodes,
        "large",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info(stream, TensorProto.FLOAT, shape)],
        tensors,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    (place / "model.onnx").write_bytes(model.SerializeToString())
    scale = np.arange(1, width + 1, dtype=np.float32) ** (-decay / 2)
    basis = np.linalg.qr(rng.standard_normal((width, width), np.float32))[0]
    x = rng.standard_normal((samples, ROWS, width), np.float32) * scale @ basis
    np.savez(place / "samples.npz", x=x.astype(np.float32))
    return offset + (place / "model.onnx").stat().st_size


def onnx_load(folder: str) -> None:
    """Load all weights, with onnx alone."""
    import onnx

    onnx.load(f"{folder}/model.onnx")


def onnx_save(folder: str) -> None:
    """Load all weights and write them again, with onnx alone."""
    import onnx

    model = onnx.load(f"{folder}/model.onnx")
    onnx.save(model, f"{folder}/again.onnx", save_as_external_data=True, location="again.data")


def main() -> None:
    parser = common.parser(__doc__)
    parser.add_argument("--width", type=int, default=1024)
    parser.add_argument("--blocks", type=int, default=40)
    parser.add_argument("--fan", type=int, default=4)
    parser.add_argument("--samples", type=int, default=64, help=f"of {ROWS} rows each")
    parser.add_argument("--decay", type=float, default=1.5, help="power of the input's energy")
    parser.add_argument("--energy", default="0.99")
    parser.add_argument("--memory", default="4GiB", help="given to the steps that take it")
    parser.add_argument("--folder", help="where a temporary folder is made")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        common.record(options, "A model of 2.5 GB", *_steps(options, folder))


def _steps(options: Any, folder: str) -> tuple[str, str]:
    threads, place = options.threads, Path(folder)
    size = common.child(
        __file__, "build", threads, folder=folder, width=options.width, blocks=options.blocks,
        fan=options.fan, samples=options.samples, decay=options.decay,
    ).value  # fmt: skip
    model, data, moments = (str(place / n) for n in ("model.onnx", "samples.npz", "moments"))
    rank = [sys.executable, "-m", "onnxrank", "-q"]
    run = ["--threads", str(threads), "--provider", "cpu"]
    few = ["--data", data, "--memory", options.memory, *run]
    known = ["--moments", moments, "--energy", options.energy, *run]
    result = str(place / "small.onnx")
    steps: list[tuple[str, list[str] | str]] = [
        ("onnx.load", "onnx_load"),
        ("onnx.load + onnx.save", "onnx_save"),
        ("inspect", [*rank, "inspect", model]),
        ("collect", [*rank, "collect", model, moments, *few]),
        ("analyze --moments", [*rank, "analyze", model, *known]),
        ("compress --moments", [*rank, "compress", model, result, *known, "--allow-unstable"]),
    ]
    rows = []
    for name, what in steps:
        if isinstance(what, str):
            used = common.child(__file__, what, threads, folder=folder)
        else:
            used = common.run(what, threads)
        rows.append([name, f"{used.cpu:.1f}", f"{used.wall:.1f}", f"{used.peak / common.MIB:.0f}"])
        print(rows[-1], file=sys.stderr, flush=True)
    written = sum(p.stat().st_size for p in place.glob("small.onnx*"))
    stored = (place / "moments").stat().st_size
    note = (
        f"{options.blocks} blocks of {options.fan} products {options.width} x "
        f"{WIDE * options.width}: "
        f"{size / 1e9:.2f} GB; {options.samples} samples of {ROWS} rows; moments "
        f"{stored / 1e9:.2f} GB; the result {written / 1e9:.2f} GB."
    )
    head = ["step", "CPU s", "wall s", "peak MiB"]
    return note, common.table(head, rows)


if __name__ == "__main__" and not common.serve(
    {"build": build, "onnx_load": onnx_load, "onnx_save": onnx_save}
):
    main()
