"""From a user's own model file to encrypted answers, with the commands of the README."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from patience import ample

import secure_quant as sq
from secure_quant.errors import PeerUnavailable
from secure_quant_cli.cluster import KEPT, Cluster, free_ports
from secure_quant_cli.main import main
from secure_quant_cli.processes import peak_memory

OWNER = """
import torch
from torch import nn

def build():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 4))
"""


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a model, its bundles for two engines, certificates and inputs."""
    home = tmp_path_factory.mktemp("owner")
    (home / "owner.py").write_text(OWNER)
    x = np.random.default_rng(0).normal(size=(64, 8)).astype(np.float32)
    np.savez(home / "data.npz", x=x)
    np.savez(home / "x.npz", x=x[:5])
    model, data = home / "model.sq", home / "data.npz"
    build = f"{home / 'owner.py'}:build"
    assert main(["quantize", build, "--calibration", str(data), "--out", str(model)]) == 0
    for engine in ("mpc", "he"):
        assert main(["split", str(model), "--engine", engine, "--out", str(home / engine)]) == 0
    assert main(["certs", "--out", str(home / "certs")]) == 0
    return home


@pytest.fixture(scope="module")
def cluster(home: Path):
    started = Cluster(home / "certs", home / "logs", {"mpc": home / "mpc", "he": home / "he"})
    with started:
        yield started


@pytest.mark.parametrize("engine", ["mpc", "he"])
def test_infer_equals_the_reference(
    engine: str, home: Path, cluster: Cluster, capsys: pytest.CaptureFixture[str]
) -> None:
    targets = cluster.targets[engine]
    command = ["infer", "--engine", engine, "--input", str(home / "x.npz"), "--json"]
    command += ["--target", ",".join(targets), "--tls", str(home / "certs")]
    command += ["--out", str(home / f"{engine}.npz")]
    assert main(command) == 0
    printed = json.loads(capsys.readouterr().out)
    expected = sq.reference.run(sq.load(home / "model.sq"), np.load(home / "x.npz")["x"])
    assert np.array_equal(np.array(printed["y"], np.float32), expected)
    assert np.array_equal(np.load(home / f"{engine}.npz")["y"], expected)
    assert printed["stats"]["samples"] == 5


def test_another_model_is_refused(
    home: Path, cluster: Cluster, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["infer", "--engine", "he", "--input", str(home / "x.npz"), "--model-hash", "0" * 64]
    command += ["--target", cluster.targets["he"][0], "--tls", str(home / "certs")]
    assert main(command) == 1
    assert capsys.readouterr().err.splitlines()[-1].startswith("secure-quant: ")


def test_health_and_memory(home: Path, cluster: Cluster) -> None:
    command = ["health", "--role", "he", "--target", cluster.targets["he"][0]]
    assert main([*command, "--tls", str(home / "certs")]) == 0
    wrong = ["health", "--role", "dealer", "--target", cluster.targets["he"][0]]
    assert main([*wrong, "--tls", str(home / "certs")]) == 1
    memory = cluster.memory()
    assert set(memory) == {"dealer", "party0", "party1", "he"}
    assert all(size is None or size > 10_000_000 for size in memory.values())


def test_verify(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["verify", str(home / "model.sq"), "--input", str(home / "x.npz"), "--json"]
    assert main([*command, "--float", f"{home / 'owner.py'}:build"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["bit_exact"] is True
    assert report["engines"]["mpc"]["compared"] == 5 * 4
    assert report["engines"]["he"]["compared"] == 5 * (32 + 32 + 4 + 4)
    assert 0 < report["float_error_max"] < 0.1


def test_verify_of_the_reference_alone_claims_nothing(
    home: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from secure_quant_cli import verify

    command = ["verify", str(home / "model.sq"), "--input", str(home / "x.npz")]
    assert main([*command, "--engines", "reference"]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == "bit-exact: no engine was compared"
    monkeypatch.setattr(verify, "_installed", lambda: ("reference",))
    assert main([*command, "--json"]) == 1
    assert json.loads(capsys.readouterr().out)["bit_exact"] is None


def test_verify_tells_a_mismatch(
    home: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from secure_quant_cli import inprocess
    from secure_quant_cli.engines import he

    def spoiled(graph: sq.Graph) -> inprocess.Executor:
        def run(q: np.ndarray) -> inprocess.Run:
            values = sq.reference.trace(graph, q)
            values[graph.output.name] = values[graph.output.name].copy()
            values[graph.output.name].flat[0] += 1
            return inprocess.Run(values, 0, 0)

        return run

    monkeypatch.setattr(he, "COMMANDS", replace(he.COMMANDS, in_process=spoiled))
    command = ["verify", str(home / "model.sq"), "--input", str(home / "x.npz")]
    assert main([*command, "--engines", "he"]) == 1
    assert capsys.readouterr().out.splitlines()[-1] == "bit-exact: NO"


def test_inspect_plans_both_engines(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect", str(home / "model.sq"), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["hash"] == sq.load(home / "model.sq").hash
    assert found["float_bytes"] == 4 * (8 * 32 + 32 + 32 * 4 + 4)
    assert found["plans"]["mpc"]["rounds"] > 0
    assert found["plans"]["he"]["bytes_up"] > 0


def test_bundles_are_private_and_engines_do_not_mix(home: Path) -> None:
    assert {path.stat().st_mode & 0o077 for path in (home / "mpc").iterdir()} == {0}
    model = str(home / "model.sq")
    assert main(["split", model, "--engine", "he", "--out", str(home / "mpc")]) == 2


def test_bench_has_every_figure(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from secure_quant_cli.bench import FIGURES

    command = ["bench", "--model", str(home / "model.sq"), "--runs", "3", "--seconds", "0.2"]
    assert main([*command, "--engine", "reference", "--batch", "2", "--json"]) == 0
    figures = json.loads(capsys.readouterr().out)
    assert set(FIGURES) <= set(figures)
    assert figures["mismatches"] == 0
    assert figures["rounds"] is None
    assert figures["inferences_per_second"] > 0


def test_bench_of_secret_sharing(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["bench", "--model", str(home / "model.sq"), "--engine", "mpc", "--json"]
    assert main([*command, "--runs", "2", "--seconds", "0.6", "--clients", "2"]) == 0
    figures = json.loads(capsys.readouterr().out)
    others = {"offline_bytes_up", "offline_bytes_down", "flights", "offline_seconds", "key_bytes"}
    assert {name for name, value in figures.items() if value is None} == others
    assert figures["mismatches"] == 0
    assert figures["rest_ms_median"] > 0
    assert figures["sustained_per_second"] > 0
    roles = {"client", "dealer", "party0", "party0_workers", "party1", "party1_workers"}
    assert set(figures["cpu_ms_per_inference"]) == roles
    assert figures["cpu_ms_per_inference"]["party0"] > 0
    assert set(figures["peak_memory_bytes_by_role"]) == {"dealer", "party0", "party1"}


def test_a_role_that_cannot_start_is_named(home: Path) -> None:
    (home / "broken").mkdir()
    (home / "broken" / "server.sqb").write_bytes(b"not a bundle")
    cluster = Cluster(home / "certs", home / "broken" / "logs", {"he": home / "broken"})
    with pytest.raises(PeerUnavailable, match="he ended at its start"):
        cluster.start()
    assert all(process.poll() is not None for process in cluster.processes.values())


def test_roles_end_when_their_starter_is_killed(home: Path) -> None:
    (address,) = (f"127.0.0.1:{port}" for port in free_ports(1))
    bundle, certs = home / "he" / "server.sqb", home / "certs"
    script = (
        "import subprocess, sys, time\n"
        "child = subprocess.Popen([sys.executable, '-m', 'secure_quant_cli', 'serve', 'he',\n"
        f"    '--bundle', {str(bundle)!r}, '--listen', {address!r}, '--tls', {str(certs)!r},\n"
        "    '--until-stdin-closes'], stdin=subprocess.PIPE, start_new_session=True)\n"
        "print(child.pid, flush=True)\n"
        "time.sleep(60)\n"
    )
    starter = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True)
    assert starter.stdout is not None
    child = int(starter.stdout.readline())
    starter.kill()
    starter.wait()
    starter.stdout.close()
    deadline = time.monotonic() + ample(30)
    while _runs(child) and time.monotonic() < deadline:
        time.sleep(0.05)
    left = _runs(child)
    if left:
        os.kill(child, signal.SIGKILL)
    assert not left


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_an_interrupt_ends_every_role(
    number: signal.Signals, code: int, home: Path, tmp_path: Path
) -> None:
    command = [sys.executable, "-m", "secure_quant_cli", "bench", "--engine", "he", "--runs", "1"]
    bench = subprocess.Popen(
        [*command, "--model", str(home / "model.sq"), "--seconds", "60"],
        stderr=subprocess.PIPE, text=True, env=dict(os.environ, TMPDIR=str(tmp_path)),
        # A test run in the background of a shell ignores Ctrl-C, and so would its children.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )  # fmt: skip
    assert bench.stderr is not None
    while "sustained" not in bench.stderr.readline():
        assert bench.poll() is None
    bench.send_signal(number)
    bench.communicate(timeout=ample(30))
    assert bench.returncode == code
    assert list(tmp_path.iterdir()) == []
    lines = [path for path in Path("/proc").glob("[0-9]*/cmdline") if _mentions(path, tmp_path)]
    assert lines == []


def _mentions(cmdline: Path, folder: Path) -> bool:
    try:
        return str(folder).encode() in cmdline.read_bytes()
    except OSError:
        return False


def _runs(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state != "Z"


def test_free_ports_come_in_runs() -> None:
    ports = free_ports(3, run=4)
    taken = {port + i for port in ports for i in range(4)}
    assert len(taken) == 12


@pytest.mark.skipif(sys.platform != "linux", reason="SO_REUSEADDR as Linux has it")
def test_a_free_port_stays_free_for_who_was_told_it() -> None:
    (port,) = free_ports(1)
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", port))
    with socket.socket() as other, pytest.raises(OSError, match="in use"):
        other.bind(("127.0.0.1", port))
    with socket.create_server(("127.0.0.1", port)):  # which sets SO_REUSEADDR
        socket.create_connection(("127.0.0.1", port)).close()
    found = {free_ports(1)[0] for _ in range(KEPT)}
    assert len(found) == KEPT
    assert port not in found


def test_own_memory_is_known() -> None:
    size = peak_memory(os.getpid())
    assert size is None or size > 10_000_000
    assert peak_memory(2**22 + 1) is None


@pytest.mark.parametrize("after", [0.02, 0.2, 0.6])
def test_ctrl_c_while_a_role_starts_is_one_line(after: float, home: Path) -> None:
    script = "\n".join([
        "from secure_quant_cli import main",
        "inner = main.plain_where_needed",
        "main.plain_where_needed = lambda: (print(flush=True), inner())",  # main has begun
        "raise SystemExit(main.main())",
    ])  # fmt: skip
    serve = subprocess.Popen(
        [sys.executable, "-c", script, "serve", "he", "--listen", "127.0.0.1:0",
         "--bundle", str(home / "he" / "server.sqb"), "--tls", str(home / "certs")],
        stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )  # fmt: skip
    assert serve.stdout is not None
    serve.stdout.readline()
    time.sleep(after)
    serve.send_signal(signal.SIGINT)
    _, said = serve.communicate(timeout=ample(30))
    if serve.returncode == 0:  # it served already, and was stopped
        assert '"event": "stopped"' in said
    else:
        # gRPC's threads may complain, in lines like "E0131 12:00:00.0 ...", as they are torn down.
        ours = [line for line in said.splitlines() if not re.match(r"[EW]\d{4} ", line)]
        assert (serve.returncode, ours) == (130, ["secure-quant: interrupted"])
