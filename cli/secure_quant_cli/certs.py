"""Make a private certificate authority and one certificate per role, for trying things out.

Everything lands in one folder; on real hosts, give each role its own certificate and key only, and
keep the authority's key (ca.key) off all of them.
"""

from __future__ import annotations

import argparse
from pathlib import Path

__all__ = ["HELP", "configure", "run"]

LONGEST_DAYS = 36_500
HELP = "a private CA and one certificate per role"


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the options."""
    parser.add_argument("--out", type=Path, required=True, metavar="DIR")
    parser.add_argument(
        "--host", action="append", default=[], metavar="NAME",
        help="a DNS name or IP address of the servers besides localhost (repeatable)",
    )  # fmt: skip
    parser.add_argument("--client", default="demo", metavar="NAME", help="who the client is")
    parser.add_argument("--days", type=int, default=365, help="how long they are valid")
    parser.add_argument("--force", action="store_true", help="replace files that are there")
    parser.add_argument("--json", action="store_true")


def run(arguments: argparse.Namespace) -> int:
    """Write the folder and list it."""
    from secure_quant.errors import ValueOutOfRange
    from secure_quant.transport.certs import make_all
    from secure_quant_cli.checks import host
    from secure_quant_cli.console import print_json

    if not 1 <= arguments.days <= LONGEST_DAYS:
        raise ValueOutOfRange("--days", got=arguments.days, expected=f"1 to {LONGEST_DAYS}")
    for name in arguments.host:
        host("--host", name)
    made = make_all(
        arguments.out, hosts=arguments.host, client=arguments.client, days=arguments.days,
        force=arguments.force,
    )  # fmt: skip
    if arguments.json:
        print_json({"files": {name: str(path) for name, path in made.items()}})
        return 0
    for path in made.values():
        print(path)
    return 0
