"""Observers: what calibration remembers of each tensor, and the scales it derives from it."""

from __future__ import annotations

import math
from typing import Any, Literal, get_args

import torch
from torch import Tensor
from torchao.quantization.pt2e import ObserverBase

from secure_quant.errors import CalibrationError, ConfigError

__all__ = ["BINS", "Calibrator", "RangeObserver", "WeightObserver"]

Calibrator = Literal["minmax", "percentile", "mse"]
BINS = 4096
_OF_ZERO = 2.0**-8
"""Scale of what was always 0, which tells none: fine enough for the bias of a layer behind it."""
_ERROR_GROWTH = 2.0
"""Squared rounding error of weights, mean over channels, that a small grid may cost."""


class RangeObserver(ObserverBase):  # type: ignore[misc]
    """Asymmetric range of an activation, from a histogram over all batches seen.

    minmax      the whole range seen.
    percentile  cuts ``tail`` of the values off at each end.
    mse         the two thresholds with the least expected squared error of rounding and clipping.

    The range always holds 0, so that padding and ReLU's zero are exact. ``positive`` is for values
    that are never near 0, such as 1/sqrt: from half the least value seen to a quarter more than the
    largest, and by that factor beyond, so that the grid and the table are spent on what occurs.

    cut: values beyond are taken for these.
    largest: |q - zero point| that must not be exceeded, 0 for any; the range then gets fewer steps.
    within: a range that holds what calibration need not have seen, with 0 in it.
    whole: the values are integers, which stand for themselves where the range has room for them.
    """

    def __init__(
        self,
        dtype: torch.dtype = torch.int8,
        *,
        calibrator: Calibrator = "minmax",
        tail: float = 1e-4,
        quant_min: int = -128,
        quant_max: int = 127,
        largest: int = 0,
        positive: float = 0.0,
        cut: tuple[float, float] = (-math.inf, math.inf),
        whole: bool = False,
        within: tuple[float, float] = (0.0, 0.0),
        is_dynamic: bool = False,
        **_: Any,
    ) -> None:
        super().__init__(dtype=dtype, is_dynamic=is_dynamic)
        if calibrator not in get_args(Calibrator):
            raise ConfigError(
                "calibrator", got=calibrator, expected=", ".join(get_args(Calibrator))
            )
        if not 0 <= tail < 0.5:
            raise ConfigError("tail", got=tail, expected="a fraction below 0.5")
        self.calibrator, self.tail = calibrator, tail
        self.quant_min, self.quant_max = quant_min, quant_max
        self.largest, self.positive, self.whole = largest, positive, whole
        self.cut, self.qscheme = cut, torch.per_tensor_affine
        self.place = "an activation"
        self.low, self.high, self.least, self.seen = *within, math.inf, False
        self.counts = torch.zeros(BINS, dtype=torch.float64)

    def forward(self, x: Tensor) -> Tensor:
        values = x.detach().reshape(-1).clamp(*self.cut)
        if not values.numel():
            return x
        least, most = torch.aminmax(values)
        low, high = float(least), float(most)
        if not (math.isfinite(low) and math.isfinite(high)):
            raise CalibrationError(
                self.place, got="NaN or infinity on calibration data", expected="finite numbers",
                hint="a step overflows float32, or divides by next to nothing: scale or clamp what "
                "enters it",
            )  # fmt: skip
        self.seen = True
        self.least = min(self.least, low)
        self._widen(min(low, 0.0), max(high, 0.0))
        if self.calibrator != "minmax" and self.high > self.low:
            self.counts += torch.histc(values.double(), BINS, self.low, self.high)
        return x

    def _widen(self, low: float, high: float) -> None:
        """Grow the histogram's range; what it holds moves to the nearest new bins."""
        low, high = min(low, self.low), max(high, self.high)
        if (low, high) == (self.low, self.high):
            return
        if self.counts.sum() > 0:
            width = (self.high - self.low) / BINS
            centres = self.low + (torch.arange(BINS, dtype=torch.float64) + 0.5) * width
            place = ((centres - low) / (high - low) * BINS).long().clamp_(0, BINS - 1)
            self.counts = torch.zeros_like(self.counts).index_add_(0, place, self.counts)
        self.low, self.high = low, high

    def thresholds(self) -> tuple[float, float]:
        """(low, high), with low <= 0 <= high unless the values are positive. Raises
        CalibrationError if nothing was seen."""
        if not self.seen:
            raise CalibrationError(
                "range of an activation", got="no value: no calibration sample came here",
                expected="at least one", hint="calibrate, or train, on more samples",
            )  # fmt: skip
        if self.positive and 0 < self.least < math.inf:
            return self.least / 2 / self.positive, 1.25 * self.high * self.positive
        if self.counts.sum() == 0 and self.high == self.low:
            return 0.0, 0.0
        if self.calibrator == "percentile":
            return self._percentile(self.tail)
        if self.calibrator == "mse":
            return self._least_error()
        return self.low, self.high

    def _percentile(self, tail: float) -> tuple[float, float]:
        share = self.counts.cumsum(0) / self.counts.sum()
        width = (self.high - self.low) / BINS
        first = int((share <= tail).sum())
        last = int((share < 1 - tail).sum())
        return min(self.low + first * width, 0.0), max(self.low + (last + 1) * width, 0.0)

    def _least_error(self) -> tuple[float, float]:
        width = (self.high - self.low) / BINS
        centres = self.low + (torch.arange(BINS, dtype=torch.float64) + 0.5) * width
        levels = self.quant_max - self.quant_min
        best, found = float("inf"), (self.low, self.high)
        shares = torch.linspace(1.0, 0.1, 46).tolist()
        ends = [(self.low, s * self.high) for s in shares] if self.low > -width else [
            (s * self.low, t * self.high) for s in shares[::3] for t in shares[::3]
        ]  # fmt: skip
        for low, high in ends:
            step = (high - low) / levels
            if step <= 0:
                continue
            inside = centres.clamp(low, high)
            rounded = step * step / 12
            error = float((self.counts * ((centres - inside) ** 2 + rounded)).sum())
            if error < best:
                best, found = error, (low, high)
        return found

    def calculate_qparams(self) -> tuple[Tensor, Tensor]:
        """float32[1] scale and int64[1] zero point."""
        low, high = self.thresholds()
        if self.whole and high - low <= self.quant_max - self.quant_min:
            fits = self.quant_min <= low and high <= self.quant_max
            zero_point = 0 if fits else self.quant_min - math.floor(low)
            return torch.tensor([1.0]), torch.tensor([zero_point])
        scale = (high - low) / (self.quant_max - self.quant_min) or _OF_ZERO
        if self.largest:
            scale = max(scale, max(-low, high) / self.largest)
        zero_point = round(self.quant_min - low / scale)
        if low <= 0:
            zero_point = min(max(zero_point, self.quant_min), self.quant_max)
        if self.largest:
            self.quant_min = max(self.quant_min, zero_point - self.largest)
            self.quant_max = min(self.quant_max, zero_point + self.largest)
        return torch.tensor([scale]), torch.tensor([zero_point])


class WeightObserver(ObserverBase):  # type: ignore[misc]
    """Symmetric scales of a weight [out, ...]: ``scale[c] = m[c] · base`` with integers
    1 <= m[c] <= ``grid``, each rounded up, so that no weight is clipped.

    One Requantize can then serve all channels with small integer multipliers. ``grid`` 1 is
    per-tensor quantization, 0 takes the least power of two up to 16 that costs at most twice the
    rounding error of free scales: every doubling of m costs one bit of ring under secret sharing.
    """

    def __init__(self, dtype: torch.dtype = torch.int8, *, grid: int = 0, **_: Any) -> None:
        super().__init__(dtype=dtype)
        if grid not in range(256):
            raise ConfigError("grid", got=grid, expected="a whole number, 0 to 255")
        self.grid = int(grid)
        self.quant_min, self.quant_max = -127, 127
        self.qscheme, self.ch_axis = torch.per_channel_symmetric, 0
        self.scale = torch.ones(1)
        self.fixed = False

    def fix(self, scale: Tensor) -> None:
        """Use float32[out] ``scale``, whatever weights come."""
        self.scale, self.fixed = scale, True

    def forward(self, w: Tensor) -> Tensor:
        if self.fixed:
            return w
        threshold = w.detach().reshape(len(w), -1).abs().amax(1)
        self.scale = channel_scales(threshold, self.grid)
        return w

    def calculate_qparams(self) -> tuple[Tensor, Tensor]:
        """float32[out] scales and int64[out] zeros."""
        return self.scale, torch.zeros(len(self.scale), dtype=torch.int64)


def channel_scales(threshold: Tensor, grid: int) -> Tensor:
    """float32[out] scales m·base that carry weights up to ``threshold`` [out] in 127 steps."""
    free = threshold.double() / 127
    if not bool((free > 0).any()):
        return torch.ones_like(threshold)
    if grid:
        return _on_grid(free, grid).float()
    for grid in (1, 2, 4, 8, 16):
        scale = _on_grid(free, grid)
        if float(((scale / free)[free > 0] ** 2).mean()) <= _ERROR_GROWTH:
            break
    return scale.float()


def _on_grid(free: Tensor, grid: int) -> Tensor:
    base = free.max() / grid
    return (free / base - 1e-6).ceil().clamp(1, grid) * base
