# ruff: noqa: D101, D102
"""The torch networks: a small ViT with a convolutional stem, ResNet-20 and ResNet-18 kinds."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

MEAN, STD = 0.2860, 0.3530  # of the training pixels in [0, 1]


class Normalised(nn.Module):
    """A network that takes pixels in [0, 1]: the normalisation is part of the graph."""

    def __init__(self, network: nn.Module):
        super().__init__()
        self.network = network

    def forward(self, image: Tensor) -> Tensor:
        return self.network((image - MEAN) / STD)


class Attention(nn.Module):
    def __init__(self, width: int, heads: int):
        super().__init__()
        self.heads = heads
        self.query = nn.Linear(width, width)
        self.key = nn.Linear(width, width)
        self.value = nn.Linear(width, width)
        self.out = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        def split(t: Tensor) -> Tensor:
            return t.unflatten(2, (self.heads, -1)).transpose(1, 2)

        q, k, v = split(self.query(x)), split(self.key(x)), split(self.value(x))
        scores = q @ k.transpose(2, 3) * q.shape[-1] ** -0.5
        return self.out((scores.softmax(-1) @ v).transpose(1, 2).flatten(2))


class Block(nn.Module):
    """Pre-norm transformer block."""

    def __init__(self, width: int, heads: int, drop: float):
        super().__init__()
        self.norm1, self.attention = nn.LayerNorm(width), Attention(width, heads)
        self.norm2 = nn.LayerNorm(width)
        self.mlp = nn.Sequential(
            nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width)
        )
        self.drop = nn.Dropout(drop)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.drop(self.attention(self.norm1(x)))
        return x + self.drop(self.mlp(self.norm2(x)))


class ViT(nn.Module):
    """28x28 -> convolutional stem -> 4x4 = 16 tokens -> `depth` blocks -> mean -> classes."""

    def __init__(self, width: int = 128, depth: int = 6, heads: int = 4, drop: float = 0.05):
        super().__init__()
        self.stem = nn.Sequential(
            nn.Conv2d(1, width // 4, 3, 2, 1, bias=False),
            nn.BatchNorm2d(width // 4),
            nn.GELU(),
            nn.Conv2d(width // 4, width // 2, 3, 2, 1, bias=False),
            nn.BatchNorm2d(width // 2),
            nn.GELU(),
            nn.Conv2d(width // 2, width, 3, 2, 1),
        )
        self.position = nn.Parameter(torch.randn(1, 16, width) * 0.02)
        self.blocks = nn.Sequential(*(Block(width, heads, drop) for _ in range(depth)))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, 10)

    def tokens(self, x: Tensor) -> Tensor:
        """[n, 16, width]: the 7x7 patches of the image, each with its position."""
        return self.stem(x).flatten(2).transpose(1, 2) + self.position

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.norm(self.blocks(self.tokens(x))).mean(1))


class Residual(nn.Module):
    """Two 3x3 convolutions with BatchNorm and a shortcut."""

    def __init__(self, before: int, after: int, stride: int):
        super().__init__()
        self.conv1 = nn.Conv2d(before, after, 3, stride, 1, bias=False)
        self.norm1 = nn.BatchNorm2d(after)
        self.conv2 = nn.Conv2d(after, after, 3, 1, 1, bias=False)
        self.norm2 = nn.BatchNorm2d(after)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or before != after:
            self.shortcut = nn.Sequential(
                nn.Conv2d(before, after, 1, stride, bias=False), nn.BatchNorm2d(after)
            )

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.norm1(self.conv1(x)))
        return F.relu(self.norm2(self.conv2(y)) + self.shortcut(x))


class ResNet(nn.Module):
    """3x3 stem, stages of `blocks` residual blocks, the width doubled from stage to stage."""

    def __init__(self, width: int, stages: int, blocks: int):
        super().__init__()
        layers: list[nn.Module] = [
            nn.Conv2d(1, width, 3, 1, 1, bias=False),
            nn.BatchNorm2d(width),
            nn.ReLU(),
        ]
        before = width
        for stage in range(stages):
            after = width * 2**stage
            for block in range(blocks):
                layers.append(Residual(before, after, 2 if stage and not block else 1))
                before = after
        self.body = nn.Sequential(*layers)
        self.head = nn.Linear(before, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(x).mean((2, 3)))


def build(kind: str, width: int | None = None, depth: int | None = None) -> nn.Module:
    """A network by name; `width` is the ViT's, or that of the first ResNet stage.

    `depth` is the number of the ViT's blocks; the ResNets have their own.
    """
    if kind == "vit":
        return Normalised(ViT(width or 128, depth or 6))
    if depth is not None:
        raise ValueError(f"{kind} has a depth of its own")
    if kind == "resnet20":
        return Normalised(ResNet(width or 16, stages=3, blocks=3))
    if kind == "resnet18":
        return Normalised(ResNet(width or 32, stages=4, blocks=2))
    raise ValueError(f"unknown network {kind!r}: vit, resnet20, resnet18")
