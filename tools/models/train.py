"""Train a network on Fashion-MNIST (MIT licence) and export it to ONNX.

    python tools/models/train.py --data fashion_mnist.npz --model vit --out models/vit.onnx
    python tools/models/train.py --data fashion_mnist.npz --model resnet20 --out models/resnet.onnx
    python tools/models/train.py --data fashion_mnist.npz --model resnet18 --out resnet18.onnx

The data file is made by tools/models/data.py. The ViT is exported by torch's dynamo
exporter, the ResNets by its legacy exporter, unless --exporter says otherwise. The script
ends with the accuracy of the exported file on all test images, run by onnxruntime.
"""

from __future__ import annotations

import argparse
import math
import time
from pathlib import Path

import numpy as np
import torch
from data import images
from networks import build
from torch import Tensor, nn
from torch.nn import functional as F

RECIPES = {  # optimizer, peak learning rate, weight decay, epochs, exporter
    "vit": ("adamw", 2e-3, 0.05, 10, "dynamo"),
    "resnet20": ("sgd", 0.2, 5e-4, 12, "legacy"),
    "resnet18": ("sgd", 0.2, 5e-4, 8, "legacy"),
}


def augment(x: Tensor) -> Tensor:
    """Flip half of the images and shift each by up to two pixels."""
    n = len(x)
    x = torch.where(torch.rand(n, 1, 1, 1) < 0.5, x.flip(3), x)
    padded = F.pad(x, (2, 2, 2, 2))
    dy, dx = torch.randint(0, 5, (2, n))
    rows = (dy[:, None] + torch.arange(28))[:, None, :, None]
    columns = (dx[:, None] + torch.arange(28))[:, None, None, :]
    return padded[torch.arange(n)[:, None, None, None], 0, rows, columns]


def optimizer_for(model: nn.Module, name: str, rate: float, decay: float):
    """Biases, norms and positions are not decayed."""
    groups = [
        {"params": [p for p in model.parameters() if p.ndim in (2, 4)], "weight_decay": decay},
        {"params": [p for p in model.parameters() if p.ndim not in (2, 4)], "weight_decay": 0.0},
    ]
    if name == "adamw":
        return torch.optim.AdamW(groups, lr=rate, betas=(0.9, 0.98))
    return torch.optim.SGD(groups, lr=rate, momentum=0.9, nesterov=True)


def accuracy(model: nn.Module, x: Tensor, y: Tensor) -> float:
    model.eval()
    with torch.no_grad():
        found = torch.cat([model(part).argmax(1) for part in x.split(500)])
    return float((found == y).float().mean())


def train(model: nn.Module, data, recipe, epochs: int, batch: int) -> None:
    """Warm up over the first 15 % of the steps, then fall along a cosine."""
    x, y, x_test, y_test = data
    name, rate, decay, *_ = recipe
    optimizer = optimizer_for(model, name, rate, decay)
    steps = epochs * math.ceil(len(x) / batch)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, rate, steps, pct_start=0.15, cycle_momentum=False
    )
    model.to(memory_format=torch.channels_last)
    start = time.time()
    for epoch in range(1, epochs + 1):
        model.train()
        losses = []
        for pick in torch.randperm(len(x)).split(batch):
            batch_x = augment(x[pick]).contiguous(memory_format=torch.channels_last)
            with torch.autocast("cpu", torch.bfloat16):
                logits = model(batch_x)
            loss = F.cross_entropy(logits.float(), y[pick], label_smoothing=0.05)
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 2.0)
            optimizer.step()
            schedule.step()
            losses.append(loss.item())
        line = f"epoch {epoch}/{epochs}  {(time.time() - start) / 60:.1f} min"
        line += f"  loss {np.mean(losses):.3f}"
        if epoch % 5 == 0:
            line += f"  test {accuracy(model, x_test, y_test):.4f}"
        print(line, flush=True)


def export(model: nn.Module, path: Path, exporter: str) -> None:
    """Write the model with its batch axis open."""
    model.eval().to(memory_format=torch.contiguous_format)
    path.parent.mkdir(parents=True, exist_ok=True)
    sample = torch.rand(2, 1, 28, 28)
    names = {"input_names": ["image"], "output_names": ["logits"]}
    if exporter == "dynamo":
        torch.onnx.export(
            model,
            (sample,),
            str(path),
            **names,
            dynamo=True,
            opset_version=20,
            external_data=False,
            dynamic_shapes=({0: torch.export.Dim("batch")},),
        )
    else:
        axes = {"image": {0: "batch"}, "logits": {0: "batch"}}
        torch.onnx.export(
            model, (sample,), str(path), **names, dynamo=False, opset_version=17, dynamic_axes=axes
        )
    tidy(path)


def tidy(path: Path) -> None:
    """Take the exporter's stack traces out of the file: they hold the paths of this machine."""
    import onnx

    proto = onnx.load(path)
    for node in proto.graph.node:
        kept = [p for p in node.metadata_props if "stack_trace" not in p.key]
        del node.metadata_props[:]
        node.metadata_props.extend(kept)
    onnx.save(proto, path)


def exported_accuracy(path: Path, x: np.ndarray, y: np.ndarray) -> float:
    import onnxruntime

    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    logits = [session.run(["logits"], {"image": x[k : k + 500]})[0] for k in range(0, len(x), 500)]
    return float((np.concatenate(logits).argmax(1) == y).mean())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help=".npz made by data.py")
    parser.add_argument("--model", choices=RECIPES, required=True)
    parser.add_argument("--out", type=Path, required=True, help="the .onnx file to write")
    parser.add_argument("--width", type=int, help="another width than the network's own")
    parser.add_argument("--epochs", type=int)
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--exporter", choices=("dynamo", "legacy"))
    parser.add_argument("--classes", type=int, nargs="+", help="train on these classes only")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()

    torch.manual_seed(args.seed)
    with np.load(args.data) as file:
        data = {k: file[k] for k in file.files}
    if args.classes:
        for part in ("train", "test"):
            keep = np.isin(data[f"y_{part}"], args.classes)
            data[f"x_{part}"], data[f"y_{part}"] = data[f"x_{part}"][keep], data[f"y_{part}"][keep]
    x_test, y_test = images(data["x_test"]), data["y_test"].astype(np.int64)
    tensors = (
        torch.from_numpy(images(data["x_train"])),
        torch.from_numpy(data["y_train"].astype(np.int64)),
        torch.from_numpy(x_test),
        torch.from_numpy(y_test),
    )
    recipe = RECIPES[args.model]
    model = build(args.model, args.width)
    print(sum(p.numel() for p in model.parameters()), "parameters", flush=True)
    train(model, tensors, recipe, args.epochs or recipe[3], args.batch)
    export(model, args.out, args.exporter or recipe[4])
    right = exported_accuracy(args.out, x_test, y_test)
    print(f"{args.out}: accuracy {right:.4f} on {len(y_test)} test images")


if __name__ == "__main__":
    main()
