"""One small model of each architecture family that people have: the blocks that make it one, with
random weights and the widths of a test."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

__all__ = ["FAMILIES"]


class Residual(nn.Module):
    """ResNet: two convolutions and a way around them, with a stride."""

    def __init__(self, into: int = 4, out: int = 6, stride: int = 2) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(into, out, 3, stride, 1, bias=False), nn.BatchNorm2d(out), nn.ReLU(),
            nn.Conv2d(out, out, 3, 1, 1, bias=False), nn.BatchNorm2d(out),
        )  # fmt: skip
        self.around = nn.Conv2d(into, out, 1, stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return (self.body(x) + self.around(x)).relu()


class Inverted(nn.Module):
    """MobileNet v3 and EfficientNet: wide, depthwise, squeeze and excitation, narrow."""

    def __init__(self, width: int = 4) -> None:
        super().__init__()
        self.wide = nn.Sequential(nn.Conv2d(width, 8, 1), nn.BatchNorm2d(8), nn.Hardswish())
        self.depth = nn.Sequential(nn.Conv2d(8, 8, 3, 1, 1, groups=8), nn.SiLU())
        self.squeeze = nn.Sequential(
            nn.AdaptiveAvgPool2d(1), nn.Conv2d(8, 4, 1), nn.ReLU(), nn.Conv2d(4, 8, 1),
            nn.Hardsigmoid(),
        )  # fmt: skip
        self.narrow = nn.Conv2d(8, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        made = self.depth(self.wide(x))
        return x + self.narrow(made * self.squeeze(made))


class Dense(nn.Module):
    """DenseNet: each layer reads all before it."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            nn.Sequential(nn.BatchNorm2d(n), nn.ReLU(), nn.Conv2d(n, 3, 3, padding=1))
            for n in (4, 7)
        )

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = torch.cat([x, layer(x)], 1)
        return functional.avg_pool2d(x, 2)


class Fire(nn.Module):
    """SqueezeNet."""

    def __init__(self) -> None:
        super().__init__()
        self.squeeze, self.one = nn.Conv2d(4, 2, 1), nn.Conv2d(2, 3, 1)
        self.three = nn.Conv2d(2, 3, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.squeeze(x).relu()
        return functional.max_pool2d(torch.cat([self.one(x), self.three(x)], 1).relu(), 2)


class Ghost(nn.Module):
    """GhostNet: half of the channels made of the others."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.cheap = nn.Conv2d(4, 3, 1), nn.Conv2d(3, 3, 3, padding=1, groups=3)

    def forward(self, x: Tensor) -> Tensor:
        first = self.first(x).relu()
        return torch.cat([first, self.cheap(first).relu()], 1)[:, :5]


class Shuffled(nn.Module):
    """ShuffleNet: half of the channels pass, all are shuffled."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(2, 2, 3, padding=1, groups=2), nn.Conv2d(2, 2, 1))

    def forward(self, x: Tensor) -> Tensor:
        kept, worked = x.chunk(2, 1)
        made = torch.cat([kept, self.body(worked).relu()], 1)
        return made.reshape(-1, 2, 2, *x.shape[2:]).transpose(1, 2).reshape(x.shape)


class Attention(nn.Module):
    """As timm writes it."""

    def __init__(self, width: int = 8, heads: int = 2) -> None:
        super().__init__()
        self.heads, self.qkv, self.out = heads, nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        b, n, c = x.shape
        q, k, v = self.qkv(x).reshape(b, n, 3, self.heads, -1).permute(2, 0, 3, 1, 4).unbind(0)
        return self.out(
            functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(b, n, c)
        )


class Vision(nn.Module):
    """ViT: patches, a token of its own, one block. window: Swin's, shifted by half of it."""

    def __init__(self, window: int = 0) -> None:
        super().__init__()
        self.window, self.patch = window, nn.Conv2d(3, 8, 2, 2)
        self.token = nn.Parameter(torch.randn(1, 1, 8))
        self.norm, self.attention = nn.LayerNorm(8), Attention()
        self.mlp = nn.Sequential(
            nn.LayerNorm(8), nn.Linear(8, 16), nn.GELU(), nn.Linear(16, 8)
        )  # fmt: skip
        self.head = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patch(x).flatten(2).transpose(1, 2)
        if self.window:
            x = x + self._in_windows(self.norm(x))
        else:
            x = torch.cat([self.token.expand(len(x), -1, -1), x], 1)
            x = x + self.attention(self.norm(x))
        x = x + self.mlp(x)
        return self.head(x.mean(1) if self.window else x[:, 0])

    def _in_windows(self, x: Tensor) -> Tensor:
        b, n, c = x.shape
        side, w = int(n**0.5), self.window
        x = x.reshape(b, side, side, c).roll((-w // 2, -w // 2), (1, 2))
        x = x.reshape(b, side // w, w, side // w, w, c).transpose(2, 3).reshape(-1, w * w, c)
        x = self.attention(x).reshape(b, side // w, side // w, w, w, c).transpose(2, 3)
        return x.reshape(b, side, side, c).roll((w // 2, w // 2), (1, 2)).reshape(b, n, c)


class ConvNext(nn.Module):
    """Depthwise 7 x 7, LayerNorm of channels, LayerScale."""

    def __init__(self) -> None:
        super().__init__()
        self.depth, self.norm = nn.Conv2d(4, 4, 7, padding=3, groups=4), nn.LayerNorm(4)
        self.mlp = nn.Sequential(nn.Linear(4, 8), nn.GELU(), nn.Linear(8, 4))
        self.scale = nn.Parameter(torch.rand(4) + 0.5)

    def forward(self, x: Tensor) -> Tensor:
        made = self.mlp(self.norm(self.depth(x).permute(0, 2, 3, 1))) * self.scale
        return x + made.permute(0, 3, 1, 2)


class Mixer(nn.Module):
    """MLP-Mixer: along tokens, then along features."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.LayerNorm(8), nn.LayerNorm(8)
        self.tokens = nn.Sequential(nn.Linear(5, 6), nn.GELU(), nn.Linear(6, 5))
        self.features = nn.Sequential(nn.Linear(8, 6), nn.GELU(), nn.Linear(6, 8))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.tokens(self.first(x).transpose(1, 2)).transpose(1, 2)
        return x + self.features(self.second(x))


class Recurrent(nn.Module):
    """The last state of an LSTM or GRU, forwards and backwards."""

    def __init__(self, kind: type[nn.Module]) -> None:
        super().__init__()
        self.inner, self.head = kind(4, 3, batch_first=True, bidirectional=True), nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.inner(x)[0][:, -1])


class Text(nn.Module):
    """A text encoder, from ids and a padding mask."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.places = nn.Embedding(12, 8), nn.Parameter(torch.randn(1, 4, 8))
        layer = nn.TransformerEncoderLayer(8, 2, 12, 0.0, "gelu", batch_first=True)
        self.inner = nn.TransformerEncoder(layer, 1, enable_nested_tensor=False)
        self.head = nn.Linear(8, 3)

    def forward(self, ids: Tensor, hidden: Tensor) -> Tensor:
        made = self.inner(self.words(ids) + self.places, src_key_padding_mask=hidden)
        return self.head(made[:, 0])


class Decoder(nn.Module):
    """One pass of Llama's kind: RMSNorm, rotated queries and keys, a causal mask, SwiGLU."""

    cos: Tensor
    sin: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.after = nn.RMSNorm(8), nn.RMSNorm(8)
        self.q, self.k, self.v, self.o = (nn.Linear(8, 8, bias=False) for _ in range(4))
        self.gate, self.up, self.down = nn.Linear(8, 12), nn.Linear(8, 12), nn.Linear(12, 8)
        angles = torch.arange(4.0)[:, None] * torch.tensor([1.0, 0.1, 1.0, 0.1])
        self.register_buffer("cos", angles.cos())
        self.register_buffer("sin", angles.sin())

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (
            layer(self.norm(x)).unflatten(-1, (2, 4)).transpose(1, 2)
            for layer in (self.q, self.k, self.v)
        )
        made = functional.scaled_dot_product_attention(
            self._turned(q), self._turned(k), v, is_causal=True
        )
        x = x + self.o(made.transpose(1, 2).flatten(2))
        y = self.after(x)
        return x + self.down(functional.silu(self.gate(y)) * self.up(y))

    def _turned(self, x: Tensor) -> Tensor:
        first, second = x.chunk(2, -1)
        return x * self.cos + torch.cat([-second, first], -1) * self.sin


class Segmentation(nn.Module):
    """DeepLab's head: dilated and pooled branches, and the picture's size again."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3, 2, 1)
        self.one, self.far = nn.Conv2d(4, 4, 1), nn.Conv2d(4, 4, 3, padding=2, dilation=2)
        self.whole = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Conv2d(4, 4, 1), nn.ReLU())
        self.head = nn.Conv2d(12, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        small = self.stem(x).relu()
        whole = functional.interpolate(self.whole(small), small.shape[2:], mode="bilinear")
        made = self.head(torch.cat([self.one(small).relu(), self.far(small).relu(), whole], 1))
        return functional.interpolate(made, x.shape[2:], mode="bilinear")


class UNet(nn.Module):
    """Down, up by a transposed convolution, and across."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.low = nn.Conv2d(2, 4, 3, padding=1), nn.Conv2d(4, 6, 3, padding=1)
        self.up, self.last = nn.ConvTranspose2d(6, 4, 2, 2), nn.Conv2d(8, 2, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        high = self.first(x).relu()
        low = self.low(functional.max_pool2d(high, 2)).relu()
        return self.last(torch.cat([high, self.up(low)], 1))


def audio() -> nn.Module:
    """Strided convolutions over a waveform, GroupNorm, GELU, as Wav2Vec2 begins."""
    return nn.Sequential(
        nn.Conv1d(1, 4, 8, 4, bias=False), nn.GroupNorm(4, 4), nn.GELU(), nn.Conv1d(4, 6, 3, 2),
        nn.GELU(), nn.AdaptiveAvgPool1d(1), nn.Flatten(), nn.Linear(6, 3),
    )  # fmt: skip


def video() -> nn.Module:
    """R(2+1)D: over space, then over time."""
    return nn.Sequential(
        nn.Conv3d(2, 4, (1, 3, 3), (1, 2, 2), (0, 1, 1)), nn.BatchNorm3d(4), nn.ReLU(),
        nn.Conv3d(4, 4, (3, 1, 1), padding=(1, 0, 0)), nn.ReLU(), nn.AdaptiveAvgPool3d(1),
        nn.Flatten(), nn.Linear(4, 3),
    )  # fmt: skip


FAMILIES = {
    "ResNet": (Residual, (4, 6, 6)),
    "VGG": (lambda: nn.Sequential(
        nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(),
        nn.Linear(36, 6), nn.ReLU(), nn.Dropout(), nn.Linear(6, 3)), (3, 6, 6)),
    "MobileNet, EfficientNet": (Inverted, (4, 5, 5)),
    "DenseNet": (Dense, (4, 6, 6)),
    "SqueezeNet": (Fire, (4, 6, 6)),
    "GhostNet": (Ghost, (4, 5, 5)),
    "ShuffleNet": (Shuffled, (4, 5, 5)),
    "ViT": (Vision, (3, 4, 4)),
    "Swin": (lambda: Vision(window=2), (3, 8, 8)),
    "ConvNeXt": (ConvNext, (4, 5, 5)),
    "Mixer": (Mixer, (5, 8)),
    "LSTM": (lambda: Recurrent(nn.LSTM), (3, 4)),
    "GRU": (lambda: Recurrent(nn.GRU), (3, 4)),
    "decoder": (Decoder, (4, 8)),
    "DeepLab": (Segmentation, (3, 8, 8)),
    "U-Net": (UNet, (2, 6, 6)),
    "audio": (audio, (1, 60)),
    "video": (video, (2, 3, 6, 6)),
    "text": (Text, None),
}  # fmt: skip
"""Name -> (a model, the shape of its input; None: ids of four tokens, and what is hidden)."""
