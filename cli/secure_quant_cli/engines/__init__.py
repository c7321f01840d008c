"""What the commands need of each engine besides its row in ``secure_quant.engines``: a file each.

``Exact`` is of an engine that equals the reference, ``OwnModels`` of one with model files of its
own. Light: a file is imported when its engine is used.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from secure_quant.engines import Engine, engines, find, resolved

if TYPE_CHECKING:
    import argparse
    from pathlib import Path

    from secure_quant.ir import Graph
    from secure_quant_cli.inprocess import Executor
    from secure_quant_client import InferenceStats

__all__ = [
    "Costs",
    "Exact",
    "OwnModels",
    "Way",
    "exact",
    "exact_names",
    "in_process",
    "own_models",
    "owner",
]


@dataclass(frozen=True)
class Way:
    """What an inference takes, with all made ahead that can be. trips: round trips one after the
    other. sent: bytes one after the other. hops: seconds that processes and calls take on one
    machine. work: what computing is linear in, the same three kinds for every graph. beside:
    bytes of material that are made and sent while it runs; 0 where all of it was made ahead."""

    trips: float
    sent: int
    hops: float
    work: tuple[float, float, float]
    beside: int = 0


Costs = tuple[dict[str, int], dict[str, dict[str, int]]]
"""From a plan, for one sample: totals, and by node name."""


@dataclass(frozen=True, kw_only=True)
class Exact:
    """in_process   (graph) -> the whole engine in this process. Raises OpNotSupported.
    costs        (graph) -> what its plan says, in all and by node name. Raises OpNotSupported.
    way          (plan, batch) -> what messages take, and what computing is linear in.
    memory       (plan, batch) -> role or "client" -> peak resident bytes, about.
    held         (plan) -> role or "client" -> samples whose material it holds ready, with default
                 options; None where an engine has no such material.
    budget       (plan) -> samples of one client that it is "planned" and that it is "good" for;
                 None where there is no such number.
    summary      figures of a plan's ``cost(batch)`` that ``inspect`` shows.
    columns      of a table of layers: the title, and the figures of a layer that add up.
    traffic      figures of a layer that are bytes -> what a plot calls them.
    times        the same of milliseconds.
    bytes_sent   (an inference's stats) -> sender -> payload bytes, online and made ahead.
    trace        (client, int8 batch) -> integers that the client sees by node name; None if it
                 sees those at the Output only.
    in_flight    clients in a benchmark's sustained run.
    key_bytes    evaluation keys that a client uploads; None where the engine has no such keys.
    offline_cpu  (bundles, batch) -> CPU seconds of a sample's offline work, by kind.
    """

    in_process: Callable[[Graph], Executor]
    costs: Callable[[Graph], Costs]
    way: Callable[[Any, int], Way]
    memory: Callable[[Any, int], dict[str, int]]
    summary: tuple[str, ...]
    columns: Mapping[str, tuple[str, ...]]
    traffic: Mapping[str, str]
    times: Mapping[str, str]
    bytes_sent: Callable[[InferenceStats], dict[str, dict[str, int]]]
    trace: Callable[[Any, Any], Mapping[str, Any]] | None = None
    held: Callable[[Any], dict[str, int]] | None = None
    budget: Callable[[Any], dict[str, int]] | None = None
    in_flight: int = 1
    key_bytes: int | None = None
    offline_cpu: Callable[[Mapping[str, bytes], int], dict[str, float]] | None = field(default=None)


@dataclass(frozen=True, kw_only=True)
class OwnModels:
    """load: a model file, for ``split``; raises ConfigError for another kind. The others run a
    command on a file of this kind, and return its exit code."""

    load: Callable[[Path], Any]
    quantize: Callable[[argparse.Namespace], int]
    inspect: Callable[[argparse.Namespace], int]
    verify: Callable[[argparse.Namespace], int]


def exact(name: str) -> Exact:
    """Of an exact engine. Raises ConfigError, ModuleNotFoundError."""
    made: Exact = resolved(find(name).commands)
    return made


def exact_names() -> tuple[str, ...]:
    """The exact engines."""
    return tuple(each.name for each in engines() if each.exact)


def in_process(name: str, graph: Graph) -> Executor:
    """The engine of that name, all of its roles and its client, in this process.

    Raises OpNotSupported, ConfigError.
    """
    return exact(name).in_process(graph)


def owner(path: Path) -> Engine | None:
    """The engine that alone takes a model file, as it says itself; None of an integer model.

    Raises MalformedModel, which names the file, OSError.
    """
    from secure_quant.errors import ModelError
    from secure_quant.ir.container import read_tensors

    try:
        said = read_tensors(path.read_bytes())[1].get("format", "")
    except ModelError as error:
        raise error.at(path) from error
    return next((each for each in engines() if each.file_format == said), None)


def own_models(engine: Engine) -> OwnModels:
    """Of an engine with model files of its own."""
    made: OwnModels = resolved(engine.commands)
    return made
