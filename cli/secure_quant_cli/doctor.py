"""Check a role, or every role of a --config file, as `serve` would start it, and say what to mend.

Versions, this machine, certificates and their role, bundles and their hashes against each other,
and who can be reached. Exit status 1 if something is broken; warnings leave it 0.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from secure_quant.errors import ConfigError

if TYPE_CHECKING:
    from secure_quant_cli.diagnosis import Finding

__all__ = ["HELP", "configure", "run"]

HELP = "check a deployment and say what to mend"
MARKS = {"ok": "ok  ", "warn": "WARN", "fail": "FAIL"}


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the options."""
    from secure_quant.engines import roles

    parser.add_argument(
        "role", choices=(*roles(), "all"), help="whose host this is; all: every table of the file"
    )
    parser.add_argument("--config", type=Path, required=True, metavar="FILE.toml")
    parser.add_argument(
        "--target", action="append", default=[], metavar="ROLE=HOST:PORT",
        help="one more server to reach (repeatable)",
    )  # fmt: skip
    parser.add_argument("--timeout", type=float, default=3.0, metavar="SECONDS")
    parser.add_argument("--json", action="store_true")


def run(arguments: argparse.Namespace) -> int:
    """Print what was found."""
    from dataclasses import asdict

    from secure_quant.engines import roles as known_roles
    from secure_quant_cli.checks import address, durations
    from secure_quant_cli.console import print_json
    from secure_quant_cli.diagnosis import Deployment, examine
    from secure_quant_cli.settings import read_config

    durations(arguments, "timeout")
    targets: list[tuple[str, str]] = []
    for each in arguments.target:
        role, _, place = each.partition("=")
        if role not in known_roles():
            raise ConfigError("--target", got=ascii(each)[:80], expected="ROLE=HOST:PORT")
        address("--target", place)
        targets.append((role, place))
    tables = read_config(arguments.config)
    roles = [arguments.role]
    if arguments.role == "all":
        roles = [role for role in known_roles() if role in tables]
        if not roles:
            raise ConfigError("--config", got="no role's table", expected=", ".join(known_roles()))
    deployment = Deployment(arguments.config, tuple(roles), tuple(targets), arguments.timeout)
    found = list(examine(deployment))
    if arguments.json:
        print_json([asdict(each) for each in found])
    else:
        print("\n".join(_lines(found)))
    return 1 if any(each.state == "fail" for each in found) else 0


def _lines(found: list[Finding]) -> Iterator[str]:
    for each in found:
        yield f"{MARKS[each.state]}  {each.check}: {each.found}"
        if each.mend:
            yield f"      -> {each.mend}"
