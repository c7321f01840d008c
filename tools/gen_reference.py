"""The command line and the public doors -> docs/reference.

The command line is read from its parser, the Python page lists what the doors export; docstrings
come in when the site is built.
"""

from __future__ import annotations

import argparse
import importlib
import inspect
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

from secure_quant_cli.main import build_parser

FOLDER = Path(__file__).resolve().parent.parent / "docs" / "reference"
COMMANDS = """# Command line

Made by `tools/gen_reference.py` from the parser itself; do not edit. Settings of `serve` that are
flags, environment variables and keys of a file at once are on a page of their own:
[settings](../settings.md).

"""
PYTHON = """# Python

Made by `tools/gen_reference.py` from what the packages export; do not edit. What is not exported is
private. The text below each name is its docstring, which [the site](../README.md#this-site) fills
in.

"""
DOORS = {
    "secure_quant": "For owners of models",
    "secure_quant.reference": "The reference",
    "secure_quant_client": "For clients",
    "secure_quant.errors": "Errors",
}
ROLE_ACTIONS = "serve"
"""Its subcommands take the settings, which have their own page."""


def pages() -> dict[str, str]:
    """File name -> what it is to say."""
    return {"cli.md": COMMANDS + "\n".join(_commands()), "python.md": PYTHON + "\n".join(_doors())}


def _commands() -> Iterator[str]:
    parser = build_parser()
    (menu,) = (each for each in parser._actions if isinstance(each, argparse._SubParsersAction))
    yield f"{parser.description}\n\n{parser.epilog}\n"
    for name, command in menu.choices.items():
        yield from _command(name, command)


def _command(name: str, command: argparse.ArgumentParser) -> Iterator[str]:
    yield f"## {name}\n"
    if command.description:
        yield f"```text\n{command.description.strip()}\n```\n"
    menus = [each for each in command._actions if isinstance(each, argparse._SubParsersAction)]
    rows = [
        _row(command, each)
        for each in command._actions
        if not isinstance(each, argparse._HelpAction | argparse._SubParsersAction)
        and each.help is not argparse.SUPPRESS
    ]
    if rows:
        yield "| argument | | meaning |\n|---|---|---|\n" + "".join(rows)
    for menu in menus:
        yield from _choices(name, menu)


def _choices(name: str, menu: argparse._SubParsersAction[argparse.ArgumentParser]) -> Iterator[str]:
    if name == ROLE_ACTIONS:
        roles = ", ".join(f"`{role}`" for role in menu.choices)
        yield f"Roles: {roles}. What each takes: [settings](../settings.md).\n"
        return
    for each, parser in menu.choices.items():
        yield from _command(f"{name} {each}", parser)


def _row(command: argparse.ArgumentParser, action: argparse.Action) -> str:
    shown = ", ".join(f"`{each}`" for each in action.option_strings)
    if not shown:
        shown = f"`{action.metavar or action.dest}`"
    takes = "" if action.nargs == 0 or not action.option_strings else _value(action)
    meaning = (action.help or "") % {"default": action.default, "prog": command.prog}
    if action.required and action.option_strings:
        meaning = f"required{'; ' if meaning else ''}{meaning}"
    elif isinstance(action.default, int | float | str) and action.default not in (False, ""):
        meaning = f"{meaning}{'; ' if meaning else ''}default {action.default}"
    cells = (shown, takes, " ".join(meaning.split()))
    return "| " + " | ".join(each.replace("|", r"\|") for each in cells) + " |\n"


def _value(action: argparse.Action) -> str:
    if action.choices is not None:
        return ", ".join(f"`{each}`" for each in action.choices)
    metavar = action.metavar or action.dest.upper()
    return f"`{metavar if isinstance(metavar, str) else ' '.join(metavar)}`"


def _doors() -> Iterator[str]:
    for door, title in DOORS.items():
        module = importlib.import_module(door)
        yield f"## {title}: `{door}`\n"
        for name in module.__all__:
            made = getattr(module, name)
            if isinstance(made, ModuleType):
                continue  # a door of its own
            if inspect.isclass(made) or inspect.isfunction(made):
                yield f"::: {made.__module__}.{made.__qualname__}\n"


def made() -> dict[Path, str]:
    """Path -> what is to stand there."""
    return {FOLDER / name: text for name, text in pages().items()}
