"""How a command line is read: help that fits the terminal, errors with the usage of their command,
options from a file."""

from __future__ import annotations

import argparse
import re
import sys
import textwrap
from collections.abc import Iterator, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from secure_quant.errors import ConfigError

__all__ = ["Help", "add_config", "parse", "remember"]

_APART = re.compile(r"\S(?: {2,})(?=\S)")
OWN_CONFIG = {"serve", "doctor"}
"""Commands whose --config is a deployment's, by its roles."""


class Help(argparse.HelpFormatter):
    """Descriptions keep their paragraphs, and lines with columns or an indent."""

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        made = []
        for paragraph in text.strip().split("\n\n"):
            lines = paragraph.splitlines()
            kept = any(line.startswith(" ") or _APART.search(line) for line in lines)
            parts = lines if kept else [" ".join(line.strip() for line in lines)]
            made.append("\n".join(_wrapped(part, width, indent) for part in parts))
        return "\n\n".join(made)


def _wrapped(line: str, width: int, indent: str) -> str:
    """A line that has columns goes on below its last one."""
    apart = list(_APART.finditer(line[: width // 2]))
    hang = apart[-1].end() if apart else len(line) - len(line.lstrip())
    return textwrap.fill(
        line, width, initial_indent=indent, subsequent_indent=indent + " " * hang,
        drop_whitespace=True, break_long_words=False, break_on_hyphens=False,
    )  # fmt: skip


def remember(parser: argparse.ArgumentParser) -> None:
    """Errors of its command are told with its own usage."""
    parser.set_defaults(_parser=parser)


def parse(parser: argparse.ArgumentParser, argv: Sequence[str] | None) -> argparse.Namespace:
    """As ``parse_args``; what no parser knows is an error of the command it was given to."""
    words = list(sys.argv[1:] if argv is None else argv)
    if words and words[0] not in OWN_CONFIG and "--config" in words[1:-1]:
        at = words.index("--config", 1)  # first of all, so that every flag counts more
        words[1:1] = [words.pop(at), words.pop(at)]
    arguments, unknown = parser.parse_known_args(words)
    own: argparse.ArgumentParser = arguments._parser
    del arguments._parser
    for name, found in vars(arguments).pop("_lists", {}).items():
        if getattr(arguments, name) in (None, []):
            setattr(arguments, name, found)
    if unknown:
        near = [
            close
            for word in unknown if word.startswith("--")
            for close in get_close_matches(word.partition("=")[0], own._option_string_actions, 1)
        ]  # fmt: skip
        hint = f" (did you mean {near[0]}?)" if near else ""
        own.error(f"unrecognized arguments: {' '.join(unknown)}{hint}")
    return arguments


def add_config(parser: argparse.ArgumentParser, command: str) -> None:
    """``--config``: defaults of the other options from a table of a file."""
    parser.add_argument(
        "--config", type=Path, metavar="FILE.toml", action=_FromFile, command=command,
        help=f"options by their names, in the table [{command}]",
    )  # fmt: skip


class _FromFile(argparse.Action):
    """Comes first, and before options are missed: what the file says is no longer required."""

    def __init__(self, *, command: str, **about: Any) -> None:
        super().__init__(**about)
        self.command = command

    def __call__(
        self, parser: argparse.ArgumentParser, namespace: argparse.Namespace, value: Any,
        option: str | None = None,
    ) -> None:  # fmt: skip
        setattr(namespace, self.dest, value)
        lists: dict[str, list[Any]] = {}
        for action, found in _told(parser, value, self.command):
            action.required = False
            if isinstance(action, argparse._AppendAction):
                lists[action.dest] = found  # a flag would add to it
            else:
                setattr(namespace, action.dest, found)
        namespace._lists = lists


def _told(
    parser: argparse.ArgumentParser, path: Path, command: str
) -> Iterator[tuple[argparse.Action, Any]]:
    from secure_quant_cli.settings import read_config

    known = {
        word.removeprefix("--").replace("-", "_"): action
        for action in parser._actions
        for word in action.option_strings
        if word.startswith("--") and action.dest not in ("help", "config")
    }
    known |= {a.dest: a for a in parser._actions if not a.option_strings}
    for key, value in read_config(path).get(command, {}).items():
        where = f"{path}, [{command}] {key}"
        action = known.get(key.replace("-", "_"))
        if action is None:
            near = get_close_matches(key, known, 1)
            hint = f"{near[0]}?" if near else None
            raise ConfigError(where, got="no option of that name", hint=hint)
        yield action, _value(action, value, where, path.parent)


def _value(action: argparse.Action, value: Any, where: str, folder: Path) -> Any:
    """Of the type that the option takes on the command line; paths are relative to the file."""
    if action.nargs == 0:
        return _checked(isinstance(value, bool), value, where, "true or false")
    if isinstance(action, argparse._AppendAction):
        several = value if isinstance(value, list) else [value]
        return [_one(action, each, where, folder) for each in several]
    return _one(action, value, where, folder)


def _one(action: argparse.Action, value: Any, where: str, folder: Path) -> Any:
    kind: Any = action.type or str
    accepted = {int: (int,), float: (int, float)}.get(kind, (str,))
    expected = {int: "a whole number", float: "a number"}.get(kind, "text")
    fits = isinstance(value, accepted) and not isinstance(value, bool)
    _checked(fits, value, where, expected)
    if action.choices is not None and value not in action.choices:
        raise ConfigError(where, got=ascii(value)[:80], expected=", ".join(action.choices))
    if kind is Path:
        return folder / value
    return kind(value)


def _checked(fits: bool, value: Any, where: str, expected: str) -> Any:
    if not fits:
        raise ConfigError(where, got=ascii(value)[:80], expected=expected)
    return value
