"""Linear, Square, Linear on the digits, from training to encrypted inference."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from secure_quant.errors import CalibrationError, UnsupportedModule
from secure_quant.he.leveled import LeveledModel, plan
from secure_quant.he.leveled.evaluate import LeveledEvaluator
from secure_quant.quantizer.leveled import Square, quantize_leveled
from secure_quant_client.leveled.keys import LeveledKeys


def trained() -> tuple[nn.Sequential, np.ndarray, np.ndarray, np.ndarray]:
    from sklearn.datasets import load_digits

    torch.manual_seed(0)
    x, y = load_digits(return_X_y=True)
    x = (x / 16).astype(np.float32)
    order = np.random.default_rng(0).permutation(len(x))
    train, test = order[:1400], order[1400:]
    model = nn.Sequential(nn.Linear(64, 32), Square(), nn.Linear(32, 10))
    optimizer = torch.optim.Adam(model.parameters(), 0.01)
    inputs, labels = torch.from_numpy(x[train]), torch.from_numpy(y[train])
    for _ in range(150):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(inputs), labels).backward()
        optimizer.step()
    return model.eval(), x[train], x[test], y[test]


def test_digits_from_float_to_encrypted() -> None:
    model, train, test, labels = trained()
    made = LeveledModel.of(*quantize_leveled(model, train))
    with torch.no_grad():
        floats = model(torch.from_numpy(test)).numpy()
    y = made.reference(test)
    accuracy_float = (floats.argmax(1) == labels).mean()
    assert accuracy_float > 0.95
    # int8 weights: within half a unit of each, which hardly moves a logit.
    assert abs((y.argmax(1) == labels).mean() - accuracy_float) <= 0.01
    assert np.abs(y - floats).max() < 0.05 * np.abs(floats).max()
    # Encrypted: the same classes, within the bound.
    keys, promised = LeveledKeys(plan(made)), plan(made)
    session = LeveledEvaluator(made, promised).open(keys.evaluation_keys())
    few = test[:4]
    got = np.stack([keys.decrypt(session.evaluate(each)) for each in keys.encrypt(few)])
    assert np.abs(got - y[:4]).max() <= promised.error_bound < 1e-3
    assert np.array_equal(got.argmax(1), y[:4].argmax(1))


def test_weights_are_within_half_a_unit() -> None:
    layer = nn.Linear(5, 3)
    ((weight, scale, bias),), bound = quantize_leveled(
        nn.Sequential(nn.Flatten(), layer), [[-2.0, 0, 1, 0.5, -1]]
    )
    error = np.abs(weight * scale[:, None] - layer.weight.detach().numpy())
    assert (error <= scale[:, None] / 2 + 1e-9).all()
    assert np.array_equal(bias, layer.bias.detach().numpy().astype(np.float64))
    assert bound == 2.0


@pytest.mark.parametrize(
    "model",
    [
        nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2)),
        nn.Sequential(nn.Linear(4, 4), Square()),
        nn.Sequential(Square(), nn.Linear(4, 4)),
        nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4)),
        nn.Sequential(),
    ],
    ids=["relu", "square last", "square first", "no square", "empty"],
)
def test_other_models_are_refused_by_name(model: nn.Module) -> None:
    with pytest.raises(UnsupportedModule):
        quantize_leveled(model, np.ones((2, 4)))


@pytest.mark.parametrize("data", [np.zeros((2, 4)), np.full((2, 4), np.nan), np.zeros((0, 4))])
def test_calibration_must_say_something(data: np.ndarray) -> None:
    with pytest.raises(CalibrationError):
        quantize_leveled(nn.Sequential(nn.Linear(4, 2)), data)
