"""What a caller hands over as data, for a model of one tensor or of several."""

from __future__ import annotations

import inspect
import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, is_dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.utils import _pytree
from torch.utils.data import DataLoader, Dataset, IterableDataset, Subset

from secure_quant.errors import CalibrationError, SecureQuantError, UnsupportedModule
from secure_quant.ir.ops import is_kind
from secure_quant.quantizer.accept import accepted, unwrapped
from secure_quant.quantizer.calibration import (
    check_batch_size,
    check_calibration,
    drawn,
    split_batches,
)
from secure_quant.quantizer.devices import OnCpu
from secure_quant.quantizer.files import input_names, opened, read
from secure_quant.quantizer.images import MOST_SAMPLES, spread
from secure_quant.quantizer.ports import InputSpec, OutputSpec, Ported, specs_of
from secure_quant.quantizer.refuse import first_line

__all__ = ["as_one", "packed"]

_LARGEST_INTEGER = 2**24
"""To which float32 holds every integer."""
_KINDS = {"b": "bool", "i": "int64", "u": "int64", "f": "float32"}
_BATCH = 32
_WAY = "call the model on a batch of this data to see it fail"


def as_one(
    model: Any, calibration: Any, batch_size: int, tables: str | None = None
) -> tuple[nn.Module, list[Tensor]]:
    """(a module of one tensor in and out, float32 batches for it): ``model`` as a module and its
    data, or a Ported and packed batches, where inputs are given by name or where it has several
    inputs or outputs. ``tables``: as Ported has it.

    Raises CalibrationError, UnsupportedModule.
    """
    model = read(model)
    forward = _Forward.of(model)
    samples, calibration = _named(forward, _of_dataset(calibration))
    if samples is None and tables is not None and _is_array(calibration) and forward.names:
        samples = [forward.by_place([calibration])], True  # row numbers stay integers
    if samples is not None:
        model = opened(model, _examples(forward, samples[0]))
        forward = _Forward.of(model)
        samples = samples[0], samples[1] or forward.placed
        made, batches = _ported(model, forward, samples, batch_size)
        made.tables = tables
        return made, batches
    if forward.placed and forward.needed > 1 and not isinstance(model, torch.jit.ScriptModule):
        raise CalibrationError(
            f"inputs of {forward.kind}", got="one array", expected=", ".join(forward.names),
            hint='pass {"name": array, ...}, or a tuple of as many arrays',
        )  # fmt: skip
    batches = split_batches(calibration, batch_size)
    model = opened(model, batches[:1])
    forward = _Forward.of(model)
    outputs = _several(model, batches[0][:2])
    if outputs is None:
        return model, batches
    name = forward.names[0] if forward.names and not forward.placed else "input"
    spec = InputSpec(name, "float32", tuple(batches[0].shape[1:]), 0)
    made = Ported.of(unwrapped(model), [spec], outputs, positional=True)
    return made, [batch.flatten(1) for batch in batches]


def _of_dataset(calibration: Any) -> Any:
    """Batches of a torch Dataset, of so many of its items as are worth it; else the data."""
    if not isinstance(calibration, Dataset):
        return calibration
    try:
        if isinstance(calibration, IterableDataset):
            loader: Any = DataLoader(calibration, batch_size=_BATCH)
            batches = list(itertools.islice(loader, MOST_SAMPLES // _BATCH))
        else:
            some = Subset(calibration, spread(len(calibration), MOST_SAMPLES))  # type: ignore[arg-type]
            batches = list(DataLoader(some, batch_size=_BATCH))
    except (TypeError, RuntimeError) as error:
        raise CalibrationError(
            f"calibration: {type(calibration).__name__}", got=first_line(error),
            expected="items of arrays, one shape for all",
            hint="give a Dataset a transform that makes tensors of one size",
        ) from error  # fmt: skip
    return DataLoader(batches, batch_size=None)  # type: ignore[arg-type]


def packed(model: nn.Module, x: Any) -> NDArray[np.float32]:
    """Samples for a module that ``as_one`` gave, as its one input: float32[n, ...]. ``x``: an
    array, or arrays by name."""
    if not isinstance(model, Ported):
        return np.asarray(x, np.float32)
    given = x if isinstance(x, Mapping) else {model.inputs[0].name: x}
    parts = [_of_input(given, spec) for spec in model.inputs]
    return np.concatenate([part.reshape(len(part), -1) for part in parts], 1).astype(np.float32)


def _of_input(given: Mapping[str, Any], spec: InputSpec) -> NDArray[Any]:
    """The array of an input, or its columns side by side, where each is given by itself."""
    if spec.name in given or f"{spec.name}.0" not in given:
        return np.asarray(given[spec.name])
    columns = range(torch.Size(spec.shape).numel())
    return np.stack([np.asarray(given[f"{spec.name}.{i}"]).reshape(-1) for i in columns], 1)


@dataclass(frozen=True)
class _Forward:
    """names: of a forward's parameters, in order; the first ``needed`` have no default. open: it
    takes any name. placed: of a file, whose inputs go by their order alone."""

    kind: str
    names: tuple[str, ...]
    needed: int
    open: bool
    placed: bool = False

    @staticmethod
    def of(model: Any) -> _Forward:
        kind = type(model).__name__
        own = input_names(model)
        if own is not None:
            return _Forward(kind, own, len(own), False, True)
        if not isinstance(model, nn.Module) or isinstance(model, torch.jit.ScriptModule):
            return _Forward(kind, (), 0, False)  # to be opened, or refused later
        try:
            found = list(inspect.signature(unwrapped(model).forward).parameters.values())
        except (TypeError, ValueError):
            return _Forward(kind, (), 0, True)
        named = [p for p in found if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
        only = [p.name for p in found if p.kind is p.KEYWORD_ONLY]
        needed = sum(p.default is p.empty for p in named)
        free = any(p.kind is p.VAR_KEYWORD for p in found)
        return _Forward(kind, (*(p.name for p in named), *only), needed, free)

    def by_place(self, arrays: Sequence[Any]) -> dict[str, Any]:
        return dict(zip(self.names, arrays, strict=False))


def _is_array(x: Any) -> bool:
    return isinstance(x, Tensor) or hasattr(x, "__array__")


def _named(
    forward: _Forward, calibration: Any
) -> tuple[tuple[list[Mapping[str, Any]], bool] | None, Any]:
    """((batches by name, whether they go by place), the data); None for data of a single input."""
    several = forward.needed > 1

    def by_place(x: Any, most: int) -> bool:
        listed = isinstance(x, tuple | list) and all(map(_is_array, x))
        return several and listed and forward.needed <= len(x) <= most

    if isinstance(calibration, Mapping):
        return ([calibration], False), calibration
    if by_place(calibration, len(forward.names)):
        return ([forward.by_place(calibration)], True), calibration
    plain = _is_array(calibration) or isinstance(calibration, str | bytes)
    if plain or not isinstance(calibration, Iterable):
        return None, calibration
    with torch.random.fork_rng(devices=[]):  # a DataLoader draws from the caller's generator
        batches = drawn(calibration)
        first = next(batches, None)
        whole: Iterator[Any] = itertools.chain([] if first is None else [first], batches)
        if isinstance(first, Mapping):
            return (list(whole), False), calibration
        if isinstance(first, tuple | list) and first and isinstance(first[0], Mapping):
            return ([b[0] for b in whole], False), calibration  # targets follow
        if by_place(first, 2**10):  # targets may follow
            return ([forward.by_place(b[: forward.needed]) for b in whole], True), calibration
    again = isinstance(calibration, DataLoader | Sequence)
    return None, calibration if again else whole


def _examples(forward: _Forward, batches: list[Mapping[str, Any]]) -> list[Tensor]:
    """A batch of each input, for a model that is read from a file, in its order."""
    first = batches[0] if batches and isinstance(batches[0], Mapping) else {}
    if forward.placed:
        return list(_typed(forward, first).values())
    return [_tensor(name, value) for name, value in first.items() if value is not None]


def _ported(
    model: Any, forward: _Forward, found: tuple[list[Mapping[str, Any]], bool], batch_size: int
) -> tuple[Ported, list[Tensor]]:
    given, positional = found
    check_batch_size(batch_size)
    samples = [_typed(forward, batch) for batch in given]
    if not samples:
        raise CalibrationError("calibration", got="no data", expected="at least one sample")
    specs = _specs(samples[0])
    for sample in samples[1:]:
        if _specs(sample) != specs:
            raise CalibrationError(
                "calibration batches", got=_told(_specs(sample)), expected=_told(specs)
            )
    example = {name: value[:2] for name, value in samples[0].items()}
    outputs = _outputs(model, example, positional)
    made = Ported.of(unwrapped(model), specs, outputs, positional)
    wide = [
        torch.cat([v.reshape(len(v), -1).float() for v in sample.values()], 1) for sample in samples
    ]
    return made, [part for whole in wide for part in torch.split(whole, batch_size)]


def _typed(forward: _Forward, batch: Any) -> dict[str, Tensor]:
    """Checked tensors in the order of the forward's parameters. Raises CalibrationError."""
    if not isinstance(batch, Mapping):
        raise CalibrationError(
            "calibration batch", got=type(batch).__name__, expected="arrays by name, as the first"
        )
    given = {name: value for name, value in batch.items() if value is not None}
    unknown = [name for name in given if name not in forward.names and not forward.open]
    missing = [name for name in forward.names[: forward.needed] if name not in given]
    if unknown or missing or not given:
        more = ", or any other" if forward.open else ""
        raise CalibrationError(
            f"inputs of {forward.kind}", got=", ".join(ascii(name) for name in given) or "none",
            expected=f"of {', '.join(forward.names)}{more}",
            hint=f"{(unknown or missing or ['something'])[0]!r} "
            + ("is no argument of forward" if unknown else "is missing"),
        )  # fmt: skip
    order = [*(name for name in forward.names if name in given),
             *(name for name in given if name not in forward.names)]  # fmt: skip
    made = {name: _tensor(name, given[name]) for name in order}
    counts = {name: len(value) for name, value in made.items()}
    if len(set(counts.values())) > 1:
        raise CalibrationError("samples of the inputs", got=counts, expected="as many of each")
    return made


def _tensor(name: str, x: Any) -> Tensor:
    """float32, int64 or bool [batch >= 1, ...]. Raises CalibrationError."""
    if not is_kind(name, "str"):
        raise CalibrationError(
            f"name of an input: {ascii(name)[:80]}", expected="printable ASCII without blanks"
        )
    if isinstance(x, Mapping):
        raise CalibrationError(
            f"input {name!r}", got=f"a {type(x).__name__}", expected="an array",
            hint="put the model into a module whose forward has an argument for each array",
        )  # fmt: skip
    array = x.detach().cpu() if isinstance(x, Tensor) else np.asarray(x)
    kind = _kind(array)
    masked = bool(np.ma.is_masked(x))  # refused there
    if kind == "float32" or array.ndim == 0 or 0 in array.shape or masked:
        try:
            whole = x if masked else array
            wide = check_calibration(whole[:, None] if array.ndim == 1 else whole)
        except CalibrationError as error:
            raise CalibrationError(
                f"input {name!r}: {error.what}", got=error.got, expected=error.expected,
                hint=error.hint,
            ) from error  # fmt: skip
        return wide[:, 0] if array.ndim == 1 else wide
    made = torch.as_tensor(array).to(torch.bool if kind == "bool" else torch.int64)
    if kind == "int64" and int(made.abs().max()) > _LARGEST_INTEGER:
        raise CalibrationError(
            f"input {name!r}", got=f"integers up to {int(made.abs().max())}",
            expected=f"at most {_LARGEST_INTEGER} in magnitude",
        )  # fmt: skip
    return made


def _kind(array: Any) -> str:
    """dtype of a port for an array; what is no array of numbers counts as float32, and fails."""
    if isinstance(array, Tensor):
        if array.dtype is torch.bool:
            return "bool"
        return "float32" if array.is_floating_point() or array.is_complex() else "int64"
    return _KINDS.get(array.dtype.kind, "float32")


def _specs(sample: Mapping[str, Tensor]) -> list[InputSpec]:
    found: list[InputSpec] = []
    for name, value in sample.items():
        dtype = str(value.dtype).removeprefix("torch.")
        start = found[-1].stop if found else 0
        found.append(InputSpec(name, dtype, tuple(value.shape[1:]), start))
    return found


def _told(specs: Sequence[InputSpec]) -> str:
    return ", ".join(f"{spec.name} {spec.dtype}{list(spec.shape)}" for spec in specs)


def _outputs(model: Any, example: Mapping[str, Tensor], positional: bool) -> list[OutputSpec]:
    """Of the model's own forward. Raises CalibrationError where it fails, UnsupportedModule."""
    module = accepted(model)
    kind = type(unwrapped(model)).__name__
    given = {name: value.clone() for name, value in example.items()}
    with torch.no_grad(), torch.random.fork_rng(devices=[]), OnCpu():
        try:
            made = module(*given.values()) if positional else module(**given)
        except SecureQuantError:
            raise
        except Exception as error:
            raise CalibrationError(
                f"{kind} on {_told(_specs(example))}", got=first_line(error),
                expected="inputs as forward takes them, the batch first", hint=_WAY,
            ) from error  # fmt: skip
    found = specs_of(made, len(next(iter(example.values()))), kind)
    if not found:
        raise UnsupportedModule(f"output of {kind}", got="nothing", expected="a tensor")
    return found


def _several(model: Any, x: Tensor) -> list[OutputSpec] | None:
    """The outputs of a module of one input, if it gives more than one tensor. What fails here is
    told by the capture."""
    if not isinstance(model, nn.Module):
        return None
    try:
        with torch.no_grad(), torch.random.fork_rng(devices=[]), OnCpu():
            made = accepted(model)(x.clone())
    except Exception:  # noqa: BLE001  whatever it is, the capture meets it again and names it
        return None
    tensors = [leaf for leaf in _pytree.tree_leaves(made) if leaf is not None]
    if len(tensors) < 2 and not any(map(is_dataclass, tensors)):
        return None
    return specs_of(made, len(x), type(unwrapped(model)).__name__)
