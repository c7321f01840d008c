"""One model of a family: quantized or refused, equal to onnxruntime or not, how near to float.

Each is judged in a process of its own with a limit of time and memory, so that none ends the run.
"""

from __future__ import annotations

import json
import multiprocessing
import resource
import signal
import time
import traceback
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from thinned import thinned

if TYPE_CHECKING:
    from families import Listed

__all__ = ["judged_apart"]

SAMPLES = 8
_SLEEPS = 0.01
_NO_MEMORY = "can't allocate memory"  # as torch says it, in a RuntimeError
_BUSY = 20
"""Seconds that may go by for one of a process's own."""
Row = dict[str, Any]


def judged_apart(
    model: Listed, into: Path, seconds: float, gigabytes: float, *, thin: bool = False
) -> Row:
    """The row of ``model``, from a process that writes it to ``into``. ``seconds`` are of its own
    time, as others may be busy on the machine."""
    into.unlink(missing_ok=True)
    process = multiprocessing.get_context("fork").Process(
        target=_work, args=(model, into, int(seconds), int(gigabytes * 2**30), thin)
    )
    process.start()
    process.join(seconds * _BUSY)
    if process.is_alive():
        process.kill()
        process.join()
    if into.exists():
        row: Row = json.loads(into.read_text())
        into.unlink()
    else:
        slow = process.exitcode in (-signal.SIGXCPU, -signal.SIGKILL)
        why = f"time: more than {seconds:.0f} s" if slow else f"exit status {process.exitcode}"
        row = {"kind": "stopped", "why": f"not measured: {why}"}
    named = {"key": model.key, "family": model.family, "group": model.group, "model": model.name}
    return {**named, "first": model.first, **row}


def _work(model: Listed, into: Path, seconds: int, memory: int, thin: bool) -> None:
    resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds + 5))
    resource.setrlimit(resource.RLIMIT_AS, (memory, memory))
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    start = time.process_time()
    try:
        row = _judged(model, thin)
    except Exception as error:  # noqa: BLE001  of the model itself: what quantize raises is judged
        row = {"kind": "stopped", "why": f"does not run: {type(error).__name__}: {error}"[:300]}
    row["seconds"] = round(time.process_time() - start, 1)  # of this process: others may be busy
    part = into.with_suffix(".part")
    part.write_text(json.dumps(row))
    part.rename(into)


def _judged(model: Listed, thin: bool) -> Row:
    from secure_quant.errors import SecureQuantError
    from secure_quant.quantizer import quantize

    torch.manual_seed(0)
    module, given = model.make(model.name)
    named = isinstance(given, Mapping)
    module, lacks = thinned(module, given) if thin and not named else (module, 0)
    _wake(module)
    x = given if named else torch.randn(SAMPLES, *given)
    with torch.no_grad():
        if not named or any("BatchNorm" in type(part).__name__ for part in module.modules()):
            module.train()  # statistics: without, activations of random weights vanish
            _called(module, x)
    module.eval()
    row: Row = {"shape": _shape(x), "lacks": lacks,
                "parameters": sum(p.numel() for p in module.parameters())}  # fmt: skip
    try:
        graph = quantize(module, x, max_error=float("inf"), embedding="client" if named else None)
        return row | _measured(module, x, graph)
    except MemoryError:
        return row | {"kind": "stopped", "why": "out of memory"}
    except SecureQuantError as error:
        if _NO_MEMORY in f"{error} {error.__cause__}":
            return row | {"kind": "stopped", "why": "out of memory"}
        return row | {"kind": "refused", "why": f"{type(error).__name__}: {error}",
                      "wrapped": _wrapped(error)}  # fmt: skip
    except Exception as error:  # noqa: BLE001  this is what the run looks for
        if _NO_MEMORY in str(error):
            return row | {"kind": "stopped", "why": "out of memory"}
        return row | {"kind": "wrong", "why": f"raw {type(error).__name__}: {error}"[:300],
                      "trace": traceback.format_exc()[-1500:]}  # fmt: skip


def _called(module: torch.nn.Module, x: Any) -> Any:
    return module(**x) if isinstance(x, Mapping) else module(x.clone())


def _shape(x: Any) -> list[int]:
    """Of a sample of the first input."""
    return list((next(iter(x.values())) if isinstance(x, Mapping) else x).shape[1:])


def _wake(module: torch.nn.Module) -> None:
    """Weights that begin at zero, and factors that begin near it (LayerScale), hide whatever is
    before them: they get numbers as training gives them."""
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            factor = parameter.numel() > 1 and bool((parameter == parameter.flatten()[0]).all())
            if parameter.ndim > 1 and not parameter.any():
                parameter.normal_(std=0.02)
            elif factor and 0 < float(parameter.flatten()[0]) <= _SLEEPS:
                parameter.uniform_(0.1, 0.5)
            elif name.endswith("weight") and not parameter.any():  # of a norm
                parameter.uniform_(0.5, 1)


def _wrapped(error: Exception) -> str | None:
    """What torch raised, where the refusal only wraps that."""
    from secure_quant.errors import SecureQuantError

    cause = error.__cause__
    if cause is None or isinstance(cause, SecureQuantError):
        return None
    return "".join(traceback.format_exception(cause))[-1500:]


def _measured(module: torch.nn.Module, x: Any, graph: Any) -> Row:
    from secure_quant import reference
    from secure_quant.quantizer.gate.accuracy import MAX_ERROR

    with torch.no_grad():
        want = [part.numpy() for part in _tensors(_called(module, x))]
    arrays = {k: v.numpy() for k, v in x.items()} if isinstance(x, Mapping) else x.numpy()
    made = reference.run(graph, arrays)
    got = list(made.values()) if isinstance(made, dict) else [made]
    shown = _shown(x)
    pairs = [
        (a.astype(np.float64)[shown(a)].ravel(), b.astype(np.float64)[shown(b)].ravel())
        for a, b in zip(got, want, strict=True)
    ]
    sizes = [float(np.sqrt((b**2).mean())) or 1.0 for _, b in pairs]
    error = max(
        float(np.sqrt(((a - b) ** 2).mean())) / s for (a, b), s in zip(pairs, sizes, strict=True)
    )
    row: Row = {"nodes": len(graph.nodes), "cosine": min(_cosine(a, b) for a, b in pairs),
                "error": error}  # fmt: skip
    differ = _differing(graph, arrays)
    if differ:
        return row | {"kind": "wrong", "why": f"{differ} integers of onnxruntime differ"}
    return row | {"kind": "exact" if error <= MAX_ERROR else "coarse"}


def _shown(x: Any) -> Any:
    """Chooses what is compared of an output: places of tokens that the padding mask hides say
    nothing, and nobody reads them."""
    mask = (
        x["attention_mask"].bool().numpy()
        if isinstance(x, Mapping) and "attention_mask" in x
        else None
    )
    return lambda y: mask if mask is not None and y.shape[:2] == mask.shape else ...


def _cosine(a: NDArray[Any], b: NDArray[Any]) -> float:
    return float(a @ b / (np.linalg.norm(a) * np.linalg.norm(b) or 1.0))


def _tensors(made: Any) -> Iterator[torch.Tensor]:
    """In the order of the graph's ports."""
    from secure_quant.quantizer.ports import leaves

    return (value for _, value in leaves(made))


def _differing(graph: Any, x: Any) -> int:
    """Integers in which onnxruntime differs, on a calibration sample and on one of any int8."""
    import onnxruntime

    from secure_quant import reference
    from secure_quant.interop.onnx_export import feeds, packed, to_onnx

    first = {k: v[:1] for k, v in x.items()} if isinstance(x, Mapping) else x[:1]
    q = reference.quantize_input(graph, first)
    wild = np.random.default_rng(0).integers(-128, 128, q.shape).astype(np.int8)
    both = np.concatenate([q, wild])
    session = onnxruntime.InferenceSession(to_onnx(graph).SerializeToString())
    names = [out.name for out in session.get_outputs()]
    y = packed(graph, dict(zip(names, session.run(None, feeds(graph, both)), strict=True)))
    own = reference.run_int(graph, both)
    return int((y.reshape(len(both), -1) != own.reshape(len(both), -1)).sum())
