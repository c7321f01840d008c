"""The engine that protects nothing: every way where it is registered, and nowhere else."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from e2e.mpc_cluster import inputs, small_net
from patience import ample

from plain_insecure import ENGINE
from plain_insecure.client import AsyncPlainInsecureClient, PlainInsecureClient
from plain_insecure.commands import model_of
from plain_insecure.model import MAX_BATCH, split
from secure_quant import Graph, reference, save
from secure_quant.engines import registered
from secure_quant.errors import (
    InsecureRefused,
    MalformedModel,
    SecureQuantError,
    Unauthenticated,
    ValueOutOfRange,
)
from secure_quant.he.bundle import load_client, load_server
from secure_quant.he.bundle import split as split_he
from secure_quant.mpc.protocol.bundle import load_dealer, load_party
from secure_quant.transport import Tls, require_role, sync_channel
from secure_quant.transport.certs import Authority, make_all
from secure_quant.transport.roles import role_of
from secure_quant_cli import cluster as clusters
from secure_quant_cli.cluster import Cluster
from secure_quant_cli.main import main
from secure_quant_client import HeClient

TESTS = Path(__file__).parents[1]
NAME = ENGINE.name


@pytest.fixture(scope="module")
def graph() -> Graph:
    return small_net(seed=3)


@pytest.fixture(scope="module")
def home(graph: Graph, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Made where the engine is registered: model, inputs, bundles, certificates."""
    folder = tmp_path_factory.mktemp("plain")
    save(graph, folder / "model.sq")
    q = inputs(graph, 5)
    np.savez(folder / "x.npz", x=q.astype(np.float32) * graph.input.scale)
    np.savez(folder / "q.npz", x=q)
    with registered(ENGINE):
        command = ["split", str(folder / "model.sq"), "--engine", NAME]
        assert main([*command, "--out", str(folder / NAME)]) == 0
        make_all(folder / "certs")
    return folder


@pytest.fixture
def known(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Registered here, and in processes that a cluster starts."""
    monkeypatch.setattr(clusters, "PROGRAM", ("-m", "plain_insecure"))
    monkeypatch.setenv("PYTHONPATH", str(TESTS))
    with registered(ENGINE):
        yield


def test_it_goes_every_way(
    known: None, home: Path, graph: Graph, capsys: pytest.CaptureFixture[str]
) -> None:
    model, q = str(home / "model.sq"), inputs(graph, MAX_BATCH + 3, seed=1)
    assert main(["inspect", model, "--batch", "2", "--json"]) == 0
    planned = json.loads(capsys.readouterr().out)["plans"][NAME]
    assert planned == {"rounds": 1, "bytes_up": 2 * 2 * 10 * 10, "bytes_down": 2 * 8 * 7}
    with Cluster(home / "certs", home / "logs", {NAME: home / NAME}) as cluster:
        tls, (target,) = Tls.from_dir(home / "certs", "client"), cluster.targets[NAME]
        with PlainInsecureClient(target, tls=tls, expected_hash=graph.hash) as client:
            y, stats = client.infer_int8_with_stats(q)
        np.testing.assert_array_equal(y, reference.run_int(graph, q))
        assert (stats.samples, stats.rounds) == (len(q), 2)
        assert (stats.bytes_up, stats.bytes_down) == (q.nbytes, y.nbytes)
        np.testing.assert_array_equal(asyncio.run(asked(target, tls, q)), y)
        common = ["--target", target, "--tls", str(home / "certs")]
        assert main(["health", "--role", NAME, *common]) == 0
        said = [*common, "--model-hash", graph.hash, "--input", str(home / "q.npz")]
        capsys.readouterr()
        assert main(["infer", "--engine", NAME, *said, "--integers", "--json"]) == 0
        found = json.loads(capsys.readouterr().out)["y"]
        assert found == reference.run_int(graph, inputs(graph, 5)).tolist()
        # A client of an engine that protects finds no server of its own there.
        with HeClient(target, tls=tls) as other, pytest.raises(SecureQuantError):
            other.infer_int8(q, timeout=ample(5))


async def asked(target: str, tls: Tls, q: np.ndarray) -> np.ndarray:
    async with AsyncPlainInsecureClient(target, tls=tls) as client:
        return await client.infer_int8(q)


def test_verify_and_bench_take_it(
    known: None, home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = str(home / "model.sq")
    command = ["verify", model, "--input", str(home / "x.npz"), "--engines", f"reference,{NAME}"]
    assert main([*command, "--html", str(home / "page.html")]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == "bit-exact: yes"
    assert "No protection at all" in (home / "page.html").read_text()
    command = ["bench", "--model", model, "--engine", NAME, "--runs", "2", "--seconds", "0"]
    assert main([*command, "--json"]) == 0
    figures = json.loads(capsys.readouterr().out)
    assert figures["mismatches"] == 0
    assert (figures["bytes_up"], figures["bytes_down"]) == (200, 56)


def test_doctor_takes_it(known: None, home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = home / "deployment.toml"
    config.write_text(
        f'[{NAME}]\nbundle = "{NAME}/server.sqb"\nlisten = "127.0.0.1:1"\ntls = "certs"\n'
    )
    assert main(["doctor", NAME, "--config", str(config), "--json", "--timeout", "2"]) == 0
    found = {each["check"]: each for each in json.loads(capsys.readouterr().out)}
    assert found[f"{NAME}: server.sqb"]["state"] == "ok"
    assert found[f"{NAME}: certificate"]["state"] == "ok"


def test_it_listens_on_loopback_alone(known: None, home: Path) -> None:
    from plain_insecure.server import PlainOptions, serve_plain

    options = PlainOptions(
        bundles=[home / NAME / "server.sqb"],
        listen="0.0.0.0:0",
        security=Tls.from_dir(home / "certs", NAME),
    )
    with pytest.raises(InsecureRefused, match="loopback"):
        asyncio.run(serve_plain(options))


COMMANDS = (
    "split {home}/model.sq --engine NAME --out {home}/other",
    "infer --engine NAME --target 127.0.0.1:1 --input {home}/q.npz --tls {home}/certs",
    "bench --model {home}/model.sq --engine NAME",
    "health --role NAME --target 127.0.0.1:1 --tls {home}/certs",
    "serve NAME --bundle {home}/NAME/server.sqb --listen 127.0.0.1:0 --tls {home}/certs",
)


@pytest.mark.parametrize("line", COMMANDS)
def test_no_command_knows_it(home: Path, line: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(line.replace("NAME", NAME).format(home=home).split())
    assert ended.value.code == 2
    assert "invalid choice" in capsys.readouterr().err


def test_verify_does_not_know_it(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["verify", str(home / "model.sq"), "--input", str(home / "x.npz")]
    assert main([*command, "--engines", NAME]) == 2
    assert "--engines" in capsys.readouterr().err


def test_a_fresh_process_does_not_know_it(home: Path) -> None:
    bundle = str(home / NAME / "server.sqb")
    command = ["serve", NAME, "--bundle", bundle, "--listen", "127.0.0.1:0", "--insecure-plaintext"]
    done = subprocess.run(
        [sys.executable, "-m", "secure_quant_cli", *command], capture_output=True, text=True
    )
    assert done.returncode == 2
    assert "invalid choice" in done.stderr


def test_no_certificate_names_it(home: Path, graph: Graph, tmp_path: Path) -> None:
    with pytest.raises(ValueOutOfRange, match="role"):
        Authority().issue(NAME)
    made = make_all(tmp_path)
    assert not any(NAME in name for name in made)
    # One that was issued where it was registered is refused where it is not.
    with pytest.raises(Unauthenticated, match="a known role"):
        role_of([f"secure-quant:role/{NAME}"])
    with pytest.raises(SecureQuantError):
        require_role(Tls.from_dir(home / "certs", NAME), NAME)
    with pytest.raises(ValueOutOfRange, match="role"):
        sync_channel("127.0.0.1:1", Tls.from_dir(home / "certs", "client"), server_role=NAME)
    with pytest.raises(ValueOutOfRange, match="role"):
        PlainInsecureClient("127.0.0.1:1", tls=Tls.from_dir(home / "certs", "client"))


def test_no_role_of_ours_takes_its_bundles(graph: Graph) -> None:
    bundles = split(graph)
    for data in bundles.values():
        for load in (load_party, load_dealer, load_server, load_client):
            with pytest.raises(MalformedModel):
                load(data)
    with pytest.raises(MalformedModel):
        model_of(NAME, split_he(graph)["server"])
