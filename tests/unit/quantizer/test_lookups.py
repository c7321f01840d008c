"""Embeddings of inputs: tables that the client is shown and looks up itself."""

import numpy as np
import onnxruntime
import pytest
import torch
from torch import nn
from unit.quantizer.nets import Net, relative_error

from conformance.executors import He, Mpc, OneHost
from secure_quant import reference
from secure_quant.errors import (
    CalibrationError,
    ConfigError,
    OpNotSupported,
    UnsupportedModule,
    ValueOutOfRange,
)
from secure_quant.interop.onnx_export import feeds, to_onnx
from secure_quant.ir import artifact, ops
from secure_quant.quantizer import quantize
from secure_quant.quantizer.floats import float_values

GENERATOR = torch.Generator().manual_seed(0)
IDS = torch.randint(0, 40, (64, 6), generator=GENERATOR)
ROW = torch.randn(64, 4, generator=GENERATOR)


class Words(nn.Module):
    """Words and places into a LayerNorm, as language models begin; a row beside them."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(3)
        self.words, self.places = nn.Embedding(50, 16), nn.Embedding(9, 16)
        self.norm, self.fc, self.row = nn.LayerNorm(16), nn.Linear(16, 8), nn.Linear(4, 8)

    def forward(self, row, ids):
        places = torch.arange(ids.shape[1])[None]
        h = self.norm(self.words(ids) + self.places(places))
        return torch.relu(self.fc(h)).mean(1) + self.row(row)


class Both(Net):
    def forward(self, x, y=None):
        return self.call(self, {"x": x, "y": y})


def floats(model, **given):
    with torch.no_grad():
        return model(**given).numpy()


def test_an_option_that_changes_nothing_is_told():
    with pytest.warns(UserWarning, match="'client' changes nothing: no input"):
        quantize(torch.nn.Linear(4, 2).eval(), torch.randn(300, 4), embedding="client")


def test_a_table_becomes_public_and_rows_are_looked_up_by_who_asks():
    graph = quantize(Words(), {"ids": IDS, "row": ROW}, embedding="client")
    port = next(p for p in graph.input_ports if p.name == "ids")
    assert (port.dtype, port.rows, port.asked, port.shape) == ("int64", 50, (6,), (6, 16))
    table = (graph.lookups[port.node] - float(port.value.zero_point)) * port.value.scale
    own = Words().words.weight.detach().numpy()
    assert np.abs(table - own).max() <= port.value.scale / 2 * 1.001
    q = reference.quantize_input(graph, {"ids": IDS, "row": ROW})
    rows = q[:, port.start : port.stop].reshape(-1, 6, 16)
    assert np.array_equal(rows, graph.lookups[port.node][IDS.numpy()])
    made = reference.run(graph, {"ids": IDS, "row": ROW})["output"]
    assert relative_error(made, floats(Words(), ids=IDS, row=ROW)) < 0.05


def test_rows_that_calibration_never_saw_are_right_too():
    """Calibration saw 0 to 39 of 50, and the last ten are twenty times as large."""
    model = Words()
    with torch.no_grad():
        model.words.weight[40:] *= 20
    graph = quantize(model, {"ids": IDS, "row": ROW}, embedding="client", max_error=np.inf)
    port = next(p for p in graph.input_ports if p.rows)
    table = (graph.lookups[port.node] - float(port.value.zero_point)) * port.value.scale
    assert np.abs(table - model.words.weight.detach().numpy()).max() <= port.value.scale


def test_numbers_alone_and_a_file_of_it():
    model = nn.Sequential(nn.Embedding(50, 4), nn.Flatten(), nn.Linear(24, 3))
    graph = artifact.decode(artifact.encode(quantize(model, IDS, embedding="client")))
    made = reference.run(graph, IDS.numpy())
    with torch.no_grad():
        assert relative_error(made, model(IDS).numpy()) < 0.05
    values = float_values(model, graph, IDS.numpy())(IDS[:3].numpy())
    port = graph.input_ports[0]
    with torch.no_grad():
        assert np.array_equal(values[port.node], model[0](IDS[:3]).numpy())


def test_two_tables_by_two_inputs():
    def forward(n, a):
        return n.m((n.one(a["x"]) + n.two(a["y"])).flatten(1))

    model = Both(forward, one=nn.Embedding(50, 4), two=nn.Embedding(3, 4), m=nn.Linear(24, 3))
    given = {"x": IDS, "y": IDS % 3}
    graph = quantize(model, given, embedding="client")
    assert [p.rows for p in graph.input_ports] == [50, 3]
    made = reference.run(graph, given)["output"]
    assert relative_error(made, floats(model, **given)) < 0.05


def test_tables_of_constant_numbers_are_constants():
    model = Net(lambda n, x: x + n.e(torch.arange(4)).mean(0), e=nn.Embedding(9, 4))
    graph = quantize(model, ROW)
    assert not graph.lookups
    with torch.no_grad():
        assert relative_error(reference.run(graph, ROW.numpy()), model(ROW).numpy()) < 0.03


class Masked(Words):
    def forward(self, row, ids):
        return super().forward(row, ids) * (ids > 3).float().mean(1, keepdim=True)


@pytest.mark.parametrize(
    ("make", "data", "options", "error", "words"),
    [
        (Words, {"ids": IDS, "row": ROW}, {}, UnsupportedModule,
         ["embedding in words", 'embedding="client"', "public"]),
        (lambda: nn.Sequential(nn.Embedding(50, 4), nn.Flatten()), IDS, {}, CalibrationError,
         ['embedding="client"']),
        (Words, {"ids": IDS + 20, "row": ROW}, {"embedding": "client"}, CalibrationError,
         ["Words on row", "range"]),
        (Words, {"ids": IDS.float(), "row": ROW}, {"embedding": "client"}, CalibrationError,
         ["Words on row"]),
        (Masked, {"ids": IDS, "row": ROW}, {"embedding": "client"}, UnsupportedModule,
         ["row numbers that gt reads too", "mask"]),
        (Words, {"ids": IDS, "row": ROW}, {"embedding": "server"}, ConfigError, ["got server"]),
    ],
)  # fmt: skip
def test_what_is_refused(make, data, options, error, words):
    with pytest.raises(error) as caught:
        quantize(make(), data, **options)
    for word in words:
        assert word in str(caught.value), caught.value


def test_engines_see_integers_only():
    graph = quantize(Words(), {"ids": IDS, "row": ROW}, embedding="client")
    assert sum(isinstance(node, ops.LookupPort) for node in graph.nodes) == 1
    from secure_quant.mpc.protocol import bundle

    bundles = bundle.split(graph)
    assert bundle.load_client(bundles["client"])[0].lookups
    assert bundle.load_party(bundles["party0"]).graph.lookups  # it serves them
    assert not bundle.load_dealer(bundles["dealer"]).plan.graph.lookups


def integers(graph, given):
    return reference.run_int(graph, reference.quantize_input(graph, given))


def secret(graph):
    return [node for node in graph.nodes if isinstance(node, ops.Embedding)]


def test_a_secret_table_gives_the_integers_of_a_public_one():
    given = {"ids": IDS, "row": ROW}
    public, graph = (quantize(Words(), given, embedding=e) for e in ("client", "private"))
    assert np.array_equal(integers(graph, given), integers(public, given))
    assert (len(secret(graph)), graph.lookups) == (1, {})
    port = next(p for p in graph.input_ports if p.name == "ids")
    assert (port.rows, port.asked, port.shape) == (50, (6,), (6, 1))
    again = artifact.decode(artifact.encode(graph))
    assert (again.hash, graph.public().is_public) == (graph.hash, True)
    with pytest.raises(ValueOutOfRange, match="ids"):
        reference.quantize_input(graph, {"ids": IDS + 20, "row": ROW})
    values = float_values(Words(), graph, given)({name: value[:3] for name, value in given.items()})
    with torch.no_grad():
        assert np.array_equal(values[secret(graph)[0].name], Words().words(IDS[:3]).numpy())


def test_secret_tables_by_one_input_and_encrypted():
    """Two tables by the same numbers, of more than 256 rows; parties and onnxruntime agree."""
    model = Both(
        lambda n, a: n.m((n.one(a["x"]) + n.two(a["x"])).flatten(1)),
        one=nn.Embedding(300, 4), two=nn.Embedding(300, 4), m=nn.Linear(24, 3),
    )  # fmt: skip
    given = {"x": IDS * 7}
    graph = quantize(model, given, embedding="private")
    assert len(secret(graph)) == 2
    assert relative_error(reference.run(graph, given)["output"], floats(model, **given)) < 0.05
    q = reference.quantize_input(graph, {"x": given["x"][:2]})
    any_bytes = np.random.default_rng(1).integers(-128, 128, q.shape).astype(np.int8)
    session = onnxruntime.InferenceSession(to_onnx(graph).SerializeToString())
    for batch in (q, any_bytes):
        want = reference.run_int(graph, batch)
        assert np.array_equal(Mpc("balanced").prepare(graph).run(batch)[graph.output.name], want)
        assert np.array_equal(session.run(None, feeds(graph, batch))[0].reshape(want.shape), want)


def test_tables_of_other_lengths_by_one_input_are_refused():
    model = Both(
        lambda n, a: n.one(a["x"]).mean(1) + n.two(a["x"]).mean(1),
        one=nn.Embedding(50, 4), two=nn.Embedding(60, 4),
    )  # fmt: skip
    with pytest.raises(UnsupportedModule, match="60 rows"):
        quantize(model, {"x": IDS}, embedding="private")


def test_other_engines_refuse_secret_tables_and_say_what_to_use():
    graph = quantize(Words(), {"ids": IDS, "row": ROW}, embedding="private")
    for executor in (He("latency"), OneHost()):
        with pytest.raises(OpNotSupported, match=r'secret table.*embedding="client"'):
            executor.prepare(graph)


@pytest.mark.parametrize("embedding", ["client", "private"])
def test_numbers_with_something_added_choose_rows_further_on(embedding):
    """As models count places from 2 on."""
    model = Both(lambda n, a: n.e(a["x"] + 2).mean(1), e=nn.Embedding(52, 4))
    graph = quantize(model, {"x": IDS}, embedding=embedding)
    assert [port.rows for port in graph.input_ports] == [50]
    made = reference.run(graph, {"x": IDS})["output"]
    assert relative_error(made, floats(model, x=IDS)) < 0.05
