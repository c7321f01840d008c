"""Secret sharing in the commands."""

from __future__ import annotations

import argparse
import copy
from collections import defaultdict
from collections.abc import Callable, Coroutine, Generator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from itertools import pairwise
from statistics import median
from time import perf_counter, process_time
from typing import TYPE_CHECKING, Any

from secure_quant.errors import ConfigError, MalformedMessage, MalformedModel
from secure_quant_cli.engines import Costs, Exact, Way
from secure_quant_cli.inprocess import Executor, Run, Seconds, work_of

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from secure_quant.ir import Graph
    from secure_quant.mpc.protocol.deal import DealtItem
    from secure_quant.mpc.protocol.gates.base import Gate
    from secure_quant.mpc.protocol.material import Item
    from secure_quant.mpc.protocol.plan import MpcPlan
    from secure_quant.mpc.protocol.rounds import Rounds, Want
    from secure_quant_client import InferenceStats

__all__ = ["COMMANDS", "check_party", "model_of", "offline_cpu", "start_dealer", "start_party"]


# Peak resident bytes (bench/RESULTS.md): of a role before anything is held; streamed: of a model
# whose material is. A party is a front, a lane, and the template of lanes with CrypTen and PyTorch.
_CLIENT = 72 * 10**6
_PARTY, _PARTY_STREAMED = 485 * 10**6, 560 * 10**6
_DEALER, _DEALER_STREAMED = 226 * 10**6, 285 * 10**6
_A_WEIGHT, _A_DEALT_WEIGHT = 12, 4
"""Of a weight at a party and at the dealer."""
_A_ENTRY, _A_DEALT_ENTRY = 3, 1
"""Of an entry of a secret table, likewise."""
_A_GATE, _A_CORRECTION = 1.5, 1.2
"""Of a byte of two gates' material, and of one that waits at party 1."""

_CALL_S, _EXCHANGE_S = 4.2e-3, 6e-5
"""Seconds of a client's call after rest, through fronts and lanes, and of an exchange of the
parties, on one machine: bench/RESULTS.md."""
_CALL_TRIPS = 2.5
"""Round trips of a call beside the parties' rounds: of LeNets of 18 to 30 rounds through relays."""


def in_process(graph: Graph) -> Executor:
    """Two parties and a dealer; only the integers at the Output are ever opened.

    Raises OpNotSupported.
    """
    from secure_quant.mpc.protocol.bundle import load_dealer, load_party, split
    from secure_quant_client.mpc.sharing import join, share

    bundles = split(graph)
    dealer = load_dealer(bundles["dealer"])
    parties = [load_party(bundles[name]) for name in ("party0", "party1")]
    seconds: defaultdict[str, float] = defaultdict(float)
    plan = parties[0].plan
    parties[0].plan = replace(plan, gates=tuple(_watched(gate, seconds) for gate in plan.gates))

    def run(q: NDArray[np.int8]) -> Run:
        seconds.clear()
        dealt = [dealer.deal() for _ in range(len(q))]
        items = _items(dealt)
        runs = [
            party.run(part, own) for party, part, own in zip(parties, share(q), items, strict=True)
        ]
        start = process_time()
        outputs, rounds, sent = _exchange(runs)
        online = (process_time() - start) / len(parties)
        y = {graph.output.name: join(*outputs)}
        return Run(y, rounds, sent, dict(seconds), online=online)

    return run


def _items(dealt: Sequence[DealtItem]) -> tuple[list[Item], list[Item]]:
    """What the dealer sends to party 0 and to party 1."""
    from secure_quant.mpc.protocol.material import Item

    return (
        [Item(0, each.seed0, b"") for each in dealt],
        [Item(1, each.seed1, each.corrections) for each in dealt],
    )


def _watched(gate: Gate, seconds: Seconds) -> Gate:
    """The same gate; what ``online`` computes between two messages adds to ``seconds``."""

    def online(*arguments: Any) -> Generator[bytes, bytes, Any]:
        steps = gate.online(*arguments)
        message: bytes | None = None
        while True:
            start = perf_counter()
            try:
                sent = next(steps) if message is None else steps.send(message)
            except StopIteration as end:
                return end.value
            finally:
                seconds[gate.name] += perf_counter() - start
            message = yield sent

    watched = copy.copy(gate)
    object.__setattr__(watched, "online", online)  # gates are frozen
    return watched


def _exchange(
    runs: Sequence[Rounds[NDArray[np.uint64]]],
) -> tuple[list[NDArray[np.uint64]], int, int]:
    """Drives both parties to their output shares; (shares, rounds, bytes that each sent)."""
    payloads: list[bytes] | None = None
    rounds = sent = 0
    while True:
        made: list[bytes | Want] = []
        outputs: list[NDArray[np.uint64]] = []
        for i, run in enumerate(runs):
            try:
                made.append(next(run) if payloads is None else run.send(payloads[1 - i]))
            except StopIteration as end:
                outputs.append(end.value)
        if len(outputs) == len(runs):
            return outputs, rounds, sent
        if outputs:
            raise MalformedMessage("one party ended before the other")
        payloads = [each for each in made if isinstance(each, bytes)]
        if len(payloads) != len(runs):
            raise MalformedMessage("round", got="a wait", expected="bytes: all is prepared here")
        rounds, sent = rounds + 1, sent + len(payloads[0])


def offline_cpu(bundles: Mapping[str, bytes], batch: int, runs: int = 5) -> dict[str, float]:
    """CPU seconds of one sample's offline work, the median of ``runs`` calls of ``batch`` samples:
    ``dealing``, and ``expansion_party0`` and ``_party1``. ``bundles``: by role, as split makes."""
    from secure_quant.mpc.protocol.bundle import load_dealer, load_party

    dealer = load_dealer(bundles["dealer"])
    parties = [load_party(bundles[name]) for name in ("party0", "party1")]
    spent: defaultdict[str, list[float]] = defaultdict(list)

    def watched(name: str, work: Callable[[], Any]) -> Any:
        start = process_time()
        made = work()
        spent[name].append((process_time() - start) / batch)
        return made

    for _ in range(1 + runs):  # the first warms up
        dealt = watched("dealing", lambda: [dealer.deal() for _ in range(batch)])
        for party, own in zip(parties, _items(dealt), strict=True):
            watched(f"expansion_party{party.party}", partial(party.prepare, own))
    return {name: median(each[1:]) for name, each in spent.items()}


def costs(graph: Graph) -> Costs:
    """Bytes that each party sends online, and that the dealer sends to party 1. Branches that run
    side by side share rounds, so the layers' rounds may add up to more than the total."""
    from secure_quant.mpc.protocol.plan import plan

    made = plan(graph)
    cost = made.cost()
    total = {
        "rounds": cost.rounds,
        "online_bytes": cost.online_bytes_per_direction,
        "offline_bytes": cost.offline_bytes_party1,
    }
    layers = {
        gate.name: {
            "rounds": len(gate.payloads),
            "online_bytes": sum(gate.payload_bytes(1)),
            "offline_bytes": 8 * gate.dealt_words,
        }
        for gate in made.gates
        if gate.payloads or gate.dealt_words
    }
    return total, layers


def way(made: MpcPlan, batch: int) -> Way:
    """Rounds between the parties, both directions at once and so half a round trip each, and one
    call of the client with what the parties say to begin it. Work: products, bytes of material,
    rounds."""
    cost = made.cost(batch)
    trips = cost.rounds / 2 + _CALL_TRIPS
    hops = _CALL_S + (cost.rounds + 1) * _EXCHANGE_S
    products, _, _ = work_of(made.graph, batch)
    work = products, float(cost.offline_bytes_party1), float(cost.rounds)
    beside = cost.offline_bytes_party1 if made.streamed else 0
    return Way(trips, cost.online_bytes_per_direction, hops, work, beside)


def memory(made: MpcPlan, batch: int) -> dict[str, int]:
    """Of a role with one lane and default options: its processes with the libraries that they map,
    weights, and what it holds of material. A streamed model's roles hold two gates' of it, and
    party 1 what came ahead."""
    from secure_quant.ir.ops import Embedding
    from secure_quant.mpc.runtime.options import LaneOptions
    from secure_quant_cli.sizes import parameter_count

    options = LaneOptions()
    entries = sum(parameter_count(node) for node in made.graph.nodes if isinstance(node, Embedding))
    weights = sum(parameter_count(node) for node in made.graph.nodes) - entries
    item = 8 * made.dealt_words
    if made.streamed:
        sizes = [8 * (gate.free_words + gate.dealt_words) for gate in made.order]
        gates = max(a + b for a, b in pairwise([*sizes, 0]))
        party = _PARTY_STREAMED + _A_GATE * gates
        dealer = _DEALER_STREAMED + _A_GATE * gates
        ahead: float = made.window_bytes + max(made.window_bytes, options.material_bytes)
    else:
        fits = max(1, options.staged_bytes // max(made.expanded_bytes, 1))
        party = _PARTY + (min(options.staged, fits) + batch) * made.expanded_bytes
        items = held(made)
        dealer = _DEALER + item * items["dealer"]
        ahead = _A_CORRECTION * item * max(batch, items["party1"])
    party += _A_WEIGHT * weights + _A_ENTRY * entries
    dealer += _A_DEALT_WEIGHT * weights + _A_DEALT_ENTRY * entries
    return {
        "party0": int(party),
        "party1": int(party + ahead),
        "dealer": int(dealer),
        "client": _CLIENT,
    }


def held(made: MpcPlan) -> dict[str, int]:
    """Items of corrections in memory that lie ready; party 1's by lane. None if it is streamed."""
    from secure_quant.keystream import SEED_BYTES
    from secure_quant.mpc.runtime.options import LaneOptions
    from secure_quant.mpc.runtime.stock import MOST_AT_DEALER, stock_depth
    from secure_quant_server.options import DealerOptions

    if made.streamed:
        return {"party1": 0, "dealer": 0}
    item = 8 * made.dealt_words + SEED_BYTES
    memory, stock = LaneOptions.material_bytes, DealerOptions.stock_bytes
    return {
        "party1": stock_depth(item, memory),
        "dealer": stock_depth(item + SEED_BYTES, stock, MOST_AT_DEALER),
    }


def bytes_sent(stats: InferenceStats) -> dict[str, dict[str, int]]:
    """Between the parties as much each way; half of the answer is each party's."""
    link = stats.online_bytes_per_direction or 0
    answer = stats.bytes_down // 2
    return {
        "client": {"online": stats.bytes_up, "offline": 0},
        "party 0": {"online": link + answer, "offline": 0},
        "party 1": {"online": link + answer, "offline": 0},
        "dealer": {
            "online": 0,
            "offline": (stats.offline_bytes_party0 or 0) + (stats.offline_bytes_party1 or 0),
        },
    }


def check_party(told: argparse.Namespace) -> None:
    """One end of the link, and so one party. Raises ConfigError."""
    given = [getattr(told, name, None) is not None for name in ("peer", "link_listen")]
    if sum(given) != 1:
        got = "both" if all(given) else "neither"
        raise ConfigError("--peer (party 0), --link-listen (party 1)", got=got, expected="one")


def start_party(told: argparse.Namespace) -> Coroutine[Any, Any, None]:
    """What serves a party."""
    from importlib.util import find_spec

    # Else each lane would find out, and end, again and again.
    if told.border != "none" and find_spec("crypten") is None:
        raise ModuleNotFoundError("CrypTen is not installed", name="crypten")
    from secure_quant_cli.settings import options_of
    from secure_quant_cli.tls_options import tls_from
    from secure_quant_server.common.workers import Template
    from secure_quant_server.mpc.kinds import lane_kind

    template = Template(lane_kind(told.border, told.worker_memory))
    template.launch()  # loads what lanes need while this process loads what a front needs
    from secure_quant_server.mpc import serve_party

    # Party 0 calls the link of party 1; the bundle must be of the party that the options imply.
    peer = getattr(told, "peer", None)
    party, link = (0, peer) if peer else (1, told.link_listen)
    return serve_party(
        told.bundle, link=link, party=party, tls=tls_from(told, f"party{party}"),
        template=template, **options_of(told),
    )  # fmt: skip


def start_dealer(told: argparse.Namespace) -> Coroutine[Any, Any, None]:
    """What serves the dealer."""
    from secure_quant_cli.settings import options_of
    from secure_quant_cli.tls_options import tls_from
    from secure_quant_server.mpc import serve_dealer

    return serve_dealer(told.bundle, tls=tls_from(told, "dealer"), **options_of(told))


def model_of(role: str, data: bytes) -> str:
    """The hash of a bundle's model. Raises MalformedModel and its kin."""
    from secure_quant.mpc.protocol.bundle import load_dealer, load_party

    if role == "dealer":
        return load_dealer(data).model_hash
    program = load_party(data)
    if role != f"party{program.party}":
        raise MalformedModel("bundle", got=f"party {program.party}'s", expected=f"one of {role}")
    return program.model_hash


COMMANDS = Exact(
    in_process=in_process,
    costs=costs,
    way=way,
    memory=memory,
    held=held,
    summary=(
        "rounds", "online_bytes_per_direction", "offline_bytes_party0", "offline_bytes_party1",
    ),
    columns={"sent": ("online_bytes",), "made ahead": ("offline_bytes",), "time": ("ms",)},
    traffic={"online_bytes": "online, each party", "offline_bytes": "made ahead, by the dealer"},
    times={"ms": "one party, online"},
    bytes_sent=bytes_sent,
    in_flight=4,
    offline_cpu=offline_cpu,
)  # fmt: skip
