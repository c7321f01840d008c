"""The README as a newcomer follows it: every block, in order, in an environment that has exactly
what the README told to install.

A comment above a block says what it is: ``install: ENV`` names the extras of an environment,
``file: NAME`` a file to write, ``run: ENV`` commands or Python to run, ``serve: ENV`` commands that
keep running, ``see: PATH`` where else it is tested. Hosts become this machine, ports free ones.
"""

from __future__ import annotations

import os
import re
import shlex
import socket
import subprocess
import textwrap
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
from patience import ample
from readme.environments import ROOT, make_environment

BLOCK = re.compile(r"(?:<!-- ([a-z]+): ([^>]+?) -->\n)?```(\w+)\n(.*?)```", re.DOTALL)
HOST = re.compile(r"\b[a-z0-9]+\.example:(\d+)|\b0\.0\.0\.0:(\d+)")
READY_S = 180


@dataclass(frozen=True)
class Block:
    kind: str
    name: str
    language: str
    text: str


def blocks() -> list[Block]:
    text = (ROOT / "README.md").read_text()
    return [Block(*(part or "" for part in found)) for found in BLOCK.findall(text)]


def commands(text: str) -> list[list[str]]:
    """Lines of a shell block as words; comments and continuations gone."""
    lines = text.replace("\\\n", " ").splitlines()
    return [words for line in lines if (words := shlex.split(line, comments=True))]


def test_every_block_says_how_it_is_tested() -> None:
    makes = [block for block in blocks() if not block.kind]
    for block in makes:
        assert all("make" in words for words in commands(block.text)), block.text
    kinds = {block.kind for block in blocks()}
    assert {"install", "file", "run", "serve"} <= kinds
    for block in blocks():
        if block.kind == "see":
            assert (ROOT / block.name).exists()


def extras(block: Block) -> tuple[list[str], bool]:
    """What an install block names: extras, and whether CrypTen is added."""
    words = shlex.split(block.text, comments=True)
    assert words[:2] == ["pip", "install"]
    found = re.fullmatch(r"\.(?:\[([a-z,]+)\])?", words[2])
    assert found is not None, words
    names = found[1].split(",") if found[1] else []
    return names, "add-crypten" in words


@dataclass
class Newcomer:
    """A folder, environments, and what was started in them."""

    home: Path
    environments: dict[str, Path] = field(default_factory=dict)
    ports: dict[str, int] = field(default_factory=dict)
    running: list[subprocess.Popen[bytes]] = field(default_factory=list)

    def here(self, text: str) -> str:
        """Hosts of the README as addresses of this machine."""
        return HOST.sub(lambda found: f"127.0.0.1:{self._port(found[1] or found[2])}", text)

    def _port(self, written: str) -> int:
        if written not in self.ports:
            with socket.socket() as probe:
                probe.bind(("127.0.0.1", 0))
                self.ports[written] = probe.getsockname()[1]
        return self.ports[written]

    def environ(self, name: str) -> dict[str, str]:
        programs = self.environments[name]
        kept = {key: os.environ[key] for key in ("HOME", "LANG", "TMPDIR") if key in os.environ}
        return kept | {"PATH": f"{programs}:/usr/bin:/bin", "OMP_NUM_THREADS": "1"}

    def run(self, block: Block) -> str:
        """What the block prints; it must succeed."""
        programs = self.environments[block.name]
        text = self.here(block.text)
        if block.language == "python":
            lines = [[str(programs / "python"), "-c", text]]
        else:
            lines = [[str(programs / words[0]), *words[1:]] for words in commands(text)]
        printed = ""
        for line in lines:
            done = subprocess.run(
                line, cwd=self.home, env=self.environ(block.name), capture_output=True, text=True,
                timeout=ample(900),
            )  # fmt: skip
            assert done.returncode == 0, f"{line[1:3]}\n{done.stdout}\n{done.stderr}"
            printed += done.stdout
        return printed

    def serve(self, block: Block) -> None:
        programs = self.environments[block.name]
        for number, words in enumerate(commands(self.here(block.text))):
            log = (self.home / f"{block.name}-{number}.log").open("wb")
            self.running.append(
                subprocess.Popen(
                    [str(programs / words[0]), *words[1:]], cwd=self.home, stdout=log, stderr=log,
                    env=self.environ(block.name),
                )
            )  # fmt: skip

    def wait_until_served(self, command: list[str]) -> None:
        """Ask as the README does until the role serves."""
        programs, deadline = self.environments["client"], time.monotonic() + READY_S
        while True:
            line = [str(programs / command[0]), *command[1:]]
            done = subprocess.run(
                line, cwd=self.home, env=self.environ("client"), capture_output=True, text=True
            )
            if done.returncode == 0:
                return
            assert done.returncode == 1, done.stderr
            assert all(process.poll() is None for process in self.running), self.logs()
            assert time.monotonic() < deadline, self.logs()
            time.sleep(0.2)

    def logs(self) -> str:
        return "\n".join(path.read_text()[-2000:] for path in sorted(self.home.glob("*.log")))

    def stop(self) -> None:
        for process in self.running:
            process.terminate()
        for process in self.running:
            process.wait(timeout=ample(60))


@pytest.fixture
def newcomer(tmp_path: Path) -> Iterator[Newcomer]:
    made = Newcomer(tmp_path)
    yield made
    made.stop()


def test_a_newcomer_follows_the_page(newcomer: Newcomer) -> None:
    printed: list[str] = []
    for block in blocks():
        if block.kind == "install":
            names, crypten = extras(block)
            folder = newcomer.home / f"env-{block.name}"
            newcomer.environments[block.name] = make_environment(folder, names, crypten=crypten)
        elif block.kind == "file":
            (newcomer.home / block.name).write_text(textwrap.dedent(block.text))
        elif block.kind == "serve":
            newcomer.serve(block)
        elif block.kind == "run":
            if block.name == "client":
                (health,) = (words for words in commands(block.text) if words[1] == "health")
                for role, port in (("party0", "7100"), ("party1", "7101"), ("he", "7300")):
                    target = newcomer.here(f"x.example:{port}")
                    newcomer.wait_until_served(
                        [role if word == "party0" else target if ":" in word else word
                         for word in health]
                    )  # fmt: skip
            printed.append(newcomer.run(block))
    text = "\n".join(printed)
    assert "bit-exact: yes" in text, text
    assert (newcomer.home / "report.html").stat().st_size > 10_000
    assert np.load(newcomer.home / "data.npz")["x"].shape == (256, 8)
