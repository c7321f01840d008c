"""Integer inputs of which each column chooses rows of its own table, as categories do."""

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional
from unit.quantizer import nets
from unit.quantizer.nets import relative_error

from conformance.executors import Mpc
from secure_quant import reference
from secure_quant.errors import ShapeMismatch, UnsupportedModule, ValueOutOfRange
from secure_quant.quantizer import Training, quantize

GENERATOR = torch.Generator().manual_seed(0)
SIZES = (3, 5, 7)
CATS = torch.stack([torch.randint(0, n, (64,), generator=GENERATOR) for n in SIZES], 1)
IDS = torch.randint(0, 20, (64, 6), generator=GENERATOR)
ROW = torch.randn(64, 4, generator=GENERATOR)
BOTH = {"cats": CATS, "row": ROW}


class Of(nets.Of):
    def forward(self, cats, row=None):
        return self.call(self, cats, row) if row is not None else self.call(self, cats)


def tables():
    return nn.ModuleList(nn.Embedding(n, 2) for n in SIZES)


def wide_and_deep(m, cats, row):
    deep = torch.cat([e(cats[:, i]) for i, e in enumerate(m.e)], 1)
    return m.l(torch.cat([deep, row], 1))


def with_offsets(m, cats, row):
    return m.l(m.one(cats + torch.tensor([0, 3, 8])).flatten(1)) + m.r(row)


def unbound(m, cats):
    return m.l(torch.cat([e(c) for e, c in zip(m.e, cats.unbind(1), strict=True)], 1))


def one_hots(m, cats, row):
    hot = [functional.one_hot(cats[:, i], n) for i, n in enumerate(SIZES)]
    return m.h(torch.cat([*hot, row], 1))


def half_numbers(m, cats):
    chosen = torch.cat([m.e[0](cats[:, 0]), m.e[1](cats[:, 1])], 1)
    return m.n(torch.cat([chosen, cats[:, 2:].float() / 4], 1))


LAYERS = {"e": tables, "one": lambda: nn.Embedding(15, 2), "l": lambda: nn.Linear(10, 3)}
WIDE = {"one": LAYERS["one"], "l": lambda: nn.Linear(6, 3), "r": lambda: nn.Linear(4, 3)}
CASES = {
    "a table each": (lambda: Of(wide_and_deep, **LAYERS), BOTH),
    "one table and offsets": (lambda: Of(with_offsets, **WIDE), BOTH),
    "unbind": (lambda: Of(unbound, e=tables, l=lambda: nn.Linear(6, 3)), {"cats": CATS}),
    "one-hot": (lambda: Of(one_hots, h=lambda: nn.Linear(19, 3)), BOTH),
    "numbers beside": (
        lambda: Of(half_numbers, e=tables, n=lambda: nn.Linear(5, 3)), {"cats": CATS}
    ),
}  # fmt: skip


def checked(model, given, embedding):
    """The graph, once its answers are the module's, onnxruntime's and both parties'."""
    graph = quantize(model, given, embedding=embedding)
    with torch.no_grad():
        want = model(**given).numpy()
    assert relative_error(reference.run(graph, given)["output"], want) < 0.04
    q, made = nets.same_in_onnx(graph, given, 2)
    assert np.array_equal(Mpc("balanced").prepare(graph).run(q)[graph.output.name], made)
    return graph


@pytest.mark.parametrize(
    "name",
    [n if n == "a table each" else pytest.param(n, marks=pytest.mark.heavy) for n in CASES],
)
@pytest.mark.parametrize("embedding", ["client", pytest.param("private", marks=pytest.mark.heavy)])
def test_each_column_has_a_port(name, embedding):
    make, given = CASES[name]
    graph = checked(make(), given, embedding)
    ports = {port.name: port.rows for port in graph.input_ports}
    rows = {"one table and offsets": (15, 12, 7), "numbers beside": (3, 5, 0)}.get(name, SIZES)
    assert [ports[f"cats.{i}"] for i in range(3)] == list(rows)


def test_a_number_beyond_the_table_of_its_column_is_refused():
    graph = quantize(Of(wide_and_deep, **LAYERS), BOTH, embedding="client")
    beyond = CATS[:2].clone()
    beyond[1, 0] = 3
    with pytest.raises(ValueOutOfRange, match=r"cats\.0.*0 to 2"):
        reference.quantize_input(graph, {"cats": beyond, "row": ROW[:2]})
    with pytest.raises(ShapeMismatch, match=r"cats.*\[2, 2\].*3"):
        reference.quantize_input(graph, {"cats": CATS[:2, :2], "row": ROW[:2]})


def test_columns_alone_and_as_one_array():
    graph = quantize(Of(unbound, e=tables, l=lambda: nn.Linear(6, 3)), CATS, embedding="client")
    want = reference.run_int(graph, reference.quantize_input(graph, {"cats": CATS}))
    apart = {f"cats.{i}": CATS[:, i] for i in range(3)}
    for given in (CATS, apart):
        assert np.array_equal(
            reference.run_int(graph, reference.quantize_input(graph, given)), want
        )


def biased(m, cats):
    return m.l(m.a(cats).mean(1)) + m.b(cats).sum(1)


def shifted(m, cats):
    return m.l((m.a(cats[:, :-1].flip(1)) * m.a(cats[:, 1:])).mean(1))


def batch_second(m, cats):
    return m.l(m.a(cats.t()).mean(0))


@pytest.mark.parametrize(
    "forward",
    [biased, *(pytest.param(f, marks=pytest.mark.heavy) for f in (shifted, batch_second))],
)
def test_whole_inputs_are_looked_up_once(forward):
    """By tables side by side, and moved afterwards."""
    model = Of(forward, a=lambda: nn.Embedding(20, 8), b=lambda: nn.Embedding(20, 1),
               l=lambda: nn.Linear(8, 1))  # fmt: skip
    with torch.no_grad():
        model.b.weight *= 0.01
    graph = checked(model, {"cats": IDS}, "client")
    (port,) = graph.input_ports
    assert (port.name, port.rows, port.asked) == ("cats", 20, (6,))


def test_one_number_a_sample_by_a_secret_table():
    model = Of(lambda m, cats: m.a(cats), a=lambda: nn.Embedding(20, 8))
    checked(model, {"cats": IDS[:, 0]}, "private")


HEAVY = pytest.mark.heavy


@pytest.mark.parametrize(
    "options",
    [{"mode": "sum", "padding_idx": 2}, *(pytest.param({"mode": m}, marks=HEAVY)
                                          for m in ("mean", "max"))],
)  # fmt: skip
def test_bags(options):
    model = Of(lambda m, cats: m.l(m.a(cats)), a=lambda: nn.EmbeddingBag(20, 8, **options),
               l=lambda: nn.Linear(8, 3))  # fmt: skip
    checked(model, {"cats": IDS}, "client")


@pytest.mark.parametrize(
    ("forward", "layer", "word"),
    [
        (lambda m, cats: m.a(cats[:, 0]) + m.a(cats[:, 2] + 1), nn.Embedding, "number 1"),
        (lambda m, cats: m.a(cats.flatten(), torch.arange(0, 3 * len(cats), 3)),
         nn.EmbeddingBag, "EmbeddingBag at a.*length"),
    ],
)  # fmt: skip
def test_what_is_refused(forward, layer, word):
    with pytest.raises(UnsupportedModule, match=word):
        quantize(Of(forward, a=lambda: layer(20, 8)), {"cats": CATS}, embedding="client")


def test_training_leaves_tables_as_they_are():
    """Everything else learns."""
    model = Of(wide_and_deep, **LAYERS)
    targets = torch.zeros(64, dtype=torch.long)
    graph = quantize(
        model, BOTH, embedding="client", mode="qat", targets=targets,
        training=Training(8, learning_rate=0.05), max_error=float("inf"),
    )  # fmt: skip
    for port in graph.input_ports[:3]:
        table = (graph.lookups[port.node] - float(port.value.zero_point)) * port.value.scale
        own = model.e[int(port.name.rpartition(".")[2])].weight.detach().numpy()
        assert np.abs(table - own).max() <= port.value.scale / 2 * 1.001
    with torch.no_grad():
        before = functional.cross_entropy(model(**BOTH), targets)
    after = torch.from_numpy(reference.run(graph, BOTH)["output"])
    assert functional.cross_entropy(after, targets) < before / 2


def test_batches_of_dicts_and_targets():
    batches = [({k: x[i : i + 16] for k, x in BOTH.items()}, torch.zeros(16))
               for i in range(0, 64, 16)]  # fmt: skip
    first, second = (
        quantize(Of(wide_and_deep, **LAYERS), data, embedding="client") for data in (batches, BOTH)
    )
    want = reference.run(second, BOTH)["output"]
    assert np.array_equal(reference.run(first, BOTH)["output"], want)
