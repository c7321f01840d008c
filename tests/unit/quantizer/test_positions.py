"""Places that a forward counts, by its ids or by a mask, as Hugging Face's models do."""

import numpy as np
import pytest
import torch
from torch import nn

from secure_quant import reference
from secure_quant.errors import UnsupportedModule
from secure_quant.quantizer import quantize

PAD = 1


class Placed(nn.Module):
    """Rows of a table of places, beside rows of words."""

    def __init__(self, count, places=12, scale=1.0):
        super().__init__()
        self.words, self.places = nn.Embedding(20, 4), nn.Embedding(places, 6)
        nn.init.uniform_(self.places.weight, -scale, scale)
        self.count, self.last = count, nn.Linear(10, 10)
        with torch.no_grad():
            self.last.weight.copy_(torch.eye(10))

    def forward(self, ids, mask=None):
        made = torch.cat([self.words(ids), self.places(self.count(ids, mask))], -1)
        return self.last(made)


def by_ids(ids, mask):
    """RoBERTa."""
    shown = ids.ne(PAD).int()
    return (torch.cumsum(shown, dim=1).type_as(shown) * shown).long() + PAD


def by_mask(ids, mask):
    """OPT."""
    return (torch.cumsum(mask, dim=1) * mask - 1).long() + 2


def samples(length, count=64):
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(2, 20, (count, length), generator=generator)
    mask = torch.rand(count, length, generator=generator) < 0.6  # with holes
    return ids.where(mask, PAD), mask.long()


HEAVY = pytest.mark.heavy


@pytest.mark.parametrize(
    ("count", "with_mask", "embedding"),
    [
        (by_ids, False, "private"),
        pytest.param(by_ids, False, "client", marks=HEAVY),
        pytest.param(by_mask, True, "client", marks=HEAVY),
        pytest.param(by_mask, True, "private", marks=HEAVY),
    ],
)
def test_places_are_those_of_the_module(count, with_mask, embedding):
    torch.manual_seed(0)
    model = Placed(count).eval()
    ids, mask = samples(8)
    given = {"ids": ids, "mask": mask} if with_mask else {"ids": ids}
    graph = quantize(model, given, embedding=embedding)
    with torch.no_grad():
        want = model(**given).numpy()
    got = reference.run(graph, given)["output"]
    assert np.abs(got - want).max() < 0.03


@pytest.mark.parametrize("length", [pytest.param(8, marks=HEAVY), 300])
def test_places_that_calibration_did_not_see(length):
    """Ever larger steps between rows: one place off would be seen."""
    torch.manual_seed(0)
    model = Placed(by_mask, length + 4).eval()
    with torch.no_grad():
        model.places.weight.copy_(torch.rand(length + 4, 6).sign() * torch.rand(length + 4, 6))
    ids, mask = samples(length, 4)
    mask[:, length // 2 :] = 0
    graph = quantize(model, {"ids": ids, "mask": mask}, embedding="client", max_error=1.0)
    given = {"ids": ids, "mask": torch.ones_like(mask)}
    with torch.no_grad():
        want = model(**given).numpy()
    assert np.abs(reference.run(graph, given)["output"] - want).max() < 0.05


def test_more_places_than_rows():
    ids, mask = samples(8)
    with pytest.raises(UnsupportedModule, match="rows 1 to 9 of 9"):
        quantize(Placed(by_mask, 9).eval(), {"ids": ids, "mask": mask}, embedding="client")
