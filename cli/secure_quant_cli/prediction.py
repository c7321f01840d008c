"""Seconds of one inference before anything is served: what the network takes, known from the plan,
and what computing takes, as measured on this machine in a few small graphs.

Computing is taken to be linear in three kinds of work, which an engine names (``Way.work``), at a
rate each: online, and of roles that make material ahead, or beside a streamed model's inference.
Graphs in which one or the other dominates give the rates of an engine; they are kept in the user's
cache. How far off that is on models of all sizes: ``bench/prediction.py``.
"""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from operator import mul
from pathlib import Path
from statistics import median
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from secure_quant import __version__
from secure_quant.engines import find, resolved
from secure_quant_cli.engines import exact

if TYPE_CHECKING:
    from secure_quant.ir import Graph
    from secure_quant_cli.engines import Way

__all__ = ["NETWORKS", "Network", "Rates", "forget", "measured", "predicted"]

_RUNS = 3


@dataclass(frozen=True)
class Network:
    """round_trip: seconds. bits: a second."""

    round_trip: float
    bits: float

    def seconds(self, trips: float, sent: int) -> float:
        """``trips`` round trips and ``sent`` bytes, one after the other."""
        return trips * self.round_trip + 8 * sent / self.bits


NETWORKS = {
    "here": Network(0.0, 1e11),
    "LAN": Network(0.0005, 1e9),
    "20 ms": Network(0.02, 1e8),
    "50 ms": Network(0.05, 1e8),
}
"""``here``: all roles on this machine."""


Rates = tuple[float, ...]
"""Seconds of each of the three kinds of an engine's work: online, and then for each role that makes
material, by name."""

_CARRIED_S = 8.5e-10
"""Of a byte of material that is sent while an inference runs, at either end: TLS, gRPC, copies.
bench/RESULTS.md, ResNet-18, ResNet-50 and BERT-base."""


def predicted(
    engine: str,
    plan: Any,
    batch: int,
    rates: Rates,
    networks: Mapping[str, Network] = MappingProxyType(NETWORKS),
) -> dict[str, float]:
    """Seconds of one inference by network, with what can be made ahead made ahead. plan: the
    engine's. On ``here`` all roles share this machine's cores, elsewhere each has its own."""
    way = exact(engine).way(plan, batch)
    apart, together = _computing(way, rates)
    found = {}
    for name, network in networks.items():
        computing = together if network.round_trip == 0 else apart
        found[name] = round(way.hops + computing + network.seconds(way.trips, way.sent), 5)
    return found


def _computing(way: Way, rates: Rates) -> tuple[float, float]:
    """Seconds where each role has its own machine, and where all share this one."""
    online, *making = (
        sum(map(mul, way.work, rates[i : i + len(way.work)]))
        for i in range(0, len(rates), len(way.work))
    )
    if not way.beside or not making:
        return online, online
    dealing, *expansions = making
    spent = [dealing, *(online + each for each in expansions)]
    for end in (0, -1):  # the dealer's, and that of the last role, which is sent it
        spent[end] += _CARRIED_S * way.beside
    return max(spent), max(*spent, sum(spent) / (os.cpu_count() or 1))


def measured(engine: str) -> Rates:
    """This machine's rates of an engine, from the cache or now, in some seconds, by a process that
    computes with one thread, as servers do.

    Raises ModuleNotFoundError where the engine's packages are missing."""
    resolved(find(engine).client)  # or they are missing
    path = _cache()
    known = _read(path)
    if engine not in known:
        command = [sys.executable, "-P", "-m", __name__, engine]
        threads = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")
        done = subprocess.run(  # noqa: S603  of this program's own
            command, env=os.environ | threads, check=True, capture_output=True, text=True
        )
        known[engine] = json.loads(done.stdout)
        _write(path, known)
    return tuple(known[engine])


def forget() -> None:
    """What was measured of this machine: ``measured`` measures anew."""
    _cache().unlink(missing_ok=True)


def _rates(engine: str) -> Rates:
    found, work = exact(engine), []
    spent: list[list[float]] = []
    for graph in _graphs():
        run = found.in_process(graph)
        q = np.zeros((1, *graph.input_ports[0].value.shape), np.int8)
        run(q)  # compiles, fills caches
        row = [median(run(q).online for _ in range(_RUNS))]
        if found.offline_cpu is not None:
            made = found.offline_cpu(resolved(find(engine).split)(graph), 1)
            row += [made[name] for name in sorted(made)]
        spent.append(row)
        work.append(found.way(resolved(find(engine).plan)(graph.public()), 1).work)
    columns = np.array(spent).T
    return tuple(rate for each in columns for rate in _solved(np.array(work, float), each))


def _solved(work: NDArray[np.float64], spent: NDArray[np.float64]) -> Rates:
    """The rates, none below zero: one that would be is left out, and the others fitted anew."""
    kept = [0, 1, 2]
    while True:
        scale = 1 / spent[:, None]  # relative errors count
        found, *_ = np.linalg.lstsq(work[:, kept] * scale, np.ones(len(spent)), rcond=None)
        if found.min() >= 0 or len(kept) == 1:
            made = np.zeros(3)
            made[kept] = np.maximum(found, 0)
            return tuple(made.tolist())
        kept.pop(int(found.argmin()))


def _graphs() -> Iterator[Graph]:
    """Many layers; many values; many products."""
    yield _chain(12, channels=16, size=1, kernel=1)
    yield _chain(2, channels=8, size=32, kernel=1)
    yield _chain(2, channels=64, size=16, kernel=3)


def _chain(layers: int, *, channels: int, size: int, kernel: int) -> Graph:
    """Convolutions [channels, size, size] that keep their shape, each with a ReLU but the last."""
    from secure_quant.ir import Graph, Interval, ops
    from secure_quant.ir.bounds import linear_bound, public_bound

    rng = np.random.default_rng(0)
    shape = (channels, channels, kernel, kernel)
    nodes: list[ops.Node] = [
        ops.Input(name="x", shape=(channels, size, size), scale=1.0, zero_point=0)
    ]
    parameters, span = {}, Interval(-128, 127)
    for i in range(layers):
        weight = rng.integers(-127, 128, shape).astype(np.int8)
        parameters[f"layer{i}.weight"] = weight
        bound = public_bound(linear_bound(weight, np.zeros(channels, np.int32), span))
        nodes.append(
            ops.Conv2d(
                name=f"layer{i}", inputs=(nodes[-1].name,), in_channels=channels,
                out_channels=channels, kernel=(kernel, kernel), stride=(1, 1),
                padding=(kernel // 2, kernel // 2), dilation=(1, 1), groups=1, bias=False,
                bound=bound, scale=1.0,
            )
        )  # fmt: skip
        if i == layers - 1:
            break
        shift = max(bound.bit_length() - 8, 0)
        ramp = np.clip(np.arange(-(bound >> shift) - 1, (bound >> shift) + 1), 0, 127)
        nodes.append(
            ops.Requantize(
                name=f"q{i}", inputs=(f"layer{i}",), multiplier=(1,), axis=-1,
                offset=((bound >> shift) + 1) << shift, shift=shift,
                table=tuple(int(each) for each in ramp), scale=1.0, zero_point=0,
            )
        )  # fmt: skip
        span = Interval(0, 127)
    nodes.append(ops.Output(name="y", inputs=(nodes[-1].name,), scale=1.0))
    return Graph(tuple(nodes), parameters)


def _cache() -> Path:
    root = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(root) / "secure-quant" / "rates.json"


def _here() -> str:
    return f"{__version__}, 2: {platform.node()} {platform.machine()} {os.cpu_count()}"


def _read(path: Path) -> dict[str, Rates]:
    """Of this version and machine; empty where none can be read."""
    try:
        found = json.loads(path.read_text())
        return {str(name): tuple(map(float, rates)) for name, rates in found[_here()].items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RuntimeError):
        return {}


def _write(path: Path, known: Mapping[str, Rates]) -> None:
    """Where nothing can be written they are measured each time."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        fresh = path.with_suffix(f".{os.getpid()}")
        fresh.write_text(json.dumps({_here(): known}))
        fresh.replace(path)
    except OSError:
        return


if __name__ == "__main__":
    json.dump(_rates(sys.argv[1]), sys.stdout)
