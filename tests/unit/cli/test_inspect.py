"""What ``inspect`` says of plans, by objective."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from secure_quant.engines import find, resolved
from secure_quant.ir import load, save
from secure_quant.onehost.bundle import load_client
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


def test_plans_are_good_for_so_many_samples_of_a_client(
    model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """As ``split`` makes them: the default keeps two primes, a larger number takes three."""
    public = load(model).public()
    ahead = {}
    for number in (None, 7, 2**44):
        told = [] if number is None else ["--samples-per-client", str(number)]
        assert main(["inspect", model, *told, "--json"]) == 0
        found = json.loads(capsys.readouterr().out)
        plan = resolved(find("onehost").plan)(public, number)
        budget = {"planned": number or 2**20, "good": plan.masked.calls}
        assert found["samples_per_client"] == {"onehost": budget}
        assert budget["good"] >= budget["planned"]
        ahead[number] = found["plans"]["onehost"]["offline_bytes_up"]
        out = tmp_path / f"bundles {number}"
        assert main(["split", model, "--engine", "onehost", "--out", str(out), *told]) == 0
        assert load_client((out / "client.sqb").read_bytes()).to_json() == plan.to_json()
        capsys.readouterr()
    assert ahead[7] < ahead[None] < ahead[2**44]
    assert main(["inspect", model]) == 0
    assert "samples of one client, over all pairings\n  onehost  planned 1048576, good" in (
        capsys.readouterr().out
    )
    assert main(["split", model, "--engine", "onehost", "--out", str(tmp_path / "no"),
                 "--samples-per-client", str(2**62)]) == 2  # fmt: skip
    assert "linear layers on masks for 4611686018427387904 samples" in capsys.readouterr().err
