"""What the scripts in this folder share: their command lines, how they end on an error, and how one
runs another."""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Callable
from typing import Any

__all__ = ["last_object", "parser", "positive", "run"]


def parser(text: str | None) -> argparse.ArgumentParser:
    """A parser whose help is the script's own text, lines as they are."""
    return argparse.ArgumentParser(
        description=text, formatter_class=argparse.RawDescriptionHelpFormatter
    )


def positive(text: str) -> int:
    """A count from the command line."""
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"got {value}, expected >= 1")
    return value


def last_object(command: list[str], having: str = "") -> dict[str, Any]:
    """The last JSON object with that name in it that a command prints; both go to stderr, too.

    Raises InternalError if the command fails or prints none.
    """
    from secure_quant.errors import InternalError

    print(f"$ {' '.join(command)}", file=sys.stderr, flush=True)
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True)  # noqa: S603 - our own
    objects = (json.loads(line) for line in done.stdout.splitlines() if line.startswith("{"))
    found: list[dict[str, Any]] = [made for made in objects if not having or having in made]
    if done.returncode or not found:
        raise InternalError("a measurement failed", got=f"exit code {done.returncode}")
    print(json.dumps(found[-1]), file=sys.stderr, flush=True)
    return found[-1]


def run(main: Callable[[], int]) -> None:
    """End with what ``main`` returns; a named error is one line and 2, Ctrl-C is 130."""
    from secure_quant.errors import SecureQuantError

    try:
        code = main()
    except SecureQuantError as error:
        print(f"error: {error}", file=sys.stderr)
        code = 2
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        code = 130
    sys.exit(code)
