"""Write calibration and evaluation samples of Fashion-MNIST beside the models.

    python tools/models/samples.py --data fashion_mnist.npz --out models --name fashion
    python tools/models/samples.py --data fashion_mnist.npz --out models --name mlp --flat

NAME_calib.npz holds training images and NAME_eval.npz test images, drawn at random with a
fixed seed: 'image' in [0, 1] (float32, [n, 1, 28, 28], or [n, 784] with --flat) and
'__label__'. As many as there are, or more, keep the data file's order.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
from data import save_samples


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help=".npz made by data.py")
    parser.add_argument("--out", type=Path, required=True, help="folder to write into")
    parser.add_argument("--name", default="fashion")
    parser.add_argument("--calib", type=int, default=2048, help="training images, 0 for no file")
    parser.add_argument("--eval", type=int, default=2048, help="test images, 0 for no file")
    parser.add_argument("--flat", action="store_true", help="one row of 784 pixels an image")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    with np.load(args.data) as file:
        for part, source, count, seed in (
            ("calib", "train", args.calib, 1),
            ("eval", "test", args.eval, 2),
        ):
            if count:
                target = args.out / f"{args.name}_{part}.npz"
                pixels, labels = file[f"x_{source}"], file[f"y_{source}"]
                save_samples(target, pixels, labels, count, seed, args.flat)
                print(target, min(count, len(pixels)), "images")


if __name__ == "__main__":
    main()
