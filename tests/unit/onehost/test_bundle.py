"""Bundles and the plan's JSON: made anew, and refused unless it is the same."""

from __future__ import annotations

import json

import numpy as np
import pytest

from conformance.port_cases import ports
from secure_quant.errors import (
    HashMismatch,
    MalformedModel,
    MissingParameters,
    OpNotSupported,
    UnsupportedVersion,
)
from secure_quant.ir.artifact import read_tensors, write_tensors
from secure_quant.onehost.bundle import load_client, load_server, split
from secure_quant.onehost.plan import CALLS, MAX_BATCH, OneHostPlan, plan
from secure_quant.wire import info_from_proto, info_to_proto
from tests.unit.mpc.protocol import graphs


def test_both_bundles_hold_one_plan_and_the_client_s_no_weights() -> None:
    graph = graphs.mlp()
    bundles = split(graph)
    assert set(bundles) == {"server", "client"}
    (whole, own), public = load_server(bundles["server"]), load_client(bundles["client"])
    assert whole.hash == public.graph.hash == graph.hash
    assert public.graph.is_public
    assert own.to_json() == public.to_json()
    for name, value in graph.parameters.items():
        assert np.array_equal(whole.parameters[name], value)
        if value.size >= 16:
            assert value.tobytes() not in bundles["client"]
    with pytest.raises(MissingParameters):
        split(graph.public())
    for role, load in (("client", load_server), ("server", load_client)):
        with pytest.raises(MalformedModel):
            load(bundles[role])


def test_public_tables_are_in_the_client_s_bundle_and_on_the_wire() -> None:
    graph = ports()
    bundles = split(graph)
    _, served = load_server(bundles["server"])
    received = info_from_proto(info_to_proto(served.graph, served.to_json()))
    for plan_ in (served, load_client(bundles["client"])):
        for name, rows in graph.lookups.items():
            assert np.array_equal(plan_.graph.lookups[name], rows)
            assert np.array_equal(received.graph.lookups[name], rows)
    tensors, metadata = read_tensors(bundles["client"])
    for bent in (tensors["lookups"][:-1], np.bitwise_not(tensors["lookups"])):
        with pytest.raises((MalformedModel, HashMismatch)):
            load_client(write_tensors(tensors | {"lookups": bent}, metadata))


@pytest.mark.parametrize("change", ["calls", "kappa", "model", "gates", "linear", "online"])
def test_another_plan_is_refused(change: str) -> None:
    made = plan(graphs.mlp().public())
    for calls in (77, made.calls):
        text = plan(made.graph, calls).to_json()
        assert OneHostPlan.from_json(text, made.graph).calls == calls
        with pytest.raises(HashMismatch):
            OneHostPlan.from_json(text + b" ", made.graph)
    document = json.loads(made.to_json())
    document[change] = {"calls": 77, "kappa": 8, "model": "0" * 64}.get(change, [])
    text = json.dumps(document, sort_keys=True, separators=(",", ":")).encode()
    with pytest.raises(HashMismatch):
        OneHostPlan.from_json(text, made.graph)


@pytest.mark.parametrize(("text", "error"), [
    (b"{", MalformedModel),
    (b"[]", MalformedModel),
    (b'{"engine":"mpc"}', MalformedModel),
    (b'{"engine":"onehost","version":9}', UnsupportedVersion),
    (b'{"engine":"onehost","version":2}', MalformedModel),
    (b'{"engine":"onehost","version":2,"calls":0}', MalformedModel),
    (b'{"engine":"onehost","version":2,"calls":true}', MalformedModel),
    (b'{"engine":"onehost","version":2,"calls":9223372036854775807}', OpNotSupported),
])  # fmt: skip
def test_what_is_no_plan(text: bytes, error: type[Exception]) -> None:
    with pytest.raises(error):
        OneHostPlan.from_json(text, graphs.mlp().public())


def test_bundles_are_checked() -> None:
    bundle = split(graphs.single())["server"]
    tensors, metadata = read_tensors(bundle)
    for change in ({"hash": "0" * 64}, {"commitment": "0" * 64}, {"format": "x"},
                   {"format": "secure-quant-onehost-server/2"}):  # fmt: skip
        with pytest.raises(MalformedModel):
            load_server(write_tensors(tensors, metadata | change))
    with pytest.raises(MalformedModel):
        load_server(write_tensors({"model": tensors["model"]}, metadata))


def test_a_plan_is_for_as_many_samples_as_its_layers_allow() -> None:
    made = plan(graphs.mlp().public())
    assert made.calls in CALLS
    assert made.calls <= made.masked.calls
    # An item of several samples tells no more than its samples.
    for batch in range(1, MAX_BATCH + 1):
        assert made.masked.distance(batch) <= batch * made.masked.distance() * (1 + 1e-9)


def test_costs_of_layers_add_up() -> None:
    made = plan(graphs.lenet().public())
    cost, layers = made.cost(), made.layers().values()
    assert sum(up for (up, _), _ in layers) + 8 == cost.online_up
    assert sum(down for (_, down), _ in layers) + 8 == cost.online_down
    for side, total in ((0, cost.offline_bytes_up), (1, cost.offline_bytes_down)):
        ahead = sum(parts[side] for _, parts in layers)
        assert abs(total - ahead) < 1024  # the extension's head and its last block


def test_seconds_that_the_network_takes() -> None:
    """Half a round trip a flight, and the bytes."""
    cost = plan(graphs.mlp().public()).cost(3)
    sent = 8 * (cost.online_up + cost.online_down)
    assert cost.seconds(0.02, 1e8) == pytest.approx(cost.flights * 0.01 + sent / 1e8, abs=1e-4)
    assert cost.seconds_lan < cost.seconds_20_ms < cost.seconds_50_ms
    assert cost.seconds_50_ms - cost.seconds_20_ms == pytest.approx(cost.flights * 0.015, abs=2e-4)
    made = cost.offline_bytes_up + cost.offline_bytes_down
    assert cost.ahead_seconds_100_mbit == pytest.approx(made / 12.5e6, abs=1e-4)
