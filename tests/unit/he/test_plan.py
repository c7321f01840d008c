"""Plans are public, reproducible, small, and checked in full by whoever receives one."""

from __future__ import annotations

import json
from collections.abc import Callable
from math import prod
from typing import Any

import pytest
from unit.he.models import conv, lenet, linear

from secure_quant.errors import (
    ConfigError,
    InsecureRefused,
    MalformedModel,
    OpNotSupported,
    UnsupportedVersion,
    ValueOutOfRange,
)
from secure_quant.he.noise import margin
from secure_quant.he.parameters import MAX_MODULUS_BITS, TIERS, Parameters
from secure_quant.he.plan import MAX_BATCH, HeCost, HePlan, plan
from secure_quant.he.search import layer_of
from secure_quant.ir import Graph

NET = lenet()
MADE = plan(NET)


def test_needs_no_weights_and_is_the_same_every_time() -> None:
    assert MADE.to_json() == plan(NET.public()).to_json() == plan(lenet()).to_json()


def test_round_trip_is_canonical() -> None:
    text = MADE.to_json()
    back = HePlan.from_json(text, NET.public())
    assert back.to_json() == text
    assert back.cost(3) == MADE.cost(3)
    assert len(text) < 40_000


@pytest.mark.parametrize("tier", ["T1", "T1-strict"])
@pytest.mark.parametrize("objective", ["latency", "traffic"])
def test_every_layout_is_sound(tier: str, objective: str) -> None:
    for step in plan(NET, objective, tier).steps:
        for layout in step.layouts:
            layer = layer_of(step.geometry, layout.tile)
            room, hiding = margin(layer, layout.ring, tier, layout.scaling)
            assert room > 0
            assert hiding >= 1


def test_traffic_sends_no_more_than_latency() -> None:
    thrifty = plan(NET, "traffic")
    for batch in (1, 8, 64):
        lean, fast = thrifty.cost(batch), MADE.cost(batch)
        assert lean.bytes_up + lean.bytes_down <= fast.bytes_up + fast.bytes_down


def test_batch_picks_the_layout_of_its_class() -> None:
    step = MADE.steps[2]
    assert [step.layout(batch).batch for batch in (1, 63, 64, MAX_BATCH)] == [
        max(layout.batch for layout in step.layouts if layout.batch <= batch)
        for batch in (1, 63, 64, MAX_BATCH)
    ]
    for batch in (0, MAX_BATCH + 1):
        with pytest.raises(ValueOutOfRange):
            step.layout(batch)


@pytest.mark.parametrize(
    "graph",
    [
        conv(3, 64, (224, 224), (7, 7), stride=(2, 2), padding=(3, 3)),
        conv(64, 64, (32, 32), (3, 3), padding=(1, 1)),
        conv(96, 96, (112, 112), (3, 3), stride=(2, 2), padding=(1, 1), groups=96),
        linear(9216, 100),
        linear(768, 768, lead=(128,)),
    ],
    ids=["stem 224", "residual", "depthwise 112", "fan-in 9216", "sequence"],
)
def test_large_layers_can_be_planned(graph: Graph) -> None:
    cost = plan(graph).cost(64)
    assert cost.bytes_up > 0
    assert cost.ciphertexts_down > 0


def test_a_layer_beyond_every_ring_is_refused() -> None:
    with pytest.raises(OpNotSupported, match="layer"):
        plan(conv(1, 1, (100, 100), (2, 2), dilation=(95, 95)))


@pytest.mark.parametrize(("degree", "bits"), [(1024, 27), (2048, 54), (4096, 107), (8192, 215)])
def test_below_128_bits_is_refused(degree: int, bits: int) -> None:
    with pytest.raises(InsecureRefused, match="128-bit"):
        Parameters(degree, ((1 << bits) - 1,))
    Parameters(degree, ((1 << MAX_MODULUS_BITS[degree]) - 1,))


@pytest.mark.parametrize("tier", ["T1", "T1-strict"])
def test_every_published_modulus_is_within_the_tables_of_2024(tier: str) -> None:
    # Bossuat et al., eprint 2024/463, table 5.2, ternary secret, classical attacks.
    table = {2048: 53, 4096: 106, 8192: 214, 16384: 430}
    for ring in TIERS[tier]:
        assert prod(ring.primes).bit_length() <= table[ring.degree]
        assert MAX_MODULUS_BITS[ring.degree] == table[ring.degree]


def test_the_distance_of_strict_hiding_adds_up_over_the_answer() -> None:
    made = plan(NET, tier="T1-strict")
    for batch in (1, 3, 64, MAX_BATCH):
        wanted = sum(step.call(batch).packing.outputs for step in made.steps)
        assert wanted == batch * (4704 + 1600 + 120 + 84 + 10)
        assert 0 < made.distance(batch) <= wanted * 2.0**-45
    assert made.distance(1) < 2.0**-39
    assert plan(NET).distance(1) > 1  # T1 proves nothing of the kind


def test_unknown_ring_is_refused() -> None:
    with pytest.raises(ConfigError):
        Parameters(2000, (97,))
    with pytest.raises(ConfigError):
        Parameters(2048, (97, 193, 257, 353))
    with pytest.raises(InsecureRefused, match="got 216 bits, expected <= 214"):
        Parameters(8192, (2**72 - 1,) * 3)


def set_at(path: str, value: Any) -> Callable[[dict[str, Any]], None]:
    *parents, last = [int(part) if part.isdigit() else part for part in path.split(".")]

    def change(document: Any) -> None:
        for part in parents:
            document = document[part]
        document[last] = value

    return change


LAYOUT = "steps.0.layouts.0"


@pytest.mark.parametrize(
    ("change", "error"),
    [
        (set_at("version", 1), UnsupportedVersion),
        (set_at("objective", "speed"), MalformedModel),
        (set_at("tier", "T0"), MalformedModel),
        (set_at("extra", 1), MalformedModel),
        (set_at("steps", []), MalformedModel),
        (set_at("steps", 5), MalformedModel),
        (set_at("steps.0.node", "fc1"), MalformedModel),
        (set_at("steps.0.layouts", []), MalformedModel),
        (set_at(f"{LAYOUT}.batch", 2), MalformedModel),
        (set_at(f"{LAYOUT}.batch", True), MalformedModel),
        (set_at(f"{LAYOUT}.ring.primes", [9007199254614017, 97]), InsecureRefused),
        (set_at(f"{LAYOUT}.ring.degree", 1024), InsecureRefused),
        (set_at(f"{LAYOUT}.tile.rows", 0), MalformedModel),
        (set_at(f"{LAYOUT}.tile.cout", 7), MalformedModel),
        (set_at(f"{LAYOUT}.tile.height", 4), MalformedModel),
        (set_at(f"{LAYOUT}.tile.width", 10**9), MalformedModel),
        (set_at(f"{LAYOUT}.tile.merge", 2), MalformedModel),
        (set_at(f"{LAYOUT}.tile.cin", "1"), MalformedModel),
        (set_at(f"{LAYOUT}.scaling.flood", 2**40), MalformedModel),
        (set_at(f"{LAYOUT}.scaling.flood", 2**70), MalformedModel),
        (set_at(f"{LAYOUT}.scaling.flood", 1), InsecureRefused),
        (set_at(f"{LAYOUT}.scaling.unit", 2**60), MalformedModel),
        (set_at(f"{LAYOUT}.scaling.unit", 0), MalformedModel),
        (set_at(f"{LAYOUT}.scaling.drop_c1", 50), MalformedModel),
        (set_at(f"{LAYOUT}.scaling.drop_c1", -1), MalformedModel),
        (set_at(f"{LAYOUT}.scaling.drop_up", 53), MalformedModel),
        (set_at(f"{LAYOUT}.scaling.drop_key", 1.5), MalformedModel),
    ],
)
def test_hostile_plans_are_refused(
    change: Callable[[dict[str, Any]], None], error: type[Exception]
) -> None:
    document = json.loads(MADE.to_json())
    change(document)
    with pytest.raises(error):
        HePlan.from_json(json.dumps(document).encode(), NET.public())


@pytest.mark.parametrize("data", [b"", b"{", b"[]", b"\xff", b"[" * 10**5, b"1" * (2**24 + 1)])
def test_other_bytes_are_no_plan(data: bytes) -> None:
    with pytest.raises(MalformedModel):
        HePlan.from_json(data, NET.public())


def test_a_layout_that_would_take_gigabytes_is_refused() -> None:
    graph = conv(4, 1, (224, 224), (1, 1)).public()
    document = json.loads(plan(graph).to_json())
    for layout in document["steps"][0]["layouts"]:
        layout["tile"].update(rows=1, cin=1, cout=1, height=1, width=1)
    with pytest.raises(MalformedModel, match="too large"):
        HePlan.from_json(json.dumps(document).encode(), graph)


def test_tiers_keep_apart() -> None:
    document = json.loads(MADE.to_json())
    document["tier"] = "T1-strict"
    with pytest.raises(InsecureRefused):
        HePlan.from_json(json.dumps(document).encode(), NET.public())
    assert TIERS["T1"][0] not in TIERS["T1-strict"]


def test_cost_adds_up() -> None:
    total = HeCost(0, 0, 0, 0)
    for step in MADE.steps:
        total += step.call(4).cost
    assert total == MADE.cost(4)
