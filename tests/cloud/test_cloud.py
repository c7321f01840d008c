"""A cloud on one machine: images built for real, and every role run by its image and the command of
the Compose file, on a machine of its own, over a network that delays and loses packets and lets
nobody through but whom it should. One file, so that one worker builds the images.
"""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from cloud.machines import USER, Images, Machine
from cloud.wires import Network
from patience import ample

import secure_quant as sq
from secure_quant import __version__
from secure_quant.transport.certs import make_all
from secure_quant_cli.split import split_for, write_bundles

pytestmark = pytest.mark.heavy

ROOT = Path(__file__).resolve().parents[2]
COMPOSE: dict[str, Any] = yaml.safe_load((ROOT / "deploy" / "docker-compose.yml").read_text())
ROLES = tuple(COMPOSE["services"])
DELAY_S, LOSS = 0.005, 0.005
TARGETS = {
    "mpc": ["party0:7100", "party1:7100"],
    "he": ["he:7300"],
    "onehost": ["onehost:7400"],
}


PACKAGES = ("secure_quant_client", "secure_quant_server", "torch", "crypten", "tenseal", "numba")
HOLDS = {
    "party": {"secure_quant_server", "torch", "crypten", "numba"},
    "he": {"secure_quant_server", "tenseal"},
    "onehost": {"secure_quant_server", "tenseal", "numba"},
    "client": {"secure_quant_client", "tenseal", "numba"},
}
SERVES = {"party": ("dealer", "party"), "he": ("he",), "onehost": ("onehost",), "client": ()}


@pytest.mark.parametrize("name", HOLDS)
def test_an_image_holds_what_its_role_needs(images: Images, name: str) -> None:
    config = images.config(name)
    assert config["User"] == "10001:10001"
    assert config["Entrypoint"] == ["secure-quant", "infer" if name == "client" else "serve"]
    labels = config["Labels"]
    assert labels["org.opencontainers.image.version"] == __version__
    assert labels["org.opencontainers.image.revision"] == "tested"
    container = images.buildah("from", images.named(name))
    told = images.buildah("run", container, "--", "secure-quant", "--version")
    assert told == f"secure-quant {__version__}"
    program = (
        "import importlib.util as u, os; "
        f"print(*(n for n in {PACKAGES!r} if u.find_spec(n))); print(os.getuid())"
    )
    found, user = images.buildah("run", container, "--", "python", "-c", program).splitlines()
    assert set(found.split()) == HOLDS[name]
    assert user == "10001"
    for role in SERVES[name]:
        told = images.buildah("run", container, "--", "secure-quant", "serve", role, "--help")
        assert "--listen" in told
    images.buildah("rm", container)


class Cloud:
    """All machines, started; ``client`` is one more, on the clients' network."""

    def __init__(self, images: Images, folder: Path) -> None:
        torch.manual_seed(0)
        model = torch.nn.Sequential(
            torch.nn.Linear(8, 32), torch.nn.ReLU(), torch.nn.Linear(32, 4)
        ).eval()
        rng = np.random.default_rng(0)
        self.graph = sq.quantize(model, rng.standard_normal((256, 8)).astype(np.float32))
        self.x = rng.standard_normal((5, 8)).astype(np.float32)
        self.folder, self.data = folder, folder / "data"
        self.data.mkdir()
        np.savez(self.data / "x.npz", x=self.x)
        for engine in TARGETS:
            write_bundles(split_for(self.graph, engine), folder / "bundles" / engine)
        make_all(folder / "certs")  # the guide's: certificates name roles, no hosts
        networks = {name: set(each["networks"]) for name, each in COMPOSE["services"].items()}
        self.networks = {**networks, "client": {"front"}}
        self.machines = {name: self._machine(images, name) for name in self.networks}
        for path in (self.data, *self.data.iterdir()):
            os.chown(path, USER, USER)

    def _machine(self, images: Images, name: str) -> Machine:
        hosts = self.folder / "hosts"
        if name == "client":
            certs = self._own(
                name, [f"certs/{file}" for file in ("ca.pem", "client.pem", "client.key")]
            )
            files = {"/certs": certs, "/etc/hosts": hosts}
            return Machine(name, images, "client", files, {"/data": self.data})
        service = COMPOSE["services"][name]
        files, kept = {"/etc/hosts": hosts}, {}
        for volume in service["volumes"]:
            source, place = volume.removesuffix(":ro").split(":")
            if volume.endswith(":ro"):
                copy = self._own(name, [source.removeprefix("../")]) / Path(source).name
                files[place] = copy
            else:
                kept[place] = self._own(name, [])
        image = service["image"].removeprefix("secure-quant-").partition(":")[0]
        return Machine(name, images, image, files, kept)

    def _own(self, name: str, files: list[str]) -> Path:
        """A folder of copies that the machine's user may read, and nobody else."""
        folder = self.folder / "machines" / name
        folder.mkdir(parents=True, exist_ok=True)
        for file in files:
            copy = folder / Path(file).name
            shutil.copy(self.folder / file, copy)
            os.chown(copy, USER, USER)
            copy.chmod(0o400)
        os.chown(folder, USER, USER)
        return folder

    def serves(self, role: str) -> bool:
        """By the health check of the Compose file, on the role's machine."""
        return (
            self.machines[role].run(COMPOSE["services"][role]["healthcheck"]["test"][1:]).returncode
            == 0
        )


@pytest.fixture(scope="module")
def cloud(
    images: Images, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[Cloud, Network]]:
    folder = tmp_path_factory.mktemp("cloud")
    made = Cloud(images, folder)
    spaces = {name: machine.namespace for name, machine in made.machines.items()}
    with Network(made.networks, spaces, delay_s=DELAY_S, loss=LOSS) as network:
        lines = [f"{address} {name}\n" for name, address in network.addresses.items()]
        (folder / "hosts").write_text("127.0.0.1 localhost\n" + "".join(lines))
        try:
            for role in ROLES:
                command = COMPOSE["services"][role]["command"]
                made.machines[role].start(command, folder / f"{role}.log")
            deadline = time.monotonic() + ample(180)
            waiting = set(ROLES)
            while waiting:
                waiting -= {role for role in waiting if made.serves(role)}
                if waiting and time.monotonic() > deadline:
                    logs = {role: (folder / f"{role}.log").read_text()[-800:] for role in waiting}
                    pytest.fail(f"not serving: {logs}")
            yield made, network
        finally:
            for machine in made.machines.values():
                machine.stop()


@pytest.mark.parametrize("engine", TARGETS)
def test_clients_are_answered_exactly(cloud: tuple[Cloud, Network], engine: str) -> None:
    made, network = cloud
    targets = [word for target in TARGETS[engine] for word in ("--target", target)]
    lost = network.lost
    done = made.machines["client"].run([
        "secure-quant", "infer", "--engine", engine, *targets, "--input", "/data/x.npz", "--out",
        f"/data/{engine}.npz", "--model-hash", made.graph.hash, "--tls", "/certs", "--json",
    ])  # fmt: skip
    assert done.returncode == 0, done.stderr
    json.loads(done.stdout)
    answer = np.load(made.data / f"{engine}.npz")["y"]
    np.testing.assert_array_equal(answer, sq.reference.run(made.graph, made.x))
    assert network.lost >= lost


def test_packets_were_lost_and_nobody_was_the_wiser(cloud: tuple[Cloud, Network]) -> None:
    _, network = cloud
    assert network.carried > 200
    assert network.lost > 0
    assert network.refused == set()


def test_who_shares_no_network_is_not_reached(cloud: tuple[Cloud, Network]) -> None:
    made, network = cloud
    asked = ["secure-quant", "health", "--role", "dealer", "--target", "dealer:7000"]
    done = made.machines["client"].run([*asked, "--caller", "client", "--tls", "/certs"])
    assert done.returncode == 1
    assert ("client", "dealer") in network.refused


def test_a_machine_holds_its_own_secrets_and_cannot_write(cloud: tuple[Cloud, Network]) -> None:
    made, _ = cloud
    program = (
        "import os; print(sorted(os.listdir('/bundle') + os.listdir('/certs')), os.getuid());"
        "open('/opt/x', 'w')"
    )
    done = made.machines["party0"].run(["python", "-c", program])
    assert done.stdout.strip() == "['ca.pem', 'party0.key', 'party0.pem', 'party0.sqb'] 10001"
    assert "Read-only file system" in done.stderr or "Permission denied" in done.stderr
