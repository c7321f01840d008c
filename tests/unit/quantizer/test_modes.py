"""Weight-only and quantization-aware training."""

import numpy as np
import pytest
import torch
from torch import nn

from secure_quant import reference
from secure_quant.errors import AccuracyLoss, CalibrationError, ConfigError
from secure_quant.ir import ops
from secure_quant.quantizer import Training, quantize
from secure_quant.quantizer.zoo import accuracy


def floats(model, x):
    with torch.no_grad():
        return model(torch.as_tensor(x)).numpy()


def relative_error(got, want):
    return float(np.sqrt(((got - want) ** 2).mean() / (want**2).mean()))


def test_weight_only_gives_activations_12_bits(rows):
    model, data = rows
    want = floats(model, data.test_x)
    graphs = {m: quantize(model, data.train_x[:128], mode=m) for m in ("static", "weight-only")}
    errors = {m: relative_error(reference.run(g, data.test_x), want) for m, g in graphs.items()}
    assert errors["weight-only"] < errors["static"] / 1.5
    tables = [n.table for n in graphs["weight-only"].nodes if isinstance(n, ops.Requantize)]
    assert all(max(t) - min(t) <= 4095 for t in tables)  # pieces of a table hold differences
    assert max(max(t) - min(t) for t in tables) > 4000


def test_weight_only_quantizes_convolutions_too(images):
    model, data = images
    graph = quantize(model, data.train_x[:64], mode="weight-only", scheme="log")
    weights = [graph.weight(n) for n in graph.nodes if isinstance(n, ops.Conv2d | ops.Linear)]
    assert len(weights) == 5
    assert all(set(np.abs(w).flat) <= {0, 1, 2, 4, 8, 16, 32, 64} for w in weights)


def test_training_recovers_what_coarse_scales_cost(flat):
    """One scale for rows whose sizes differ up to 10^5-fold ruins the small ones; training with
    the rounding in place brings accuracy back."""
    model, data = flat
    torch.manual_seed(0)
    scaled = nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 10))
    scaled.load_state_dict(model.state_dict())
    stretch = torch.logspace(0, 5, 128)
    with torch.no_grad():
        scaled[0].weight *= stretch[:, None]
        scaled[0].bias *= stretch
        scaled[2].weight /= stretch
    x, y = data.train_x, data.train_y
    with pytest.raises(AccuracyLoss, match="it jumps at"):
        quantize(scaled, x[:256], grid=1)
    plain = quantize(scaled, x[:256], grid=1, max_error=9.0)
    trained = quantize(
        scaled, x, grid=1, mode="qat", targets=y, training=Training(epochs=4, learning_rate=2e-3)
    )
    before, after = (accuracy(reference.run(g, data.test_x), data.test_y) for g in (plain, trained))
    assert before < 0.8
    assert after > before + 0.1


def test_training_folds_batch_norm():
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 4, 3, bias=False), nn.BatchNorm2d(4), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(),
        nn.Linear(4 * 9, 2),
    )  # fmt: skip
    rng = np.random.default_rng(0)
    x = rng.normal(size=(96, 3, 8, 8)).astype(np.float32)
    y = (x[:, 0, 2:5, 2:5].mean((1, 2)) > 0).astype(np.int64)
    seen = []
    training = Training(epochs=8, batch_size=32, learning_rate=1e-2)
    graph = quantize(
        model, x, mode="qat", targets=y, training=training, progress=lambda *step: seen.append(step)
    )
    static = quantize(model, x)
    assert [type(n) for n in graph.nodes] == [type(n) for n in static.nodes]
    assert all(n.bias for n in graph.nodes if isinstance(n, ops.Conv2d))
    assert [s for s in seen if s[0] == "train"] == [("train", i, 24) for i in range(24)]
    before, after = (accuracy(reference.run(g, x), y) for g in (static, graph))
    assert after > max(before, 0.75)


def test_training_needs_targets(flat):
    model, data = flat
    with pytest.raises(ConfigError):
        quantize(model, data.train_x, mode="qat")
    with pytest.raises(ConfigError):
        quantize(model, data.train_x, mode="qat", targets=data.train_y, scheme="log")
    with pytest.raises(CalibrationError):
        quantize(model, data.train_x, mode="qat", targets=data.train_y[:3])


def test_there_must_be_weights_to_train():
    x = torch.randn(16, 8)
    with pytest.raises(ConfigError, match="without weights"):
        quantize(nn.ReLU(), x, mode="qat", targets=torch.zeros(16, dtype=torch.long))
