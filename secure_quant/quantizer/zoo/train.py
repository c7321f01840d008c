"""A short training loop with a fixed seed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import nn

from secure_quant.quantizer.zoo.data import Split

__all__ = ["accuracy", "train"]


def train(
    build: Callable[[], nn.Module],
    data: Split,
    *,
    epochs: int = 8,
    batch_size: int = 64,
    learning_rate: float = 2e-3,
    seed: int = 0,
    progress: Callable[[str, int, int], None] | None = None,
) -> nn.Module:
    """A fresh ``build()`` trained with Adam and cross-entropy, in eval mode.

    The same seed gives the same weights on the same machine.
    """
    torch.manual_seed(seed)
    model = build()
    generator = torch.Generator().manual_seed(seed)
    x, y = torch.from_numpy(data.train_x), torch.from_numpy(data.train_y)
    steps = -(-len(x) // batch_size) * epochs
    optimizer = torch.optim.Adam(model.parameters(), lr=learning_rate)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, learning_rate * 2, total_steps=steps)
    model.train()
    for epoch in range(epochs):
        if progress is not None:
            progress("train", epoch, epochs)
        for chosen in torch.split(torch.randperm(len(x), generator=generator), batch_size):
            optimizer.zero_grad()
            loss = nn.functional.cross_entropy(model(x[chosen]), y[chosen])
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            schedule.step()
    return model.eval()


def accuracy(logits: ArrayLike, labels: NDArray[Any]) -> float:
    """Share of rows whose largest logit is at the label."""
    return float((np.asarray(logits).argmax(-1) == labels).mean())
