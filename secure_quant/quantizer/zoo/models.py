"""Plain torch modules, as a user would write them."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

__all__ = [
    "DepthwiseNet",
    "LeNet",
    "ResNet",
    "RowClassifier",
    "TransformerEncoder",
    "linear",
    "mlp",
]


def linear(features: int = 8, out: int = 32) -> nn.Linear:
    """One fully connected layer."""
    return nn.Linear(features, out)


def mlp(features: int = 64, hidden: int = 128, out: int = 10) -> nn.Sequential:
    """Two fully connected layers with ReLU between, for flat inputs [features]."""
    return nn.Sequential(nn.Linear(features, hidden), nn.ReLU(), nn.Linear(hidden, out))


class LeNet(nn.Module):
    """LeNet for 3×32×32 images: two 5×5 convolutions with pooling, three linear layers.

    ``bias=False`` with ``padding=2`` gives the variant that keeps 32×32 through the first
    convolution and has no biases.
    """

    def __init__(
        self, *, channels: int = 3, out: int = 10, bias: bool = True, padding: int = 0
    ) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, 6, 5, padding=padding, bias=bias)
        self.conv2 = nn.Conv2d(6, 16, 5, bias=bias)
        side = ((32 + 2 * padding - 4) // 2 - 4) // 2
        self.fc1 = nn.Linear(16 * side * side, 120, bias=bias)
        self.fc2 = nn.Linear(120, 84, bias=bias)
        self.fc3 = nn.Linear(84, out, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        """float[batch, channels, 32, 32] -> logits float[batch, out]."""
        x = functional.max_pool2d(functional.relu(self.conv1(x)), 2)
        x = functional.max_pool2d(functional.relu(self.conv2(x)), 2)
        x = x.flatten(1)
        x = functional.relu(self.fc1(x))
        x = functional.relu(self.fc2(x))
        y: Tensor = self.fc3(x)
        return y


class _Residual(nn.Module):
    """Two 3×3 convolutions with BatchNorm around a shortcut."""

    def __init__(self, channels: int, out: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, out, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(out)
        self.conv2 = nn.Conv2d(out, out, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(out)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or channels != out:
            self.shortcut = nn.Sequential(
                nn.Conv2d(channels, out, 1, stride, bias=False), nn.BatchNorm2d(out)
            )

    def forward(self, x: Tensor) -> Tensor:
        """[batch, channels, H, W] -> [batch, out, H / stride, W / stride]."""
        y = functional.relu(self.bn1(self.conv1(x)))
        return functional.relu(self.bn2(self.conv2(y)) + self.shortcut(x))


class ResNet(nn.Module):
    """The residual network for 32×32 images of He et al. 2016, section 4.2: ``6 n + 2`` layers in
    three stages of n blocks; n = 3 is ResNet-20."""

    def __init__(
        self, blocks: int = 3, *, width: int = 16, channels: int = 3, out: int = 10
    ) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, width, 3, 1, 1, bias=False)
        self.bn = nn.BatchNorm2d(width)
        layers: list[nn.Module] = []
        have = width
        for stage in range(3):
            for block in range(blocks):
                want = width * 2**stage
                layers.append(_Residual(have, want, 2 if stage and not block else 1))
                have = want
        self.blocks = nn.Sequential(*layers)
        self.fc = nn.Linear(have, out)

    def forward(self, x: Tensor) -> Tensor:
        """float[batch, channels, 32, 32] -> logits float[batch, out]."""
        x = functional.relu(self.bn(self.conv(x)))
        x = functional.adaptive_avg_pool2d(self.blocks(x), 1).flatten(1)
        y: Tensor = self.fc(x)
        return y


class DepthwiseNet(nn.Module):
    """Depthwise-separable blocks with ReLU6 and Hardswish, global average pool, classifier."""

    def __init__(self, *, channels: int = 3, width: int = 16, out: int = 10) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            nn.Conv2d(channels, width, 3, 2, 1, bias=False), nn.BatchNorm2d(width), nn.Hardswish()
        )
        self.blocks = nn.Sequential(
            self._separable(width, 2 * width, 2), self._separable(2 * width, 2 * width, 1)
        )
        self.fc = nn.Linear(2 * width, out)

    @staticmethod
    def _separable(channels: int, out: int, stride: int) -> nn.Sequential:
        return nn.Sequential(
            nn.Conv2d(channels, channels, 3, stride, 1, groups=channels, bias=False),
            nn.BatchNorm2d(channels),
            nn.ReLU6(),
            nn.Conv2d(channels, out, 1, bias=False),
            nn.BatchNorm2d(out),
            nn.Hardswish(),
        )

    def forward(self, x: Tensor) -> Tensor:
        """float[batch, channels, H, W] -> logits float[batch, out]."""
        y: Tensor = self.fc(self.blocks(self.stem(x)).mean((2, 3)))
        return y


class _Encoder(nn.Module):
    """One pre-norm transformer layer: attention and feed-forward, each with a shortcut."""

    def __init__(self, width: int, heads: int, hidden: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1 = nn.LayerNorm(width)
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)
        self.norm2 = nn.LayerNorm(width)
        self.fc1 = nn.Linear(width, hidden)
        self.fc2 = nn.Linear(hidden, width)

    def _attend(self, x: Tensor) -> Tensor:
        batch, length, width = x.shape
        qkv = self.qkv(x).reshape(batch, length, 3, self.heads, width // self.heads)
        q, k, v = qkv.permute(0, 2, 3, 1, 4).unbind(1)
        y = functional.scaled_dot_product_attention(q, k, v)
        out: Tensor = self.proj(y.transpose(1, 2).reshape(batch, length, width))
        return out

    def forward(self, x: Tensor) -> Tensor:
        """[batch, length, width] -> [batch, length, width]."""
        x = x + self._attend(self.norm1(x))
        y: Tensor = x + self.fc2(functional.gelu(self.fc1(self.norm2(x))))
        return y


class TransformerEncoder(nn.Module):
    """Pre-norm encoder layers on sequences [length, width]."""

    def __init__(
        self, *, width: int = 64, heads: int = 4, hidden: int = 128, layers: int = 1
    ) -> None:
        super().__init__()
        self.layers = nn.Sequential(*(_Encoder(width, heads, hidden) for _ in range(layers)))

    def forward(self, x: Tensor) -> Tensor:
        """float[batch, length, width] -> the same shape."""
        y: Tensor = self.layers(x)
        return y


class RowClassifier(nn.Module):
    """Reads a sequence of rows (of an image, or of token features) and names its class."""

    def __init__(
        self, *, length: int = 8, features: int = 8, width: int = 64, heads: int = 4,
        hidden: int = 128, layers: int = 1, out: int = 10,
    ) -> None:  # fmt: skip
        super().__init__()
        self.embed = nn.Linear(features, width)
        self.positions = nn.Parameter(torch.randn(length, width) * 0.1)
        self.encoder = TransformerEncoder(width=width, heads=heads, hidden=hidden, layers=layers)
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, out)

    def forward(self, x: Tensor) -> Tensor:
        """float[batch, length, features] -> logits float[batch, out]."""
        x = self.encoder(self.embed(x) + self.positions)
        y: Tensor = self.head(self.norm(x).mean(1))
        return y
