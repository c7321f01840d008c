"""`secure-quant doctor`: a sound deployment passes; what is broken is found and named."""

import json
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from e2e.mpc_cluster import small_net

from secure_quant.he.bundle import split as split_he
from secure_quant.mpc.protocol.bundle import split as split_mpc
from secure_quant.transport.certs import Authority, make_all
from secure_quant_cli import diagnosis
from secure_quant_cli.cluster import Cluster
from secure_quant_cli.main import main

Found = dict[str, tuple[str, str]]


def examined(capsys: pytest.CaptureFixture[str], *line: str) -> tuple[int, Found]:
    """(exit status, check -> (state, what was found and what to do))"""
    status = main(["doctor", *line, "--json", "--timeout", "2"])
    found = json.loads(capsys.readouterr().out)
    return status, {
        each["check"]: (each["state"], f"{each['found']} -> {each['mend']}") for each in found
    }


def deployment(folder: Path, *, ports: dict[str, str] | None = None) -> Path:
    """A file for every role, its bundles and certificates beside it."""
    graph = small_net()
    make_all(folder / "certs")
    for role, data in (split_mpc(graph) | split_he(graph)).items():
        (folder / f"{role}.sqb").write_bytes(data)
    at = {"dealer": "127.0.0.1:1", "party0": "127.0.0.1:1", "party1": "127.0.0.1:1",
          "link": "127.0.0.1:1", "he": "127.0.0.1:1"} | (ports or {})  # fmt: skip
    path = folder / "deployment.toml"
    path.write_text(
        f"""
[common]
tls = "certs"
[dealer]
bundle = ["dealer.sqb"]
listen = "{at["dealer"]}"
[party0]
bundle = ["party0.sqb"]
listen = "{at["party0"]}"
peer = "{at["link"]}"
dealer = "{at["dealer"]}"
[party1]
bundle = ["party1.sqb"]
listen = "{at["party1"]}"
link_listen = "{at["link"]}"
dealer = "{at["dealer"]}"
[he]
bundle = ["server.sqb"]
listen = "{at["he"]}"
"""
    )
    return path


def option(cluster: Cluster, role: str, name: str) -> str:
    command = cluster.processes[role].args
    return command[command.index(name) + 1]


def test_a_sound_deployment_passes(
    cluster: Cluster, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ports = {role: option(cluster, role, "--listen") for role in ("dealer", "party0", "party1")}
    path = deployment(tmp_path, ports=ports | {"link": option(cluster, "party0", "--peer")})
    text = path.read_text().replace('"certs"', json.dumps(str(cluster.certs)))
    path.write_text(text)
    status, found = examined(capsys, "all", "--config", str(path))
    assert status == 0
    assert not [each for each in found.values() if each[0] == "fail"]
    for role in ("dealer", "party0", "party1"):
        assert found[f"{role} at {ports[role]}"][1].startswith("serving")
        assert found[f"{role}: certificate"][0] == "ok"
    assert found["models of parties and dealer"][0] == "ok"
    assert found[f"party0: party 1's link at {option(cluster, 'party0', '--peer')}"][0] == "ok"
    assert found["he at 127.0.0.1:1"][0] == "warn"  # not started yet
    # The same by hand, for people to read.
    assert main(["doctor", "dealer", "--config", str(path)]) == 0
    assert "FAIL" not in capsys.readouterr().out
    # Party 1's address where party 0's is meant.
    wrong = f"party0={ports['party1']}"
    status, found = examined(capsys, "he", "--config", str(path), "--target", wrong)
    state, says = found[f"party0 at {ports['party1']}"]
    assert (status, state) == (1, "fail")
    assert "certificates of one authority" in says


def test_each_thing_that_is_broken_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = deployment(tmp_path)
    certs = tmp_path / "certs"
    other = split_mpc(small_net(seed=9))
    (tmp_path / "dealer.sqb").write_bytes(other["dealer"])  # of another split
    (tmp_path / "party1.sqb").write_bytes((tmp_path / "party0.sqb").read_bytes())
    (tmp_path / "server.sqb").write_bytes(b"nonsense")
    for end in ("pem", "key"):  # the wrong role's certificate
        (certs / f"party0.{end}").write_bytes((certs / f"party1.{end}").read_bytes())
    authority, soon = Authority(), datetime.now(UTC) + timedelta(days=3)
    cert, key = authority.issue("he", until=soon)
    (certs / "he.pem").write_bytes(cert)
    (certs / "he.key").write_bytes(key)
    status, found = examined(capsys, "all", "--config", str(path))
    assert status == 1
    assert "party1" in found["party0: certificate"][1]
    assert "issuer" in found["he: certificate"][1]  # another authority's
    assert found["party1: party1.sqb"][0] == "fail"
    assert found["he: server.sqb"][0] == "fail"
    assert found["models of parties and dealer"][0] == "fail"
    assert found["party1: dealer at 127.0.0.1:1"][0] == "fail"
    (certs / "ca.pem").write_bytes(authority.pem)
    (certs / "he.key").chmod(0o644)
    path.write_text(path.read_text() + f'metrics = "1"\ntokens = "{tmp_path / "none"}"\n')
    status, found = examined(capsys, "all", "--config", str(path))
    assert "127.0.0.1:1 is also party0's listen" in found["dealer: listen"][1]
    assert "127.0.0.1:1 is also" in found["he: metrics"][1]
    assert "No such file" in found["he: tokens"][1]
    assert "make-token" in found["he: tokens"][1]
    path.write_text(path.read_text() + "workres = 3\n")
    status, found = examined(capsys, "he", "--config", str(path))
    assert "workers?" in found["he: settings"][1]
    path.write_text(path.read_text().replace("workres", "workers"))
    status, found = examined(capsys, "he", "--config", str(path))
    assert found["he: certificate"][0] == "warn"
    assert found["he: key"][1].endswith(f"chmod 600 {certs / 'he.key'}")


def test_the_machine_is_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in diagnosis.PROXIES:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("https_proxy", "http://proxy")
    monkeypatch.setattr(diagnosis, "_cpu_flags", lambda: {"sse2", "aes"})
    monkeypatch.setattr(diagnosis, "_clock_state", lambda: diagnosis.UNSYNCHRONISED)
    found = {each.check: each for each in diagnosis._machine()}
    assert (found["CPU"].state, found["CPU"].found) == ("warn", "without avx2")
    assert found["clock"].state == found["https_proxy"].state == "warn"


def test_versions_that_do_not_fit_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(diagnosis, "_installed", {"grpcio": "1.0"}.get)
    requirements = ["grpcio>=1.76,<2", "numba>=0.62; extra == 'mpc'", "numpy"]
    monkeypatch.setattr(diagnosis.metadata, "requires", {"secure-quant": requirements}.get)
    found = {each.check: each for each in diagnosis._versions({})}
    assert found["grpcio"].state == found["numpy"].state == "fail"
    assert "1.0, needed" in found["grpcio"].found
    assert "numba" not in found  # no role here needs it
