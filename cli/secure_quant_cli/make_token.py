"""Make a client's token, and its line in the servers' file of tokens.

The token is 256 bits of randomness, for the client alone: it goes to standard output, or to a file
that only this account reads, as `infer` and `gateway` take it with --token-file. The servers' file
holds its SHA-256; servers that run read it anew.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
from pathlib import Path

__all__ = ["HELP", "configure", "run"]

HELP = "a client's token, and its line for the servers"
NAME = "[A-Za-z0-9][A-Za-z0-9._-]{0,63}"
EXPECTED = "letters, digits and . _ - behind the first, 64 at most"


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the options."""
    parser.add_argument("name", metavar="NAME", help="who it tells the client is, once in the file")
    parser.add_argument("--file", type=Path, required=True, metavar="FILE",
                        help="the servers' --tokens, made if it is not there")  # fmt: skip
    parser.add_argument(
        "--out", type=Path, metavar="FILE",
        help="for the token, in place of standard output; a file that is not there yet",
    )  # fmt: skip
    parser.add_argument("--json", action="store_true")


def run(arguments: argparse.Namespace) -> int:
    """Add the line, then give the token out."""
    from secure_quant.errors import ConfigError
    from secure_quant_cli.checks import can_write
    from secure_quant_cli.console import print_json
    from secure_quant_server.common import make_token

    if not re.fullmatch(NAME, arguments.name):
        raise ConfigError("NAME", got=ascii(arguments.name[:80]), expected=EXPECTED)
    token, line = make_token(arguments.name)
    can_write("--file", arguments.file)
    if arguments.out is not None:
        can_write("--out", arguments.out)
        if arguments.out.exists():
            raise ConfigError("--out", got=arguments.out, expected="a file that is not there yet")
    _add(arguments.file, line)
    if arguments.out is not None:
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL
        with os.fdopen(os.open(arguments.out, flags, 0o600), "w") as file:
            file.write(f"{token}\n")
    if arguments.json:
        told = {"name": arguments.name, "file": str(arguments.file)}
        print_json(told | ({"token": token} if arguments.out is None else {}))
    elif arguments.out is None:
        print(token)
    return 0


def _add(path: Path, line: str) -> None:
    """In the place of the file, so that no server reads half of it. Raises ConfigError for what
    would be no file of tokens."""
    from secure_quant_server.common import Tokens

    before = path.read_text("utf-8").rstrip("\n") if path.exists() else ""
    made = path.with_name(f"{path.name}.new")
    made.write_text(f"{before}\n{line}\n".lstrip("\n"), "utf-8")
    try:
        Tokens.from_file(made)
        if path.exists():
            shutil.copymode(path, made)
        made.replace(path)
    finally:
        made.unlink(missing_ok=True)
