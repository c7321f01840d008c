"""Images built for real, and machines that run them: buildah for the one, namespaces for the other.

No container engine and no registry: the base image is made of Debian's packages by debootstrap, and
a machine is a process tree in network, mount and process namespaces of its own whose root is the
image's, read-only, run as the image's user without capabilities.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from patience import ample

__all__ = ["Images", "Machine", "missing"]

ROOT = Path(__file__).resolve().parents[2]
BASE = "localhost/base"
PACKAGES = "python3,python3-venv,ca-certificates"
USER = 10001
STEP_S = 900


def missing() -> str | None:
    """What this machine lacks for images and namespaces; None if nothing."""
    if os.geteuid() != 0:
        return "needs root"
    for program in ("buildah", "debootstrap", "ip", "unshare", "setpriv"):
        if shutil.which(program) is None:
            return f"needs {program}"
    return None


@dataclass
class Images:
    """Images in a store of their own below ``folder``."""

    folder: Path
    _built: set[str] = field(default_factory=set)
    _pip: list[str] = field(default_factory=list)

    def buildah(self, *words: str | Path) -> str:
        """Its standard output."""
        store = ["--root", str(self.folder / "store"), "--runroot", str(self.folder / "run")]
        done = subprocess.run(
            ["buildah", *store, "--storage-driver", self._driver, *map(str, words)],
            env={**os.environ, "BUILDAH_ISOLATION": "chroot"},
            capture_output=True, text=True, timeout=ample(STEP_S),
        )  # fmt: skip
        if done.returncode != 0:
            raise AssertionError(f"buildah {words[0]}: {done.stderr[-4000:]}")
        return done.stdout.strip()

    @cached_property
    def _driver(self) -> str:
        """Layers by overlay where the kernel lets this process mount one, else by copies."""
        parts = {name: self.folder / "overlay" / name for name in ("lower", "upper", "work", "at")}
        for part in parts.values():
            part.mkdir(parents=True, exist_ok=True)
        options = f"lowerdir={parts['lower']},upperdir={parts['upper']},workdir={parts['work']}"
        command = ["mount", "-t", "overlay", "overlay", "-o", options, str(parts["at"])]
        if subprocess.run(command, capture_output=True, check=False).returncode != 0:
            return "vfs"
        subprocess.run(["umount", str(parts["at"])], check=True)
        return "overlay"

    def named(self, name: str) -> str:
        """The tag of the image that deploy/docker/NAME.Dockerfile makes, built if it is not yet."""
        tag = f"localhost/secure-quant-{name}"
        if name not in self._built:
            self._make_base()
            volumes = [word for each in self._pip for word in ("-v", each)]
            self.buildah(
                "bud", "-q", *volumes, "--build-arg", f"BASE={BASE}",
                "--build-arg", "REVISION=tested", "--build-arg",
                f"PIP_EXTRA_INDEX_URL={os.environ.get('PIP_EXTRA_INDEX_URL', '')}",
                "-f", ROOT / "deploy" / "docker" / f"{name}.Dockerfile", "-t", tag, ROOT,
            )  # fmt: skip
            self._built.add(name)
        return tag

    def config(self, name: str) -> dict[str, Any]:
        """What the image says of itself."""
        found = json.loads(self.buildah("inspect", "--type", "image", self.named(name)))
        return dict(found["OCIv1"]["config"])

    def root(self, name: str) -> Path:
        """The file system of a new container of the image."""
        container = self.buildah("from", self.named(name))
        return Path(self.buildah("mount", container))

    def remove(self) -> None:
        """All containers, images and the store's own mount."""
        self.buildah("rm", "--all")
        self.buildah("rmi", "--all", "--force")
        store = self.folder / "store" / "overlay"
        subprocess.run(["umount", str(store)], capture_output=True, check=False)

    def _make_base(self) -> None:
        if self._pip:
            return
        self._pip = _pip_of_this_machine(self.folder)
        tree = self.folder / "debian"
        subprocess.run(
            ["debootstrap", "--variant=minbase", f"--include={PACKAGES}", "bookworm", tree],
            check=True, capture_output=True, timeout=ample(STEP_S),
        )  # fmt: skip
        container = self.buildah("from", "scratch")
        self.buildah("add", "-q", container, tree, "/")
        self.buildah("commit", "-q", container, BASE)
        self.buildah("rm", container)
        shutil.rmtree(tree)


def _pip_of_this_machine(folder: Path) -> list[str]:
    """Volumes that give a build's pip the indexes and authorities of this machine's."""
    command = [sys.executable, "-m", "pip", "config", "list"]
    listed = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    settings = {}
    for line in listed.splitlines():
        name, _, value = line.partition("=")
        settings[name.rpartition(".")[2]] = value.strip("'")
    text = "".join(f"{name} = {value}\n" for name, value in settings.items())
    conf = folder / "pip.conf"
    conf.write_text(f"[global]\n{text}")
    volumes = [f"{conf}:/etc/pip.conf:ro"]
    for path in re.findall(r"(?:^|[\s/])(/[^\s,]+)", " ".join(settings.values())):
        there = Path(path).parent if path.endswith("/simple") else Path(path)
        if there.exists():
            volumes.append(f"{there}:{there}:ro")
    return list(dict.fromkeys(volumes))


@dataclass
class Machine:
    """A role's or a client's machine: an image, a network namespace, files of its own.

    files  path inside -> file or folder here, read-only. kept: the same, writable.
    """

    name: str
    images: Images
    image: str
    files: Mapping[str, Path]
    kept: Mapping[str, Path] = field(default_factory=dict)
    _running: list[subprocess.Popen[bytes]] = field(default_factory=list)

    @property
    def namespace(self) -> str:
        return f"sq{os.getpid()}-{self.name}"

    @cached_property
    def _root(self) -> Path:
        return self.images.root(self.image)

    @cached_property
    def _config(self) -> dict[str, Any]:
        return self.images.config(self.image)

    def start(self, command: Sequence[str], log: Path) -> subprocess.Popen[bytes]:
        """The image's entry point with ``command``, until ``stop``."""
        with log.open("wb") as out:
            made = subprocess.Popen(
                self._command([*self._config["Entrypoint"], *command]), stdin=subprocess.DEVNULL,
                stdout=out, stderr=subprocess.STDOUT,
            )  # fmt: skip
        self._running.append(made)
        return made

    def run(self, command: Sequence[str]) -> subprocess.CompletedProcess[str]:
        """A program of the image, to its end."""
        return subprocess.run(
            self._command(command), stdin=subprocess.DEVNULL, capture_output=True, text=True,
            timeout=ample(120),
        )  # fmt: skip

    def stop(self) -> None:
        """End all that runs here."""
        for process in self._running:
            process.kill()  # and with it the first process of its namespace, and so all of them
            process.wait()
        self._running.clear()

    def _command(self, command: Sequence[str]) -> list[str]:
        root = shlex.quote(str(self._root))
        lines = [
            "mount --make-rprivate /",
            f"mount --bind {root} {root}",
            f"mount -t proc proc {root}/proc",
            f"mount --rbind /dev {root}/dev",
            f"mount -t tmpfs tmpfs {root}/tmp",  # noqa: S108 - the machine's own
        ]
        if "NUMBA_CACHE_DIR=/cache" in self._config["Env"]:
            lines.append(f"mount -t tmpfs -o uid={USER},gid={USER} tmpfs {root}/cache")
        for inside, here in {**self.files, **self.kept}.items():
            place, source = shlex.quote(f"{self._root}{inside}"), shlex.quote(str(here))
            made = place if here.is_dir() else f"$(dirname {place}) && touch {place}"
            lines += [f"mkdir -p {made}", f"mount --bind {source} {place}"]
            if inside in self.files:
                lines.append(f"mount -o remount,bind,ro {place}")
        lines += [
            f"mount -o remount,bind,ro {root}",
            f"exec chroot {root} setpriv --reuid {USER} --regid {USER} --clear-groups "
            f"--no-new-privs --bounding-set=-all env -i {shlex.join(self._config['Env'])} "
            f"{shlex.join(command)}",
        ]
        script = "\n".join(lines)
        spaces = ["unshare", "--mount", "--pid", "--ipc", "--uts", "--fork", "--kill-child"]
        return ["ip", "netns", "exec", self.namespace, *spaces, "bash", "-euc", script]
