"""Fitted estimators of scikit-learn as torch modules: linear models, MLPs, pipelines before them;
trees are in ``trees``.

What a module returns are scores, before any threshold or softmax, as ``decision_function`` gives
them: for regressors the prediction itself. An MLPClassifier gives logits. Affine steps of a
pipeline (scalers, PCA) go into the weights of the first layer, in float64, and cost nothing; a
scaler whose factors differ by far stays a step of its own, since int8 rows could not hold both the
large and the small of them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from secure_quant.errors import CaptureMismatch, UnsupportedModule
from secure_quant.quantizer.files.trees import has_trees, module_of_trees

__all__ = ["is_estimator", "module_of_estimator"]

Array = NDArray[np.float64]

_TOLERANCE = 1e-4
"""Relative to the largest score: float32 against scikit-learn's float64."""
_ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {
    "identity": nn.Identity, "logistic": nn.Sigmoid, "tanh": nn.Tanh, "relu": nn.ReLU,
}  # fmt: skip
_TREES = "of trees: decision trees, random forests, extra trees and GradientBoosting are taken"
_STEPS = "apply the steps before the trees at the client, and pass the trees"
_SPREAD = 4.0
"""Largest ratio of a scaler's factors that goes into weights: two of their bits."""


class _Affine(NamedTuple):
    """x -> x @ weight.T + bias."""

    weight: Array
    bias: Array

    def after(self, first: _Affine | None) -> _Affine:
        """This map of what ``first`` makes."""
        if first is None:
            return self
        return _Affine(self.weight @ first.weight, self.weight @ first.bias + self.bias)


def is_estimator(model: Any) -> bool:
    """Whether scikit-learn, or a package in its manner, made it."""
    return hasattr(model, "get_params") and hasattr(model, "fit") and not isinstance(model, type)


def module_of_estimator(model: Any, example: Tensor) -> nn.Module:
    """The scores of a fitted estimator, compared with its own on ``example``, float32[batch, n].

    Raises UnsupportedModule with the step that cannot be taken, CaptureMismatch.
    """
    if has_trees(model):
        trees = module_of_trees(model, example)
        _check(model, model, trees, example)
        trees.round()
        return trees
    scaler, before, last = _steps(model)
    kind = type(last).__name__
    layers: list[_Affine]
    activation: Callable[[], nn.Module] = nn.Identity
    if hasattr(last, "coefs_"):
        pairs = zip(last.coefs_, last.intercepts_, strict=True)
        layers = [_Affine(np.asarray(w, float).T, np.asarray(b, float)) for w, b in pairs]
        activation = _ACTIVATIONS[last.activation]
    elif hasattr(last, "coef_") and hasattr(last, "intercept_") and _is_linear(last):
        weight = np.atleast_2d(np.asarray(last.coef_, float))
        layers = [_Affine(weight, np.broadcast_to(np.ravel(last.intercept_), weight.shape[0]))]
    else:
        fitted = hasattr(last, "n_features_in_")
        tree = "Boosting" in kind or has_trees(last) or hasattr(last, "estimators_")
        hint = (_STEPS if has_trees(last) else _TREES) if tree else None
        raise UnsupportedModule(
            kind,
            got="no linear model, MLP or trees" if fitted else "an estimator that is not fitted",
            hint=hint if fitted else "call fit first",
        )
    layers[0] = layers[0].after(before)
    module = _module(scaler, layers, activation)
    _check(model, last, module, example)
    return module


def _is_linear(model: Any) -> bool:
    return getattr(model, "kernel", "linear") == "linear" and not hasattr(model, "link")


def _steps(model: Any) -> tuple[_Affine | None, _Affine | None, Any]:
    """A scaler that has to stay, all that stands before the last step else, and that step."""
    parts = [step for _, step in model.steps] if hasattr(model, "steps") else [model]
    maps = [_transform(part) for part in parts[:-1] if part is not None and part != "passthrough"]
    scaler = before = None
    for each in maps:
        diagonal = before is None and _is_diagonal(each.weight)
        if diagonal:
            scaler = each.after(scaler)
        else:
            before = each.after(before)
    if scaler is not None and not _spread(scaler.weight):
        scaler, before = None, scaler if before is None else before.after(scaler)
    return scaler, before, parts[-1]


def _is_diagonal(weight: Array) -> bool:
    square = weight.shape[0] == weight.shape[1]
    return square and not np.count_nonzero(weight - np.diag(np.diag(weight)))


def _spread(weight: Array) -> bool:
    factors = np.abs(np.diag(weight))
    return bool(factors.max() > _SPREAD * factors.min())


def _transform(part: Any) -> _Affine:
    """A fitted transformer. Raises UnsupportedModule for one that is not affine."""
    kind = type(part).__name__
    if kind == "StandardScaler":
        scale = np.ones(part.n_features_in_) if part.scale_ is None else part.scale_
        mean = np.zeros(part.n_features_in_) if part.mean_ is None else part.mean_
        return _diagonal(1 / scale, -mean / scale)
    if kind == "MinMaxScaler" and not part.clip:
        return _diagonal(part.scale_, part.min_)
    if kind == "MaxAbsScaler":
        return _diagonal(1 / part.scale_, np.zeros(part.n_features_in_))
    if kind == "RobustScaler":
        scale = np.ones(part.n_features_in_) if part.scale_ is None else part.scale_
        center = np.zeros(part.n_features_in_) if part.center_ is None else part.center_
        return _diagonal(1 / scale, -center / scale)
    if kind == "TruncatedSVD":
        return _Affine(part.components_, np.zeros(len(part.components_)))
    if kind == "PCA":
        weight = part.components_
        if part.whiten:
            weight = weight / np.sqrt(part.explained_variance_)[:, None]
        return _Affine(weight, -weight @ part.mean_)
    raise UnsupportedModule(
        f"the step {kind}", expected="scalers, PCA or TruncatedSVD before the model",
        hint="apply it at the client, and pass the steps after it",
    )  # fmt: skip


def _diagonal(factor: Any, shift: Any) -> _Affine:
    return _Affine(np.diag(np.asarray(factor, float)), np.asarray(shift, float))


class _Scaler(nn.Module):
    """x * factor + shift, feature by feature."""

    factor: Tensor
    shift: Tensor

    def __init__(self, scaler: _Affine) -> None:
        super().__init__()
        self.register_buffer("factor", torch.from_numpy(np.diag(scaler.weight).copy()).float())
        self.register_buffer("shift", torch.from_numpy(np.array(scaler.bias)).float())

    def forward(self, x: Tensor) -> Tensor:
        made: Tensor = x * self.factor + self.shift
        return made


def _module(
    scaler: _Affine | None, layers: list[_Affine], activation: Callable[[], nn.Module]
) -> nn.Module:
    parts: list[nn.Module] = [] if scaler is None else [_Scaler(scaler)]
    for number, (weight, bias) in enumerate(layers):
        layer = nn.Linear(weight.shape[1], weight.shape[0])
        with torch.no_grad():
            layer.weight.copy_(torch.from_numpy(np.ascontiguousarray(weight)))
            layer.bias.copy_(torch.from_numpy(np.array(bias)))
        parts.append(layer)
        if number < len(layers) - 1:
            parts.append(activation())
    return nn.Sequential(*parts).eval()


def _check(model: Any, last: Any, module: nn.Module, example: Tensor) -> None:
    """Compare with what the estimator itself says of the example."""
    x = example.double().numpy()
    if x.ndim != 2 or x.shape[1] != model.n_features_in_:
        got, wanted = list(example.shape), f"[batch, {model.n_features_in_}]"
        raise UnsupportedModule(f"inputs of {type(model).__name__}", got=got, expected=wanted)
    with torch.no_grad():
        made = module(example).double()
    if hasattr(model, "decision_function"):
        wanted = model.decision_function(x)
    elif has_trees(model) and hasattr(model, "predict_proba"):
        wanted = model.predict_proba(x)
    elif hasattr(last, "coefs_") and hasattr(model, "predict_proba"):
        wanted = model.predict_proba(x)
        binary = made.shape[1] == 1
        made = torch.sigmoid(torch.cat([-made, made], 1)) if binary else _chances(last, made)
    else:
        wanted = model.predict(x)
    scores = np.asarray(wanted, float).reshape(len(x), -1)
    off = np.abs(made.numpy() - scores).max() / max(float(np.abs(scores).max()), 1e-6)
    if not off <= _TOLERANCE:
        raise CaptureMismatch(
            type(last).__name__, got=f"{off:.2g} off its own scores, relative to the largest",
            expected=f"<= {_TOLERANCE:g}", hint="please report it with the versions you use",
        )  # fmt: skip


def _chances(last: Any, made: Tensor) -> Tensor:
    return torch.sigmoid(made) if last.out_activation_ == "logistic" else torch.softmax(made, 1)
