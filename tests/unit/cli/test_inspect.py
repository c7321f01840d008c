"""What ``inspect`` says of plans, by objective."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from secure_quant.engines import find, resolved
from secure_quant.ir import save
from secure_quant.onehost.ferret import LPN
from secure_quant_cli.engines import exact
from secure_quant_cli.main import main
from tests.unit.mpc.protocol import graphs


@pytest.fixture
def model(tmp_path: Path) -> str:
    save(graphs.mlp(), tmp_path / "m.sq")
    return str(tmp_path / "m.sq")


def test_plans_are_of_the_objective(model: str, capsys: pytest.CaptureFixture[str]) -> None:
    """As ``split`` makes them; an engine without it says so, and has its figures otherwise."""
    ahead = []
    first = resolved(find("onehost").plan)(graphs.mlp().public())
    plain = exact("onehost").memory(first, 2)["client"]
    for objective in (None, "latency", "traffic", "balanced"):
        told = [] if objective is None else ["--objective", objective]
        assert main(["inspect", model, *told, "--batch", "2", "--json"]) == 0
        found = json.loads(capsys.readouterr().out)
        assert found["objective"] == objective
        for name, plan in found["plans"].items():
            engine = find(name)
            if objective is not None and objective not in engine.objectives:
                assert plan == {"refused": f"no objective {objective}, but latency or traffic"}
                continue
            said = objective or engine.objectives[0]
            cost = resolved(engine.plan)(graphs.mlp().public(), objective=said).cost(2)
            assert plan == {key: getattr(cost, key) for key in plan}
        held = LPN.held_bytes if objective == "traffic" else 0
        if objective != "balanced":
            assert found["memory"]["onehost"]["client"] == plain + held
        ahead.append(found["plans"]["onehost"].get("offline_bytes_up"))
    assert ahead[0] == ahead[1] > ahead[2] > 0
    assert main(["inspect", model, "--objective", "traffic"]) == 0
    assert "planned for a batch of 1, objective traffic\n" in capsys.readouterr().out
