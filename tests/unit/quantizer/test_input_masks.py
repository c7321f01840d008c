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
