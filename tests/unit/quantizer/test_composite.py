"""Short forms of other ops, and moves of the batch axis that are taken back, give the module's own
numbers."""

import pytest
import torch
from torch import nn
from torch.nn import functional
from unit.quantizer.nets import Net, follows

from secure_quant.errors import UnsupportedModule
from secure_quant.quantizer import quantize


class Held(Net):
    """A Net with constants."""

    def __init__(self, forward, layers, **constants):
        super().__init__(forward, **layers)
        for name, value in constants.items():
            self.register_buffer(name, value)


def samples(*shape):
    return torch.randn(128, *shape, generator=torch.Generator().manual_seed(0))


def two():
    return {"a": nn.Linear(8, 8), "b": nn.Linear(8, 8)}


FORMS = {
    "hstack": lambda m, x: torch.hstack((m.a(x), x.relu())),
    "glu": lambda m, x: functional.glu(m.a(x), -1),
    "addcmul": lambda m, x: torch.addcmul(m.a(x), m.k, m.b(x), value=0.5),
    "lerp": lambda m, x: torch.lerp(m.a(x), m.b(x), 0.3),
    "lerp by values": lambda m, x: torch.lerp(m.a(x), m.b(x), torch.sigmoid(x)),
    "rsub": lambda m, x: torch.rsub(m.a(x), m.b(x), alpha=3),
    "rrelu": lambda m, x: functional.rrelu(m.a(x)),
    "a quotient": lambda m, x: m.a(x) / (1 + m.b(x).exp()),
    "a quotient with the input": lambda m, x: m.a(x) / (x.abs() + 1),
    "other names": lambda m, x: torch.clip(
        torch.concat([torch.multiply(m.a(x), m.b(x)), torch.negative(torch.absolute(x))], -1), -2, 2
    ),
    "softshrink": lambda m, x: functional.softshrink(m.a(x), 0.3),
    "sin": lambda m, x: torch.sin(m.a(x)),
    "cos": lambda m, x: torch.cos(m.a(x)),
    "atan": lambda m, x: torch.atan(m.a(x)),
    "log1p, expm1": lambda m, x: torch.log1p(m.a(x).abs()) + torch.expm1(-m.b(x).abs()),
    "normalize": lambda m, x: functional.normalize(m.a(x), dim=-1),
    "normalize by sums": lambda m, x: functional.normalize(m.a(x), p=1.0, dim=-1),
    "a norm": lambda m, x: m.a(x) / m.a(x).norm(dim=-1, keepdim=True),
    "cosine": lambda m, x: functional.cosine_similarity(m.a(x), x + m.a(x)).unsqueeze(1),
    "einsum, data": lambda m, x: torch.einsum("bi,bj->bji", m.a(x), x),
    "einsum, dot": lambda m, x: torch.einsum("bi,bi->b", m.a(x), m.a(x) + x).unsqueeze(1),
    "einsum, factor": lambda m, x: torch.einsum("bi,i->bi", m.a(x), m.k),
    "einsum, matrix first": lambda m, x: torch.einsum("oi,bi->bo", m.w, m.a(x)),
    "einsum, ellipsis": lambda m, x: torch.einsum("...i,io->...o", m.a(x), m.w.t()),
    "einsum, implicit": lambda m, x: torch.einsum("bi,io", m.a(x), m.w.t()),
    "stack and max": lambda m, x: torch.stack([m.a(x), m.b(x)]).max(0)[0],
    "stack and mean": lambda m, x: torch.stack([m.a(x), m.b(x), x]).mean(0),
}


@pytest.mark.parametrize("form", FORMS)
def test_forms_of_rows(form):
    torch.manual_seed(0)
    model = Held(FORMS[form], two(), k=torch.rand(8) + 0.5, w=torch.randn(5, 8))
    follows(model, samples(8), 0.05)


def by_moving(m, x):
    """Attention as in vision transformers."""
    b, n, c = x.shape
    q, k, v = m.qkv(x).reshape(b, n, 3, 2, c // 2).permute(2, 0, 3, 1, 4)
    y = (q @ k.transpose(-2, -1) / 3).softmax(-1) @ v
    return m.o(y.transpose(1, 2).reshape(b, n, c))


def by_index(m, x):
    qkv = m.qkv(x).reshape(-1, 6, 3, 2, 8).permute(2, 0, 3, 1, 4)
    return (qkv[0] @ qkv[1].transpose(-2, -1) / 3).softmax(-1) @ qkv[-1]


def by_einsum(m, x):
    q, k, v = m.qkv(x).view(-1, 6, 3, 2, 8).unbind(2)
    score = torch.einsum("bqhd,bkhd->bhqk", q, k) / 3
    return m.o(torch.einsum("bhqk,bkhd->bqhd", score.softmax(-1), v).flatten(2))


def by_heads(m, x):
    return torch.einsum("bnhd,hdc->bnc", torch.einsum("bnc,chd->bnhd", x, m.i), m.j)


def by_other_names(m, x):
    q, k, v = m.qkv(x).view(-1, 6, 3, 2, 8).movedim(2, 0).swapaxes(2, 3)
    return ((q @ k.swapdims(-1, -2) / 3).softmax(-1) @ v).swapaxes(1, 2).flatten(2)


def length_first(m, x):
    return m.o(functional.gelu(m.o(x.transpose(0, 1)))).mean(0)


def there_and_back(m, x):
    return m.o(x.permute(1, 2, 0).permute(2, 0, 1)).t().transpose(0, 1) if x.ndim < 3 else m.o(
        torch.softmax(m.o(x).permute(2, 0, 1), 0).permute(1, 2, 0)
    )  # fmt: skip


@pytest.mark.parametrize(
    "forward",
    [by_moving, by_index, by_einsum, by_heads, by_other_names, length_first, there_and_back],
)
def test_forms_of_sequences(forward):
    torch.manual_seed(0)
    layers = {"qkv": nn.Linear(16, 48), "o": nn.Linear(16, 16)}
    model = Held(forward, layers, i=torch.randn(16, 2, 4), j=torch.randn(2, 4, 3))
    follows(model, samples(6, 16), 0.05)


@pytest.mark.parametrize(
    "spread",
    [
        lambda h: h.var(-1), lambda h: h.std(1), lambda h: h.var((1, 2), unbiased=False)[:, None],
        lambda h: (h - h.mean(-1, True)) / (h.var(-1, keepdim=True, correction=0) + 1e-5).sqrt(),
    ],
)  # fmt: skip
def test_spreads(spread):
    torch.manual_seed(0)
    follows(Net(lambda m, x: spread(m.a(x)), a=nn.Linear(8, 8)), samples(5, 8), 0.05)


@pytest.mark.parametrize(
    "layer",
    [
        nn.PixelShuffle(2), nn.PixelUnshuffle(2), nn.ChannelShuffle(2), nn.Upsample(scale_factor=2),
        nn.Upsample(size=(12, 6)), nn.GLU(1),
    ],
)  # fmt: skip
def test_moves_of_pixels(layer):
    torch.manual_seed(0)
    follows(nn.Sequential(nn.Conv2d(3, 4, 1), layer), samples(3, 6, 6), 0.05)


@pytest.mark.parametrize(
    ("forward", "word"),
    [
        (lambda m, x: torch.einsum("bi,bj->ij", m.a(x), x), "depends on the others"),
        (lambda m, x: torch.einsum("bii->bi", m.a(x).view(-1, 2, 2, 2)[:, 0]), "einsum"),
        (lambda m, x: functional.normalize(m.a(x), p=0.0), "linalg_vector_norm"),
        (lambda m, x: torch.stack([m.a(x), x]) + 0, "batch axis"),
        (lambda m, x: m.a(x) + torch.randn_like(x), "random steps"),
        (lambda m, x: functional.batch_norm(m.a(x), None, None, training=True), "of the batch"),
        (lambda m, x: m.a(x).max(1)[1][:, None] * m.a(x), "places of maxima"),
    ],
)  # fmt: skip
def test_the_rest_is_refused_by_name(forward, word):
    with pytest.raises(UnsupportedModule, match=word):
        quantize(Net(forward, **two()), samples(8))
