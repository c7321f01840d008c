"""Random torch modules from a seed, written as the forward of a module, so that one can be read.

Each net composes what the quantizer says it takes: layers, norms with real statistics, pools,
products, sums, functions, views, joins; and what users do with them: writes in place, through views
too, one module called twice, weights that are tied, shared or computed, constants of all shapes on
either side, alpha, scalars.
"""

from __future__ import annotations

import textwrap
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from fuzz.blocks import BLOCKS
from fuzz.steps import KINDS

__all__ = ["Net", "RandomNet"]

SAMPLES = 48
SHAPES = [(6,), (12,), (3, 8), (5, 6), (2, 3, 4), (3, 6, 6), (4, 5, 7), (1, 9, 8), (2, 8, 8)]
LARGEST = 400


class Net(nn.Module):
    """``source`` is its forward; ``made`` its submodules and buffers."""

    def __init__(self, source: str, made: dict[str, nn.Module | Tensor]) -> None:
        super().__init__()
        for name, value in made.items():
            if isinstance(value, nn.Module):
                self.add_module(name, value)
            else:
                self.register_buffer(name, value)
        self.source = source
        space: dict[str, Any] = {"torch": torch, "functional": functional}
        # The source is what the generator below wrote.
        exec(compile(source, "<random net>", "exec"), space)  # noqa: S102
        self._steps = space["forward"]

    def forward(self, x: Tensor) -> Tensor:
        return self._steps(self, x)  # type: ignore[no-any-return]


class RandomNet:
    """The net of ``seed``: ``module`` in eval mode, ``x`` float32[48, ...] to calibrate with."""

    def __init__(self, seed: int) -> None:
        self.seed = seed
        self.rng = np.random.default_rng(seed)
        state = torch.random.get_rng_state()
        torch.manual_seed(seed)
        try:
            self._build()
        finally:
            torch.random.set_rng_state(state)

    def _build(self) -> None:
        shape = self.pick(SHAPES)
        self.x = torch.randn(SAMPLES, *shape) * self.pick([1.0, 1.0, 0.1, 5.0])
        self.x += self.pick([0.0, 0.0, 1.0])
        self.lines: list[str] = []
        self.made: dict[str, nn.Module | Tensor] = {}
        self.values: dict[str, Tensor] = {"x": self.x}
        wanted, tries = int(self.rng.integers(2, 10)), 0
        while len(self.lines) < wanted and tries < 60:
            tries += 1
            self.step()
        self._finish()
        self.module = Net(self.source(), self.made).eval()

    def source(self) -> str:
        body = "\n".join(self.lines)
        return f"def forward(self, x):\n{textwrap.indent(body, '    ')}\n"

    def pick(self, options: Any) -> Any:
        return options[int(self.rng.integers(len(options)))]

    def chance(self, share: float) -> bool:
        return bool(self.rng.random() < share)

    def number(self, *options: float) -> float:
        """One of ``options``, or any."""
        if options and self.chance(0.7):
            return float(self.pick(options))
        return round(float(self.rng.normal()), 2) or 0.5

    def any(self) -> str:
        """A value to go on with, mostly a late one."""
        names = list(self.values)
        return names[-1] if self.chance(0.6) else self.pick(names)

    def shape(self, name: str) -> tuple[int, ...]:
        return tuple(self.values[name].shape[1:])

    def fresh(self, prefix: str = "h") -> str:
        return f"{prefix}{len(self.lines)}"

    def module_name(self, make: Callable[[], nn.Module]) -> str:
        name = f"m{len(self.made)}"
        self.made[name] = make()
        return name

    def buffer(self, *shape: int) -> str:
        name = f"c{len(self.made)}"
        value = torch.randn(*shape) if shape else torch.tensor(self.number(2.0, 0.5))
        self.made[name] = value
        return name

    def step(self) -> None:
        """One more line that runs and makes finite values; or none."""
        kind = self.pick(KINDS + BLOCKS if self.seed % 4 == 3 else KINDS)
        before = dict(self.made)
        lines = kind(self)
        if lines is None or not self._accept(lines):
            self.made = before

    def _accept(self, lines: list[str]) -> bool:
        values = self._run([*self.lines, *lines])
        if values is None:
            return False
        for name, value in values.items():
            whole = value.ndim >= 1 and len(value) == SAMPLES
            sane = whole and bool(torch.isfinite(value).all()) and value[0].numel() <= LARGEST
            varies = sane and float(value.std(0).max()) > 0
            if not varies or (name != "x" and not 1e-4 < float(value.abs().max()) < 1e4):
                return False
        self.lines += lines
        self.values = values
        return True

    def _run(self, lines: list[str]) -> dict[str, Tensor] | None:
        """All values after ``lines``; None if one of them fails."""
        holder = Net("def forward(self, x): return x", dict(self.made)).eval()
        space: dict[str, Any] = {
            "torch": torch, "functional": functional, "self": holder, "x": self.x.clone(),
        }  # fmt: skip
        try:
            with torch.no_grad():
                exec("\n".join(lines), space)  # noqa: S102
        except (RuntimeError, IndexError, ValueError):
            return None
        return {name: v for name, v in space.items() if isinstance(v, Tensor)}

    def _finish(self) -> None:
        """Return the last value, mostly; or several of them side by side; at times through a last
        layer."""
        names = [n for n in self.values if n != "x"] or ["x"]
        name = names[-1] if self.chance(0.8) else self.pick(names)
        if self.chance(0.25) and len(names) > 1:
            some = [self.pick(names), name]
            parts = ", ".join(f"{n}.reshape({n}.shape[0], -1)" for n in some)
            self._accept([f"{self.fresh('y')} = torch.cat([{parts}], 1)"])
            name = list(self.values)[-1]
        if self.chance(0.4) and self.shape(name):
            layer = self.module_name(lambda: nn.Linear(self.shape(name)[-1], 3))
            self.lines.append(f"return self.{layer}({name})")
        else:
            self.lines.append(f"return {name}")
