"""Models of one operator each, as people write them: what the quantizer takes, measured.

A row is a name, how to make the module, and the shape of one sample. Those in REFUSED have no
integer meaning inside a graph, and must be refused by name, with what to do instead.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from interop.operator_modules import (
    Cell,
    ChannelsFirst,
    Cross,
    First,
    LastState,
    TimeFirst,
    TwoHalves,
    of,
    qkv,
    rotated,
    windows,
    with_statistics,
)  # fmt: skip

__all__ = ["REFUSED", "ROWS", "Row", "samples"]

F = functional
SAMPLES = 48


class Row(NamedTuple):
    """One model: ``make()`` in eval mode takes float32[batch, *shape]."""

    family: str
    name: str
    make: Callable[[], nn.Module]
    shape: tuple[int, ...]


S, V, T, P, Q = (6,), (3, 8), (2, 5, 6), (3, 8, 8), (2, 4, 6, 6)
"""Shapes: a vector, a sequence, rows, a picture, a volume."""

_LISTS: dict[str, list[tuple[str, Callable[[], nn.Module], tuple[int, ...]]]] = {
    "linear": [
        ("Linear", lambda: nn.Linear(6, 4), S),
        ("Bilinear of two halves", TwoHalves, (8,)),
        ("x @ constant", of(lambda x, c: x @ c, (8, 5)), V),
        ("constant @ x", of(lambda x, c: c @ x, (5, 3)), V),
        ("addmm", of(lambda x, c, w: torch.addmm(c, x, w, beta=0.5), (4,), (6, 4)), S),
        ("baddbmm", of(lambda x, c: torch.baddbmm(c, x, x.mT, alpha=0.3), (1, 3, 3)), V),
        ("einsum bij,jk", of(lambda x, c: torch.einsum("bij,jk->bik", x, c), (8, 4)), V),
        ("einsum bij,ijk", of(lambda x, c: torch.einsum("bij,ijk->bik", x, c), (3, 8, 4)), V),
        ("einsum bij->b", of(lambda x: torch.einsum("bij->bi", x)), V),
        ("einsum bid,bjd", of(lambda x: torch.einsum("bid,bjd->bij", x, x)), V),
        ("Conv1d", lambda: nn.Conv1d(3, 4, 3, padding=1), V),
        ("Conv1d, padding=same of 4", lambda: nn.Conv1d(3, 4, 4, padding="same"), V),
        ("Conv2d", lambda: nn.Conv2d(3, 4, 3, stride=2), P),
        ("Conv2d, reflect", lambda: nn.Conv2d(3, 4, 3, padding=1, padding_mode="reflect"), P),
        ("Conv2d, circular", lambda: nn.Conv2d(3, 4, 3, padding=1, padding_mode="circular"), P),
        ("Conv3d", lambda: nn.Conv3d(2, 3, (3, 2, 3), stride=(1, 2, 1), padding=(1, 0, 1)), Q),
        ("Conv3d, groups, dilation", lambda: nn.Conv3d(2, 4, 2, dilation=2, groups=2), Q),
        ("ConvTranspose1d", lambda: nn.ConvTranspose1d(3, 2, 4, stride=2, padding=1), V),
        ("ConvTranspose2d", lambda: nn.ConvTranspose2d(3, 4, 2, stride=2), P),
        ("ConvTranspose2d, all options",
         lambda: nn.ConvTranspose2d(4, 6, 3, 2, 1, output_padding=1, groups=2, dilation=2),
         (4, 5, 5)),
        ("ConvTranspose3d", lambda: nn.ConvTranspose3d(2, 3, 2, stride=2), (2, 3, 4, 4)),
        ("bilinear x2", of(lambda x: F.interpolate(x, scale_factor=2, mode="bilinear")), P),
        ("bilinear to 5x11, corners", of(lambda x: F.interpolate(
            x, size=(5, 11), mode="bilinear", align_corners=True)), P),
        ("bilinear, antialias", of(lambda x: F.interpolate(
            x, size=(4, 5), mode="bilinear", antialias=True)), P),
        ("bicubic", of(lambda x: F.interpolate(x, size=(12, 12), mode="bicubic")), P),
        ("linear upsample", of(lambda x: F.interpolate(x, scale_factor=3, mode="linear")), V),
        ("trilinear", of(lambda x: F.interpolate(x, scale_factor=2, mode="trilinear")),
         (2, 3, 4, 4)),
        ("cumsum", of(lambda x: x.cumsum(-1)), V),
        ("[C, 1, 1] factor", of(lambda x, c: x * c, (3, 1, 1)), P),
        ("LayerScale", of(lambda x, c: x + c * x.relu(), (8,)), V),
        ("positions added", of(lambda x, c: x + c, (1, 3, 8)), V),
        ("positions multiplied", of(lambda x, c: x * c, (3, 8)), V),
        ("normalization of pictures", of(lambda x, m, s: (x - m) / (s.abs() + 0.2),
                                         (3, 1, 1), (3, 1, 1)), P),
        ("rotary positions", of(rotated), T),
    ],
    "pools": [
        ("AvgPool1d", lambda: nn.AvgPool1d(3, 2, 1), V),
        ("AvgPool2d", lambda: nn.AvgPool2d(2), P),
        ("AvgPool2d, no pad counted", lambda: nn.AvgPool2d(3, 2, 1, count_include_pad=False), P),
        ("AvgPool2d, ceil", lambda: nn.AvgPool2d(3, 2, ceil_mode=True), P),
        ("AvgPool2d, divisor", lambda: nn.AvgPool2d(3, divisor_override=5), P),
        ("AvgPool3d", lambda: nn.AvgPool3d(2), Q),
        ("AvgPool3d, padding", lambda: nn.AvgPool3d(3, 2, 1, count_include_pad=False), Q),
        ("AdaptiveAvgPool1d", lambda: nn.AdaptiveAvgPool1d(4), V),
        ("AdaptiveAvgPool2d 1", lambda: nn.AdaptiveAvgPool2d(1), P),
        ("AdaptiveAvgPool2d 3x5", lambda: nn.AdaptiveAvgPool2d((3, 5)), P),
        ("AdaptiveAvgPool3d", lambda: nn.AdaptiveAvgPool3d((2, 4, 1)), Q),
        ("LPPool2d", lambda: nn.LPPool2d(2, 2), P),
        ("MaxPool1d", lambda: nn.MaxPool1d(2), V),
        ("MaxPool2d", lambda: nn.MaxPool2d(3, 2, 1), P),
        ("MaxPool2d, ceil", lambda: nn.MaxPool2d(3, 2, ceil_mode=True), P),
        ("MaxPool2d, dilation", lambda: nn.MaxPool2d(2, 1, dilation=2), P),
        ("MaxPool2d, dilation, padding", lambda: nn.MaxPool2d(3, 2, 1, dilation=2), P),
        ("MaxPool3d", lambda: nn.MaxPool3d(2), Q),
        ("MaxPool3d, padding", lambda: nn.MaxPool3d(3, 2, 1), Q),
        ("AdaptiveMaxPool1d", lambda: nn.AdaptiveMaxPool1d(3), V),
        ("AdaptiveMaxPool2d", lambda: nn.AdaptiveMaxPool2d(3), P),
        ("global mean", of(lambda x: x.mean((2, 3))), P),
        ("mean over all", of(lambda x: x.mean((1, 2, 3))), P),
        ("sum over channels", of(lambda x: x.sum(1, keepdim=True)), P),
    ],
    "comparison": [
        ("amax over two axes", of(lambda x: x.amax((1, 3))), P),
        ("amin", of(lambda x: x.amin(-1)), V),
        ("max over an axis", of(lambda x: x.max(1).values), V),
        ("min over an axis", of(lambda x: x.min(-1, keepdim=True)[0]), V),
        ("maximum of two", of(lambda x: torch.maximum(x[:, 0], x[:, 1])), V),
        ("minimum of two", of(lambda x: torch.minimum(x[:, 0], x[:, 1])), V),
        ("maximum with a constant", of(lambda x, c: torch.maximum(x, c), (8,)), V),
        ("clamp by constants", of(lambda x, c: x.clamp(-c.abs(), c.abs()), (3, 1)), V),
        ("clamp by another value", of(lambda x: x[:, 0].clamp(min=x[:, 1])), V),
        ("PReLU", lambda: nn.PReLU(), P),
        ("PReLU by channel", lambda: with_statistics(nn.PReLU(3)), P),
        ("where h > 0", of(lambda x: torch.where(x > 0, x, 0.3 * x)), V),
        ("where h > 0, two values", of(
            lambda x: torch.where(x[:, 0] > 0, x[:, 1], x[:, 2])), V),
        ("where on a constant", of(lambda x, c: torch.where(c > 0, x, -1.0), (3, 8)), V),
        ("where on a constant, two values", of(
            lambda x, c: torch.where(c > 0, x, x.tanh()), (8,)), V),
        ("masked_fill of a constant", of(lambda x, c: x.masked_fill(c > 0, 2.0), (8,)), V),
        ("masked_fill of x < 0", of(lambda x: x.masked_fill(x < 0, 0.5)), V),
        ("(x > 0) as float", of(lambda x: (x > 0.2).float()), V),
        ("x * (x > 0)", of(lambda x: x * (x > 0)), V),
        ("GLU", lambda: nn.GLU(1), (4, 6)),
        ("max of two pools", of(lambda x: torch.max(F.max_pool2d(x, 2), F.avg_pool2d(x, 2))), P),
    ],
    "functions": [
        (name, of(function), V)
        for name, function in {
            "ReLU": F.relu, "GELU": F.gelu, "SiLU": F.silu, "Sigmoid": torch.sigmoid,
            "Tanh": torch.tanh, "Hardswish": F.hardswish, "Mish": F.mish, "ELU": F.elu,
            "Softplus": F.softplus, "Softsign": F.softsign, "Tanhshrink": F.tanhshrink,
            "Softshrink": F.softshrink, "Hardshrink": F.hardshrink, "LogSigmoid": F.logsigmoid,
            "Threshold": lambda x: F.threshold(x, 0.1, -2.0), "sin": torch.sin, "cos": torch.cos,
            "tan of small": lambda x: torch.tan(x * 0.3), "sinh": torch.sinh, "atan": torch.atan,
            "sign": torch.sign, "round": torch.round, "floor": torch.floor, "ceil": torch.ceil,
            "trunc": torch.trunc, "frac": torch.frac, "exp": torch.exp, "expm1": torch.expm1,
            "exp2": torch.exp2, "log1p": lambda x: torch.log1p(x.abs()),
            "log": lambda x: torch.log(x.abs() + 0.5), "sqrt": lambda x: (x.abs() + 0.1).sqrt(),
            "rsqrt": lambda x: torch.rsqrt(x.abs() + 0.5), "erf": torch.erf,
            "x ** 3": lambda x: x**3, "2 ** x": lambda x: 2**x,
            "pow of a value": lambda x: (x.abs() + 0.5) ** 1.7,
            "logit": lambda x: torch.logit(torch.sigmoid(x)), "asinh": torch.asinh,
            "abs": torch.abs, "reciprocal": lambda x: 1 / (x.abs() + 0.5),
            "clamp": lambda x: x.clamp(-1, 0.5), "nan_to_num": torch.nan_to_num,
            "remainder": lambda x: torch.remainder(x, 2.0),
            "xlogy": lambda x: torch.xlogy(x.abs() + 0.1, x.abs() + 0.1),
        }.items()
    ],
    "norms": [
        ("BatchNorm1d", lambda: with_statistics(nn.BatchNorm1d(6)), S),
        ("BatchNorm1d, sequence", lambda: with_statistics(nn.BatchNorm1d(3)), V),
        ("BatchNorm2d", lambda: with_statistics(nn.BatchNorm2d(3)), P),
        ("BatchNorm3d", lambda: with_statistics(nn.BatchNorm3d(2)), Q),
        ("LayerNorm", lambda: with_statistics(nn.LayerNorm(8)), V),
        ("LayerNorm over two axes", lambda: with_statistics(nn.LayerNorm((3, 8))), V),
        ("LayerNorm, channels first", ChannelsFirst, P),
        ("GroupNorm", lambda: with_statistics(nn.GroupNorm(2, 4)), (4, 6, 6)),
        ("GroupNorm of one", lambda: with_statistics(nn.GroupNorm(1, 4)), (4, 6)),
        ("InstanceNorm1d", lambda: with_statistics(nn.InstanceNorm1d(3, affine=True)), V),
        ("InstanceNorm2d", lambda: nn.InstanceNorm2d(3), P),
        ("RMSNorm", lambda: with_statistics(nn.RMSNorm(8)), V),
        ("LocalResponseNorm", lambda: nn.LocalResponseNorm(3, alpha=0.5), P),
        ("normalize", of(lambda x: F.normalize(x, dim=1)), V),
        ("normalize, L1", of(lambda x: F.normalize(x, p=1.0, dim=-1)), V),
        ("var", of(lambda x: x.var(-1)), V),
        ("var over two axes", of(lambda x: x.var((2, 3), unbiased=False)), P),
        ("std", of(lambda x: x.std(1, keepdim=True)), V),
        ("norm", of(lambda x: x.norm(dim=-1)), V),
        ("norm, L1", of(lambda x: torch.linalg.vector_norm(x, 1, -1)), V),
        ("norm, largest", of(lambda x: torch.linalg.vector_norm(x, float("inf"), -1)), V),
        ("cosine_similarity", of(lambda x: F.cosine_similarity(x[:, 0], x[:, 1], dim=-1)), V),
        ("pairwise_distance", of(lambda x: F.pairwise_distance(x[:, 0], x[:, 1])), V),
        ("cdist", of(lambda x, c: torch.cdist(x, c), (4, 8)), V),
        ("softmax", of(lambda x: x.softmax(-1)), V),
        ("softmax over channels", of(lambda x: F.softmax(x, 1)), P),
        ("Softmax2d", lambda: nn.Softmax2d(), P),
        ("Softmin", lambda: nn.Softmin(1), V),
        ("log_softmax", of(lambda x: F.log_softmax(x, -1)), V),
        ("logsumexp", of(lambda x: torch.logsumexp(x, -1)), V),
        ("quotient", of(lambda x: x[:, 0] / (x[:, 1].abs() + 1)), V),
        ("x / sum x", of(lambda x: x.exp() / x.exp().sum(-1, keepdim=True)), V),
        ("centred", of(lambda x: x - x.mean(-1, keepdim=True)), V),
        ("standardized", of(lambda x: (x - x.mean(-1, keepdim=True))
                            / (x.std(-1, keepdim=True) + 1e-5)), V),
    ],
    "attention": [
        ("MultiheadAttention", lambda: First(
            nn.MultiheadAttention(8, 2, batch_first=True), 3, need_weights=False), (5, 8)),
        ("MultiheadAttention, weights", lambda: First(
            nn.MultiheadAttention(8, 2, batch_first=True), 3), (5, 8)),
        ("MultiheadAttention, time first", lambda: TimeFirst(
            nn.MultiheadAttention(8, 2)), (5, 8)),
        ("cross-attention", lambda: Cross(
            nn.MultiheadAttention(8, 2, batch_first=True), 2), (6, 8)),
        ("scaled_dot_product_attention", of(
            lambda x: F.scaled_dot_product_attention(x, x, x)), T),
        ("the same, causal", of(
            lambda x: F.scaled_dot_product_attention(x, x, x, is_causal=True)), T),
        ("the same, grouped queries", of(lambda x: F.scaled_dot_product_attention(
            torch.cat([x, x * 0.5], 1), x, x, enable_gqa=True)), T),
        ("TransformerEncoderLayer", lambda: nn.TransformerEncoderLayer(
            8, 2, 16, batch_first=True), (5, 8)),
        ("TransformerDecoderLayer", lambda: Cross(nn.TransformerDecoderLayer(
            8, 2, 16, batch_first=True), 3), (6, 8)),
        ("qkv.unbind(0)", of(qkv), (5, 12)),
        ("windows of Swin", of(windows), (4, 4, 6)),
        ("ALiBi", of(lambda x, c: (x @ x.mT + c).softmax(-1) @ x, (2, 5, 5)), T),
    ],
    "recurrent": [
        ("RNN", lambda: First(nn.RNN(4, 5, batch_first=True)), (6, 4)),
        ("RNN, relu, two layers", lambda: First(
            nn.RNN(4, 5, 2, nonlinearity="relu", batch_first=True)), (6, 4)),
        ("LSTM", lambda: First(nn.LSTM(4, 5, batch_first=True)), (6, 4)),
        ("LSTM, both ways", lambda: First(
            nn.LSTM(4, 5, batch_first=True, bidirectional=True)), (6, 4)),
        ("LSTM, two layers, projected", lambda: First(
            nn.LSTM(4, 5, 2, batch_first=True, proj_size=3)), (6, 4)),
        ("LSTM, time first", lambda: TimeFirst(nn.LSTM(4, 5)), (6, 4)),
        ("LSTM, last state", lambda: LastState(nn.LSTM(4, 5, batch_first=True)), (6, 4)),
        ("GRU", lambda: First(nn.GRU(4, 5, batch_first=True)), (6, 4)),
        ("GRU, both ways, two layers", lambda: First(
            nn.GRU(4, 5, 2, batch_first=True, bidirectional=True)), (6, 4)),
        ("RNNCell", lambda: Cell(nn.RNNCell(4, 5)), (4, 4)),
        ("LSTMCell", lambda: Cell(nn.LSTMCell(4, 5)), (4, 4)),
        ("GRUCell", lambda: Cell(nn.GRUCell(4, 5)), (4, 4)),
    ],
    "moves": [
        ("stack", of(lambda x: torch.stack([x, x * 2], 1)), V),
        ("flip", of(lambda x: x.flip(-1)), V),
        ("roll", of(lambda x: x.roll(3, -1)), V),
        ("roll over all axes", of(lambda x: x.roll((1, 2), (1, 2))), V),
        ("narrow", of(lambda x: x.narrow(-1, 2, 3)), V),
        ("index_select", of(lambda x: x.index_select(-1, torch.tensor([4, 0, 2]))), V),
        ("gather", of(lambda x: x.gather(-1, torch.tensor([[[1, 0], [2, 2], [7, 3]]]).expand(
            x.shape[0], -1, -1))), V),
        ("x[:, [2, 0]]", of(lambda x: x[:, [2, 0]]), V),
        ("x[:, [2, 0], [1, 5]]", of(lambda x: x[:, [2, 0], [1, 5]]), V),
        ("expand", of(lambda x: x[:, :1].expand(-1, 4, -1)), V),
        ("repeat", of(lambda x: x.repeat(1, 2, 1)), V),
        ("tile", of(lambda x: x.tile((2, 1))), V),
        ("repeat_interleave", of(lambda x: x.repeat_interleave(2, 1)), V),
        ("pad", of(lambda x: F.pad(x, (1, 2, 0, 1), value=0.5)), V),
        ("pad, reflect", of(lambda x: F.pad(x, (1, 2, 2, 0), mode="reflect")), P),
        ("pad, replicate", of(lambda x: F.pad(x, (1, 2), mode="replicate")), V),
        ("ZeroPad2d of one side", lambda: nn.ZeroPad2d((0, 1, 0, 1)), P),
        ("PixelShuffle", lambda: nn.PixelShuffle(2), (4, 3, 3)),
        ("PixelUnshuffle", lambda: nn.PixelUnshuffle(2), P),
        ("ChannelShuffle", lambda: nn.ChannelShuffle(2), (4, 3, 3)),
        ("Unfold", lambda: nn.Unfold(3, stride=2), P),
        ("Fold", lambda: nn.Fold((4, 4), 2), (8, 9)),
        ("x.unfold", of(lambda x: x.unfold(-1, 4, 2)), V),
        ("nearest x2", lambda: nn.Upsample(scale_factor=2), P),
        ("nearest to 5x12", of(lambda x: F.interpolate(x, size=(5, 12))), P),
        ("tril", of(lambda x: x.tril()), V),
        ("diagonal", of(lambda x: x.diagonal(dim1=1, dim2=2)), V),
        ("outer of two", of(lambda x: x[:, 0, :, None] * x[:, 1, None, :]), V),
        ("reshape_as", of(lambda x: x.mT.reshape_as(x)), V),
        ("batch moved and back", of(lambda x: x.permute(1, 0, 2).relu().permute(1, 0, 2)), V),
        ("batch merged and back", of(
            lambda x: x.reshape(-1, 8).relu().reshape(x.shape[0], 3, 8)), V),
    ],
}  # fmt: skip


REFUSED: tuple[Row, ...] = tuple(
    Row("no integer meaning", *row)
    for row in [
        ("sort", of(lambda x: x.sort(-1).values), V),
        ("topk", of(lambda x: x.topk(2, -1).values), V),
        ("argmax", of(lambda x: x.argmax(-1).float()), V),
        ("median", of(lambda x: x.median(-1).values), V),
        ("prod", of(lambda x: x.prod(-1)), V),
        ("cumprod", of(lambda x: x.cumprod(-1)), V),
        ("masked_select", of(lambda x: x[x > 0].sum() + x.sum(-1)), V),
        ("nonzero", of(lambda x: x.nonzero().float()), V),
        ("rfft", of(lambda x: torch.fft.rfft(x).abs()), V),
        ("inverse", of(lambda x: torch.linalg.inv(x @ x.mT + torch.eye(3))), V),
        ("noise", of(lambda x: x + torch.randn_like(x)), V),
        ("grid_sample", of(lambda x: F.grid_sample(x, x[:, :2].permute(0, 2, 3, 1).tanh())), P),
        ("sum of the batch", of(lambda x: x - x.mean(0)), V),
        ("gather by the input", of(lambda x: x.gather(-1, x.argmax(-1, keepdim=True))), V),
    ]
)  # fmt: skip

ROWS: tuple[Row, ...] = tuple(Row(family, *row) for family, rows in _LISTS.items() for row in rows)


def samples(row: Row) -> Tensor:
    """float32[48, *shape] to calibrate ``row`` with."""
    return torch.randn(SAMPLES, *row.shape, generator=torch.Generator().manual_seed(1))
