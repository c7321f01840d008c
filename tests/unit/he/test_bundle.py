"""Role bundles: what is in them, and what is refused."""

from __future__ import annotations

import numpy as np
import pytest
from unit.he.models import lenet, random_input
from unit.he.walk import infer

from secure_quant import reference
from secure_quant.errors import MalformedModel, MissingParameters, SecureQuantError
from secure_quant.he.bundle import load_client, load_server, split
from secure_quant_client.he.ckks import CkksKeys

NET = lenet()
BUNDLES = split(NET)


def test_bundles_run_the_model() -> None:
    evaluator = load_server(BUNDLES["server"])
    graph, made = load_client(BUNDLES["client"])
    assert evaluator.model_hash == graph.hash == NET.hash
    assert graph.is_public
    assert evaluator.graph.is_public
    q = random_input(NET, 2)
    got, _ = infer(NET, evaluator, CkksKeys(graph, made), q)
    assert np.array_equal(got, reference.run_int(NET, q))


def test_the_client_bundle_holds_no_weight() -> None:
    for array in NET.parameters.values():
        assert array.tobytes()[:64] not in BUNDLES["client"]
    assert NET.salt not in BUNDLES["client"]
    assert len(BUNDLES["client"]) < 60_000


def test_roles_are_not_exchanged() -> None:
    with pytest.raises(MalformedModel):
        load_server(BUNDLES["client"])
    with pytest.raises(MalformedModel):
        load_client(BUNDLES["server"])


def test_a_public_graph_cannot_be_split() -> None:
    with pytest.raises(MissingParameters):
        split(NET.public())


@pytest.mark.parametrize("role", ["server", "client"])
def test_damaged_bundles_are_refused(role: str) -> None:
    data, load = BUNDLES[role], {"server": load_server, "client": load_client}[role]
    for cut in (0, 7, 100, len(data) // 2, len(data) - 1):
        with pytest.raises(SecureQuantError):
            load(data[:cut])
    rng = np.random.default_rng(0)
    body = len(data) // 3
    for place in rng.integers(body, len(data), 8):
        changed = bytearray(data)
        changed[place] ^= 0x55
        with pytest.raises(SecureQuantError):
            load(bytes(changed))
