"""Parser, dispatch, and the one place where errors become a line on stderr and an exit code.

Exit codes: 0 done; 1 a mismatch, or a service that failed; 2 bad usage or bad input;
130 and 143 interrupted.
"""

from __future__ import annotations

import argparse
import importlib
import logging
import os
import signal
import sys
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import FrameType, ModuleType
from typing import NoReturn

from secure_quant_cli.commands import COMMANDS
from secure_quant_cli.console import paint, plain_where_needed

__all__ = ["COMMANDS", "build_parser", "main", "quit_at_once"]

# torchao tells of accelerator libraries that this machine cannot load, torch of an internal change;
# neither concerns who runs a command.
_NOISY = ("torchao", "torch.utils._pytree")


def build_parser() -> argparse.ArgumentParser:
    """The whole command line. Imports no engine."""
    from secure_quant_cli.usage import OWN_CONFIG, Help, add_config, remember
    from secure_quant_cli.version import version

    parser = argparse.ArgumentParser(
        prog="secure-quant",
        formatter_class=Help,
        description="Exact int8 inference on inputs that no server sees: by secret sharing, "
        "homomorphic encryption, or with one host and no third machine.",
        epilog="Exit codes: 0 done, 1 mismatch or service failure, 2 bad usage or input.",
    )
    parser.add_argument("--version", action="version", version=f"secure-quant {version()}")
    subparsers = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for name in COMMANDS:
        module = _module(name)
        help_text: str = module.HELP
        sub = subparsers.add_parser(
            name, help=help_text, description=module.__doc__, formatter_class=Help
        )
        remember(sub)
        module.configure(sub)
        if name not in OWN_CONFIG:
            add_config(sub, name)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code."""
    try:
        with _ending_at_once():
            plain_where_needed()
        return _run(argv)
    except KeyboardInterrupt:  # anywhere, also in an import
        return _fail("interrupted", 130)
    except BrokenPipeError:
        sys.stderr.close()  # the reader of our output left; nobody is there to be told
        return 1


def _run(argv: Sequence[str] | None) -> int:
    with _ending_at_once():  # numpy's import would tell of an interrupt as its own failure
        from secure_quant.errors import ConfigError, InputError, ModelError, SecureQuantError
        from secure_quant_cli.extras import how_to_get
        from secure_quant_cli.usage import parse

    signal.signal(signal.SIGTERM, _terminated)
    # What goes wrong below comes up as an error of ours, in one line.
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")
    # Of libraries that are compiled for the first time; with -W error they would end the command.
    warnings.filterwarnings("ignore", category=SyntaxWarning)
    warnings.filterwarnings("ignore", "invalid escape sequence", DeprecationWarning)
    for noisy in _NOISY:
        logging.getLogger(noisy).setLevel(logging.ERROR)
    about = None
    try:
        with _ending_at_once():
            arguments = parse(build_parser(), argv)
        about = getattr(arguments, "engine", None) or getattr(arguments, "role", None)
        code: int = _module(arguments.command).run(arguments)
    except (ConfigError, InputError, ModelError) as error:
        return _fail(str(error), 2)
    except SecureQuantError as error:
        return _fail(str(error), 1)
    except ModuleNotFoundError as error:
        hint = how_to_get(error.name or "", about)
        if hint is None:
            raise
        return _fail(f"this command needs {error.name}: {hint}", 2)
    except BrokenPipeError:
        raise
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        return _fail(f"{where}{error.strerror or error}", 2)
    return code


def _module(name: str) -> ModuleType:
    return importlib.import_module(f"secure_quant_cli.{name.replace('-', '_')}")


def _fail(message: str, code: int) -> int:
    name = paint("secure-quant:", "red", sys.stderr)
    print(f"{name} {' '.join(message.split())}", file=sys.stderr)
    return code


@contextmanager
def _ending_at_once() -> Iterator[None]:
    """While there is nothing to clean up."""
    before = signal.signal(signal.SIGINT, quit_at_once)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before or signal.default_int_handler)


def quit_at_once(number: int, frame: FrameType | None) -> NoReturn:
    """A handler of signals for a process that holds nothing yet."""
    os.write(sys.stderr.fileno(), b"secure-quant: interrupted\n")
    os._exit(128 + number)


def _terminated(number: int, frame: FrameType | None) -> NoReturn:
    # As an exception, so that `with` blocks end their child processes and remove their files.
    raise SystemExit(128 + number)
