#!/usr/bin/env python3
"""How often cli, server and client name an engine outside that engine's own folder.

    python tools/mentions.py           a number for each room
    python tools/mentions.py --lines   and the places

A mention is a name in code (a variable, an attribute, an argument, a function, a module imported)
with ``mpc``, ``he``, ``leveled`` or ``onehost`` among its words, or a string that is one of them,
or begins with one and goes on with more. Docstrings and comments are prose and do not count, nor
does what lies in an engine's folder or file. The same code gives the same numbers.
"""

from __future__ import annotations

import argparse
import ast
import re
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
ROOMS = ("cli/secure_quant_cli", "server/secure_quant_server", "client/secure_quant_client")
ENGINES = {"mpc", "he", "leveled", "onehost"}
WORD = re.compile(r"[A-Z]?[a-z0-9]+|[A-Z]+(?![a-z])")


def mentions(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """(line, what is said there)."""
    prose = {id(node) for node in _docstrings(tree)}
    for node in ast.walk(tree):
        if id(node) in prose:
            continue
        for said in filter(None, _said(node)):
            if any(word.lower() in ENGINES for word in WORD.findall(said)):
                yield node.lineno, said


def _docstrings(tree: ast.AST) -> Iterator[ast.AST]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
            yield node.value


def _said(node: ast.AST) -> Iterator[str | None]:
    match node:
        case ast.Name(id=name) | ast.arg(arg=name) | ast.keyword(arg=name):
            yield name
        case ast.Attribute(attr=name) | ast.FunctionDef(name=name) | ast.ClassDef(name=name):
            yield name
        case ast.AsyncFunctionDef(name=name):
            yield name
        case ast.Import(names=names):
            yield from (each.name for each in names)
        case ast.ImportFrom(module=module, names=names):
            yield module
            yield from (each.name for each in names)
        case ast.Constant(value=str(text)) if re.match(rf"({'|'.join(ENGINES)})\b", text):
            yield text


def engines_own(path: Path) -> bool:
    """A folder or a file by the name of an engine."""
    return bool(ENGINES & {*path.parent.parts, path.stem})


def found_in(room: str) -> list[tuple[Path, int, str]]:
    """(file, line, what is said there) of a room."""
    return [
        (path.relative_to(ROOT), line, said)
        for path in sorted((ROOT / room).rglob("*.py"))
        if not engines_own(path.relative_to(ROOT / room))
        for line, said in mentions(ast.parse(path.read_text()))
    ]


def main() -> None:
    """Print the numbers."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--lines", action="store_true", help="the places")
    options = parser.parse_args()
    total = 0
    for room in ROOMS:
        found = found_in(room)
        total += len(found)
        print(f"{len(found):4d}  {room}")
        for path, line, said in found if options.lines else ():
            print(f"      {path}:{line}  {said[:60]}")
    print(f"{total:4d}  in all")


if __name__ == "__main__":
    main()
