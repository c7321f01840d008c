"""Embeddings of inputs: tables that the client is shown and looks up itself."""

import numpy as np
import pytest
import torch
from torch import nn
from unit.quantizer.nets import Net, relative_error

from secure_quant import reference
from secure_quant.errors import CalibrationError, ConfigError, UnsupportedModule
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


def floats(model, **given):
    with torch.no_grad():
        return model(**given).numpy()


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

    class Both(Net):
        def forward(self, x, y):
            return self.call(self, {"x": x, "y": y})

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
        return super().forward(row, ids) * (ids != 0).float().mean(1, keepdim=True)


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
         ["row numbers that ne reads too", "mask"]),
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
