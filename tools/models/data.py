"""Fashion-MNIST (MIT licence) as one .npz file, and the batches cut from it.

    python tools/models/data.py FOLDER_OF_IDX_FILES fashion_mnist.npz

reads the four published files (train-images-idx3-ubyte.gz, train-labels-idx1-ubyte.gz,
t10k-images-idx3-ubyte.gz, t10k-labels-idx1-ubyte.gz; packed or not) from the
folder and writes x_train, y_train, x_test and y_test as uint8.
"""

from __future__ import annotations

import argparse
import gzip
import struct
from pathlib import Path

import numpy as np

IDX_FILES = {
    "x_train": "train-images-idx3-ubyte",
    "y_train": "train-labels-idx1-ubyte",
    "x_test": "t10k-images-idx3-ubyte",
    "y_test": "t10k-labels-idx1-ubyte",
}


def read_idx(path: Path) -> np.ndarray:
    """The uint8 array of an idx file, gzip-packed or plain."""
    raw = path.read_bytes()
    if raw[:2] == b"\x1f\x8b":
        raw = gzip.decompress(raw)
    zeros, kind, rank = struct.unpack(">HBB", raw[:4])
    if zeros or kind != 8:
        raise ValueError(f"{path} is not an idx file of unsigned bytes")
    shape = struct.unpack(f">{rank}I", raw[4 : 4 + 4 * rank])
    return np.frombuffer(raw, np.uint8, offset=4 + 4 * rank).reshape(shape)


def convert(folder: Path, target: Path) -> None:
    arrays = {}
    for key, name in IDX_FILES.items():
        path = next((p for p in (folder / name, folder / f"{name}.gz") if p.exists()), None)
        if path is None:
            raise FileNotFoundError(f"{folder / name}(.gz)")
        arrays[key] = read_idx(path)
    np.savez_compressed(target, **arrays)


def images(pixels: np.ndarray, flat: bool = False) -> np.ndarray:
    """uint8 [n, 28, 28] -> float32 in [0, 1], [n, 1, 28, 28] or [n, 784]."""
    x = pixels.astype(np.float32) / 255
    return x.reshape(len(x), -1) if flat else x[:, None]


def save_samples(
    path: Path, pixels: np.ndarray, labels: np.ndarray, count: int, seed: int, flat: bool = False
) -> None:
    """Write `count` samples drawn at random, or all in their order when count is the whole."""
    rng = np.random.default_rng(seed)
    pick = np.arange(len(pixels)) if count >= len(pixels) else rng.permutation(len(pixels))[:count]
    np.savez_compressed(
        path, image=images(pixels[pick], flat), __label__=labels[pick].astype(np.int64)
    )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, help="folder with the four published idx files")
    parser.add_argument("target", type=Path, help="the .npz file to write")
    args = parser.parse_args()
    convert(args.folder, args.target)
