"""``quantize``: a float module and calibration data -> the integer graph."""

from __future__ import annotations

import inspect
import warnings
from dataclasses import replace
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from secure_quant.errors import CalibrationError, ConfigError
from secure_quant.ir import Graph
from secure_quant.quantizer._torchao import quiet
from secure_quant.quantizer.accept import untouched
from secure_quant.quantizer.calibration import shows_little
from secure_quant.quantizer.floats import values_at
from secure_quant.quantizer.gate import AccuracyWarning, Bounds, Gate, check_accuracy, steps_off
from secure_quant.quantizer.gate.floatgraph import FloatGraph
from secure_quant.quantizer.inputs import as_one
from secure_quant.quantizer.kept import kept_scales
from secure_quant.quantizer.kept.lowered import kept_graph
from secure_quant.quantizer.lower.record import Recorded, lower_recorded
from secure_quant.quantizer.observers import Calibrator
from secure_quant.quantizer.pipeline import (
    OUTPUT_GRID,
    Progress,
    Settings,
    Simulated,
    silent,
    simulated,
)
from secure_quant.quantizer.ports import Ported, loss_of
from secure_quant.quantizer.qat import Training, trained_model
from secure_quant.quantizer.refuse import failures_named, first_line
from secure_quant.quantizer.schemes import KMeans, Log, Scheme, Uniform, make_scheme

__all__ = ["Mode", "quantize"]

Embedding = Literal["client", "private"]
Mode = Literal["static", "dynamic", "weight-only", "qat"]
FINE_BITS = 12


def quantize(
    model: Any,
    calibration: Any,
    *,
    mode: Mode = "static",
    scheme: str | Scheme = "uniform",
    calibrator: Calibrator = "minmax",
    grid: int = 0,
    batch_size: int = 64,
    targets: Any = None,
    training: Training | None = None,
    progress: Progress | None = None,
    max_error: float | None = None,
    embedding: Embedding | None = None,
) -> Graph:
    """The integer graph of ``model``.

    model        a torch module of tensors [batch, ...] in and out: one of each, or several
                 inputs, and outputs alone or in tuples, dicts and dataclasses. It is copied and
                 taken in eval mode. Or a float ONNX model, an ExportedProgram or TorchScript, or
                 the path of a file that holds one (.onnx, .pt2, .ts), or a fitted linear model,
                 MLP or trees of scikit-learn, scalers before the former.
    calibration  float[n, *input shape] array or tensor of typical inputs, or an iterable of such
                 batches: a DataLoader, a generator, an ``ImageFolder``; or a torch Dataset, of
                 which 512 items are taken, spread evenly. Some hundred samples do. Of several
                 inputs a mapping of names to arrays, a tuple in the order of a forward that needs
                 as many, or batches of these; integers and bools stay such. The graph then has
                 named inputs and outputs.
    mode         static: int8 weights and activations. weight-only: int8 weights; activations get
                 12 bits, so that next to nothing but the weights' rounding is felt, and encrypted
                 engines still run it, at a higher cost. The input itself is int8 in every mode.
                 dynamic: int8 weights and int8 inputs of every Conv2d and Linear, with a scale
                 that the client takes from each sample as it comes, so that samples far larger or
                 smaller than ``calibration`` keep 8 bits; what is no such layer gets 12 bits.
                 Biases become public. For homomorphic encryption; other engines refuse it.
                 qat: static after a short fine-tune on ``calibration`` and ``targets``, in which
                 weights learn to live with the rounding.
    scheme       how weights are rounded: uniform, log, clip, kmeans or a ``Scheme``.
    calibrator   how activation ranges are chosen; see ``RangeObserver``.
    grid         largest integer multiplier of a weight channel, 0 to choose; see
                 ``WeightObserver``.
    batch_size   largest batch in which ``calibration`` runs; larger ones are split.
    targets      qat only: what the loss compares outputs with, one for each sample. The loss of
                 several outputs gets them as a dict.
    training     qat only: epochs, learning rate, loss.
    progress     called with (stage, steps done, steps in all).
    max_error    the largest error at the output, root mean square over calibration samples,
                 relative to that of the float output; inf gives a graph at any error. None is a
                 quarter, or half with the schemes of few levels, log and kmeans.

    embedding    of a table that an integer input chooses rows of. client: it becomes PUBLIC:
                 clients get it with the model, look their rows up themselves and send those, int8.
                 private: a secret parameter, which clients never see, nor servers the numbers; for
                 secret sharing alone. None refuses embeddings of inputs.

    The captured graph is compared with ``model`` itself before anything is rounded, and the
    integers with torch's simulation and the float model after. Warns with AccuracyWarning from a
    fifth of the usual bound on.

    Raises UnsupportedModule (with the op, the module's path and a hint), CaptureMismatch,
    AccuracyLoss, CalibrationError, ConfigError, OverflowRisk.
    """
    if mode not in get_args(Mode):
        raise ConfigError("mode", got=mode, expected=", ".join(get_args(Mode)))
    fine, dynamic = mode in ("weight-only", "dynamic"), mode == "dynamic"
    bits = FINE_BITS if fine else 8
    grid = grid or (OUTPUT_GRID if dynamic else 0)  # the client multiplies: fine scales are free
    settings = Settings(make_scheme(scheme), calibrator, grid, bits, sums=not dynamic)
    bounds = Bounds.of(
        max_error, coarse=isinstance(settings.scheme, Log | KMeans), clipped=calibrator != "minmax"
    )
    if embedding not in (None, *get_args(Embedding)):
        raise ConfigError("embedding", got=embedding, expected="'client', 'private' or None")
    _check_progress(progress)
    with untouched(model), quiet():
        model, batches = as_one(model, calibration, batch_size, embedding)
    if mode == "qat" and targets is None:
        raise ConfigError("targets", got="none", expected="one for each sample, for mode 'qat'")
    if mode == "qat" and not isinstance(settings.scheme, Uniform):
        raise ConfigError("scheme", got=scheme, expected="'uniform' for mode 'qat'")
    if mode != "qat" and (targets is not None or training is not None):
        given = "training" if targets is None else "targets"
        raise ConfigError(given, got=f"mode {mode}, which trains nothing", expected="mode 'qat'")
    kept = kept_scales(model)
    if kept is not None and (mode != "static" or not isinstance(settings.scheme, Uniform)):
        raise ConfigError("a quantized model", got=f"mode {mode}, scheme {scheme}",
                          expected="static and uniform: it keeps what it has")  # fmt: skip
    little = shows_little(batches)
    if little is not None:
        warnings.warn(
            f"{little}: inputs outside of what it shows are cut off (give some hundred typical "
            "samples)", AccuracyWarning, stacklevel=2,
        )  # fmt: skip
    told, gate = progress or silent, Gate(model, batches)
    # torch.export draws from the caller's generator
    with untouched(model), torch.random.fork_rng(devices=[]), quiet():
        if kept is not None:
            return kept_graph(model, batches, kept, bounds, told)
        if mode == "qat":
            inputs, goal = torch.cat(batches), _tensor(targets)
            trained = _packed_loss(training or Training(), model)
            made = trained_model(model, gate, inputs, goal, settings, trained, told)
        else:
            made = simulated(model, gate, batches, settings, told)
        with failures_named(f"lowering {type(model).__name__}"):
            recorded = lower_recorded(made.converted, made.example, fine=fine, dynamic=dynamic)
            _check(recorded, made, gate, bounds, dynamic)
    _tell_shapes(model, recorded.graph)
    if embedding is not None and not any(port.rows for port in recorded.graph.input_ports):
        hint = "no input of the model chooses rows of a table (an integer input is given by name)"
        warnings.warn(f"embedding={embedding!r} changes nothing: {hint}", UserWarning, stacklevel=2)
    return recorded.graph


def _check_progress(progress: Any) -> None:
    """Raise ConfigError for what cannot be called with (stage, done, of)."""
    if progress is None:
        return
    try:
        inspect.signature(progress).bind("capture", 0, 1)
    except ValueError:
        return  # of C: nothing is known of it
    except TypeError as error:
        raise ConfigError(
            "progress", got=f"{type(progress).__name__}: {error}",
            expected="a function of (stage, done, of)",
        ) from error  # fmt: skip


def _tell_shapes(model: nn.Module, graph: Graph) -> None:
    """Warn of named outputs that have other shapes than the module's."""
    if not isinstance(model, Ported):
        return
    for spec, port in zip(model.outputs, graph.output_ports, strict=True):
        if spec.shape != port.shape:
            warnings.warn(
                f"{spec.name!r}: the module gives {['n', *spec.shape]}, the graph "
                f"{['n', *port.shape]}: reshape its output before comparing, or it broadcasts",
                UserWarning, stacklevel=3,
            )  # fmt: skip


def _packed_loss(training: Any, model: nn.Module) -> Any:
    """``training`` with a loss of packed outputs; what is no Training is refused later."""
    if not isinstance(training, Training) or not callable(training.loss):
        return training
    return replace(training, loss=loss_of(model, training.loss))


def _tensor(targets: Any) -> Tensor:
    try:
        return torch.as_tensor(targets).detach().cpu()
    except (TypeError, ValueError, RuntimeError) as error:
        raise CalibrationError(
            "targets", got=first_line(error), expected="an array, one target for each input"
        ) from error


def _check(recorded: Recorded, made: Simulated, gate: Gate, bounds: Bounds, dynamic: bool) -> None:
    """The integers against torch's simulation and the float graph, which equals the module."""
    graph = recorded.graph
    steps = None  # torch's simulation has no activations of run-time scales
    if not dynamic:
        steps = steps_off(graph, made.converted, recorded.places, gate.samples.numpy())
    samples = gate.samples_for(graph)
    x = samples.numpy()
    want = FloatGraph(made.floats).evaluate(samples).numpy()
    shape = graph.values[graph.output.name].shape
    if want.shape[1:] != shape:
        warnings.warn(
            f"the module gives {['n', *want.shape[1:]]}, the graph {['n', *shape]}: reshape its "
            "output before comparing, or it broadcasts", UserWarning, stacklevel=3,
        )  # fmt: skip
    check_accuracy(
        graph, x, want, lambda: values_at(made.floats, recorded, x), bounds, steps,
        noise=gate.noise.numpy(),
    )  # fmt: skip
