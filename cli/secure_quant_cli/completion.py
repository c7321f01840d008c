"""Print what makes a shell complete commands, options and their words.

bash    secure-quant completion bash > ~/.local/share/bash-completion/completions/secure-quant
zsh     secure-quant completion zsh > a folder of $fpath, as _secure-quant
tcsh    secure-quant completion tcsh, sourced by ~/.tcshrc
"""

from __future__ import annotations

import argparse

__all__ = ["HELP", "configure", "run"]

HELP = "what makes a shell complete options"
SHELLS = ("bash", "zsh", "tcsh")


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the options."""
    parser.add_argument("shell", choices=SHELLS)


def run(arguments: argparse.Namespace) -> int:
    """Print the script."""
    import shtab

    from secure_quant_cli.main import build_parser

    parser = build_parser()
    for each in _all(parser):
        for action in each._actions:
            paths = action.metavar and any(
                word in str(action.metavar) for word in ("FILE", ".npz", ".sq", "model.py")
            )
            if paths:
                action.complete = shtab.FILE  # type: ignore[attr-defined]
            elif str(action.metavar) == "DIR":
                action.complete = shtab.DIRECTORY  # type: ignore[attr-defined]
    print(shtab.complete(parser, arguments.shell))
    return 0


def _all(parser: argparse.ArgumentParser) -> list[argparse.ArgumentParser]:
    found = [parser]
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for each in action.choices.values():
                found += _all(each)
    return found
