"""Models, data and options as strangers bring them: right, or refused by name with a way out."""

import itertools

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional
from unit.quantizer.nets import Net, relative_error

from secure_quant import reference
from secure_quant.errors import (
    AccuracyLoss,
    CalibrationError,
    ConfigError,
    SecureQuantError,
    UnsupportedModule,
    ValueOutOfRange,
)
from secure_quant.quantizer import AccuracyWarning, quantize

EIGHT = torch.ones(8)


def of_layer(function):
    return Net(lambda m, x: function(m.a(x)), a=nn.Linear(8, 8))


FUNCTIONS = {
    "atan2_of_a_constant": lambda h: torch.atan2(h, EIGHT),
    "copysign": lambda h: torch.copysign(h, -EIGHT),
    "deg2rad": lambda h: torch.deg2rad(90 * h),
    "diff": torch.diff,
    "entr": lambda h: torch.special.entr(h.sigmoid()),
    "float_power": lambda h: torch.float_power(h, 2).float(),
    "fmax": lambda h: torch.fmax(h, torch.zeros(8)),
    "hypot": lambda h: torch.hypot(h, h.flip(-1)),
    "lgamma": lambda h: torch.lgamma(h.abs() + 1),
    "logaddexp": lambda h: torch.logaddexp(h, h.flip(-1)),
    "round_to_decimals": lambda h: torch.round(h, decimals=1),
    "softmax_in_float64": lambda h: functional.softmax(h, -1, dtype=torch.float64).float(),
    "tensordot": lambda h: torch.tensordot(h, torch.eye(8), dims=1),
}


class Functions(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(8, 8), nn.Linear(8, 4)

    def forward(self, x):
        return {name: self.again(function(self.a(x))) for name, function in FUNCTIONS.items()}

    def again(self, made):
        return self.b(functional.pad(made, (0, 8))[:, :8])


def test_functions():
    torch.manual_seed(0)
    model, x = Functions().eval(), torch.randn(64, 8)
    graph = quantize(model, x)
    made = reference.run(graph, {"x": x.numpy()})
    with torch.no_grad():
        for name, want in model(x).items():
            assert relative_error(made[name], want.numpy()) < 0.05, name


def test_squeeze_of_all_axes():
    """With one sample it takes the batch as well."""
    torch.manual_seed(0)
    model, x = of_layer(lambda h: h[:, :1].squeeze()), torch.randn(64, 8)
    with pytest.warns(UserWarning, match="reshape"):
        graph = quantize(model, x)
    with torch.no_grad():
        assert relative_error(reference.run(graph, x.numpy())[:, 0], model(x).numpy()) < 0.03


class Lengths(nn.Module):
    def __init__(self, masked):
        super().__init__()
        self.a, self.masked = nn.Linear(8, 8), masked

    def forward(self, x, lengths):
        h = self.a(x)
        shown = torch.arange(x.shape[1])[None] < lengths[:, None]
        return self.masked(h @ h.transpose(1, 2) / 3, shown[:, None]).softmax(-1) @ h


MASKED = {
    "masked_fill": lambda scores, shown: scores.masked_fill(~shown, -torch.inf),
    "a sum": lambda scores, shown: scores + (1 - shown.float()) * -1e9,
}


@pytest.mark.parametrize("name", MASKED)
def test_attention_masked_by_lengths(name):
    torch.manual_seed(0)
    model = Lengths(MASKED[name]).eval()
    x = {"x": torch.randn(64, 5, 8), "lengths": torch.randint(1, 6, (64,))}
    with torch.no_grad():
        want = model(**x).numpy()
    arrays = {key: value.numpy().copy() for key, value in x.items()}
    graph = quantize(model, x)
    got = reference.run(graph, arrays)["output"]
    assert relative_error(got, want) < 0.05
    arrays["x"][:, -1] = 50.0  # hidden but for the longest
    short = arrays["lengths"] < 5
    again = reference.run(graph, arrays)["output"]
    assert np.array_equal(again[short][:, :4], got[short][:, :4])


class Written(nn.Module):
    def __init__(self, number):
        super().__init__()
        self.a, self.number = nn.Linear(8, 4), number

    def forward(self, x, mask):
        x = x.clone()
        x[mask == 0] = self.number
        return self.a(x.max(1).values)


def test_a_number_where_an_input_s_mask_is_0():
    torch.manual_seed(0)
    mask = torch.randint(0, 2, (64, 5))
    mask[:, 0] = 1
    x = {"x": torch.randn(64, 5, 8), "mask": mask}
    model = Written(-6.0)
    with torch.no_grad():
        want = model(**x).numpy()
    arrays = {key: value.numpy() for key, value in x.items()}
    assert relative_error(reference.run(quantize(model, x), arrays)["output"], want) < 0.05
    with pytest.raises(AccuracyLoss, match="a little beyond"):
        quantize(Written(-1e9), x)


REFUSED = {
    "samples as steps": (
        lambda: Net(lambda m, x: m.a(x)[0][:, -1], a=nn.RNN(8, 4)), (6, 8), "batch_first=True"),
    "vmap": (lambda: of_layer(torch.vmap(lambda row: row / row.norm())), (8,), "without vmap"),
    "the batch in a shape": (
        lambda: of_layer(lambda h: h.mean().expand(len(h), 1)), (8,), "batch axis first"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_a_way_out_is_named(name):
    make, shape, way_out = REFUSED[name]
    with pytest.raises(UnsupportedModule, match=way_out):
        quantize(make(), torch.randn(16, *shape))


class Chooses(nn.Module):
    """Whole numbers divided, in constant tables, and asked for their shape."""

    def __init__(self):
        super().__init__()
        self.table, self.a = nn.Parameter(torch.randn(9, 8)), nn.Linear(8, 8)
        self.kinds = nn.Embedding(2, 8)

    def forward(self, x, n, ids):
        h = self.a(x)
        kind = self.kinds(torch.zeros_like(ids))
        return {
            "quotient": h + (n // 3).float()[:, None], "rest": h + (n % 3).float()[:, None],
            "square": h + (n**2).float()[:, None] / 9, "row": h * self.table[ids] + kind,
            "any": ((h > 1).any(-1, keepdim=True) | (h < -1).all(-1, keepdim=True)).float(),
        }  # fmt: skip


def test_whole_numbers_and_tables():
    torch.manual_seed(0)
    model = Chooses()
    x = {"x": torch.randn(64, 8), "n": torch.randint(-9, 20, (64,)),
         "ids": torch.randint(0, 9, (64,))}  # fmt: skip
    arrays = {key: value.numpy() for key, value in x.items()}
    graph = quantize(model, x, embedding="client")
    made = reference.run(graph, arrays)
    with torch.no_grad():
        want = {name: value.numpy() for name, value in model(**x).items()}
    assert all(relative_error(made[name], want[name]) < 0.05 for name in want.keys() - {"any"})
    assert np.mean(np.round(made["any"]) == want["any"]) > 0.95
    again = arrays | {"n": arrays["n"] + 1}
    rest = reference.run(graph, again)["rest"] - made["rest"]
    assert np.abs(rest - (again["n"] % 3 - arrays["n"] % 3)[:, None]).max() < 0.1


def test_the_largest_whole_number_of_the_data_is_taken():
    """Its scale has seven digits, and 255 of it may be less."""
    torch.manual_seed(0)
    for largest in (98307, 99991, 65537):
        x = {"x": np.zeros((8, 8), np.float32), "n": np.linspace(0, largest, 8).astype(np.int64)}
        graph = quantize(Wide(), x)
        assert reference.run(graph, x)["output"].shape == (8, 4)
    with pytest.raises(ValueOutOfRange, match="65537"):
        reference.run(graph, x | {"n": x["n"] + 300})


class Wide(nn.Module):
    def __init__(self):
        super().__init__()
        self.a = nn.Linear(8, 4)

    def forward(self, x, n):
        return self.a(x) + n.float()[:, None] / 50000


class Packed(nn.Module):
    def __init__(self):
        super().__init__()
        self.a = nn.LSTM(8, 4, batch_first=True)

    def forward(self, x, lengths):
        return self.a(nn.utils.rnn.pack_padded_sequence(
            x, lengths.cpu(), batch_first=True, enforce_sorted=False))[1][0][-1]  # fmt: skip


def test_a_packed_sequence_is_named():
    data = {"x": torch.randn(16, 5, 8), "lengths": torch.randint(1, 6, (16,))}
    with pytest.raises(UnsupportedModule, match="packed sequence"):
        quantize(Packed(), data)


def test_a_scripted_product_with_a_number():
    class Halved(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a = nn.Linear(8, 4)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.a(x + torch.relu(x) * 0.5 + 1)

    torch.manual_seed(0)
    model, x = Halved(), torch.randn(64, 8)
    graph = quantize(torch.jit.script(model), x)
    with torch.no_grad():
        assert relative_error(reference.run(graph, x.numpy()), model(x).numpy()) < 0.03


OPTIONS = {
    "progress": (3, ConfigError), "scheme": (8, ConfigError),
    "batch_size": (True, CalibrationError),
}  # fmt: skip


@pytest.mark.parametrize("name", OPTIONS)
def test_an_option_of_another_kind(name):
    value, kind = OPTIONS[name]
    with pytest.raises(kind, match=name.replace("_", " ")):
        quantize(nn.Linear(8, 4), torch.randn(16, 8), **{name: value})


def test_what_a_callback_raises_comes_through():
    class Stopped(Exception):
        pass

    def stop(stage, done, of):
        raise Stopped

    with pytest.raises(Stopped):
        quantize(nn.Linear(8, 4), torch.randn(16, 8), progress=stop)
    with pytest.raises(ConfigError, match="stage, done, of"):
        quantize(nn.Linear(8, 4), torch.randn(16, 8), progress=lambda: None)


def test_batches_without_end(monkeypatch):
    from secure_quant.quantizer import calibration

    monkeypatch.setattr(calibration, "_MOST_BATCHES", 64)
    for batches in (itertools.repeat(torch.ones(2, 8)), itertools.repeat({"input": EIGHT[None]})):
        with pytest.raises(CalibrationError, match="islice"):
            quantize(nn.Linear(8, 4), batches)


def test_masked_values_are_no_data():
    """numpy gives what lies under the mask."""
    x = np.ma.masked_greater(np.random.default_rng(0).normal(size=(32, 8)), 1)
    with pytest.raises(CalibrationError, match="masked"):
        quantize(nn.Linear(8, 4), x)
    with pytest.raises(CalibrationError, match="masked"):
        quantize(nn.Linear(8, 4), {"input": x})
    graph = quantize(nn.Linear(8, 4), x.filled(0))
    with pytest.raises(ValueOutOfRange, match="filled"):
        reference.run(graph, x)


def test_one_sample_far_larger_than_the_others_is_told():
    torch.manual_seed(0)
    x = torch.randn(64, 8)
    x[3, 2] = 1e4
    with pytest.warns(AccuracyWarning, match="half of the samples"):
        quantize(nn.Linear(8, 4), x)


def test_arrays_that_no_argument_takes_alone():
    whole = {"p": np.ones((4, 8)), "q": np.ones((4, 5))}
    for data in ({"x": whole}, list(whole.values())):
        with pytest.raises(CalibrationError, match="argument for each"):
            quantize(Net(lambda m, x: m.a(x["p"]), a=nn.Linear(8, 4)), data)


@pytest.mark.parametrize("data", ["rows", "labels first"])
def test_hints_for_lists_of_samples(data):
    batches = {"rows": list(np.ones((4, 8))), "labels first": [np.arange(4), np.ones((4, 8))]}
    with pytest.raises(SecureQuantError, match=r"np\.stack"):
        quantize(nn.Linear(8, 4), batches[data])
