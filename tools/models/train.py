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
from collections.abc import Callable
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


def read(path: Path, classes: list[int] | None = None) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Training images and labels, then those of the test; of some classes only, if named."""
    found: list[Tensor] = []
    with np.load(path) as file:
        for part in ("train", "test"):
            x, y = file[f"x_{part}"], file[f"y_{part}"].astype(np.int64)
            if classes:
                keep = np.isin(y, classes)
                x, y = x[keep], y[keep]
            found += [torch.from_numpy(images(x)), torch.from_numpy(y)]
    return tuple(found)


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


def fit(
    model: nn.Module,
    x: Tensor,
    loss_of: Callable[[Tensor, Tensor], Tensor],
    recipe: tuple,
    epochs: int,
    batch: int,
    judge: Callable[[], str] | None = None,
) -> None:
    """Lower `loss_of(augmented images, their numbers)` over the images.

    Warms up over the first 15 % of the steps, then falls along a cosine. Every fifth epoch says
    what `judge` gives.
    """
    name, rate, decay, *_ = recipe
    model.to(memory_format=torch.channels_last)
    if not epochs:
        return
    optimizer = optimizer_for(model, name, rate, decay)
    steps = epochs * math.ceil(len(x) / batch)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, rate, steps, pct_start=0.15, cycle_momentum=False
    )
    start = time.time()
    for epoch in range(1, epochs + 1):
        model.train()
        losses = []
        for pick in torch.randperm(len(x)).split(batch):
            seen = augment(x[pick]).contiguous(memory_format=torch.channels_last)
            loss = loss_of(seen, pick)
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 2.0)
            optimizer.step()
            schedule.step()
            losses.append(loss.item())
        line = f"epoch {epoch}/{epochs}  {(time.time() - start) / 60:.1f} min"
        line += f"  loss {np.mean(losses):.3f}"
        if judge is not None and epoch % 5 == 0:
            line += f"  {judge()}"
        print(line, flush=True)


def train(model: nn.Module, data, recipe: tuple, epochs: int, batch: int) -> None:
    """Train with labels."""
    x, y, x_test, y_test = data

    def loss_of(seen: Tensor, pick: Tensor) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            logits = model(seen)
        return F.cross_entropy(logits.float(), y[pick], label_smoothing=0.05)

    judge = lambda: f"test {accuracy(model, x_test, y_test):.4f}"  # noqa: E731
    fit(model, x, loss_of, recipe, epochs, batch, judge)


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


def exported_accuracy(path: Path, samples: Tensor, labels: Tensor) -> float:
    import onnxruntime

    x, y = samples.numpy(), labels.numpy()
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    logits = [session.run(["logits"], {"image": x[k : k + 500]})[0] for k in range(0, len(x), 500)]
    return float((np.concatenate(logits).argmax(1) == y).mean())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help=".npz made by data.py")
    parser.add_argument("--model", choices=RECIPES, required=True)
    parser.add_argument("--out", type=Path, required=True, help="the .onnx file to write")
    parser.add_argument("--width", type=int, help="another width than the network's own")
    parser.add_argument("--depth", type=int, help="another number of blocks than the ViT's own")
    parser.add_argument("--epochs", type=int)
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--exporter", choices=("dynamo", "legacy"))
    parser.add_argument("--classes", type=int, nargs="+", help="train on these classes only")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()

    torch.manual_seed(args.seed)
    data = read(args.data, args.classes)
    recipe = RECIPES[args.model]
    model = build(args.model, args.width, args.depth)
    print(sum(p.numel() for p in model.parameters()), "parameters", flush=True)
    epochs = recipe[3] if args.epochs is None else args.epochs
    train(model, data, recipe, epochs, args.batch)
    export(model, args.out, args.exporter or recipe[4])
    right = exported_accuracy(args.out, *data[2:])
    print(f"{args.out}: accuracy {right:.4f} on {len(data[3])} test images")


if __name__ == "__main__":
    main()
