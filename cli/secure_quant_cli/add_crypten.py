"""Install CrypTen into this environment: the step that no extra can do.

CrypTen's metadata asks for the package "sklearn", which is retired and refuses to be installed. So
CrypTen comes without its declared dependencies, from your package index and checked against its
SHA-256; what it really needs is in the extra mpc. If it is here already, it is only tried.
"""

from __future__ import annotations

import argparse
import importlib
import subprocess
import sys
import tempfile
from importlib.metadata import PackageNotFoundError
from importlib.metadata import version as installed_version
from importlib.util import find_spec
from pathlib import Path

__all__ = ["HELP", "configure", "run"]

HELP = "install CrypTen, which parties need besides the extra mpc"

VERSION = "0.4.1"
SHA256 = "26e7f4b54997b3a78d10c8c0bcb604215eef6ad7830ddbfe93a14d80c9c1dd84"
"""Of crypten-0.4.1-py3-none-any.whl."""

NEEDS = ("torch", "numba", "omegaconf", "onnx", "yaml")
"""What CrypTen and our use of it import, all in the extra mpc."""


def configure(parser: argparse.ArgumentParser) -> None:
    """Nothing to choose."""


def run(arguments: argparse.Namespace) -> int:
    """Install, import, and say so. Raises ConfigError."""
    from secure_quant.errors import ConfigError
    from secure_quant_cli.extras import how_to_install

    missing = [name for name in NEEDS if find_spec(name) is None]
    if missing:
        raise ConfigError(
            "CrypTen", got=f"no {', '.join(missing)}", expected=f"first {how_to_install('mpc')}"
        )
    if _installed() != VERSION:
        _install()
        importlib.invalidate_caches()
    from secure_quant.mpc.crypten.compat import crypten

    print(f"CrypTen {VERSION} is ready: {Path(crypten.__file__).parent}")
    return 0


def _installed() -> str | None:
    try:
        return installed_version("crypten")
    except PackageNotFoundError:
        return None


def _install() -> None:
    from secure_quant.errors import ConfigError

    if find_spec("pip") is None:
        raise ConfigError(
            "CrypTen", got="an environment without pip",
            expected=f"crypten=={VERSION}, installed by your own tool without its dependencies "
            f"(python -m ensurepip brings pip; or: uv pip install --no-deps crypten=={VERSION})",
        )  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        wanted = Path(folder, "crypten.txt")  # pip takes hashes from files only
        wanted.write_text(f"crypten=={VERSION} --hash=sha256:{SHA256}\n")
        command = (sys.executable, "-m", "pip", "install", "--no-deps", "--require-hashes")
        done = subprocess.run(  # noqa: S603 - this environment's own pip
            (*command, "--requirement", wanted), check=False, stdout=sys.stderr
        )
    if done.returncode != 0:
        raise ConfigError(
            "CrypTen", got=f"status {done.returncode} of pip, which told why above",
            expected=f"an index that has crypten=={VERSION}",
        )  # fmt: skip
