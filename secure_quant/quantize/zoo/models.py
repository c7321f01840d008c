"""Plain torch modules, as a user would write them."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional

__all__ = ["LeNet", "linear", "mlp"]


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
