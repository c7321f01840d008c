"""An answer with what it cost."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Generic, NamedTuple, TypeVar

import numpy as np
from numpy.typing import ArrayLike, NDArray

__all__ = ["Inference", "InferenceStats", "Named", "NamedAnswer", "NamedInference"]

Named = Mapping[str, ArrayLike]
"""A model's inputs by name."""
NamedAnswer = dict[str, NDArray[np.float32]]

Output = TypeVar("Output", bound=np.generic)


@dataclass(frozen=True, slots=True, kw_only=True)
class InferenceStats:
    """Of one inference; None where a figure does not apply to the engine.

    latency                     seconds at the client, from float or int8 in to the result out.
    samples                     in the batch.
    rounds                      round trips between client and server (homomorphic encryption),
                                exchanges between the parties (secret sharing), or between client
                                and host (one host).
    bytes_up, bytes_down        payload this client sent and received, gRPC framing not counted.
    online_bytes_per_direction  payload between the parties.
    offline_bytes_party0, _1    dealt material consumed.
    offline_bytes_up, _down     payload sent and received ahead of time for this inference.
    offline_seconds             in which that was made, beside other work.
    flights                     with one host the same: both ends may send in one.
    engine_seconds              of ``latency``, not spent waiting for the network (see the client).
    """

    latency: float
    samples: int
    rounds: int
    bytes_up: int
    bytes_down: int
    online_bytes_per_direction: int | None = None
    offline_bytes_party0: int | None = None
    offline_bytes_party1: int | None = None
    offline_bytes_up: int | None = None
    offline_bytes_down: int | None = None
    offline_seconds: float | None = None
    flights: int | None = None
    engine_seconds: float | None = None


class Inference(NamedTuple, Generic[Output]):
    """y: as ``infer`` returns it. stats: of this inference alone, whatever else the client does."""

    y: NDArray[Output]
    stats: InferenceStats


class NamedInference(NamedTuple):
    """y: each output by name, float32[batch, *shape]. stats: as in Inference."""

    y: NamedAnswer
    stats: InferenceStats
