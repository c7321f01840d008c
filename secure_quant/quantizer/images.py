"""A folder of images as calibration data, by a preprocessing that is stated whole."""

from __future__ import annotations

import math
import os
import re
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from secure_quant.errors import ConfigError, MalformedDataset

__all__ = ["MOST_SAMPLES", "ImageFolder", "ImageSpec", "spread"]

MOST_SAMPLES = 512
"""Of a folder or a Dataset, spread evenly over it: calibration gains little from more."""
_SUFFIXES = (".bmp", ".gif", ".jpeg", ".jpg", ".png", ".ppm", ".tif", ".tiff", ".webp")
_BATCH = 32
_LARGEST = 4096
_SIZE = re.compile(r"(\d{1,4})(?:x(\d{1,4}))?")


@dataclass(frozen=True, kw_only=True)
class ImageSpec:
    """What is done with an image, in this order:

    1. turned as its EXIF says, and converted to ``mode``: RGB, or L for grey;
    2. with ``resize``: scaled so that its shorter side has so many pixels, the other in proportion
       (rounded to nearest), and the middle ``size`` cut out (from floor of half of what is over);
       without: scaled to ``size``, whatever its proportions. Bilinear, antialiased (Pillow's);
    3. ``(pixel / 255 - mean) / std`` for each channel, float32[channels, height, width].

    size  (height, width). mean, std: one for each channel, or one for all.
    """

    size: tuple[int, int]
    resize: int | None = None
    mean: tuple[float, ...] = (0.0,)
    std: tuple[float, ...] = (1.0,)
    mode: str = "RGB"

    def __post_init__(self) -> None:
        sides = (*self.size, *([] if self.resize is None else [self.resize]))
        if len(self.size) != 2 or not all(1 <= side <= _LARGEST for side in sides):
            raise ConfigError("size of images", got=sides, expected=f"1 to {_LARGEST} pixels")
        if self.resize is not None and self.resize < max(self.size):
            raise ConfigError("resize", got=self.resize, expected=f"at least {max(self.size)}")
        if self.mode not in ("RGB", "L"):
            raise ConfigError("mode of images", got=self.mode, expected="RGB or L")
        for name, values in (("mean", self.mean), ("std", self.std)):
            if len(values) not in (1, self.channels) or not all(map(math.isfinite, values)):
                raise ConfigError(name, got=values, expected=f"1 or {self.channels} numbers")
        if min(self.std) <= 0:
            raise ConfigError("std", got=self.std, expected="above 0")

    @property
    def channels(self) -> int:
        return len(self.mode)

    @staticmethod
    def of(text: str) -> ImageSpec:
        """From ``size=224 resize=256 mean=0.485,0.456,0.406 std=0.229,0.224,0.225 mode=RGB``;
        size is a number or HEIGHTxWIDTH, and all but it may be left out. Raises ConfigError."""
        given: dict[str, Any] = {}
        for part in text.split():
            key, _, value = part.partition("=")
            if key not in {field.name for field in fields(ImageSpec)} or key in given:
                expected = " ".join(f"{field.name}=" for field in fields(ImageSpec))
                raise ConfigError("image spec", got=part[:80], expected=expected)
            given[key] = _READ[key](key, value)
        if "size" not in given:
            raise ConfigError("image spec", got="no size", expected="size=224 or size=HEIGHTxWIDTH")
        return ImageSpec(**given)

    def array(self, path: str | os.PathLike[str]) -> NDArray[np.float32]:
        """An image file as float32[channels, height, width]. Raises MalformedDataset, OSError,
        ConfigError where Pillow is missing."""
        image, ops = _pillow()
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("error", image.DecompressionBombWarning)
                with image.open(path) as opened:
                    picture = ops.exif_transpose(opened).convert(self.mode)
        except FileNotFoundError:
            raise
        except Exception as error:  # Pillow's decoders raise many kinds
            got = type(error).__name__
            raise MalformedDataset(f"{Path(path).name} as an image", got=got) from error
        pixels = np.asarray(self._scaled(picture, image.Resampling.BILINEAR), np.float32)
        planes = pixels.reshape(*self.size, self.channels).transpose(2, 0, 1) / np.float32(255)
        mean, std = (np.array(v, np.float32).reshape(-1, 1, 1) for v in (self.mean, self.std))
        made: NDArray[np.float32] = ((planes - mean) / std).astype(np.float32)
        return made

    def _scaled(self, picture: Any, way: Any) -> Any:
        height, width = self.size
        if self.resize is None:
            return picture.resize((width, height), way)
        factor = self.resize / min(picture.size)
        whole = [max(round(side * factor), self.resize) for side in picture.size]
        left, top = (whole[0] - width) // 2, (whole[1] - height) // 2
        return picture.resize(tuple(whole), way).crop((left, top, left + width, top + height))


class ImageFolder:
    """The images below a folder, in the order of their paths, as batches
    float32[n, channels, height, width]; of more than ``most`` so many, spread evenly.

    Raises MalformedDataset where there is none, and for a file that is no image.
    """

    def __init__(
        self, folder: str | os.PathLike[str], spec: ImageSpec, *, most: int = MOST_SAMPLES
    ) -> None:
        _pillow()
        found = sorted(
            path for path in Path(folder).rglob("*")
            if path.suffix.lower() in _SUFFIXES and path.is_file()
        )  # fmt: skip
        if not found:
            raise MalformedDataset(
                f"the folder {Path(folder).name}", got="no images", expected=" ".join(_SUFFIXES)
            )
        self.spec, self.paths = spec, tuple(found[place] for place in spread(len(found), most))

    def __len__(self) -> int:
        return len(self.paths)

    def __iter__(self) -> Iterator[NDArray[np.float32]]:
        for start in range(0, len(self.paths), _BATCH):
            yield np.stack([self.spec.array(path) for path in self.paths[start : start + _BATCH]])


def spread(count: int, most: int) -> list[int]:
    """All places of ``count``, or ``most`` of them at equal distances."""
    if count <= most:
        return list(range(count))
    return [place * count // most for place in range(most)]


def _pillow() -> tuple[Any, Any]:
    try:
        from PIL import Image, ImageOps
    except ModuleNotFoundError as error:
        raise ConfigError(
            "images", got="no package Pillow", hint="install the extra 'images'"
        ) from error
    return Image, ImageOps


def _side(key: str, value: str) -> int:
    if not value.isdecimal():
        raise ConfigError(f"image spec: {key}", got=value[:80], expected="pixels")
    return int(value)


def _sides(key: str, value: str) -> tuple[int, int]:
    found = _SIZE.fullmatch(value)
    if found is None:
        raise ConfigError(f"image spec: {key}", got=value[:80], expected="224 or HEIGHTxWIDTH")
    return int(found[1]), int(found[2] or found[1])


def _numbers(key: str, value: str) -> tuple[float, ...]:
    try:
        return tuple(float(part) for part in value.split(","))
    except ValueError as error:
        raise ConfigError(f"image spec: {key}", got=value[:80], expected="numbers") from error


def _word(key: str, value: str) -> str:
    return value


_READ: dict[str, Any] = {
    "size": _sides, "resize": _side, "mean": _numbers, "std": _numbers, "mode": _word,
}  # fmt: skip
