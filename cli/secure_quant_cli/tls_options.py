"""The options of TLS and tokens that several commands share."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from secure_quant.errors import ConfigError, InsecureRefused

if TYPE_CHECKING:
    from secure_quant.transport import Security

__all__ = ["add_tls_options", "add_token_option", "tls_from", "token_from"]

TOKEN_BYTES = 4096


def add_tls_options(parser: argparse.ArgumentParser) -> None:
    """``--tls DIR``, or the three files one by one, or plaintext in so many words."""
    group = parser.add_argument_group("security of the links (one of these is required)")
    group.add_argument(
        "--tls", type=Path, metavar="DIR",
        help="folder with ca.pem, ROLE.pem and ROLE.key as `secure-quant certs` writes it",
    )  # fmt: skip
    group.add_argument("--tls-ca", type=Path, metavar="FILE", help="who signs the peers")
    group.add_argument("--tls-cert", type=Path, metavar="FILE", help="this role's certificate")
    group.add_argument("--tls-key", type=Path, metavar="FILE", help="its private key")
    group.add_argument(
        "--insecure-plaintext", action="store_true",
        help="no TLS and no proof of who calls: anybody on the path reads and alters everything",
    )  # fmt: skip


def add_token_option(parser: argparse.ArgumentParser) -> None:
    """``--token-file FILE``, for who calls servers."""
    parser.add_argument(
        "--token-file", type=Path, metavar="FILE", help="what the servers ask besides a certificate"
    )


def token_from(arguments: argparse.Namespace) -> str | None:
    """What the file holds. Raises ConfigError without quoting it, and what opening it raises."""
    path: Path | None = arguments.token_file
    if path is None:
        return None
    with path.open("rb") as file:
        token = file.read(TOKEN_BYTES + 1).strip()
    if not token or len(token) > TOKEN_BYTES or not token.isascii():
        expected = "a token in one line of ASCII"
        raise ConfigError("--token-file", got=f"{path}: {len(token)} bytes", expected=expected)
    return token.decode()


def tls_from(arguments: argparse.Namespace, role: str) -> Security:
    """What the options say, for a process that acts as ``role``; the files are checked.

    Raises InsecureRefused when they say nothing, ConfigError and its kin when they contradict each
    other or name files that cannot be used.
    """
    from secure_quant.transport import InsecurePlaintext, Tls

    files = [arguments.tls_ca, arguments.tls_cert, arguments.tls_key]
    if sum([arguments.tls is not None, any(files), arguments.insecure_plaintext]) > 1:
        raise ConfigError(
            "--tls, --tls-ca/--tls-cert/--tls-key, --insecure-plaintext",
            got="several", expected="one of them",
        )  # fmt: skip
    if arguments.insecure_plaintext:
        return InsecurePlaintext()
    if arguments.tls is not None:
        tls = Tls.from_dir(arguments.tls, role)
    elif all(files):
        tls = Tls(*files)
    elif any(files):
        raise ConfigError("--tls-ca, --tls-cert and --tls-key", got="some", expected="all three")
    else:
        raise InsecureRefused("no certificates given", hint="--tls DIR; see `secure-quant certs`")
    tls.load()
    return tls
