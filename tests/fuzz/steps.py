"""What a random net is made of: each function writes the lines of one step, or none."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

if TYPE_CHECKING:
    from fuzz.nets import RandomNet

__all__ = ["KINDS"]

Lines = list[str] | None
_Kind = Callable[["RandomNet"], Lines]


def _stats(norm: Any) -> nn.Module:
    norm.running_mean = torch.randn_like(norm.running_mean)
    norm.running_var = torch.rand_like(norm.running_var) + 0.1
    return _affine(norm)


def _affine(norm: Any) -> nn.Module:
    if norm.weight is not None:
        nn.init.normal_(norm.weight, 1.0, 0.4)
        if norm.bias is not None:
            nn.init.normal_(norm.bias)
    return norm  # type: ignore[no-any-return]


def linear(net: RandomNet) -> Lines:
    name = net.any()
    if not net.shape(name):
        return None
    size, out = net.shape(name)[-1], int(net.rng.integers(2, 10))
    bias = net.chance(0.7)

    def make() -> nn.Module:
        layer = nn.Linear(size, out, bias=bias)
        if net.chance(0.1):
            return torch.nn.utils.parametrizations.weight_norm(layer)
        if net.chance(0.05):
            return torch.nn.utils.parametrizations.spectral_norm(layer).eval()
        return layer

    same = [
        n for n, m in net.made.items() if isinstance(m, nn.Linear) and m.in_features == size
    ]  # fmt: skip
    if same and net.chance(0.4):
        return [f"{net.fresh()} = self.{net.pick(same)}({name})"]
    return [f"{net.fresh()} = self.{net.module_name(make)}({name})"]


def tied(net: RandomNet) -> Lines:
    """The weight of another layer: as it is, transposed, scaled, in part."""
    layers = [n for n, m in net.made.items() if isinstance(m, nn.Linear)]
    if not layers:
        return None
    layer, name = net.pick(layers), net.any()
    weight = f"self.{layer}.weight"
    form = net.pick([weight, f"{weight}.t()", f"{weight} * 0.5", f"{weight}[:2]", f"-{weight}"])
    return [f"{net.fresh()} = functional.linear({name}, {form})"]


def convolution(net: RandomNet) -> Lines:
    name = net.any()
    shape = net.shape(name)
    if len(shape) not in (2, 3):
        return None
    channels, out = shape[0], int(net.rng.integers(1, 4)) * 2
    same = [
        n for n, m in net.made.items()
        if isinstance(m, nn.Conv1d if len(shape) == 2 else nn.Conv2d) and m.in_channels == channels
    ]  # fmt: skip
    if same and net.chance(0.4):
        return [f"{net.fresh()} = self.{net.pick(same)}({name})"]
    kind = nn.Conv1d if len(shape) == 2 else nn.Conv2d
    groups = net.pick([1, 1, channels if out % channels == 0 else 1])
    padding = net.pick([0, 1, 2, "same", "valid"])
    stride = 1 if padding == "same" else net.pick([1, 1, 2])
    kernel = net.pick([1, 2, 3, 3])

    def make() -> nn.Module:
        return kind(
            channels, out, kernel, stride=stride, padding=padding, dilation=net.pick([1, 1, 2]),
            groups=groups, bias=net.chance(0.7),
        )  # fmt: skip

    return [f"{net.fresh()} = self.{net.module_name(make)}({name})"]


def norm(net: RandomNet) -> Lines:
    name = net.any()
    shape = net.shape(name)
    if not shape:
        return None
    affine = net.chance(0.8)
    if net.chance(0.4) and shape[-1] > 2:

        def rows() -> nn.Module:
            return _affine(nn.LayerNorm(shape[-1], elementwise_affine=affine))

        return [f"{net.fresh()} = self.{net.module_name(rows)}({name})"]
    kind = nn.BatchNorm2d if len(shape) == 3 else nn.BatchNorm1d
    used = [
        n for n, m in net.made.items() if isinstance(m, kind) and m.num_features == shape[0]
    ]  # fmt: skip
    if used and net.chance(0.3):
        return [f"{net.fresh()} = self.{net.pick(used)}({name})"]
    made = net.module_name(lambda: _stats(kind(shape[0], affine=affine)))
    return [f"{net.fresh()} = self.{made}({name})"]


_FUNCTIONS = [
    "torch.relu({v})", "functional.gelu({v})", "functional.silu({v})", "torch.sigmoid({v})",
    "torch.tanh({v})", "functional.hardswish({v})", "functional.hardtanh({v}, -1.0, 2.0)",
    "functional.relu6({v})", "functional.leaky_relu({v}, 0.1)", "functional.elu({v})",
    "functional.softplus({v})", "functional.mish({v})", "functional.selu({v})",
    "functional.celu({v})", "functional.hardsigmoid({v})", "functional.logsigmoid({v})",
    "functional.gelu({v}, approximate='tanh')", "{v}.abs()", "{v}.clamp(-1.0, 0.5)",
    "{v}.clamp(min=0.1)", "{v}.clamp(max=0.7)", "-{v}", "{v}.square()", "{v} ** 2",
    "torch.erf({v})", "({v}.clamp(-3, 1)).exp()", "({v}.abs() + 0.5).log()",
    "({v}.abs() + 0.1).sqrt()", "({v}.abs() + 0.5).rsqrt()", "1.0 / ({v}.abs() + 0.5)",
    "({v} * torch.sigmoid({v}))", "functional.relu({v}) - 0.25 * {v}", "{v} * 0.5 + {v}.tanh()",
    "functional.dropout({v}, 0.3, training=self.training)", "functional.threshold({v}, 0.1, 0.0)",
    "{v}.clone()", "{v}.contiguous()",
]  # fmt: skip


def function(net: RandomNet) -> Lines:
    return [f"{net.fresh()} = {net.pick(_FUNCTIONS).format(v=net.any())}"]


_SCALARS = [
    "{v} * {c}", "{c} * {v}", "{v} + {c}", "{c} + {v}", "{v} - {c}", "{c} - {v}", "{v} / {c}",
    "torch.add({v}, {c}, alpha=2)", "torch.sub({v}, {c}, alpha=0.5)", "torch.rsub({v}, {c})",
    "torch.rsub({v}, {c}, alpha=2)", "torch.mul({v}, {c})", "{v} + 3", "2 * {v}", "{v} - 1",
    "torch.add({v}, 1, alpha=3)",
]  # fmt: skip


def scalar(net: RandomNet) -> Lines:
    return [f"{net.fresh()} = {net.pick(_SCALARS).format(v=net.any(), c=net.number(2.0, 0.25))}"]


_CONSTANTS = [
    "{v} + {c}", "{c} + {v}", "{v} - {c}", "{c} - {v}", "{v} * {c}", "{c} * {v}",
    "torch.add({v}, {c}, alpha=2)", "torch.add({c}, {v}, alpha=2)", "torch.sub({c}, {v}, alpha=2)",
    "torch.sub({v}, {c}, alpha=-1)",
]  # fmt: skip


def constant(net: RandomNet) -> Lines:
    """A buffer on either side: of one place, by feature, by channel, by position, wider."""
    name = net.any()
    shape = net.shape(name)
    if not shape:
        return None
    forms = [
        (), (1,), shape, (1, *shape), (shape[-1],), (shape[0], *[1] * (len(shape) - 1)),
        (*[1] * (len(shape) - 1), shape[-1]), (2, *[1] * len(shape)) if len(shape) < 2 else (1,),
    ]  # fmt: skip
    made = net.buffer(*net.pick(forms))
    return [f"{net.fresh()} = {net.pick(_CONSTANTS).format(v=name, c=f'self.{made}')}"]


_PAIRS = [
    "{a} + {b}", "{a} - {b}", "{a} * {b}", "torch.add({a}, {b}, alpha=2)",
    "torch.sub({a}, {b}, alpha=0.5)", "torch.add({a}, {b}, alpha=-1)", "{a} + 0.5 * {b}",
]  # fmt: skip


def pair(net: RandomNet) -> Lines:
    """Two values of one shape, or a value and its mean, which broadcasts."""
    a = net.any()
    same = [n for n in net.values if net.shape(n) == net.shape(a)]
    b = net.pick(same)
    if net.chance(0.3) and net.shape(a):
        b = net.pick([f"{a}.mean(-1, keepdim=True)", f"{a}.amax(-1, keepdim=True)"])
    return [f"{net.fresh()} = {net.pick(_PAIRS).format(a=a, b=b)}"]


def product(net: RandomNet) -> Lines:
    a = net.any()
    shape = net.shape(a)
    if len(shape) < 2:
        return None
    same = [n for n in net.values if net.shape(n) == shape]
    b = net.pick(same)
    scale = round(1 / math.sqrt(shape[-1]), 4)
    form = net.pick([
        "{a} @ {b}.transpose(-2, -1)", "torch.matmul({a}, {b}.mT) * {s}",
        "(({a} @ {b}.transpose(-2, -1)) * {s}).softmax(-1) @ {a}",
        "functional.scaled_dot_product_attention({a}, {b}, {a})",
    ])  # fmt: skip
    if form.startswith("functional") and len(shape) != 2:
        return None
    return [f"{net.fresh()} = {form.format(a=a, b=b, s=scale)}"]


def reduction(net: RandomNet) -> Lines:
    a = net.any()
    shape = net.shape(a)
    if not shape:
        return None
    dims = list(range(1, len(shape) + 1))
    dim: Any = net.pick([-1, dims[0], dims[-1], tuple(dims[-2:])])
    keep = net.pick(["", ", keepdim=True"])
    form = net.pick([
        f"{a}.mean({dim}{keep})", f"{a}.sum({dim}{keep})", f"{a}.amax(-1{keep})",
        f"{a}.softmax({dim if isinstance(dim, int) else -1})",
    ])  # fmt: skip
    return [f"{net.fresh()} = {form}"]


def pool(net: RandomNet) -> Lines:
    a = net.any()
    if len(net.shape(a)) != 3:
        return None
    form = net.pick([
        "functional.max_pool2d({a}, 2)", "functional.max_pool2d({a}, 3, stride=2, padding=1)",
        "functional.max_pool2d({a}, 2, ceil_mode=True)", "functional.avg_pool2d({a}, 2)",
        "functional.avg_pool2d({a}, 3, stride=1, padding=1)",
        "functional.avg_pool2d({a}, 3, stride=2, padding=1, count_include_pad=False)",
        "functional.adaptive_avg_pool2d({a}, 1)", "functional.adaptive_avg_pool2d({a}, (2, 1))",
        "functional.adaptive_max_pool2d({a}, 1)", "torch.relu(functional.max_pool2d({a}, 2))",
    ])  # fmt: skip
    return [f"{net.fresh()} = {form.format(a=a)}"]


def _views(net: RandomNet, a: str) -> str | None:
    """An expression that is a view of ``a``."""
    shape = net.shape(a)
    if not shape:
        return None
    last = shape[-1]
    half = max(last // 2, 1)
    dims = list(range(1, len(shape) + 1))
    order = [0, *(int(d) for d in net.rng.permutation(dims))]
    batch = f"{a}.shape[0]"
    first = f"({shape[0] // 2}, 2)" if shape[0] % 2 == 0 else f"({shape[0]},)"
    options = [
        f"{a}[:, :{max(shape[0] // 2, 1)}]", f"{a}[..., {half % last}:]",
        f"{a}[..., ::2]", f"{a}[..., -1:]", f"{a}[:, 0]", f"{a}.select(-1, {last - 1})",
        f"{a}.permute({order})", f"{a}.transpose({dims[0]}, {dims[-1]})", f"{a}.unsqueeze(1)",
        f"{a}.unsqueeze(-1)", f"{a}.squeeze(1)", f"{a}.squeeze(-1)", f"{a}.flatten(1)",
        f"{a}.view({batch}, -1)", f"{a}.reshape({batch}, {last}, -1)", f"{a}.reshape(-1, {last})",
        f"{a}.chunk(2, -1)[{int(net.rng.integers(2))}]", f"{a}.split({half}, -1)[0]",
        f"{a}.unbind(1)[-1]", f"{a}.unflatten(1, {first})", f"{a}.mT", f"{a}.narrow(-1, 0, {half})",
        f"{a}.view_as({a})", f"{a}.swapaxes(1, -1)", f"{a}.movedim(1, -1)", f"{a}.expand_as({a})",
        f"{a}.detach()",
    ]  # fmt: skip
    return str(net.pick(options))


def view(net: RandomNet) -> Lines:
    form = _views(net, net.any())
    if form is None:
        return None
    if net.chance(0.15):
        form += f".contiguous().view({form.split('.')[0].split('[')[0]}.shape[0], -1)"
    return [f"{net.fresh()} = {form}"]


_MOVES = [
    "{v}.flip(-1)", "{v}.roll(2, -1)", "{v}[..., {p}]", "{v}.tile(2)",
    "functional.pad({v}, (1, 2))",
    "{v}.index_select(-1, torch.tensor({p}))", "functional.pad({v}, (-1, 2), value=0.5)",
    "{v}.repeat_interleave(2, -1)", "{v}.unfold(-1, 2, 1)", "torch.diag_embed({v})",
    "{v}.gather(-1, torch.tensor({p}).expand(*{v}.shape[:-1], -1))", "{v}.expand(*{v}.shape)",
    "torch.stack([{v}, {v}.flip(1)], -1)", "{v}.flatten(1).reshape_as({v})",
    "{v}.unflatten(0, (-1, 1)).expand({v}.shape[0], 2, *{v}.shape[1:])",
]  # fmt: skip
_MOVES_OF_ROWS = [
    "{v}[:, [0, -1], ..., [1, 0]]", "{v}.tril()", "{v}.triu(1)", "torch.rot90({v}, 1, (1, -1))",
    "{v}.mean(1, keepdim=True) + {v}.mean(-1, keepdim=True)", "{v}.roll((1, -1), (1, -1))",
    "{v}.moveaxis(1, -1)", "functional.pad({v}.flatten(1, -2), (1, 1), mode='reflect')",
]  # fmt: skip
_MOVES_OF_IMAGES = [
    "functional.interpolate({v}, scale_factor=2)", "functional.interpolate({v}, size=(3, 4))",
    "functional.unfold({v}, 2)", "functional.pad({v}, (1, 0, 2, 1), mode='circular')",
    "functional.pad({v}, (0, 1, 1, 2), mode='replicate')", "functional.pixel_unshuffle({v}, 2)",
    "functional.channel_shuffle({v}, {v}.shape[1])",
]  # fmt: skip


def move(net: RandomNet) -> Lines:
    """Values in other places: by constant places, windows, pads, repeats."""
    a = net.any()
    shape = net.shape(a)
    if not shape:
        return None
    places = [int(i) for i in net.rng.integers(shape[-1], size=int(net.rng.integers(1, 6)))]
    options = [*_MOVES]
    options += _MOVES_OF_ROWS if len(shape) > 1 else []
    options += _MOVES_OF_IMAGES if len(shape) == 3 else []
    return [f"{net.fresh()} = {net.pick(options).format(v=a, p=places)}"]


_INNER = [
    "{l}(r)", "{l}(r).relu()", "r * 0.5 + {l}(r).mean(-1, keepdim=True)", "r.softmax(-1) + 1",
    "functional.layer_norm(r, ({n},))", "r + torch.linspace(0, 1, {n})",
]  # fmt: skip


def folded(net: RandomNet) -> Lines:
    """The batch axis elsewhere, or with other rows in it, and back."""
    a = net.any()
    shape = net.shape(a)
    if len(shape) < 2:
        return None
    last, batch = shape[-1], f"{a}.shape[0]"
    layers = [
        n for n, m in net.made.items() if isinstance(m, nn.Linear) and m.in_features == last
    ]  # fmt: skip
    layer = f"self.{net.pick(layers)}" if layers else "torch.tanh"
    rows = math.prod(shape[:-1])
    axes = [*range(1, len(shape)), 0, len(shape)]
    away, back = net.pick([
        (f"{a}.flatten(0, 1)", f".view({batch}, {shape[0]}, *r.shape[1:-1], -1)"),
        (f"{a}.transpose(0, 1)", ".transpose(0, 1)"),
        (f"{a}.transpose(0, 1).contiguous()", ".flip(0).transpose(0, 1)"),
        (f"{a}.reshape(-1, {last})", f".view({batch}, {rows}, -1)"),
        (f"torch.cat([{a}, {a}.flip(1)], 0)", ".chunk(2, 0)[1]"),
        (f"torch.stack([{a}, {a} * 2], 0)", "[1]"),
        (f"{a}.movedim(0, -2)", ".movedim(-2, 0)"),
        (f"{a}.repeat_interleave(2, 0)", f".reshape({batch}, 2, -1)[:, 1]"),
        (f"{a}.permute({axes})", ".mean(0)"),
    ])  # fmt: skip
    inner = net.pick(_INNER).format(l=layer, n=last)
    return [f"{net.fresh()} = (lambda r: ({inner}){back})({away})"]


def join(net: RandomNet) -> Lines:
    """cat and stack, of a value with itself too."""
    a = net.any()
    shape = net.shape(a)
    if not shape:
        return None
    same = [n for n in net.values if net.shape(n)[:-1] == shape[:-1] and net.shape(n)]
    others = [net.pick(same) for _ in range(int(net.rng.integers(1, 3)))]
    names = ", ".join([a, *others])
    form = net.pick([
        f"torch.cat([{names}], -1)", f"torch.cat([{a}, {a}], 1)", f"torch.cat([{a} * 50, {a}], -1)",
        f"torch.stack([{a}, {a} * 2], 1)", f"torch.cat([{names}], dim=-1)",
    ])  # fmt: skip
    return [f"{net.fresh()} = {form}"]


_WRITES = [
    "{t}.relu_()", "{t}.mul_({c})", "{t}.add_({c})", "{t}.zero_()", "{t}.neg_()", "{t}.sigmoid_()",
    "{t}.clamp_(-1.0, 1.0)", "{t}.sub_({c})", "{t}.copy_({t} * 2)", "{t}.fill_({c})", "{t}.tanh_()",
    "{t}.div_(2.0)", "{t}.copy_(torch.relu({t}))", "functional.relu({t}, inplace=True)",
]  # fmt: skip


def write(net: RandomNet) -> Lines:
    """In place: on a value, on a view of it, by an index, by an augmented assignment."""
    a = net.any()
    c = net.number(2.0, 0.5)
    if net.chance(0.3):
        return [net.pick(_WRITES).format(t=a, c=c)]
    shape = net.shape(a)
    if not shape:
        return None
    if net.chance(0.5):
        target = _views(net, a)
        if net.chance(0.5):
            name = net.fresh("v")
            return [f"{name} = {target}", net.pick(_WRITES).format(t=name, c=c)]
        return [net.pick(_WRITES).format(t=target, c=c)]
    same = [n for n in net.values if net.shape(n) == shape]
    part = net.pick([f"[:, :{max(shape[0] // 2, 1)}]", "[..., -1]", "[:, 0]", "[..., ::2]"])
    return [
        net.pick([
            f"{a}{part} = {c}", f"{a}{part} += {c}", f"{a} += {net.pick(same)}", f"{a} *= {c}",
            f"{a} -= {net.pick(same)}", f"{a}{part} = torch.relu({a}{part})",
            f"{a}{part} = {net.pick(same)}{part}", f"{a}[:] = {net.pick(same)}",
        ])
    ]  # fmt: skip


def inplace_module(net: RandomNet) -> Lines:
    make = net.pick([
        lambda: nn.ReLU(inplace=True), lambda: nn.ReLU6(inplace=True), nn.Identity,
        lambda: nn.Dropout(0.5), lambda: nn.SiLU(inplace=True), lambda: nn.Hardswish(inplace=True),
        lambda: nn.LeakyReLU(0.2, inplace=True),
    ])  # fmt: skip
    return [f"{net.fresh()} = self.{net.module_name(make)}({net.any()})"]


KINDS: list[_Kind] = [
    linear, linear, linear, tied, convolution, convolution, convolution, norm, norm, norm, function,
    function, scalar, constant, constant, pair, pair, product, reduction, pool, view, view, move,
    folded, join, write, write, write, inplace_module,
]  # fmt: skip
