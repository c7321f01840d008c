"""torch's attention and transformer modules, written out in ops that torch.export keeps.

In eval mode those modules take fused paths that hide their steps. The modules here hold the same
parameters and compute the same function; what they cannot compute is refused by name.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from secure_quant.errors import UnsupportedModule
from secure_quant.quantizer.refuse import own_path

__all__ = ["make_explicit"]


def make_explicit(module: nn.Module, path: str = "") -> nn.Module:
    """``module`` with every MultiheadAttention, EmbeddingBag and part of a Transformer in it
    replaced, in place but for ``module`` itself. Raises UnsupportedModule."""
    kind = _EXPLICIT.get(type(module))
    for name, child in list(module.named_children()):
        setattr(module, name, make_explicit(child, f"{path}.{name}" if path else name))
    return module if kind is None else kind(module, path)


class _Attention(nn.MultiheadAttention):
    """Projections, scaled dot products with a mask or none, projection. A subclass, since a forward
    may ask what it is and for its sizes; nothing of the parent's is left."""

    def __init__(self, source: nn.MultiheadAttention, path: str) -> None:
        nn.Module.__init__(self)
        self.path, self.heads, self.batch_first = path, source.num_heads, source.batch_first
        self.num_heads, self.embed_dim = source.num_heads, source.embed_dim
        self.head_dim, self.dropout = source.head_dim, source.dropout
        extra = source.bias_k is not None or source.bias_v is not None or source.add_zero_attn
        _refuse(extra, self, "add_bias_kv or add_zero_attn", "leave both off")
        width, bias = source.embed_dim, source.in_proj_bias
        self.qkv: nn.Linear | None = None
        if source.in_proj_weight is not None:
            self.qkv = _linear(source.in_proj_weight, bias)
            weights = list(source.in_proj_weight.chunk(3))
        else:
            weights = [source.q_proj_weight, source.k_proj_weight, source.v_proj_weight]
        biases = [None] * 3 if bias is None else list(bias.chunk(3))
        self.each = nn.ModuleList(map(_linear, weights, biases))
        self.width, self.out_proj = width, source.out_proj

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
    ) -> tuple[Tensor, Tensor | None]:
        """[batch, length, width] -> the shape of query, and weights if they are wanted."""
        attn_mask = _joined(self, key_padding_mask, attn_mask)
        alone = query is key and key is value and self.qkv is not None
        if not self.batch_first:
            query, key, value = (x.transpose(0, 1) for x in (query, key, value))
        q, k, v = self._together(query) if alone else self._apart(query, key, value)
        weights = None
        if need_weights:
            scores = q @ k.transpose(-2, -1) / math.sqrt(q.shape[-1])
            if attn_mask is not None and attn_mask.dtype is torch.bool:
                attn_mask = torch.where(attn_mask, 0.0, -math.inf)
            weights = (scores if attn_mask is None else scores + attn_mask).softmax(-1)
            y = weights @ v
            weights = weights.mean(1) if average_attn_weights else weights
        else:
            y = functional.scaled_dot_product_attention(q, k, v, attn_mask)
        y = self.out_proj(y.transpose(1, 2).reshape(query.shape[0], query.shape[1], self.width))
        return y if self.batch_first else y.transpose(0, 1), weights

    def _together(self, x: Tensor) -> list[Tensor]:
        """[batch, heads, length, d] of queries, keys and values of one tensor."""
        assert self.qkv is not None  # noqa: S101  its caller has looked
        batch, length, _ = x.shape
        parts = self.qkv(x).reshape(batch, length, 3, self.heads, self.width // self.heads)
        return list(parts.permute(0, 2, 3, 1, 4).unbind(1))

    def _apart(self, *given: Tensor) -> list[Tensor]:
        made = []
        for x, layer in zip(given, self.each, strict=True):
            parts = layer(x).reshape(x.shape[0], x.shape[1], self.heads, self.width // self.heads)
            made.append(parts.transpose(1, 2))
        return made


def _linear(weight: Tensor, bias: Tensor | None) -> nn.Linear:
    made = nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None)
    made.weight = nn.Parameter(weight, weight.requires_grad)
    if bias is not None:
        made.bias = nn.Parameter(bias, bias.requires_grad)
    return made


class _Layer(nn.Module):
    """nn.TransformerEncoderLayer, with a mask or none; norm first or last."""

    def __init__(self, source: nn.TransformerEncoderLayer, path: str) -> None:
        super().__init__()
        self.path, self.norm_first = path, source.norm_first
        self.self_attn, self.activation = source.self_attn, source.activation
        self.linear1, self.linear2 = source.linear1, source.linear2
        self.norm1, self.norm2 = source.norm1, source.norm2
        self.batch_first = _take_batch(self.self_attn)

    def forward(
        self,
        src: Tensor,
        src_mask: Tensor | None = None,
        src_key_padding_mask: Tensor | None = None,
        is_causal: bool = False,
    ) -> Tensor:
        """[batch, length, width] -> the same shape."""
        masks = src_mask, src_key_padding_mask
        if not self.batch_first:
            return self._layer(src.transpose(0, 1), *masks).transpose(0, 1)
        return self._layer(src, *masks)

    def _layer(self, src: Tensor, *masks: Tensor | None) -> Tensor:
        if self.norm_first:
            x = src + _attend(self.self_attn, self.norm1(src), None, *masks)
            return x + self._feed(self.norm2(x))
        x = self.norm1(src + _attend(self.self_attn, src, None, *masks))
        made: Tensor = self.norm2(x + self._feed(x))
        return made

    def _feed(self, x: Tensor) -> Tensor:
        made: Tensor = self.linear2(self.activation(self.linear1(x)))
        return made


class _DecoderLayer(nn.Module):
    """nn.TransformerDecoderLayer, with masks or none; norms first or last."""

    def __init__(self, source: nn.TransformerDecoderLayer, path: str) -> None:
        super().__init__()
        self.path, self.norm_first = path, source.norm_first
        self.self_attn, self.multihead_attn = source.self_attn, source.multihead_attn
        self.linear1, self.linear2 = source.linear1, source.linear2
        self.activation = source.activation
        self.norm1, self.norm2, self.norm3 = source.norm1, source.norm2, source.norm3
        self.batch_first = _take_batch(self.self_attn)
        _take_batch(self.multihead_attn)

    def forward(
        self,
        tgt: Tensor,
        memory: Tensor,
        tgt_mask: Tensor | None = None,
        memory_mask: Tensor | None = None,
        tgt_key_padding_mask: Tensor | None = None,
        memory_key_padding_mask: Tensor | None = None,
        tgt_is_causal: bool = False,
        memory_is_causal: bool = False,
    ) -> Tensor:
        """[batch, length, width] and the encoder's rows -> the shape of tgt."""
        own = tgt_mask, tgt_key_padding_mask
        across = memory_mask, memory_key_padding_mask
        if self.batch_first:
            return self._layer(tgt, memory, own, across)
        tgt, memory = tgt.transpose(0, 1), memory.transpose(0, 1)
        return self._layer(tgt, memory, own, across).transpose(0, 1)

    def _layer(self, x: Tensor, memory: Tensor, masks: _Masks, across_masks: _Masks) -> Tensor:
        def own(y: Tensor) -> Tensor:
            return _attend(self.self_attn, y, None, *masks)

        def across(y: Tensor) -> Tensor:
            return _attend(self.multihead_attn, y, memory, *across_masks)

        def feed(y: Tensor) -> Tensor:
            made: Tensor = self.linear2(self.activation(self.linear1(y)))
            return made

        for norm, step in ((self.norm1, own), (self.norm2, across), (self.norm3, feed)):
            x = x + step(norm(x)) if self.norm_first else norm(x + step(x))
        return x


class _Decoder(nn.Module):
    """nn.TransformerDecoder, with masks or none."""

    def __init__(self, source: nn.TransformerDecoder, path: str) -> None:
        super().__init__()
        self.path, self.layers, self.norm = path, source.layers, source.norm

    def forward(
        self,
        tgt: Tensor,
        memory: Tensor,
        tgt_mask: Tensor | None = None,
        memory_mask: Tensor | None = None,
        tgt_key_padding_mask: Tensor | None = None,
        memory_key_padding_mask: Tensor | None = None,
        tgt_is_causal: bool | None = None,
        memory_is_causal: bool = False,
    ) -> Tensor:
        """[batch, length, width] and the encoder's rows -> the shape of tgt."""
        for layer in self.layers:
            tgt = layer(
                tgt, memory, tgt_mask, memory_mask, tgt_key_padding_mask, memory_key_padding_mask
            )
        return tgt if self.norm is None else self.norm(tgt)


def _take_batch(attention: Any) -> bool:
    """Whether an attention has the batch first; from now on it has."""
    first = bool(attention.batch_first)
    attention.batch_first = True
    return first


class _Encoder(nn.Module):
    """nn.TransformerEncoder, with a mask or none."""

    def __init__(self, source: nn.TransformerEncoder, path: str) -> None:
        super().__init__()
        self.path, self.layers, self.norm = path, source.layers, source.norm
        self.nests = bool(getattr(source, "use_nested_tensor", False))

    def forward(
        self,
        src: Tensor,
        mask: Tensor | None = None,
        src_key_padding_mask: Tensor | None = None,
        is_causal: bool | None = None,
    ) -> Tensor:
        """[batch, length, width] -> the same shape."""
        nested = self.nests and src_key_padding_mask is not None
        _refuse(
            nested, self, "padding as nested tensors: at inference torch writes zeros over padded "
            "rows, if all samples of a batch are padded behind",
            "build it with enable_nested_tensor=False, or set its use_nested_tensor to False",
        )  # fmt: skip
        for layer in self.layers:
            src = layer(src, mask, src_key_padding_mask)
        return src if self.norm is None else self.norm(src)


_Masks = tuple[Tensor | None, Tensor | None]
"""Of an attention: for pairs of rows, for padding."""


def _attend(
    attention: nn.Module, x: Tensor, memory: Tensor | None, mask: Tensor | None,
    padding: Tensor | None,
) -> Tensor:  # fmt: skip
    """Of ``x`` to ``memory``, or to itself."""
    keys = x if memory is None else memory
    made: Tensor = attention(
        x, keys, keys, attn_mask=mask, key_padding_mask=padding, need_weights=False
    )[0]
    return made


def _joined(module: _Attention, padding: Tensor | None, mask: Tensor | None) -> Tensor | None:
    """Both masks as scaled_dot_product_attention takes one: true where a key is seen, or a sum.
    ``is_causal`` is only a hint in torch: what hides keys is the mask that comes with it."""
    wide = mask is not None and mask.ndim != 2
    _refuse(wide, module, "a mask for each sample and head", "use one of [length, length]")
    if mask is not None and mask.dtype is torch.bool:
        mask = ~mask  # this module's True hides a key, the function's shows it
    if padding is None:
        return mask
    padding = padding[:, None, None]
    if padding.dtype is torch.bool:
        padding = ~padding
    if mask is None or mask.dtype == padding.dtype:
        both = mask is not None and padding.dtype is torch.bool
        return padding if mask is None else padding & mask if both else padding + mask
    real = (m if m.dtype.is_floating_point else torch.where(m, 0.0, -math.inf)
            for m in (padding, mask))  # fmt: skip
    return next(real) + next(real)


def _refuse(wrong: bool, module: Any, what: str, hint: str) -> None:
    if wrong:
        name = next(
            torch_s.__name__ for torch_s, ours in _EXPLICIT.items() if isinstance(module, ours)
        )
        where = own_path(module.path) or "the model itself"
        raise UnsupportedModule(f"{name} at {where}", got=what, hint=hint)


class _Bag(nn.Module):
    """nn.EmbeddingBag of [batch, length] numbers, written out."""

    def __init__(self, source: nn.EmbeddingBag, path: str) -> None:
        super().__init__()
        self.path, self.weight, self.mode = path, source.weight, source.mode
        _refuse(
            source.max_norm is not None, self, "max_norm, which changes the table",
            "normalize the table once, and leave max_norm out",
        )  # fmt: skip
        padded = source.padding_idx is not None
        _refuse(
            padded and source.mode != "sum", self, f"padding_idx with mode {source.mode!r}",
            "use nn.Embedding and a mask that is an input",
        )  # fmt: skip
        if padded:  # its row does not count
            alone = source.weight.detach().clone()
            alone[source.padding_idx] = 0
            self.weight = nn.Parameter(alone, source.weight.requires_grad)

    def forward(
        self,
        input: Tensor,  # noqa: A002  torch's own name
        offsets: Tensor | None = None,
        per_sample_weights: Tensor | None = None,
    ) -> Tensor:
        """int64[batch, length] -> float[batch, width]."""
        _refuse(
            input.ndim != 2 or offsets is not None, self, "bags of unlike length, by offsets",
            "give it [batch, length] numbers, padded to one length",
        )  # fmt: skip
        rows = functional.embedding(input, self.weight)
        if per_sample_weights is not None:
            rows = rows * per_sample_weights[..., None]
        if self.mode == "max":
            return rows.amax(1)
        return rows.sum(1) if self.mode == "sum" else rows.mean(1)


_EXPLICIT: dict[type[nn.Module], Any] = {
    nn.EmbeddingBag: _Bag,
    nn.MultiheadAttention: _Attention,
    nn.TransformerEncoderLayer: _Layer,
    nn.TransformerEncoder: _Encoder,
    nn.TransformerDecoderLayer: _DecoderLayer,
    nn.TransformerDecoder: _Decoder,
}
