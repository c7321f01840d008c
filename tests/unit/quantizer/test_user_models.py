"""Whatever is handed over as a model or as data works, or is refused by a named error with a way
out."""

import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional
from torch.utils.data import DataLoader, TensorDataset
from unit.quantizer.nets import Net, relative_error

from secure_quant import reference
from secure_quant.errors import (
    CalibrationError,
    ConfigError,
    ModelError,
    NotFinite,
    SecureQuantError,
    UnsupportedModule,
)
from secure_quant.quantizer import AccuracyWarning, Training, quantize

X = torch.randn(64, 8, generator=torch.Generator().manual_seed(0))
Y = torch.arange(64) % 4


def plain():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 4))


def answers(x=X):
    with torch.no_grad():
        return plain()(x).numpy()


@pytest.mark.parametrize(
    "wrap",
    [
        lambda m: m.half(), lambda m: m.bfloat16(), lambda m: m.double(), nn.DataParallel,
        torch.compile, torch.fx.symbolic_trace, lambda m: m.train(), lambda m: nn.Sequential(m),
        lambda m: Net(lambda n, x: (n.m(x),), m=m), lambda m: Net(lambda n, x: {"y": n.m(x)}, m=m),
        lambda m: Net(lambda n, x: (n.m(x), None), m=m),
        lambda m: Net(torch.no_grad()(lambda n, x: n.m(x)), m=m),
        lambda m: Net(lambda n, x: n.m(x.double().float()), m=m),
        lambda m: m.requires_grad_(False),
    ],
)  # fmt: skip
def test_models_in_many_forms_work(wrap):
    graph = quantize(wrap(plain()), X)
    assert relative_error(reference.run(graph, X.numpy()), answers()) < 0.03


def quantized_dynamically():
    return torch.ao.quantization.quantize_dynamic(plain(), {nn.Linear})


def prepared():
    model = nn.Sequential(nn.Linear(8, 4)).eval()
    model.qconfig = torch.ao.quantization.default_qconfig
    return torch.ao.quantization.prepare(model)


class Locked(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner, self.lock = plain(), threading.Lock()

    def forward(self, x):
        return self.inner(x)


@pytest.mark.parametrize(
    ("make", "word"),
    [
        (lambda: nn.Sequential(torch.jit.trace(plain(), X)), "TorchScript"),
        (lambda: plain().state_dict(), "load_state_dict"),
        (lambda: "model.pt", "load_state_dict"),
        (lambda: Path("model.pt"), "load_state_dict"),
        (lambda: nn.Linear, "the class Linear"),
        (lambda: torch.relu, "nn.Module"),
        (lambda: None, "NoneType"),
        (lambda: [plain()], "list"),
        (lambda: torch.export.export(plain(), (X,)).module(), "exported"),
        (quantized_dynamically, "before it was quantized"),
        (prepared, "before it was quantized"),
        (lambda: plain().to("meta"), "meta device"),
        (lambda: nn.LazyLinear(4), "not initialized"),
        (Locked, "cannot be copied"),
        (lambda: nn.ModuleList([plain()]), "forward"),
        (lambda: nn.Bilinear(8, 8, 4), "one tensor"),
        (lambda: nn.Embedding(5, 4), "one-hot"),
    ],
)
@pytest.mark.parametrize("mode", ["static", "qat"])
def test_what_is_no_float_module_is_refused(make, word, mode):
    options = {"mode": mode, "targets": Y} if mode == "qat" else {}
    with pytest.raises((UnsupportedModule, CalibrationError)) as caught:
        quantize(make(), X, **options)
    assert word in str(caught.value)


A = nn.Linear(8, 8)


def hidden_whole(m, x):
    rows = m.a(x).view(-1, 2, 4)
    mask = torch.tensor([[True, True], [False, False]])
    return functional.scaled_dot_product_attention(rows, rows, rows, attn_mask=mask)


@pytest.mark.parametrize(
    ("forward", "word"),
    [
        (lambda m, x: (m.a(x), m.a(x).argmax(1)), "int64"),
        (lambda m, x: (m.a(x), "text"), "str"),
        (lambda *_: None, "NoneType"),
        (lambda m, x: m.a(x).argmax(1), "int64"),
        (lambda m, x: m.a(x) > 0, "bool"),
        (lambda _, x: x.numpy(), "ndarray"),
        (lambda m, x: m.a(x)[:, :0], "[2, 0]"),
        (lambda m, x: m.a(x).sum(), "depends on the others"),
        (lambda m, x: m.a(x).long().float(), "integers"),
        (lambda m, x: m.a(x).sort(1)[0], "at the client"),
        (lambda m, x: m.a(x)[torch.arange(len(x)), m.a(x).argmax(1)], "argmax in"),
        (lambda m, x: m.a(x).prod(1), "exp of the sum"),
        (lambda m, x: torch.fft.rfft(m.a(x)).abs(), "complex"),
        (lambda m, x: torch.einsum("nc,nd->cd", m.a(x), x), "depends on the others"),
        (lambda m, x: m.a(x) if x.sum() > 0 else x, "torch.export"),
        (lambda m, x: torch.log(m.a(x) - 1e6), "NaN or infinity"),
        (lambda m, x: m.nothing(x), "nothing"),
        (lambda m, x: m.a(x.half().float()), "leave it out"),
        (hidden_whole, "let each query see one"),
        (lambda m, x: m.a(x.to(torch.bfloat16).to(torch.float32)), "leave it out"),
    ],
)
def test_forwards_that_have_no_integer_meaning_are_refused(forward, word):
    with pytest.raises(SecureQuantError) as caught:
        quantize(Net(forward, a=A), X)
    assert word in str(caught.value)


@pytest.mark.parametrize(
    ("formula", "hint"),
    [(lambda a, b: torch.relu(a - b) + b, torch.maximum),
     (lambda a, b: a - torch.relu(a - b), torch.minimum)],
)  # fmt: skip
def test_the_ways_out_that_hints_name_work(formula, hint):
    model = Net(lambda m, x: formula(m.a(x), x), a=A)
    want = hint(A(X), X).detach().numpy()
    assert relative_error(reference.run(quantize(model, X), X.numpy()), want) < 0.05


def asserted(m, x):
    torch._assert(x.abs().max() < 100, "large")
    return m.a(x)


def into_windows(m, x):
    h = m.a(x)
    h.unfold(1, 2, 2)[:, :, 0] = 0.0
    return h + x


def into_slices(m, x):
    h = m.a(x)
    h[:, ::2] = 0.0
    return h + x


def drawn_at_the_first_call(m, x):
    if not hasattr(m, "drawn"):
        m.drawn = torch.randn(8)
    return m.a(x) + m.drawn


@pytest.mark.parametrize(
    ("forward", "hint"),
    [(asserted, "take asserts"), (into_windows, "h[:, ::2] = 0"),
     (drawn_at_the_first_call, "draw it in __init__")],
    ids=lambda v: v.__name__ if callable(v) else "",
)  # fmt: skip
def test_a_hint_is_the_way_out_of_what_was_met(forward, hint):
    with pytest.raises(UnsupportedModule) as caught:
        quantize(Net(forward, a=A), X)
    assert hint in caught.value.hint


def test_what_is_written_into_slices_is_what_windows_would_have():
    windows, slices = (Net(f, a=A)(X).detach().numpy() for f in (into_windows, into_slices))
    assert np.array_equal(windows, slices)
    graph = quantize(Net(into_slices, a=A), X)
    assert relative_error(reference.run(graph, X.numpy()), windows) < 0.05


@pytest.mark.parametrize("size", [1e-38, 1e-30, 1e20, 1e30])
def test_weights_of_no_scale_are_refused_with_the_layer_and_a_way_out(size):
    model = plain()
    with torch.no_grad():
        model[2].weight.mul_(size)
    with pytest.raises(UnsupportedModule, match="weights of up to") as caught:
        quantize(model, X)
    assert "rescale" in caught.value.hint
    assert "in 2" in str(caught.value)


@pytest.mark.parametrize(
    "forward",
    [lambda m, x: torch.add(m.a(x), x, alpha=0), lambda m, x: torch.sub(x, m.a(x), alpha=0),
     lambda m, x: torch.add(m.a(x).mean(1, keepdim=True), x, alpha=0.0),
     lambda m, x: torch.cat([x[:, :0], m.a(x), x[:, 8:]], 1),
     lambda m, x: torch.cat([m.a(x), x[:, :0], x], 1)],
)  # fmt: skip
def test_what_counts_for_nothing_is_no_obstacle(forward):
    model = Net(forward, a=A)
    got = reference.run(quantize(model, X), X.numpy())
    assert relative_error(got, model(X).detach().numpy()) < 0.03


@pytest.mark.parametrize("data", [X[:1], X[:3], torch.zeros(64, 8), torch.ones(64, 8)])
def test_calibration_that_shows_little_is_told_of(data):
    with pytest.warns(AccuracyWarning, match="calibration holds"):
        quantize(plain(), data)


def test_one_number_a_sample_is_told_of():
    model = Net(lambda m, x: m.a(x).sum(1), a=A)
    with pytest.warns(UserWarning, match="reshape"):
        graph = quantize(model, X)
    got = reference.run(graph, X.numpy()).reshape(-1)
    assert relative_error(got, A(X).sum(1).detach().numpy()) < 0.05


def test_a_slope_for_each_channel():
    model = nn.Sequential(nn.Linear(8, 8), nn.PReLU(8), nn.PReLU())
    model[1].weight.data = torch.linspace(-1, 1, 8)
    with torch.no_grad():
        want = model(X).numpy()
    assert relative_error(reference.run(quantize(model, X), X.numpy()), want) < 0.05


@pytest.mark.parametrize(
    "data",
    [
        X.numpy(), X.double(), X.half(), (X * 10).long(), (X * 10).numpy().astype(np.int16),
        X.numpy()[::-1], X.numpy().astype(">f4"), X.clone().requires_grad_(), X.split(10),
        iter(X.split(10)), [X[:3].numpy(), X[3:]], DataLoader(TensorDataset(X, Y), 16),
        DataLoader(TensorDataset(X), 16), X.tolist() and X[:1],
        TensorDataset(X, Y), TensorDataset(X),
    ],
)  # fmt: skip
def test_calibration_in_many_forms_works(data):
    quantize(plain(), data)


@pytest.mark.parametrize(
    "data",
    [
        None, 3.0, "x.npy", b"x", {"x": X}, [{"x": X}], (X, Y), [(X, Y)], [],
        X[0], X[:0], X + 1j, X.to_sparse(), X.to("meta"), X * float("nan"), X.double() * 1e300,
        X * 1e30, X * 1e-40, np.array([["a"] * 8]), np.array([[None] * 8]), [[1.0, 2.0], [1.0]],
        torch.randn(4, 9), torch.randn(4, 3, 9), [X, torch.randn(4, 9)],
    ],
    ids=lambda data: type(data).__name__,
)  # fmt: skip
def test_calibration_that_cannot_be_used_is_refused(data):
    with pytest.raises(CalibrationError):
        quantize(plain(), data)


@pytest.mark.parametrize(
    ("options", "kind"),
    [
        ({"targets": Y.float()}, CalibrationError),
        ({"targets": ["a"] * 64}, CalibrationError),
        ({"targets": 3}, CalibrationError),
        ({"targets": Y + 10}, CalibrationError),
        ({"targets": X * float("nan"), "training": Training(1, loss=functional.mse_loss)},
         CalibrationError),
        ({"targets": X[:, :4] * float("nan"), "training": Training(1, loss=functional.mse_loss)},
         NotFinite),
        ({"training": Training(2, learning_rate=1e30)}, ModelError),
        ({"training": Training(1, learning_rate=-1)}, ConfigError),
        ({"training": Training(0)}, ConfigError),
        ({"training": Training(1, batch_size=0)}, ConfigError),
        ({"training": Training(1, loss=lambda *_: None)}, CalibrationError),
        ({"training": Training(1, loss=lambda *_: 1 / 0)}, CalibrationError),
        ({"training": {"epochs": 1}}, ConfigError),
    ],
)  # fmt: skip
def test_training_that_cannot_be_done_is_refused(options, kind):
    with pytest.raises(kind):
        quantize(plain(), X, mode="qat", **{"targets": Y, **options})


@pytest.mark.parametrize(
    "options",
    [{"targets": Y}, {"training": Training(1)}, {"max_error": "0.1"}, {"max_error": [1.0]}],
)
def test_options_that_would_be_ignored_are_refused(options):
    with pytest.raises(ConfigError, match=next(iter(options))):
        quantize(plain(), X, **options)


def test_training_without_a_free_parameter_is_refused():
    with pytest.raises(ConfigError, match="no parameter"):
        quantize(plain().requires_grad_(False), X, mode="qat", targets=Y)


@pytest.mark.parametrize("place", ["0.weight", "0.bias", "2.weight"])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_parameters_that_are_no_numbers_are_refused(place, value):
    model = plain()
    model.get_parameter(place).data.view(-1)[0] = value
    with pytest.raises(NotFinite) as caught:
        quantize(model, X)
    assert place in str(caught.value)


class Reaching(nn.Module):
    """Its forward goes through a lambda, which keeps to the module that made it."""

    def __init__(self):
        super().__init__()
        self.a = nn.Linear(8, 4)
        self.call = lambda x: self.a(x)

    def forward(self, x):
        return self.call(x)


@pytest.mark.parametrize("scheme", ["uniform", "kmeans"])
def test_parameters_that_a_lambda_reaches_stay_the_user_s(scheme):
    torch.manual_seed(0)
    model = Reaching().eval()
    before = {name: (p.clone(), p.requires_grad) for name, p in model.named_parameters()}
    with torch.no_grad():
        want = model(X).numpy()
    graph = quantize(model, X, scheme=scheme)
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, before[name][0])
        assert parameter.requires_grad == before[name][1]
    assert relative_error(reference.run(graph, X.numpy()), want) < 0.1


def test_a_write_into_an_argument_called_input():
    """torch.export loses it: Sequential's argument has the name of a Python function."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.ReLU(inplace=True), nn.Linear(8, 4)).eval()
    graph = quantize(model, X)
    with torch.no_grad():
        want = model(X.clone()).numpy()
    assert relative_error(reference.run(graph, X.numpy()), want) < 0.03


class Remembering(nn.Module):
    def __init__(self):
        super().__init__()
        self.a = nn.Linear(8, 4)

    def forward(self, x):
        self.last = x
        return self.a(x)


def test_torch_s_own_news_is_not_told(recwarn, capfd):
    quantize(Remembering(), X)
    with pytest.raises(UnsupportedModule):
        quantize(Net(lambda m, x: m.a(x) if x.sum() > 0 else x, a=nn.Linear(8, 8)), X)
    assert not recwarn.list
    assert not "".join(capfd.readouterr())


class Packed(nn.Module):
    def __init__(self):
        super().__init__()
        self.a = nn.LSTM(8, 8, batch_first=True)

    def forward(self, x):
        lengths = torch.full((x.shape[0],), 2)
        packed = nn.utils.rnn.pack_padded_sequence(x, lengths, batch_first=True)
        return self.a(packed)[0].data


def test_packed_sequences_are_refused_by_name():
    with pytest.raises(UnsupportedModule):
        quantize(Packed(), torch.randn(12, 3, 8))
