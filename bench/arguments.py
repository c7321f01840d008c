"""What the scripts in this folder share: their command lines and how they end on an error."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable

__all__ = ["parser", "positive", "run"]


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
