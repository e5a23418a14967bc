"""Folders of images: decoding, resizing and normalising them as a network expects."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from onnxrank.errors import DataError
from onnxrank.graph.model import TensorInfo
from onnxrank.runtime.check import numpy_dtype, shown

SUFFIXES = frozenset(
    {".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"}
)
FORMATS = (
    "a .npz or .npy file, a folder of those, of images or of test_data_set_*, "
    "loader.py:function, or random:N"
)
_MODES = {1: "L", 3: "RGB", 4: "RGBA"}


@dataclass(frozen=True)
class Preprocess:
    """How an image becomes an array.

    Attributes
    ----------
    resize : (int, int) or None
        Height and width; None takes them from the model's input.
    mean, std : tuple of float or None
        Per channel, for values in 0..1: ``(x - mean) / std``. Without both, values stay 0..255.
    layout : str or None
        ``NCHW`` or ``NHWC``; None takes it from the model's input.
    crop : float
        The centre that is kept after the shorter side was resized to size / crop. At 0 the whole
        image is stretched to the size instead.
    """

    resize: tuple[int, int] | None = None
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    layout: str | None = None
    crop: float = 0.0


PREPROCESS = {
    "none": Preprocess(),
    "imagenet": Preprocess(mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225), crop=0.875),
}


def named_preprocess(name: str, **explicit: Any) -> Preprocess:
    """Return a preprocessing by name (a key of `PREPROCESS`), some fields replaced."""
    if name not in PREPROCESS:
        valid = ", ".join(sorted(PREPROCESS))
        raise DataError(f"preprocessing {name!r} is unknown", hint=f"one of {valid}")
    return replace(PREPROCESS[name], **{k: v for k, v in explicit.items() if v is not None})


@dataclass(frozen=True)
class ImageTable:
    """A folder of images as a table with one column; an image is a sample.

    Attributes
    ----------
    files : tuple of Path
        The images, in order.
    name : str
        The input they feed.
    convert : callable
        Image file to array.
    batch : int or None
        Batch size the model fixes.
    """

    files: tuple[Path, ...]
    name: str
    convert: Callable[[Path], NDArray[Any]]
    batch: int | None

    def __len__(self) -> int:
        return len(self.files)

    def chunks(
        self, step: int, used: NDArray[np.bool_]
    ) -> Iterator[tuple[int, dict[str, NDArray[Any]], str]]:
        """Consecutive pieces of at most `step` samples: start, arrays and file."""
        for start in range(0, len(self.files), step):
            if used[start : start + step].any():
                files = self.files[start : start + step]
                yield start, {self.name: np.stack([self.convert(f) for f in files])}, str(files[0])


def open_images(folder: Path, inputs: tuple[TensorInfo, ...], how: Preprocess | None) -> ImageTable:
    """Return the images of a folder and its subfolders, sorted by path."""
    where = str(folder)
    files = tuple(sorted(p for p in folder.rglob("*") if p.suffix.lower() in SUFFIXES))
    if not files:
        raise DataError("the folder holds no data", where=where, hint=f"use {FORMATS}")
    if how is None:
        raise DataError(
            "images need to be told how they become inputs",
            where=where,
            hint="--preprocess imagenet or none, with --resize, --mean, --std and --layout",
        )
    needed = [info for info in inputs if not info.optional]
    if len(needed) != 1:
        names = ", ".join(repr(info.name) for info in needed)
        raise DataError(f"images feed one input, but the model has {names}", where=where)
    batch = needed[0].shape[0] if needed[0].shape else None
    convert = _converter(needed[0], how, where)
    return ImageTable(files, needed[0].name, convert, batch if isinstance(batch, int) else None)


def _converter(info: TensorInfo, how: Preprocess, where: str) -> Callable[[Path], NDArray[Any]]:
    """Settle sizes and types once."""
    shape = info.shape or (None,) * 4
    if len(shape) != 4:
        raise DataError(f"input {info.name!r} of shape {shown(shape)} takes no images", where=where)
    layout = how.layout or _guess_layout(shape, where)
    if layout not in ("NCHW", "NHWC"):
        raise DataError(f"layout {layout!r} is unknown", hint="NCHW or NHWC")
    channels, *declared = (shape[layout.index(axis)] for axis in "CHW")
    size = how.resize or tuple(declared)
    height, width = size
    if not isinstance(height, int) or not isinstance(width, int):
        raise DataError(
            f"input {info.name!r} of shape {shown(shape)} leaves the image size open",
            where=where,
            hint="give --resize HEIGHT,WIDTH",
        )
    channels = channels if isinstance(channels, int) else 3
    if channels not in _MODES:
        raise DataError(f"input {info.name!r} has {channels} channels, no image has", where=where)
    dtype = numpy_dtype(info)
    scaled = how.mean is not None or how.std is not None
    if dtype.kind not in "fu" and info.dtype != onnx.TensorProto.BFLOAT16:
        raise DataError(f"input {info.name!r} is {dtype}, which images are not", where=where)
    if scaled and dtype.kind == "u":
        raise DataError(f"input {info.name!r} is {dtype}: a mean and std do not fit", where=where)
    mean = np.array(how.mean or 0.0, np.float32)
    std = np.array(how.std or 1.0, np.float32)
    for values in (mean, std):
        if values.size not in (1, channels):
            raise DataError(f"{values.size} values of mean or std for {channels} channels")

    def convert(path: Path) -> NDArray[Any]:
        pixels = np.asarray(_read(path, _MODES[channels], (height, width), how.crop))
        pixels = pixels.reshape(height, width, channels)
        if scaled:
            pixels = (pixels.astype(np.float32) / 255 - mean) / std
        if layout == "NCHW":
            pixels = pixels.transpose(2, 0, 1)
        return np.ascontiguousarray(pixels, dtype=dtype)

    return convert


def _guess_layout(shape: tuple[int | str | None, ...], where: str) -> str:
    if shape[1] in _MODES:
        return "NCHW"
    if shape[3] in _MODES:
        return "NHWC"
    raise DataError("the layout cannot be told from the model", where=where, hint="give --layout")


def _read(path: Path, mode: str, size: tuple[int, int], crop: float) -> Any:
    """Decode and resize one image."""
    try:
        from PIL import Image, ImageOps
    except ImportError as error:
        raise DataError(
            "images need Pillow", where=str(path), hint="pip install 'onnxrank[images]'"
        ) from error
    target = (size[1], size[0])
    try:
        with Image.open(path) as image:
            picture = ImageOps.exif_transpose(image).convert(mode)
        if not crop:
            return picture.resize(target, Image.Resampling.BICUBIC)
        enlarged = (round(target[0] / crop), round(target[1] / crop))
        covered = ImageOps.fit(picture, enlarged, Image.Resampling.BICUBIC)
        left, top = ((e - t) // 2 for e, t in zip(enlarged, target, strict=True))
        return covered.crop((left, top, left + target[0], top + target[1]))
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise DataError(f"this image cannot be read: {error}", where=str(path)) from error
