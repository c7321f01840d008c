"""Weight schemes: which int8 value each weight becomes. All land on ``q · m[c] · base``.

The artifact stores a tensor of at most 16 distinct values in 4 bits a weight, so Log and
KMeans(16) take half the bytes of the others; every engine runs all of them unchanged.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, Protocol

import torch
from torch import Tensor

from secure_quant.errors import ConfigError
from secure_quant.quantizer.observers import channel_scales

__all__ = ["Clip", "KMeans", "Log", "Scheme", "Uniform", "make_scheme"]

_TRIES = torch.linspace(1.0, 0.3, 57, dtype=torch.float64)
"""Thresholds tried, as shares of a channel's largest weight."""


class Scheme(Protocol):
    """Turns float weights into integers."""

    def quantize(self, weight: Tensor, grid: int) -> tuple[Tensor, Tensor]:
        """float[out, ...] -> int8-valued float64[out, n] and scales float32[out], each the base
        times a whole number up to ``grid``."""


@dataclass(frozen=True)
class Uniform:
    """``q = round(w / scale)``; the scale covers the largest weight of the channel.

    per_channel  False: one scale for the whole tensor, which covers its largest weight.
    keep_small   a weight that is not 0 becomes ±1, never 0.
    """

    per_channel: bool = True
    keep_small: bool = False

    def quantize(self, weight: Tensor, grid: int) -> tuple[Tensor, Tensor]:
        """As in Scheme."""
        rows = _rows(weight)
        scale = channel_scales(rows.abs().amax(1), grid if self.per_channel else 1)
        return _kept(_round(rows, scale), rows, self.keep_small), scale


@dataclass(frozen=True)
class Clip:
    """Uniform with a threshold below the largest weight: the weights beyond it saturate.

    method      mse: the threshold with the least squared error of rounding and clipping, per
                channel. percentile: that percentile of |w| in the channel.
    percentile  0 to 100; of that method alone.
    keep_small  a weight that is not 0 becomes ±1, never 0.

    Raises ConfigError.
    """

    method: Literal["mse", "percentile"] = "mse"
    percentile: float = 99.5
    keep_small: bool = False

    def __post_init__(self) -> None:
        if self.method not in ("mse", "percentile"):
            raise ConfigError("Clip's method", got=self.method, expected="mse or percentile")
        if not 0 < self.percentile <= 100:
            raise ConfigError("percentile", got=self.percentile, expected="above 0, at most 100")

    def quantize(self, weight: Tensor, grid: int) -> tuple[Tensor, Tensor]:
        """As in Scheme."""
        rows = _rows(weight)
        if self.method == "percentile":
            threshold = torch.quantile(rows.abs(), self.percentile / 100, dim=1)
        else:
            threshold = _best_threshold(rows, _round)
        threshold = torch.where(threshold > 0, threshold, rows.abs().amax(1))
        scale = channel_scales(threshold, grid)
        return _kept(_round(rows, scale), rows, self.keep_small), scale


@dataclass(frozen=True)
class Log:
    """Powers of two: q in {0, ±1, ±2, ±4, ..., ±64}, 15 values. The scale of each channel has the
    least squared error. ``keep_small``: a weight that is not 0 becomes at least ±1."""

    keep_small: bool = False

    def quantize(self, weight: Tensor, grid: int) -> tuple[Tensor, Tensor]:
        """As in Scheme."""
        rows = _rows(weight)
        scale = channel_scales(_best_threshold(rows, _power) * (127 / 64), grid)
        return _kept(_power(rows, scale), rows, self.keep_small), scale


@dataclass(frozen=True)
class KMeans:
    """``centroids`` values for the whole tensor, on the int8 grid, placed by Lloyd's algorithm on
    the weights in units of their channel's scale (Han et al., Deep Compression, 2016).
    ``keep_small``: a weight that is not 0 goes to the nearest centroid of its sign. Raises
    ConfigError."""

    centroids: int = 16
    keep_small: bool = False

    def __post_init__(self) -> None:
        if self.centroids not in range(2, 257):
            raise ConfigError("centroids", got=self.centroids, expected="a whole number, 2 to 256")

    def quantize(self, weight: Tensor, grid: int) -> tuple[Tensor, Tensor]:
        """As in Scheme."""
        rows = _rows(weight)
        scale = channel_scales(rows.abs().amax(1), grid)
        units = rows / scale.double()[:, None]
        levels = _lloyd(units, scale.double() ** 2, int(self.centroids))
        q = _nearest(units, levels)
        for sign in (-1, 1) if self.keep_small else ():
            side = levels[torch.sign(levels) == sign]
            lost = (torch.sign(units) == sign) & (torch.sign(q) != sign)
            if len(side):
                q[lost] = side[side.abs().argmin()]
        return q, scale


def make_scheme(scheme: str | Scheme) -> Scheme:
    """A scheme by name: uniform, log, clip, kmeans. Raises ConfigError."""
    if not isinstance(scheme, str):
        if isinstance(scheme, type) or not callable(getattr(scheme, "quantize", None)):
            raise ConfigError("scheme", got=repr(scheme)[:80], expected="a name, or a Scheme")
        return scheme
    named: dict[str, Scheme] = {
        "uniform": Uniform(), "log": Log(), "clip": Clip(), "kmeans": KMeans(),
    }  # fmt: skip
    if scheme not in named:
        raise ConfigError("scheme", got=scheme, expected=" or ".join(named))
    return named[scheme]


def _rows(weight: Tensor) -> Tensor:
    return weight.detach().double().reshape(len(weight), -1)


def _round(rows: Tensor, scale: Tensor) -> Tensor:
    return (rows / scale.double()[:, None]).round().clamp(-127, 127)


def _power(rows: Tensor, scale: Tensor) -> Tensor:
    """Nearest of 0 and ±2^k, k = 0 to 6, in the units of ``scale``."""
    units = rows / scale.double()[:, None]
    size = units.abs().clamp(min=1e-30)
    below = 2.0 ** size.log2().floor().clamp(0, 6)
    nearest = torch.where(size > 1.5 * below, 2 * below, below).clamp(max=64)
    return torch.where(size < 0.5, 0.0, nearest) * torch.sign(units)


def _kept(q: Tensor, rows: Tensor, keep_small: bool) -> Tensor:
    return torch.where((q == 0) & (rows != 0), torch.sign(rows), q) if keep_small else q


def _best_threshold(rows: Tensor, rounding: object) -> Tensor:
    """float64[out]: the threshold, of those tried, with the least squared error per channel."""
    top = rows.abs().amax(1).clamp(min=1e-30)
    largest = 64 if rounding is _power else 127
    function = _power if rounding is _power else _round
    best = torch.full_like(top, float("inf"))
    found = top.clone()
    for share in _TRIES:
        scale = top * share / largest
        error = ((function(rows, scale) * scale[:, None] - rows) ** 2).sum(1)
        better = error < best
        best, found = torch.where(better, error, best), torch.where(better, top * share, found)
    return found


def _lloyd(units: Tensor, row_weight: Tensor, count: int) -> Tensor:
    """At most ``count`` sorted integer levels for units [out, n], each row weighing as given."""
    mass = torch.zeros(255, dtype=torch.float64)
    place = units.round().clamp(-127, 127).long() + 127
    for row, weight in zip(place, row_weight, strict=True):
        mass += torch.bincount(row, minlength=255) * weight
    values = torch.arange(-127, 128, dtype=torch.float64)
    present = values[mass > 0]
    if len(present) <= count:
        return present
    start = torch.linspace(0, 1, 2 * count + 1, dtype=torch.float64)[1::2]
    share = mass.cumsum(0) / mass.sum()
    levels = values[torch.searchsorted(share, start.contiguous()).clamp(max=254)]
    # Quantiles crowd at the centre; an even spread reaches the tails. Half of each.
    levels = (levels + torch.linspace(float(present[0]), float(present[-1]), count).double()) / 2
    for _ in range(50):
        owner = _owner(values, levels)
        total = torch.zeros(count, dtype=torch.float64).index_add_(0, owner, mass)
        moment = torch.zeros(count, dtype=torch.float64).index_add_(0, owner, mass * values)
        moved = torch.where(total > 0, moment / total.clamp(min=1e-300), levels)
        if torch.equal(moved, levels):
            break
        levels = moved
    return torch.unique(levels.round().clamp(-127, 127))  # type: ignore[no-any-return]


def _owner(values: Tensor, levels: Tensor) -> Tensor:
    """Index of the nearest of sorted ``levels`` for each value."""
    return torch.searchsorted((levels[1:] + levels[:-1]) / 2, values)


def _nearest(units: Tensor, levels: Tensor) -> Tensor:
    return levels[_owner(units.contiguous(), levels)]
