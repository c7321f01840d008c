"""Comparisons of whole numbers: lengths with places, ages with limits, ids with padding, counts."""

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional
from unit.quantizer.nets import Net, Of, relative_error, same_in_onnx

from secure_quant import reference
from secure_quant.quantizer import quantize

GENERATOR = torch.Generator().manual_seed(0)
AGE, OTHER = (torch.randint(0, 60, (256,), generator=GENERATOR) for _ in range(2))
FLAG = torch.randint(0, 3, (256,), generator=GENERATOR)
X = torch.randn(64, 6, 8, generator=GENERATOR)
LENGTHS = torch.randint(1, 7, (64,), generator=GENERATOR)
IDS = torch.randint(0, 20, (64, 6), generator=GENERATOR)
IDS[:, 0] = 5


def checked(model, given, bound=0.04, **options):
    """The graph, once its answers are the module's, and its integers onnxruntime's."""
    graph = quantize(model, given, **options)
    with torch.no_grad():
        want = model(**given).numpy()
    got = reference.run(graph, given)["output"]
    assert relative_error(got, want) < bound
    same_in_onnx(graph, given, 8)
    return got, want


def comparisons(age, other, flag):
    return {
        "gt": age > 30, "ge": age >= 30, "lt": age < 30, "le": age <= 30, "eq": age == 30,
        "ne": age != 30, "of two": age > other, "ge of two": age >= other,
        "eq of two": age == other, "between": (age >= 18) & (age < 45), "not": ~(age > 50),
        "eq 1": flag == 1, "ne 0": flag != 0, "bool": flag.bool(),
    }  # fmt: skip


def test_what_equals_is_not_left_to_rounding():
    """All of them at once: one capture."""

    def forward(_, age, other, flag):
        asked = [each.float() for each in comparisons(age, other, flag).values()]
        return torch.stack([*asked, (age + other + flag).float() / 100], 1)

    got, want = checked(Of(forward), {"age": AGE, "other": OTHER, "flag": FLAG})
    off = np.abs(got - want)[:, :-1].max(0)
    names = comparisons(AGE, OTHER, FLAG)
    assert {name for name, each in zip(names, off, strict=True) if each > 0.02} == set()


def test_places_below_a_length():
    def forward(m, x, lengths):
        kept = (torch.arange(x.shape[1])[None] < lengths[:, None]).float().unsqueeze(-1)
        return m.l((x * kept).sum(1) / lengths[:, None].float())

    checked(Of(forward, l=lambda: nn.Linear(8, 3)), {"x": X, "lengths": LENGTHS})


@pytest.mark.heavy
@pytest.mark.parametrize(
    "asked",
    [lambda x: (x > 0).unsqueeze(-1).float()[..., 0], lambda x: (x > 0).long(),
     lambda x: (x > 0).int().sum(1, keepdim=True), lambda x: (x > 0).sum(1, keepdim=True) / 8,
     lambda x: ((x > 0).sum(1, keepdim=True) > 3).float(),
     lambda x: ((x > 0).sum(1, keepdim=True) == 4).float()],
)  # fmt: skip
def test_truths_are_moved_cast_and_counted(asked):
    x = X[:, 0] + X[:, 0].sign() * 0.2  # nothing next to the jump
    model = Net(lambda m, x: m.a(x) * asked(x), a=nn.Linear(8, 8))
    graph = quantize(model, x)
    with torch.no_grad():
        assert relative_error(reference.run(graph, x.numpy()), model(x).numpy()) < 0.04


def test_guards_against_what_is_no_number():
    def guarded(m, x):
        x = torch.where(torch.isnan(x), torch.zeros_like(x), x)
        x = x.masked_fill(torch.isinf(x), 0.0)
        return m.a(x) * torch.isfinite(x).float()

    x, model = X[:, 0], Net(guarded, a=nn.Linear(8, 8))
    graph = quantize(model, x)
    with torch.no_grad():
        assert relative_error(reference.run(graph, x.numpy()), model(x).numpy()) < 0.04


@pytest.mark.parametrize(
    "added",
    [lambda mask: (mask == 0).float() * -1e9,
     pytest.param(lambda mask: (~mask.bool()).float() * -1e9, marks=pytest.mark.heavy),
     pytest.param(lambda mask: (mask < 1).float() * -1e9, marks=pytest.mark.heavy)],
)  # fmt: skip
def test_a_mask_that_is_added_stays_a_mask(added):
    def forward(m, x, mask):
        scores = x @ x.transpose(1, 2) / 4 + added(mask)[:, None]
        return m.l((scores.softmax(-1) @ x).mean(1))

    mask = (torch.rand(64, 6, generator=GENERATOR) > 0.4).long()
    mask[:, 0] = 1
    checked(Of(forward, l=lambda: nn.Linear(8, 3)), {"x": X, "mask": mask})


def mean_of_tokens(m, ids):
    kept = (ids != 0).unsqueeze(-1).float()
    return m.l((m.e(ids) * kept).sum(1) / kept.sum(1))


def encoded(m, ids):
    return m.l(m.t(m.e(ids) * 4, src_key_padding_mask=ids == 0).mean(1))


def attended(m, ids):
    x = m.e(ids)
    kept = (ids != 0)[:, None, :]
    y = functional.scaled_dot_product_attention(x, x, x, attn_mask=kept)
    return m.l(y[:, 0])


def layer():
    made = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True)
    return nn.TransformerEncoder(made, 1, enable_nested_tensor=False)


@pytest.mark.parametrize("embedding", ["client", pytest.param("private", marks=pytest.mark.heavy)])
@pytest.mark.parametrize("forward", [mean_of_tokens, attended,
                                     pytest.param(encoded, marks=pytest.mark.heavy)])  # fmt: skip
def test_padding_that_is_known_by_the_ids(forward, embedding):
    model = Of(forward, e=lambda: nn.Embedding(20, 16), t=layer, l=lambda: nn.Linear(16, 3)).eval()
    checked(model, {"ids": IDS}, 0.06, embedding=embedding)


def test_what_is_hidden_by_the_ids_counts_for_nothing():
    """To the last bit: another row under the padding changes no integer."""
    model = Of(attended, e=lambda: nn.Embedding(20, 16), l=lambda: nn.Linear(16, 3))
    graph = quantize(model, {"ids": IDS}, embedding="client")
    (port,) = graph.input_ports
    q = reference.quantize_input(graph, {"ids": IDS})
    rows = q.reshape(len(q), *port.shape).copy()
    rows[(IDS == 0).numpy(), : port.shape[-1] - 1] = 77  # all but the answer beside them
    assert np.array_equal(reference.run_int(graph, rows.reshape(q.shape)),
                          reference.run_int(graph, q))  # fmt: skip
