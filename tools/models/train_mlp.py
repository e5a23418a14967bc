"""Train scikit-learn's MLP on Fashion-MNIST (MIT licence) and export it with skl2onnx.

    python tools/models/train_mlp.py --data fashion_mnist.npz --out models/mlp.onnx

The graph takes rows of 784 pixels in [0, 1] and ends in logits: the softmax, labels and map
of probabilities that skl2onnx puts behind the last bias are cut off.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
from data import images
from onnx import helper
from skl2onnx import to_onnx
from skl2onnx.common.data_types import FloatTensorType
from sklearn.neural_network import MLPClassifier

OPSET = 17


def augmented(pixels: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """A mirrored copy of every image, shifted by up to one pixel each way."""
    out = np.pad(pixels[:, :, ::-1], ((0, 0), (1, 1), (1, 1)))
    dy, dx = rng.integers(0, 3, (2, len(out)))
    rows, columns = dy[:, None] + np.arange(28), dx[:, None] + np.arange(28)
    return out[np.arange(len(out))[:, None, None], rows[:, :, None], columns[:, None, :]]


def logits_only(proto: onnx.ModelProto, path: Path) -> None:
    """Cut the graph behind the last bias and name its ends 'image' and 'logits'."""
    graph = proto.graph
    last = max(k for k, node in enumerate(graph.node) if node.op_type == "Add")
    ends = {graph.input[0].name: "image", graph.node[last].output[0]: "logits"}
    wanted, kept = set(graph.node[last].output), []
    for node in reversed(graph.node[: last + 1]):
        if wanted.intersection(node.output):
            wanted.update(node.input)
            kept.insert(0, node)
    for node in kept:
        node.input[:] = [ends.get(name, name) for name in node.input]
        node.output[:] = [ends.get(name, name) for name in node.output]
    cut = helper.make_graph(
        kept,
        graph.name,
        [helper.make_tensor_value_info("image", onnx.TensorProto.FLOAT, ["batch", 784])],
        [helper.make_tensor_value_info("logits", onnx.TensorProto.FLOAT, ["batch", 10])],
        [tensor for tensor in graph.initializer if tensor.name in wanted],
    )
    graph.CopyFrom(cut)
    del proto.opset_import[:]
    proto.opset_import.append(helper.make_opsetid("", OPSET))
    onnx.checker.check_model(proto, full_check=True)
    onnx.save(proto, path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help=".npz made by data.py")
    parser.add_argument("--out", type=Path, required=True, help="the .onnx file to write")
    parser.add_argument("--hidden", type=int, nargs="+", default=[200, 100])
    parser.add_argument("--epochs", type=int, default=12)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    with np.load(args.data) as file:
        x_train, y_train = file["x_train"], file["y_train"]
        x_test, y_test = images(file["x_test"], flat=True), file["y_test"]

    rng = np.random.default_rng(args.seed)
    model = MLPClassifier(
        tuple(args.hidden),
        alpha=1e-4,
        batch_size=256,
        learning_rate_init=1e-3,
        random_state=args.seed,
        solver="adam",
    )
    classes = np.unique(y_train)
    for epoch in range(args.epochs):
        if hasattr(model, "_optimizer"):  # smaller steps from 60, 80 and 90 % of the way
            drops = sum(epoch >= share * args.epochs for share in (0.6, 0.8, 0.9))
            model._optimizer.learning_rate_init = 1e-3 * 0.4**drops
        x = np.concatenate([x_train, augmented(x_train, rng)])
        order = rng.permutation(len(x))
        y = np.concatenate([y_train, y_train])[order]
        x = images(x[order], flat=True)
        for k in range(0, len(x) - 255, 256):
            model.partial_fit(x[k : k + 256], y[k : k + 256], classes=classes)
        print(f"epoch {epoch + 1}  test {model.score(x_test, y_test):.4f}", flush=True)

    proto = to_onnx(
        model, initial_types=[("image", FloatTensorType([None, 784]))], target_opset=OPSET
    )
    args.out.parent.mkdir(parents=True, exist_ok=True)
    logits_only(proto, args.out)
    session = onnxruntime.InferenceSession(str(args.out), providers=["CPUExecutionProvider"])
    (logits,) = session.run(["logits"], {"image": x_test})
    right = (logits.argmax(1) == y_test).mean()
    print(f"{args.out}: accuracy {right:.4f} on {len(y_test)} test images")


if __name__ == "__main__":
    main()
