"""What the front and an evaluation process say to each other.

Start: a ``Load`` for each bundle, answered by ``Done`` with its ModelInfo. Then ``Evaluate``,
answered by ``Begun`` once it is read and before it is looked at, and by ``Done`` with ciphertexts.
``Failed`` stands for either ``Done``, with a google.rpc.Status.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from secure_quant_server.common.messages import Vocabulary

__all__ = ["ANSWERS", "REQUESTS", "Begun", "Done", "Evaluate", "Failed", "Load"]


@dataclass(frozen=True, slots=True)
class Load:
    """One of ``models`` bundles."""

    models: int
    body: bytes | memoryview = field(repr=False)


@dataclass(frozen=True, slots=True)
class Evaluate:
    """Ciphertexts for a step of a model, by its number."""

    model: int
    step: int
    batch: int
    body: bytes | memoryview = field(repr=False)


@dataclass(frozen=True, slots=True)
class Begun:
    """From here on a crash may be the request's doing, and it is not given to another worker."""


@dataclass(frozen=True, slots=True)
class Done:
    """What was asked for."""

    body: bytes = field(repr=False)


@dataclass(frozen=True, slots=True)
class Failed:
    """A named error."""

    body: bytes = field(repr=False)


REQUESTS, ANSWERS = Vocabulary(Load, Evaluate), Vocabulary(Begun, Done, Failed)
