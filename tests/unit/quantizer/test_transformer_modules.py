"""nn.MultiheadAttention and nn.TransformerEncoder, as users have them."""

import copy
import warnings

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

from conformance.executors import He, Mpc
from secure_quant import reference
from secure_quant.errors import UnsupportedModule
from secure_quant.quantizer import quantize
from secure_quant.quantizer.capture import capture
from secure_quant.quantizer.explicit import make_explicit


class Attention(nn.Module):
    def __init__(self, **options):
        super().__init__()
        self.inner = nn.MultiheadAttention(16, 2, **{"batch_first": True, **options})

    def forward(self, x):
        return self.inner(x, x, x)[0]


class Nested(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = nn.TransformerEncoder(
            nn.TransformerEncoderLayer(16, 2, 32, batch_first=True), 1
        )

    def forward(self, x):
        padding = torch.zeros(x.shape[:2], dtype=torch.bool)
        return self.inner(x, src_key_padding_mask=padding)


class Causal(nn.Module):
    def __init__(self, kind):
        super().__init__()
        self.inner = encoder(norm_first=True)
        lower = nn.Transformer.generate_square_subsequent_mask(6)
        self.register_buffer("mask", lower if kind is torch.float32 else lower < 0)

    def forward(self, x):
        return self.inner(x, mask=self.mask, is_causal=True)


class Crossed(Attention):
    def forward(self, x):
        return self.inner(x, functional.relu(x), x)[0]


class Narrow(Attention):
    def __init__(self):
        super().__init__(kdim=8, vdim=12)

    def forward(self, x):
        return self.inner(x[:, :4], x[..., :8], x[..., :12])[0]


class BatchSecond(nn.Module):
    def __init__(self, inner):
        super().__init__()
        self.inner, self.attends = inner, isinstance(inner, nn.MultiheadAttention)

    def forward(self, x):
        x = x.transpose(0, 1)
        y = self.inner(x, x, x)[0] if self.attends else self.inner(x)
        return y.transpose(0, 1)


def layer(**options):
    options = {"dim_feedforward": 24, "batch_first": True, "dropout": 0.1} | options
    return nn.TransformerEncoderLayer(16, 2, **options)


def encoder(norm=None, **options):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        return nn.TransformerEncoder(layer(**options), 2, norm=norm)


class TimeFirst(nn.Module):
    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def forward(self, x):
        return self.inner(x.transpose(0, 1)).transpose(0, 1)


class Decoding(nn.Module):
    """Every row but the last sees those before it, and all see the last two."""

    def __init__(self, **options):
        super().__init__()
        one = nn.TransformerDecoderLayer(16, 2, 24, batch_first=True, **options)
        self.inner = nn.TransformerDecoder(one, 2, nn.LayerNorm(16))
        self.register_buffer("mask", nn.Transformer.generate_square_subsequent_mask(6))

    def forward(self, x):
        return self.inner(x, x[:, -2:], tgt_mask=self.mask)


class Weighing(Attention):
    def forward(self, x):
        y, weights = self.inner(x, x, x, need_weights=True)
        return weights @ y


MODELS = {
    "attention": Attention,
    "attention, weights too": Weighing,
    "attention of three": Crossed,
    "layer, time first": lambda: TimeFirst(layer(batch_first=False)),
    "decoder": Decoding,
    "decoder, norm first": lambda: Decoding(norm_first=True, activation="gelu"),
    "attention without bias": lambda: Attention(bias=False),
    "layer": layer,
    "layer, norm first, gelu": lambda: layer(norm_first=True, activation="gelu"),
    "layer, activation module": lambda: layer(activation=nn.SiLU()),
    "encoder": lambda: encoder(nn.LayerNorm(16), norm_first=True),
    "attention between two": Crossed,
    "attention between two, of other widths": Narrow,
    "attention, batch second": lambda: BatchSecond(nn.MultiheadAttention(16, 2)),
    "encoder, batch second": lambda: BatchSecond(encoder(batch_first=False)),
    "causal encoder": lambda: Causal(torch.float32),
    "causal encoder, bool": lambda: Causal(torch.bool),
}


def built(name):
    torch.manual_seed(11)
    model = MODELS[name]().eval()
    for parameter in model.parameters():  # biases and gains that are not 0 and 1
        nn.init.normal_(parameter, float(parameter.ndim == 1), 0.25)
    return model, torch.randn(48, 6, 16)


@pytest.mark.parametrize("name", MODELS)
def test_written_out_modules_compute_the_same(name):
    model, x = built(name)
    with torch.no_grad():
        want = model(x)
        got = make_explicit(copy.deepcopy(model))(x)
        exported = capture(model, x[:2])(x)
    torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(exported, want, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    "name", ["attention", "layer", "encoder", "encoder, batch second", "causal encoder"]
)
def test_quantized_they_stay_close_to_float(name):
    model, x = built(name)
    with torch.no_grad():
        want = model(x).numpy()
    got = reference.run(quantize(model, x, mode="weight-only"), x.numpy())
    assert np.sqrt(((got - want) ** 2).mean() / (want**2).mean()) < 0.06


@pytest.mark.parametrize("executor", [Mpc("balanced"), He("latency")], ids=repr)
def test_encrypted_they_equal_the_reference(executor):
    model, x = built("layer, norm first, gelu")
    graph = quantize(model, x)
    q = reference.quantize_input(graph, x[:2].numpy())
    got = executor.prepare(graph).run(q)[graph.output.name]
    assert np.array_equal(got, reference.run_int(graph, q))


@pytest.mark.parametrize(
    ("model", "words"),
    [
        (lambda: Attention(batch_first=False), ("batch",)),
        (lambda: Attention(add_bias_kv=True), ("inner", "add_bias_kv")),
        (lambda: Attention(add_zero_attn=True), ("inner", "add_zero_attn")),
        (Nested, ("inner", "nested tensors", "use_nested_tensor")),
        (lambda: layer(batch_first=False), ("batch",)),
    ],
)
def test_what_they_cannot_do_is_refused_by_name(model, words):
    with pytest.raises(UnsupportedModule) as caught:
        quantize(model().eval(), torch.randn(8, 6, 16))
    assert all(word in str(caught.value) for word in words), str(caught.value)
