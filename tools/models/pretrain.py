"""Train the ViT of networks.py without labels, by masked autoencoding, and export its encoder.

    python tools/models/pretrain.py --data fashion_mnist.npz --out vit_masked.onnx

Ten of the sixteen 7x7 patches of an image are blanked; the encoder sees the other six, and a small
decoder, which is dropped afterwards, draws what was blanked. The file has the layers of the ViT
that train.py writes: its head is a linear probe, fitted to the frozen features of the training
images. The script ends with the accuracy of that head and of the nearest neighbours on the test
images. `--epochs 0` gives the same for an untrained encoder.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from networks import MEAN, STD, Block, Normalised, ViT
from torch import Tensor, nn
from torch.nn import functional as F
from train import export, exported_accuracy, fit, read

RECIPE = ("adamw", 2e-3, 0.05)
PATCHES, SIDE, SEEN = 16, 7, 6


class Masked(nn.Module):
    """A ViT and the decoder that draws the patches it has not seen (He et al., 2111.06377)."""

    def __init__(self, encoder: ViT, width: int = 64, depth: int = 2):
        super().__init__()
        self.encoder = encoder
        self.narrow = nn.Linear(encoder.position.shape[2], width)
        self.blank = nn.Parameter(torch.zeros(1, 1, width))
        self.position = nn.Parameter(torch.randn(1, PATCHES, width) * 0.02)
        self.blocks = nn.Sequential(
            *(Block(width, 4, 0.0) for _ in range(depth)), nn.LayerNorm(width)
        )
        self.draw = nn.Linear(width, SIDE * SIDE)

    def forward(self, image: Tensor) -> Tensor:
        """Mean squared error of the blanked pixels, in spreads of the training pixels."""
        x = (image - MEAN) / STD
        order = torch.rand(len(x), PATCHES).argsort(1)
        blanked = torch.ones(len(x), PATCHES).scatter(1, order[:, :SEEN], 0.0)
        pixels = blanked.view(-1, 1, 4, 4).repeat_interleave(SIDE, 2).repeat_interleave(SIDE, 3)
        error = (self._drawn(x * (1 - pixels), order) - x) ** 2
        return (error * pixels).sum() / pixels.sum()

    def _drawn(self, x: Tensor, order: Tensor) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            tokens = self.encoder.tokens(x)
            at = order[:, :SEEN, None]
            seen = tokens.gather(1, at.expand(-1, -1, tokens.shape[2]))
            seen = self.narrow(self.encoder.norm(self.encoder.blocks(seen)))
            every = self.blank.to(seen.dtype).expand(len(x), PATCHES, -1)
            every = every.scatter(1, at.expand(-1, -1, seen.shape[2]), seen)
            drawn = self.draw(self.blocks(every + self.position))
        patches = drawn.float().view(-1, 4, 4, SIDE, SIDE)
        return patches.transpose(2, 3).reshape(-1, 1, 4 * SIDE, 4 * SIDE)


def features(model: nn.Module, x: Tensor) -> Tensor:
    model.eval()
    with torch.no_grad():
        return torch.cat([model(part) for part in x.split(500)])


def neighbours(known: Tensor, y: Tensor, asked: Tensor, truth: Tensor, k: int = 20) -> float:
    """Accuracy of the vote of the k nearest training images, by cosine."""
    known = F.normalize(known).T
    right = 0
    for part, labels in zip(F.normalize(asked).split(500), truth.split(500), strict=True):
        votes = y[(part @ known).topk(k).indices]
        right += int((votes.mode(1).values == labels).sum())
    return right / len(truth)


def probe(known: Tensor, y: Tensor, steps: int = 300) -> nn.Linear:
    """Logistic regression on standardised features, as one linear layer on the plain ones."""
    spread, mean = torch.std_mean(known, 0)
    spread = spread + 1e-6
    head = nn.Linear(known.shape[1], int(y.max()) + 1)
    x = (known - mean) / spread
    optimizer = torch.optim.LBFGS(head.parameters(), max_iter=steps, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        optimizer.zero_grad()
        found = F.cross_entropy(head(x), y) + 1e-5 * head.weight.square().sum()
        found.backward()
        return found

    optimizer.step(loss)
    with torch.no_grad():
        head.weight /= spread
        head.bias -= head.weight @ mean
    return head


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help=".npz made by data.py")
    parser.add_argument("--out", type=Path, required=True, help="the .onnx file to write")
    parser.add_argument("--width", type=int, default=128)
    parser.add_argument("--depth", type=int, default=6)
    parser.add_argument("--epochs", type=int, default=25)
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()

    torch.manual_seed(args.seed)
    x, y, x_test, y_test = read(args.data)
    encoder = ViT(args.width, args.depth)
    task = Masked(encoder)
    fit(task, x, lambda seen, _: task(seen), RECIPE, args.epochs, args.batch)
    encoder.head = nn.Identity()
    model = Normalised(encoder)
    known, asked = features(model, x), features(model, x_test)
    nearest = neighbours(known, y, asked, y_test)
    encoder.head = probe(known, y)
    export(model, args.out, "dynamo")
    right = exported_accuracy(args.out, x_test, y_test)
    print(f"{args.out}: linear probe {right:.4f}, nearest neighbours {nearest:.4f}")


if __name__ == "__main__":
    main()
