"""What a user may hand over as a model: copied, made float32, checked before anything looks in."""

from __future__ import annotations

import copy
import re
from collections import OrderedDict, defaultdict, deque
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import prune
from torch.utils._pytree import tree_leaves

from secure_quant.errors import CalibrationError, NotFinite, UnsupportedModule
from secure_quant.quantizer.devices import OnCpu, elsewhere, on_cpu
from secure_quant.quantizer.memory import Filled, refuse_unwritten
from secure_quant.quantizer.refuse import first_line

__all__ = ["accepted", "check_forward", "check_output", "own_copy", "untouched", "unwrapped"]

_FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
_INDICES = (
    'give row numbers as integers with embedding="client", which makes the table public to '
    'clients, or "private", for secret sharing; or feed one-hot rows into nn.Linear'
)
_WHOLE = "the float module, before it was quantized"
_OF_THE_FORWARD = (
    (r"^(?!.*(Long|Int|Bool)).*(same dtype|scalar type|type .* should be the same)",
     "a forward that computes in the type of its weights: a float32 copy is what is quantized",
     "no casts to one type: x.to(self.layer.weight.dtype), not x.half() or x.double()"),
    (r"HigherOrderOperator", "steps on tensors alone, none of which takes a function",
     "of torch.cond compute both branches, and choose with torch.where; write attention out"),
    (r"does not require grad", "a forward without gradients",
     "write the derivative out, or leave it to the client"),
)  # fmt: skip
"""What torch says of calls that only a copy as ours fails in -> what is expected, what to do."""
_HELD = {list, dict, set, deque, defaultdict, OrderedDict}


def accepted(model: Any) -> nn.Module:
    """A copy of ``model`` in eval mode, its floats float32 on the CPU; hooks that compute a weight
    (old weight_norm and spectral_norm, pruning) have done so. Raises as ``own_copy``."""
    made = own_copy(model)
    for part in made.modules():
        _apply_hooks(part)
        for name, value in vars(part).items():
            if isinstance(value, Tensor) and value.dtype in _FLOATS:
                setattr(part, name, value.detach().float())
    return made.float()


def own_copy(model: Any) -> nn.Module:
    """A copy of the user's module as it is, which is not touched: in eval mode, on the CPU, without
    gradients.

    Raises UnsupportedModule for what is no float module, NotFinite for NaN in its parameters.
    """
    module = unwrapped(model)
    for path, part in module.named_modules():
        _check_part(part, path)
    for path, tensor in _tensors(module):
        _check_tensor(tensor, path)
    computed = elsewhere(module) | {
        id(value): on_cpu(value)
        for part in module.modules()
        for value in tree_leaves(list(vars(part).values()))
        if isinstance(value, Tensor) and not value.is_leaf
    }
    try:
        made: nn.Module = copy.deepcopy(module, computed)
        made.eval()  # of some modules these return nothing
        made.requires_grad_(False)
        return made
    except Exception as error:
        raise UnsupportedModule(
            f"{type(module).__name__} cannot be copied", got=first_line(error),
            hint="keep files, locks and generators out of the module's attributes",
        ) from error  # fmt: skip


@contextmanager
def untouched(model: Any) -> Iterator[None]:
    """While this lasts, a hook or a closure of ``model`` may keep values in the module that it was
    written for, which is the user's and no copy of ours: what they put there is taken out again."""
    is_module = isinstance(model, nn.Module) and "_modules" in vars(model)
    parts = list(model.modules()) if is_module else []
    attributes = [(part, dict(vars(part))) for part in parts]
    held = [(value, copy.copy(value)) for _, own in attributes for value in _containers(own)]
    try:
        yield
    finally:
        for part, own in attributes:
            now = vars(part)
            if now.keys() != own.keys() or any(now[name] is not own[name] for name in own):
                now.clear()
                now.update(own)
        for value, before in held:
            if _contents(value) != _contents(before):
                value.clear()
                (value.extend if type(value) in (list, deque) else value.update)(before)


def _containers(attributes: Mapping[str, Any]) -> list[Any]:
    """The lists, dicts and sets that a module holds, and those in them; none of torch's own."""
    own = vars(nn.Module())
    pending = [value for name, value in attributes.items() if name not in own]
    found: dict[int, Any] = {}
    while pending:
        value = pending.pop()
        if type(value) in _HELD and id(value) not in found:
            found[id(value)] = value
            pending.extend(value.values() if isinstance(value, dict) else value)
    return list(found.values())


def _contents(value: Any) -> list[int]:
    """What is in a container, each as itself."""
    return [id(v) for v in (*value, *(value.values() if isinstance(value, dict) else ()))]


def check_forward(module: nn.Module, example: Tensor) -> Tensor:
    """The module's own output for ``example``, float32[batch, ...].

    Raises CalibrationError where it cannot take the example, UnsupportedModule where it gives
    something else than one tensor.
    """
    kind = type(module).__name__
    try:
        with torch.no_grad(), OnCpu(), Filled():
            made = module(example.clone())
    except Exception as error:
        if isinstance(error, UnsupportedModule):
            raise
        what, got = f"{kind} on inputs of shape {list(example.shape)}", first_line(error)
        if isinstance(error, TypeError) and "argument" in got:
            raise UnsupportedModule(
                what, got=got, expected="a forward of one tensor",
                hint="pass every input by name, or wrap the model in a module that takes the one "
                "tensor that varies",
            ) from error  # fmt: skip
        if isinstance(error, NotImplementedError) and "forward" in got:
            raise UnsupportedModule(
                what, got=got, hint="pass the module that calls these"
            ) from error
        embeds = "embedding" in got or "indices" in got
        for pattern, expected, hint in _OF_THE_FORWARD:
            if re.search(pattern, got) and not embeds:
                raise UnsupportedModule(what, got=got, expected=expected, hint=hint) from error
        raise CalibrationError(
            what, got=got,
            expected="calibration like the inputs of the model: float32[batch, ...]",
            hint=_INDICES if embeds else "call the model on a batch of this data to see it fail",
        ) from error  # fmt: skip
    made = _lone_tensor(made, kind)
    if not made.numel():
        raise UnsupportedModule(f"output of {kind}", got=list(made.shape), expected="values")
    if not made.dtype.is_floating_point:
        raise UnsupportedModule(
            f"output of {kind}", got=made.dtype, expected="floats",
            hint="return the scores; take argmax, comparisons and casts to the client",
        )  # fmt: skip
    refuse_unwritten(kind, lambda: _lone_tensor(module(example.clone()), kind))
    return made


def check_output(made: Tensor, module: nn.Module) -> None:
    """Raise NotFinite where the module's own output has NaN or infinity."""
    if not bool(torch.isfinite(made).all()):
        raise NotFinite(
            f"output of {type(module).__name__}", got="NaN or infinity on calibration data",
            hint="look at the model's parameters, and at logarithms, roots and divisions in it",
        )  # fmt: skip


def _lone_tensor(made: Any, kind: str) -> Tensor:
    """The tensor that a forward returned, alone or as the only item of a container."""
    leaves = [leaf for leaf in torch.utils._pytree.tree_leaves(made) if leaf is not None]
    if len(leaves) == 1 and isinstance(leaves[0], Tensor):
        return leaves[0]
    got = type(made).__name__ if made is None or len(leaves) == 1 else f"{len(leaves)} values"
    raise UnsupportedModule(
        f"output of {kind}", got=got, expected="one tensor",
        hint="wrap the model in a module whose forward returns the one tensor that is wanted",
    )  # fmt: skip


def unwrapped(model: Any) -> nn.Module:
    """The module behind DataParallel and torch.compile. Raises UnsupportedModule for others."""
    hint, got = None, type(model).__name__
    if isinstance(model, nn.Module) and "_modules" not in vars(model):
        raise UnsupportedModule(
            got, got="a module without nn.Module's own attributes",
            hint="call super().__init__() in its __init__",
        )  # fmt: skip
    if isinstance(model, str | bytes | Path):
        hint = "load it: build the module, then load_state_dict(torch.load(path))"
    elif isinstance(model, Mapping):
        hint = "these are parameters: build the module, then load_state_dict them"
    elif isinstance(model, type):
        got, hint = f"the class {model.__name__}", "call it, and pass the module that this makes"
    elif isinstance(model, torch.jit.ScriptModule | torch.jit.ScriptFunction):
        hint = "TorchScript hides its steps: pass the Python module that it was made from"
    elif isinstance(model, torch.export.ExportedProgram):
        hint = "pass the Python module that it was exported from"
    elif not isinstance(model, nn.Module):
        hint = "write an nn.Module whose forward does it" if callable(model) else None
    elif isinstance(model, nn.DataParallel | nn.parallel.DistributedDataParallel):
        return unwrapped(model.module)
    elif isinstance(getattr(model, "_orig_mod", None), nn.Module):
        return unwrapped(model._orig_mod)
    else:
        return model
    raise UnsupportedModule("model", got=got, expected="a torch.nn.Module", hint=hint)


def _check_part(part: nn.Module, path: str) -> None:
    where = f"{type(part).__name__} at {path or 'the model itself'}"
    if isinstance(part, torch.jit.ScriptModule):
        raise UnsupportedModule(where, got="TorchScript", expected="a Python module")
    origin = type(part).__module__
    stored = origin.startswith(("torch.", "torchao.")) and ".quantized" in origin
    if stored or hasattr(part, "activation_post_process"):
        raise UnsupportedModule(where, got="a quantized or prepared module", expected=_WHOLE)
    if isinstance(part, torch.fx.GraphModule):
        targets = [str(node.target) for node in part.graph.nodes]
        if any("quantize" in t or "activation_post_process" in t for t in targets):
            raise UnsupportedModule(where, got="a quantized or prepared graph", expected=_WHOLE)
        if hasattr(part, "_in_spec"):
            raise UnsupportedModule(
                where, got="an exported program's module",
                expected="the Python module that it was exported from",
            )  # fmt: skip


def _tensors(module: nn.Module) -> list[tuple[str, Tensor]]:
    return [*module.named_parameters(), *module.named_buffers()]


def _check_tensor(tensor: Tensor, path: str) -> None:
    if nn.parameter.is_lazy(tensor):
        raise UnsupportedModule(
            f"parameter {path}", got="not initialized", hint="run the model on a batch once"
        )
    if tensor.is_meta:
        raise UnsupportedModule(
            f"parameter {path}", got="no values: it is on the meta device",
            hint="materialize the model with to_empty, then load_state_dict",
        )  # fmt: skip
    plain = type(tensor) in (Tensor, nn.Parameter, nn.Buffer)
    if tensor.is_quantized or not plain:
        raise UnsupportedModule(f"parameter {path}", got=type(tensor).__name__, expected=_WHOLE)
    if tensor.is_complex() or tensor.layout != torch.strided:
        got = f"{tensor.dtype}, {tensor.layout}"
        raise UnsupportedModule(f"parameter {path}", got=got, expected="real, dense numbers")
    if bool(torch.isnan(tensor).any()):
        raise NotFinite(
            f"parameter {path}", got="NaN", expected="finite numbers",
            hint="training has diverged: go back to an earlier checkpoint",
        )  # fmt: skip


def _apply_hooks(part: nn.Module) -> None:
    """What pre-forward hooks of torch would compute at each call becomes a plain parameter."""
    hooks: list[Any] = list(part._forward_pre_hooks.values())
    for hook in hooks:
        kind = type(hook).__name__ if type(hook).__module__.startswith("torch.nn.utils.") else ""
        if kind == "WeightNorm":
            nn.utils.remove_weight_norm(part, hook.name)
        elif kind == "SpectralNorm":
            nn.utils.remove_spectral_norm(part, hook.name)
        elif isinstance(hook, prune.BasePruningMethod):
            prune.remove(part, hook._tensor_name)  # type: ignore[no-untyped-call]
