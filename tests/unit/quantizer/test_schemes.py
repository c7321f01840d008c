"""Weight schemes: which values they use, what they cost, what they store."""

import numpy as np
import pytest
import torch

from secure_quant import reference
from secure_quant.errors import ConfigError
from secure_quant.ir import artifact
from secure_quant.quantizer import Clip, KMeans, Log, Uniform, quantize
from secure_quant.quantizer.zoo import accuracy

FOUR_BIT = [Log(), Log(keep_small=True), KMeans(), KMeans(keep_small=True)]
EIGHT_BIT = [
    Uniform(), Uniform(per_channel=False), Uniform(keep_small=True), Clip(), Clip("percentile"),
    KMeans(256),
]  # fmt: skip


def weights(seed=0, out=12, n=300):
    w = np.random.default_rng(seed).laplace(size=(out, n)) * np.linspace(0.2, 3, out)[:, None]
    return torch.tensor(w, dtype=torch.float32)


def stored_bytes(graph):
    """Weights and biases as the file holds them."""
    tensors, _ = artifact.read_tensors(artifact.encode(graph))
    return sum(
        array.nbytes for name, array in tensors.items()
        if name.rpartition(".")[2] in ("weight", "bias", "codes", "codebook")
    )  # fmt: skip


@pytest.mark.parametrize("scheme", FOUR_BIT + EIGHT_BIT, ids=repr)
@pytest.mark.parametrize("grid", [0, 1, 16])
def test_integers_on_the_grid(scheme, grid):
    w = weights()
    q, scale = scheme.quantize(w, grid)
    assert q.abs().max() <= 127
    assert torch.equal(q, q.round())
    steps = scale.double() / scale.double().min()
    ratios = steps / steps.min() * torch.arange(1, 17)[:, None]
    assert any(bool(((r - r.round()).abs() < 1e-3).all()) for r in ratios)
    error = ((q * scale.double()[:, None] - w) ** 2).mean() / (w**2).mean()
    assert error < (0.05 if scheme in FOUR_BIT else 0.005)


@pytest.mark.parametrize("scheme", FOUR_BIT, ids=repr)
def test_four_bit_schemes_use_at_most_16_values(scheme):
    q, _ = scheme.quantize(weights(), 0)
    assert len(torch.unique(q)) <= 16


def test_log_uses_powers_of_two():
    q, _ = Log().quantize(weights(), 0)
    assert set(q.abs().unique().tolist()) <= {0, 1, 2, 4, 8, 16, 32, 64}


@pytest.mark.parametrize(
    "scheme", [Uniform(keep_small=True), Clip(keep_small=True), Log(True), KMeans(16, True)]
)
def test_kept_small_weights_never_vanish(scheme):
    w = weights()
    w[:, 5] = 1e-6
    w[:, 6] = -1e-6
    w[:, 7] = 0
    q, _ = scheme.quantize(w, 0)
    assert bool((q[:, 5] > 0).all())
    assert bool((q[:, 6] < 0).all())


def test_uniform_keeps_zero_at_zero():
    w = weights()
    w[3] = 0
    q, scale = Uniform().quantize(w, 0)
    assert not q[3].any()
    assert scale[3] > 0


def squared_error(scheme, w, grid):
    q, scale = scheme.quantize(w, grid)
    return float(((q * scale.double()[:, None] - w) ** 2).sum())


@pytest.mark.parametrize(
    ("given", "name"),
    [({"method": "mean"}, "method"), ({"percentile": 101}, "percentile"),
     ({"percentile": 0}, "percentile"), ({"percentile": float("nan")}, "percentile")],
)  # fmt: skip
def test_clipping_as_nobody_defined_it_is_refused(given, name):
    with pytest.raises(ConfigError, match=name):
        Clip(**given)


@pytest.mark.parametrize("grid", [1.5, -1, 256])
def test_a_grid_is_a_whole_number(grid):
    with pytest.raises(ConfigError, match="grid"):
        quantize(torch.nn.Linear(4, 2), torch.randn(8, 4), grid=grid)


def test_clipping_by_error_beats_the_largest_weight():
    """n weights spread evenly over -1..1 and one at 2. Rounding to steps of s errs by s²/12 each
    in the mean, so a scale for 2 costs n (2/127)²/12; one for 1 costs a quarter, and 1 for the
    outlier that it cuts. The best threshold is at most as bad."""
    n = 200_000
    w = torch.cat([torch.linspace(-1, 1, n), torch.tensor([2.0])]).double()[None]
    whole, cut = n * (2 / 127) ** 2 / 12, n * (1 / 127) ** 2 / 12 + 1
    assert squared_error(Uniform(), w, 1) == pytest.approx(whole, rel=0.02)
    assert squared_error(Clip(), w, 1) <= 1.02 * cut < 0.6 * whole


@pytest.mark.parametrize("seed", range(5))
def test_clipping_by_error_is_never_worse(seed):
    """The largest weight is among the thresholds that are tried."""
    w = torch.tensor(np.random.default_rng(seed).standard_t(3, size=(1, 2000)))
    assert squared_error(Clip(), w, 1) <= squared_error(Uniform(), w, 1) * (1 + 1e-6)


def test_percentile_clipping_saturates_that_share():
    w = torch.tensor(np.random.default_rng(0).normal(size=(4, 20000)))
    q, _ = Clip("percentile", percentile=99.0).quantize(w, 255)
    assert 0.008 < float((q.abs() == 127).double().mean()) < 0.015


def test_kmeans_beats_log_with_as_many_values():
    w = weights()
    errors = [
        float(((q * scale.double()[:, None] - w) ** 2).mean())
        for q, scale in (scheme.quantize(w, 0) for scheme in (KMeans(), Log()))
    ]
    assert errors[0] < errors[1]


@pytest.fixture(scope="module")
def float_accuracy(images):
    model, data = images
    with torch.no_grad():
        return accuracy(model(torch.from_numpy(data.test_x)), data.test_y)


@pytest.mark.parametrize("scheme", FOUR_BIT + EIGHT_BIT, ids=repr)
def test_accuracy_and_stored_bytes(scheme, images, float_accuracy):
    model, data = images
    graph = quantize(model, data.train_x[:64], scheme=scheme)
    got = accuracy(reference.run(graph, data.test_x), data.test_y)
    share = stored_bytes(graph) / (4 * sum(p.numel() for p in model.parameters()))
    assert got >= float_accuracy - (0.04 if scheme in FOUR_BIT else 0.0051)
    assert share <= (0.14 if scheme in FOUR_BIT else 0.26)


def test_codes_survive_the_file(images):
    model, data = images
    graph = quantize(model, data.train_x[:64], scheme="kmeans")
    back = artifact.decode(artifact.encode(graph))
    assert back.hash == graph.hash
    assert all(np.array_equal(back.parameters[k], graph.parameters[k]) for k in graph.parameters)


@pytest.mark.parametrize("count", [1, 257])
def test_centroid_counts(count):
    with pytest.raises(ConfigError):
        KMeans(count).quantize(weights(), 0)
