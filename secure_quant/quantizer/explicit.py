"""torch's attention and transformer modules, written out in ops that torch.export keeps.

In eval mode those modules take fused paths that hide their steps. The modules here hold the same
parameters and compute the same function; what they cannot compute is refused by name.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from secure_quant.errors import UnsupportedModule

__all__ = ["make_explicit"]


def make_explicit(module: nn.Module, path: str = "") -> nn.Module:
    """``module`` with every MultiheadAttention, TransformerEncoderLayer and TransformerEncoder in
    it replaced, in place but for ``module`` itself. Raises UnsupportedModule."""
    kind = _EXPLICIT.get(type(module))
    for name, child in list(module.named_children()):
        setattr(module, name, make_explicit(child, f"{path}.{name}" if path else name))
    return module if kind is None else kind(module, path)


class _Attention(nn.Module):
    """nn.MultiheadAttention: projections, scaled dot products with a mask or none, projection."""

    def __init__(self, source: nn.MultiheadAttention, path: str) -> None:
        super().__init__()
        self.path, self.heads, self.batch_first = path, source.num_heads, source.batch_first
        extra = source.bias_k is not None or source.bias_v is not None or source.add_zero_attn
        _refuse(extra, self, "add_bias_kv or add_zero_attn", "leave both off")
        width = source.embed_dim
        self.qkv: nn.Linear | None = None
        self.projections: nn.ParameterList | None = None
        self.projection_bias = source.in_proj_bias
        if source.in_proj_weight is not None:
            self.qkv = nn.Linear(width, 3 * width, bias=source.in_proj_bias is not None)
            self.qkv.weight = source.in_proj_weight
            if source.in_proj_bias is not None:
                self.qkv.bias = source.in_proj_bias
        else:
            own = (source.q_proj_weight, source.k_proj_weight, source.v_proj_weight)
            self.projections = nn.ParameterList(own)
        self.out_proj = source.out_proj

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        key_padding_mask: Tensor | None = None,
        need_weights: bool = True,
        attn_mask: Tensor | None = None,
        average_attn_weights: bool = True,
        is_causal: bool = False,
    ) -> tuple[Tensor, None]:
        """[batch, length, width], or [length, batch, width] unless ``batch_first`` -> the same
        shape, and None in place of the weights."""
        _refuse_padding(self, key_padding_mask, attn_mask)
        alone = query is key and key is value and self.qkv is not None
        query, key, value = (
            x if self.batch_first else x.transpose(0, 1) for x in (query, key, value)
        )
        batch, length, width = query.shape
        shape = (batch, -1, self.heads, width // self.heads)
        if alone:
            qkv = self.qkv(query).reshape(batch, length, 3, *shape[2:])  # type: ignore[misc]
            q, k, v = qkv.permute(0, 2, 3, 1, 4).unbind(1)
        else:
            q, k, v = (y.reshape(shape).transpose(1, 2) for y in self._projected(query, key, value))
        if attn_mask is not None and attn_mask.dtype is torch.bool:
            attn_mask = ~attn_mask  # this module's True hides a key, the function's shows it
        y = functional.scaled_dot_product_attention(q, k, v, attn_mask)
        y = self.out_proj(y.transpose(1, 2).reshape(batch, length, width))
        return y if self.batch_first else y.transpose(0, 1), None

    def _projected(self, *values: Tensor) -> list[Tensor]:
        """Queries, keys and values of different tensors, each through its part of the weights."""
        weights: Any = self.projections if self.qkv is None else self.qkv.weight.chunk(3)
        bias: Any = self.projection_bias
        biases = (None, None, None) if bias is None else bias.chunk(3)
        return [functional.linear(*x) for x in zip(values, weights, biases, strict=True)]


class _Layer(nn.Module):
    """nn.TransformerEncoderLayer, with a mask or none; norm first or last."""

    def __init__(self, source: nn.TransformerEncoderLayer, path: str) -> None:
        super().__init__()
        self.path, self.norm_first = path, source.norm_first
        self.self_attn, self.activation = source.self_attn, source.activation
        self.linear1, self.linear2 = source.linear1, source.linear2
        self.norm1, self.norm2 = source.norm1, source.norm2

    def forward(
        self,
        src: Tensor,
        src_mask: Tensor | None = None,
        src_key_padding_mask: Tensor | None = None,
        is_causal: bool = False,
    ) -> Tensor:
        """[batch, length, width] -> the same shape."""
        _refuse_padding(self, src_key_padding_mask, src_mask)
        if self.norm_first:
            x = src + self._attend(self.norm1(src), src_mask)
            return x + self._feed(self.norm2(x))
        x = self.norm1(src + self._attend(src, src_mask))
        made: Tensor = self.norm2(x + self._feed(x))
        return made

    def _attend(self, x: Tensor, mask: Tensor | None) -> Tensor:
        made: Tensor = self.self_attn(x, x, x, attn_mask=mask)[0]
        return made

    def _feed(self, x: Tensor) -> Tensor:
        made: Tensor = self.linear2(self.activation(self.linear1(x)))
        return made


class _Encoder(nn.Module):
    """nn.TransformerEncoder, with a mask or none."""

    def __init__(self, source: nn.TransformerEncoder, path: str) -> None:
        super().__init__()
        self.path, self.layers, self.norm = path, source.layers, source.norm

    def forward(
        self,
        src: Tensor,
        mask: Tensor | None = None,
        src_key_padding_mask: Tensor | None = None,
        is_causal: bool | None = None,
    ) -> Tensor:
        """[batch, length, width] -> the same shape."""
        _refuse_padding(self, src_key_padding_mask, mask)
        for layer in self.layers:
            src = layer(src, mask)
        return src if self.norm is None else self.norm(src)


def _refuse_padding(module: Any, padding: Tensor | None, mask: Tensor | None) -> None:
    """``is_causal`` is only a hint in torch: what hides keys is the mask that comes with it."""
    hint = "use sequences of one length"
    _refuse(padding is not None, module, "a mask of padding, which differs by sample", hint)
    wide = mask is not None and mask.ndim != 2
    _refuse(wide, module, "a mask for each sample and head", "use one of [length, length]")


def _refuse(wrong: bool, module: Any, what: str, hint: str) -> None:
    if wrong:
        name = {_Attention: "MultiheadAttention", _Layer: "TransformerEncoderLayer",
                _Encoder: "TransformerEncoder"}[type(module)]  # fmt: skip
        where = module.path or "the model itself"
        raise UnsupportedModule(f"{name} at {where}", got=what, hint=hint)


_EXPLICIT: dict[type[nn.Module], Any] = {
    nn.MultiheadAttention: _Attention,
    nn.TransformerEncoderLayer: _Layer,
    nn.TransformerEncoder: _Encoder,
}
