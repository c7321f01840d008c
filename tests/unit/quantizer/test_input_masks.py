"""Masks of attention that are inputs: what is hidden contributes nothing, exactly."""

import numpy as np
import onnxruntime
import pytest
import torch
from torch import nn
from torch.nn import functional
from unit.quantizer.nets import relative_error

from conformance.executors import He, Mpc
from secure_quant import reference
from secure_quant.errors import UnsupportedModule, ValueOutOfRange
from secure_quant.interop.onnx_export import feeds, packed, to_onnx
from secure_quant.quantizer import quantize

LENGTH, WIDTH, HEADS = 6, 16, 2
GENERATOR = torch.Generator().manual_seed(0)
IDS = torch.randint(0, 30, (64, LENGTH), generator=GENERATOR)
LENGTHS = torch.randint(2, LENGTH + 1, (64, 1), generator=GENERATOR)
MASK = (torch.arange(LENGTH)[None] < LENGTHS).long()


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.qkv, self.out = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)
        self.norm = nn.LayerNorm(WIDTH)

    def forward(self, x, mask):
        batch, length, _ = x.shape
        qkv = self.qkv(x).view(batch, length, 3, HEADS, WIDTH // HEADS).permute(2, 0, 3, 1, 4)
        y = functional.scaled_dot_product_attention(*qkv.unbind(0), attn_mask=mask)
        return self.norm(x + self.out(y.transpose(1, 2).reshape(batch, length, WIDTH)))


class Encoder(nn.Module):
    """as_mask: the boolean mask [batch, 1, 1 or length, length] of attention from the input."""

    def __init__(self, as_mask):
        super().__init__()
        torch.manual_seed(4)
        self.words, self.places = nn.Embedding(30, WIDTH), nn.Embedding(LENGTH, WIDTH)
        self.blocks, self.head = nn.ModuleList([Block(), Block()]), nn.Linear(WIDTH, 3)
        with torch.no_grad():
            self.blocks[0].qkv.weight *= 3  # scores that differ by much
        self.as_mask = as_mask

    def forward(self, ids, mask):
        h = self.words(ids) + self.places.weight
        mask = self.as_mask(mask)
        for block in self.blocks:
            h = block(h, mask)
        return {"hidden": h, "logits": self.head(h[:, 0])}


def by_index(mask):
    """As Hugging Face writes it."""
    batch, length = mask.shape
    kept = mask.to(torch.bool)
    rows = torch.arange(batch)[:, None, None, None]
    columns = torch.arange(length)[None, None, None, :]
    queries = torch.arange(length)[None, None, :, None] >= 0
    return (queries & kept[rows, columns]).expand(batch, -1, length, length)


def causal(mask):
    lower = torch.ones(LENGTH, LENGTH, dtype=torch.bool).tril()
    return mask.bool()[:, None, None, :] & lower


FORMS = {
    "by index": (by_index, MASK),
    "unsqueezed": (lambda mask: mask[:, None, None, :] != 0, MASK),
    "bool": (lambda mask: mask[:, None, None], MASK.bool()),
    "of padding": (lambda pad: ~pad[:, None, None], MASK == 0),
    "compared": (lambda pad: pad.eq(0)[:, None, None], 1 - MASK),
    "causal too": (causal, MASK),
}


LOWEST = torch.finfo(torch.float32).min
LATER = torch.ones(LENGTH, LENGTH).triu(1).bool()
AWAY = (torch.arange(LENGTH)[:, None] - torch.arange(LENGTH)).abs()
ALIBI = -AWAY * torch.tensor([0.5, 0.25])[:, None, None]


def seen(mask):
    return mask[:, None, None].bool()


SUMS = {
    "where 0, min": lambda s, m: s + torch.where(seen(m), 0.0, LOWEST),
    "(1 - mask) * -1e4": lambda s, m: s + (1.0 - m[:, None, None].float()) * -1e4,
    "(mask - 1) * 1e9": lambda s, m: s + (m[:, None, None].float() - 1) * 1e9,
    "filled, -inf": lambda s, m: s.masked_fill(m[:, None, None] == 0, -torch.inf),
    "chosen": lambda s, m: torch.where(seen(m), s, -1e9),
    "inverted, filled": lambda s, m: (
        s + (inverse := 1.0 - m[:, None, None].float()).masked_fill(inverse.bool(), LOWEST)
    ),
    "constants besides": lambda s, m: (
        s
        + (ALIBI + torch.where(seen(m), 0.0, -1e9))
        + torch.zeros(LATER.shape).masked_fill(LATER, -1e9)
    ),
    "filled where a sum is not 0": lambda s, m: s.masked_fill(
        torch.where(seen(m), 0.0, LOWEST).bool(), LOWEST
    ),
    "two of them": lambda s, m: (s + torch.where(seen(m), 0.0, LOWEST)).masked_fill(
        ~seen(m) & LATER, -1e9
    ),
}  # fmt: skip


class Eager(nn.Module):
    """Attention written out, whose scores ``masked`` hides."""

    def __init__(self, masked):
        super().__init__()
        torch.manual_seed(0)
        self.qkv, self.masked = nn.Linear(WIDTH, 3 * WIDTH), masked

    def forward(self, x, mask):
        parts = self.qkv(x).view(-1, LENGTH, 3, HEADS, WIDTH // HEADS).permute(2, 0, 3, 1, 4)
        q, k, v = parts.unbind(0)
        weights = self.masked(q @ k.transpose(-1, -2) / 2, mask).softmax(-1)
        return (weights @ v).transpose(1, 2).reshape(-1, LENGTH, WIDTH)


class Padded(nn.Module):
    """torch's own encoder, or its transformer of two inputs, with padding."""

    def __init__(self, kind):
        super().__init__()
        torch.manual_seed(0)
        sizes = {"d_model": WIDTH, "nhead": HEADS, "dim_feedforward": 32, "batch_first": True}
        if kind == "two inputs":
            self.inner = nn.Transformer(num_encoder_layers=1, num_decoder_layers=1, **sizes)
            self.inner.encoder.use_nested_tensor = False
        else:
            layer = nn.TransformerEncoderLayer(**sizes)
            self.inner = nn.TransformerEncoder(layer, 1, enable_nested_tensor=False)
        self.causal = nn.Transformer.generate_square_subsequent_mask(LENGTH)
        self.kind = kind

    def forward(self, x, mask):
        if self.kind == "two inputs":
            return self.inner(
                x, x.flip(1), tgt_mask=self.causal, src_key_padding_mask=mask,
                memory_key_padding_mask=mask, tgt_is_causal=True,
            )  # fmt: skip
        return self.inner(x, mask=self.causal, src_key_padding_mask=mask, is_causal=True)


X = torch.randn(64, LENGTH, WIDTH, generator=GENERATOR)
WAYS = {name: (lambda way=way: Eager(way), MASK) for name, way in SUMS.items()} | {
    kind: (lambda kind=kind: Padded(kind), MASK == 0) for kind in ("an encoder", "two inputs")
}


SOME = ("where 0, min", "filled, -inf", "constants besides", "two of them", "an encoder")
"""Of every kind one; the others have a mark."""


@pytest.mark.parametrize(
    "name", [n if n in SOME else pytest.param(n, marks=pytest.mark.heavy) for n in WAYS]
)
def test_sums_and_fills_and_modules_of_torch(name):
    """Close to float on real padding, and what is hidden leaves no trace in what is not."""
    make, mask = WAYS[name]
    model = make().eval()
    graph = quantize(model, {"x": X, "mask": mask})
    with torch.no_grad():
        want = model(X, mask).numpy()
    whole = slice(None) if name == "two inputs" else MASK.bool().numpy()
    assert (
        relative_error(reference.run(graph, {"x": X, "mask": mask})["output"][whole], want[whole])
        < 0.05
    )
    other = torch.where(MASK.bool()[..., None], X, 50 * X.flip(0))
    shown = MASK.bool().numpy()
    q, p = (reference.quantize_input(graph, {"x": x, "mask": mask}) for x in (X, other))
    a, b = (reference.named(graph, reference.run_int(graph, each))["output"] for each in (q, p))
    if name != "two inputs":  # its decoder reads what its encoder does not
        assert np.array_equal(a[shown], b[shown])
    any_bytes = np.random.default_rng(1).integers(-128, 128, q[:4].shape).astype(np.int8)
    session = onnxruntime.InferenceSession(to_onnx(graph).SerializeToString())
    names = [output.name for output in session.get_outputs()]
    made = dict(zip(names, session.run(None, feeds(graph, any_bytes)), strict=True))
    assert np.array_equal(packed(graph, made), reference.run_int(graph, any_bytes))


class Translator(nn.Module):
    """torch's transformer with padding on both sides."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        sizes = {"d_model": WIDTH, "nhead": HEADS, "dim_feedforward": 32, "batch_first": True}
        self.inner = nn.Transformer(num_encoder_layers=1, num_decoder_layers=1, **sizes)
        self.inner.encoder.use_nested_tensor = False
        self.causal = torch.ones(LENGTH, LENGTH).triu(1).bool()

    def forward(self, source, target, source_hidden, target_hidden):
        return self.inner(
            source, target, tgt_mask=self.causal, src_key_padding_mask=source_hidden,
            tgt_key_padding_mask=target_hidden, memory_key_padding_mask=source_hidden,
        )  # fmt: skip


@pytest.mark.heavy
def test_padding_of_source_and_target():
    """Close to float, and neither padding leaves a trace in what is shown of the target."""
    target, shown = X.flip(0), MASK.flip(0).bool()
    given = {
        "source": X, "target": target, "source_hidden": MASK == 0, "target_hidden": ~shown,
    }  # fmt: skip
    model = Translator().eval()
    graph = quantize(model, given)
    with torch.no_grad():
        want = model(**given).numpy()
    got, places = reference.run(graph, given)["output"], shown.numpy()
    assert relative_error(got[places], want[places]) < 0.05
    other = given | {
        "source": torch.where(MASK.bool()[..., None], X, 50 * X.flip(1)),
        "target": torch.where(shown[..., None], target, -50 * target.flip(1)),
    }
    assert np.array_equal(reference.run(graph, other)["output"][places], got[places])
    q = np.random.default_rng(1).integers(-128, 128, (4, size_of(graph))).astype(np.int8)
    session = onnxruntime.InferenceSession(to_onnx(graph).SerializeToString())
    names = [output.name for output in session.get_outputs()]
    made = dict(zip(names, session.run(None, feeds(graph, q)), strict=True))
    assert np.array_equal(packed(graph, made), reference.run_int(graph, q))


def size_of(graph):
    return graph.values[graph.input.name].shape[0]


@pytest.mark.parametrize("masked", [False, pytest.param(True, marks=pytest.mark.heavy)])
def test_what_is_added_to_scores_may_depend_on_the_input(masked):
    """Relative positions of a Conformer, by themselves and where padding hides."""

    class Relative(Eager):
        def forward(self, x, mask=None):
            parts = self.qkv(x).view(-1, LENGTH, 3, HEADS, WIDTH // HEADS).permute(2, 0, 3, 1, 4)
            q, k, v = parts.unbind(0)
            added = (q + 1) @ k.flip(-1).transpose(-1, -2) / 4
            if mask is not None:
                added = added.masked_fill(mask[:, None, None] == 0, LOWEST)
            return (
                functional.scaled_dot_product_attention(q, k, v, added).transpose(1, 2).flatten(2)
            )

    model = Relative(None).eval()
    given = {"x": X, "mask": MASK} if masked else {"x": X}
    graph = quantize(model, given)
    with torch.no_grad():
        want = model(**given).numpy()
    assert relative_error(reference.run(graph, given)["output"], want) < 0.05


def test_rows_that_a_mask_zeroes_and_a_mean_of_the_others():
    class Mean(Eager):
        def forward(self, x, mask):
            h = super().forward(x, mask).masked_fill(mask[..., None] == 0, 0.0)
            return (h * mask[..., None].float()).sum(1) / LENGTH

    model = Mean(SUMS["where 0, min"]).eval()
    graph = quantize(model, {"x": X, "mask": MASK})
    with torch.no_grad():
        want = model(X, MASK).numpy()
    assert [port.dtype for port in graph.input_ports] == ["float32", "bool"]
    assert relative_error(reference.run(graph, {"x": X, "mask": MASK})["output"], want) < 0.05


def encoder(name="by index"):
    return Encoder(FORMS[name][0]).eval(), {"ids": IDS, "mask": FORMS[name][1]}


def answers(model, given):
    with torch.no_grad():
        return {name: value.numpy() for name, value in model(**given).items()}


@pytest.mark.parametrize("name", FORMS)
def test_forms_of_a_mask(name):
    model, given = encoder(name)
    graph = quantize(model, given, embedding="client")
    assert next(p for p in graph.input_ports if p.name == "mask").dtype == "bool"
    made, want = reference.run(graph, given), answers(model, given)
    shown = MASK.bool().numpy()
    for output in ("hidden", "logits"):
        kept = (made[output], want[output])
        if output == "hidden":
            kept = tuple(value[shown] for value in kept)
        assert relative_error(*kept) < 0.12, output


def test_what_is_hidden_contributes_nothing_exactly():
    model, given = encoder()
    graph = quantize(model, given, embedding="client")
    other = torch.where(MASK.bool(), IDS, torch.flip(IDS, (0,)) * 7 % 30)
    assert bool((other != IDS).any())
    shown = MASK.bool().numpy()
    integers = [
        reference.named(
            graph,
            reference.run_int(graph, reference.quantize_input(graph, {"ids": ids, "mask": MASK})),
        )
        for ids in (IDS, other)
    ]
    assert np.array_equal(integers[0]["logits"], integers[1]["logits"])
    assert np.array_equal(integers[0]["hidden"][shown], integers[1]["hidden"][shown])
    assert not np.array_equal(integers[0]["hidden"], integers[1]["hidden"])


def test_every_engine_gives_the_same_integers():
    model, given = encoder()
    graph = quantize(model, given, embedding="client")
    q = reference.quantize_input(graph, {name: value[:2] for name, value in given.items()})
    any_bytes = np.random.default_rng(1).integers(-128, 128, q.shape).astype(np.int8)
    session = onnxruntime.InferenceSession(to_onnx(graph).SerializeToString())
    names = [output.name for output in session.get_outputs()]
    executors = [Mpc("balanced").prepare(graph), He("latency").prepare(graph)]
    for batch in (q, any_bytes):  # a client may send whatever it likes for a mask
        want = reference.run_int(graph, batch)
        made = dict(zip(names, session.run(None, feeds(graph, batch)), strict=True))
        assert np.array_equal(packed(graph, made), want)
        for executor in executors:
            assert np.array_equal(executor.run(batch)[graph.output.name], want)


def test_what_is_no_mask_is_refused():
    model, given = encoder()
    graph = quantize(model, given, embedding="client")
    with pytest.raises(ValueOutOfRange, match="mask"):
        reference.quantize_input(graph, given | {"mask": MASK * 2})


def test_a_mask_of_ones_is_none():
    model = Encoder(lambda mask: torch.ones_like(mask[:, None, None, :], dtype=torch.bool))
    with pytest.raises(UnsupportedModule, match="input 'mask'"):
        quantize(model.eval(), {"ids": IDS, "mask": MASK}, embedding="client")


def test_a_mask_that_cannot_be_followed_is_named():
    model = Encoder(lambda mask: (mask.cumsum(1) > 0)[:, None, None, :])
    with pytest.raises(UnsupportedModule, match=r"cumsum.*|mask made by"):
        quantize(model.eval(), {"ids": IDS, "mask": MASK}, embedding="client")
