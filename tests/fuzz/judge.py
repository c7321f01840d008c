"""Is a net refused by name, or right in every respect that can be measured?"""

from __future__ import annotations

import re
import warnings
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnxruntime
import torch

from fuzz.nets import RandomNet
from secure_quant import reference
from secure_quant.errors import SecureQuantError
from secure_quant.interop.onnx_export import to_onnx
from secure_quant.ir import Graph
from secure_quant.quantizer import AccuracyWarning, Training, api
from secure_quant.quantizer.gate.floatgraph import FloatGraph, captured_batch
from secure_quant.quantizer.gate.steps import is_too_far, largest_steps

__all__ = ["MODES", "Verdict", "judge", "judge_module"]

MODES = (*["static"] * 6, *["weight-only"] * 2, "dynamic", "qat")
CLOSE = 0.15
"""Relative error, root mean square, that calibration samples may have without a warning."""
BLENDS = 0.5
"""The same for inputs between calibration samples, in units of the calibration samples' output."""


@dataclass
class Verdict:
    """kind: taken, refused or wrong. why: of a refusal or of what is wrong."""

    seed: int
    kind: str
    why: str = ""
    warned: bool = False
    error: float = 0.0
    steps: float = 0.0
    notes: list[str] = field(default_factory=list)


def judge(seed: int) -> Verdict:
    """The verdict on the net of ``seed``."""
    net = RandomNet(seed)
    return judge_module(net.module, net.x, MODES[seed % len(MODES)], seed)


def judge_module(module: Any, x: torch.Tensor, mode: str = "static", seed: int = 0) -> Verdict:
    """Every check in turn; the first that fails makes the net wrong."""
    kept, verdict = x.clone(), Verdict(seed, "taken")
    state = {name: value.clone() for name, value in module.state_dict().items()}
    seen: list[Any] = []

    def keep(recorded: Any, made: Any, *_: Any) -> None:
        seen.append((recorded, made))

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            graph = _quantized(module, x, mode, keep)
        except SecureQuantError as error:
            verdict.kind, verdict.why = "refused", _reason(error)
            _unnamed(verdict, error)
        except Exception as error:  # noqa: BLE001  this is what the search looks for
            text = str(error).strip().splitlines() or [""]
            return Verdict(seed, "wrong", f"raw {type(error).__name__}: {text[0][:150]}")
    changed = [n for n, v in module.state_dict().items() if not torch.equal(v, state[n])]
    if changed or not torch.equal(x, kept):
        return Verdict(seed, "wrong", f"changed the caller's own: {changed or 'data'}")
    if verdict.kind == "taken":
        verdict.warned = any(issubclass(w.category, AccuracyWarning) for w in caught)
        verdict.why = _wrong(module, x, graph, verdict, seen, mode) or ""
        verdict.kind = "wrong" if verdict.why else "taken"
    return verdict


def _quantized(module: Any, x: torch.Tensor, mode: str, keep: Any) -> Graph:
    """``quantize``, looked at before its own check of the integers."""
    inner = api._check

    def watched(recorded: Any, made: Any, *rest: Any) -> None:
        keep(recorded, made)
        inner(recorded, made, *rest)

    api._check = watched
    options: dict[str, Any] = {}
    if mode == "qat":
        training = Training(epochs=1, batch_size=16, learning_rate=1e-3, loss=_smaller)
        options = {"targets": torch.zeros(len(x)), "training": training}
    try:
        return api.quantize(module, x, mode=mode, **options)  # type: ignore[arg-type]
    finally:
        api._check = inner


def _smaller(y: torch.Tensor, _: torch.Tensor) -> torch.Tensor:
    return (y**2).mean()


def _reason(error: SecureQuantError) -> str:
    """Kind and what was got, without names and numbers of this net."""
    kind = type(error).__name__
    if kind in ("CaptureMismatch", "AccuracyLoss"):
        return kind
    got = re.sub(r"\d+(\.\d+)?", "N", str(error.got or error.what).splitlines()[0])[:80]
    op = error.what.split(" in ")[0] if " in " in error.what else ""
    return f"{kind}: {op + ': ' if op else ''}{got}"


def _unnamed(verdict: Verdict, error: SecureQuantError) -> None:
    """A refusal that only wraps what torch raised: not wrong, but not what it should be."""
    if error.__cause__ is not None and not isinstance(error.__cause__, SecureQuantError):
        verdict.notes.append("wrapped")
    if "CaptureMismatch" in type(error).__name__:
        verdict.notes.append("caught by the gate")


def _wrong(
    module: Any, x: torch.Tensor, graph: Graph, verdict: Verdict, seen: list[Any], mode: str
) -> str | None:
    with torch.no_grad():
        want = module(x.clone()).double().numpy()
        mixed = torch.lerp(x, x.flip(0), 0.3)
        between = module(mixed.clone()).double().numpy()
        alone = [module(x[i : i + 1].clone()).double().numpy() for i in (3, 7)]
    recorded, made = seen[-1]
    if mode == "qat":  # what was trained is no longer the module
        trained = [FloatGraph(made.floats).evaluate(part).numpy() for part in (x, mixed)]
        want, between = (part.reshape(want.shape) for part in trained)
    elif wrong := _captured(made.floats, x, want, alone):
        return wrong
    got = reference.run(graph, x.numpy()).reshape(want.shape)
    size = float(np.sqrt((want**2).mean()))
    verdict.error = float(np.sqrt(((got - want) ** 2).mean())) / (size or 1.0)
    if not verdict.warned and verdict.error > CLOSE and size > 1e-6:
        return f"off the float model by {verdict.error:.2g}, without a word"
    other = reference.run(graph, mixed.numpy()).reshape(want.shape)
    off = float(np.sqrt(((other - between) ** 2).mean())) / (size or 1.0)
    if not verdict.warned and off > BLENDS and size > 1e-6:
        return f"off the float model by {off:.2g} between calibration samples, without a word"
    if mode != "dynamic":
        steps = largest_steps(graph, made.converted, recorded.places, x.numpy())
        verdict.steps = max(steps.values(), default=0.0)
        if is_too_far(verdict.steps) and not verdict.warned:
            return f"{verdict.steps:.2g} steps off torch's simulation, without a word"
    return _onnx(graph, verdict.seed) if mode != "dynamic" else None


def _captured(floats: Any, x: torch.Tensor, want: Any, alone: list[Any]) -> str | None:
    """torch itself runs the captured graph, observers and all, in float32."""
    size = captured_batch(floats) or len(x)
    with torch.no_grad():
        parts = [floats(part.clone()) for part in torch.split(x, size)]
    made = torch.cat([p[0] if isinstance(p, tuple | list) else p for p in parts]).double().numpy()
    size = np.abs(want).max()
    if made.size != want.size or np.abs(made.reshape(want.shape) - want).max() > 1e-3 * size:
        return "the captured graph computes something else"
    rows = want[[3, 7]]
    one = np.stack([a.reshape(rows.shape[1:]) for a in alone])
    if np.abs(one - rows).max() > 1e-3 * size:
        return "a module whose samples depend on each other was taken"
    return None


def _onnx(graph: Graph, seed: int) -> str | None:
    rng = np.random.default_rng(seed)
    q = rng.integers(-128, 128, (16, *graph.input.shape)).astype(np.int8)
    session = onnxruntime.InferenceSession(to_onnx(graph).SerializeToString())
    (y,) = session.run(None, {"x": q})
    differ = int((y.reshape(len(q), -1) != reference.run_int(graph, q).reshape(len(q), -1)).sum())
    return f"{differ} integers of onnxruntime differ" if differ else None
