"""Fitted trees of scikit-learn, alone, in forests and boosted, as torch modules.

The tensor form: every comparison of a tree is made, and a leaf is reached where all on its way
agree (Nakandala et al., "A Tensor Compiler for Unified Machine Learning Prediction Serving", 2020).
Features are whole numbers, which int8 inputs hold: then ``x <= t`` is ``x <= floor(t)``, a step of
one whole number between 0 and 1, and all integers up to the leaf are exact, whatever the scales
are. A leaf enters the last layer up to 16 times, so that what it says has 12 bits of the largest.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from secure_quant.errors import UnsupportedModule

__all__ = ["has_trees", "module_of_trees"]

Array = NDArray[np.float64]

_KINDS = {"BaseDecisionTree", "BaseForest", "BaseGradientBoosting"}
WIDEST = 100
"""Of a feature, from least to largest: a step of int8 is then well below a whole number."""
COPIES, _ENTRIES = 16, 40_000
_BINS = "fit the trees on whole numbers, KBinsDiscretizer(encode='ordinal') at the client"


def has_trees(model: Any) -> bool:
    """Whether ``model`` is a fitted tree, or a forest or boosted trees, whose answers are added."""
    kinds = {kind.__name__ for kind in type(model).__mro__} & _KINDS
    fitted = hasattr(model, "tree_") or bool(_trees(model))
    return bool(kinds) and fitted and hasattr(model, "predict")


def module_of_trees(model: Any, example: Tensor) -> Trees:
    """Scores of fitted trees, float32[batch, n] -> float32[batch, scores]: of a classifier the
    chances of each class, of a boosted one what ``decision_function`` gives, of a regressor the
    prediction. They are those of the model itself until ``round`` is called.

    Raises UnsupportedModule for features that are no whole numbers, or too far apart, and for
    several outputs.
    """
    kind = type(model).__name__
    if getattr(model, "n_outputs_", 1) > 1:
        raise UnsupportedModule(
            kind, got=f"{model.n_outputs_} outputs", expected="one", hint="fit one for each output"
        )
    widest = float(example.max() - example.min())
    if not torch.equal(example, example.round()) or widest > WIDEST:
        raise UnsupportedModule(
            f"features of {kind}",
            got="fractions" if widest <= WIDEST else f"numbers {widest:g} apart",
            expected=f"whole numbers at most {WIDEST} apart: int8 inputs would fall on the other "
            "side of thresholds", hint=_BINS,
        )  # fmt: skip
    trees = [model] if hasattr(model, "tree_") else _trees(model)
    values = [_values(model, tree, place) for place, tree in enumerate(trees)]
    module = Trees([tree.tree_ for tree in trees], values)
    if hasattr(model, "init_"):  # what boosting begins with is the same for every input
        x = example[:1]
        begun = model.decision_function if hasattr(model, "classes_") else model.predict
        with torch.no_grad():
            off = np.asarray(begun(x.double().numpy())).reshape(-1) - module(x)[0].numpy()
        module.start.copy_(torch.from_numpy(off))
    module.eval()
    return module


def _trees(model: Any) -> list[Any]:
    found = np.ravel(getattr(model, "estimators_", []))
    return [tree for tree in found if hasattr(tree, "tree_")]


def _values(model: Any, tree: Any, place: int) -> Array:
    """float64[nodes, scores]: what a tree adds at each of its nodes."""
    value = np.asarray(tree.tree_.value, float)[:, 0, :]
    if hasattr(model, "init_"):
        rate, scores = model.learning_rate, model.estimators_.shape[1]
        made: Array = rate * value * (np.arange(scores) == place % scores)
        return made
    if hasattr(model, "classes_"):
        value = value / value.sum(1, keepdims=True)
    shared: Array = value / len(getattr(model, "estimators_", [0]))
    return shared


class Trees(nn.Module):
    """All trees side by side, those with fewer nodes filled up."""

    feature: Tensor
    least: Tensor
    way: Tensor
    lefts: Tensor
    leaves: Tensor
    start: Tensor

    def __init__(self, trees: list[Any], values: list[Array]) -> None:
        super().__init__()
        inner = max(max(int((t.children_left >= 0).sum()) for t in trees), 1)
        leaves = max(int((t.children_left < 0).sum()) for t in trees) + 1  # none reaches the last
        feature = np.zeros((len(trees), inner), np.int64)
        least = np.zeros((len(trees), inner))
        way = np.zeros((len(trees), leaves, inner))
        lefts = np.ones((len(trees), leaves))
        said = np.zeros((len(trees), leaves, values[0].shape[1]))
        for number, (tree, value) in enumerate(zip(trees, values, strict=True)):
            splits = np.flatnonzero(tree.children_left >= 0)
            feature[number, : len(splits)] = tree.feature[splits]
            least[number, : len(splits)] = np.floor(tree.threshold[splits])
            place = {int(node): at for at, node in enumerate(splits)}
            for leaf, (node, turns) in enumerate(_ways(tree)):
                for at, left in turns:
                    way[number, leaf, place[at]] = 1 if left else -1
                lefts[number, leaf] = sum(left for _, left in turns)
                said[number, leaf] = value[node]
        self.trees = len(trees)
        self.register_buffer("feature", torch.from_numpy(feature).flatten())
        self.register_buffer("least", torch.from_numpy(least).float().flatten())
        self.register_buffer("way", torch.from_numpy(way).float().flatten(0, 1)[..., None])
        self.register_buffer("lefts", torch.from_numpy(1 - lefts).float().flatten())
        self.copies = 1
        self.register_buffer("leaves", torch.from_numpy(said).flatten(0, 1).t().float())
        self.register_buffer("start", torch.zeros(said.shape[2]))

    def round(self) -> None:
        """What leaves say as sums of whole numbers that int8 weights hold as they are."""
        self.copies = max(min(COPIES, _ENTRIES // self.leaves.shape[1]), 1)
        self.leaves = _in_parts(self.leaves.t().double(), self.copies).t().float()

    def forward(self, x: Tensor) -> Tensor:
        above = self.least - x.index_select(1, self.feature)
        left = (2 * above + 1.5).clamp(0, 1)
        agree = functional.conv1d(left[..., None], self.way, self.lefts, groups=self.trees)
        reached = agree.clamp(0, 1).flatten(1).repeat(1, self.copies)
        return functional.linear(reached, self.leaves, self.start)


def _in_parts(said: Tensor, copies: int) -> Tensor:
    """float64[leaves, scores] as [copies * leaves, scores] whose sums over copies are the nearest
    of 127 * ``copies`` steps to it: each a whole number of up to 127 of one step. The last leaf,
    which none reaches, has 127 in each score, so that all are rounded by that step."""
    step = max(float(said.abs().max()), 1e-12) / (127 * copies)
    whole = (said / step).round()
    whole[-1] = 127 * copies
    parts = [torch.floor((whole + each) / copies) for each in range(copies)]  # Hermite's identity
    return torch.cat(parts) * step


def _ways(tree: Any) -> list[tuple[int, list[tuple[int, bool]]]]:
    """Each leaf, and the comparisons on the way to it: (node, whether it goes left)."""
    found: list[tuple[int, list[tuple[int, bool]]]] = []
    open_: list[tuple[int, list[tuple[int, bool]]]] = [(0, [])]
    while open_:
        node, turns = open_.pop()
        left, right = int(tree.children_left[node]), int(tree.children_right[node])
        if left < 0:
            found.append((node, turns))
        else:
            open_ += [(right, [*turns, (node, False)]), (left, [*turns, (node, True)])]
    return found
