#!/usr/bin/env python3
"""The options of every role -> docs/settings.md, and a check that the two agree.

python tools/gen_settings.py            write the page
python tools/gen_settings.py --check    exit 1 if the committed page is not what would be written
"""

from __future__ import annotations

import argparse
import sys
from collections import defaultdict
from pathlib import Path

from secure_quant.engines import served
from secure_quant_cli.settings import Setting, settings_of, shown

PAGE = Path(__file__).resolve().parent.parent / "docs" / "settings.md"
HEAD = """# Settings

Made by `tools/gen_settings.py` from the options that the roles' code reads; do not edit. A setting
is a key of the role's table, or of `[common]`, in the file of `--config`; as a flag it is spelled
`--wait-seconds`, in the environment `SECURE_QUANT_WAIT_SECONDS`. [Operating](operating.md) says
which place counts.

| setting | roles | value | default | meaning |
|---|---|---|---|---|
"""


def page() -> str:
    """What docs/settings.md is to say."""
    every = [role for role in served() if role != "party"]  # which is either of two of them
    roles: dict[Setting, list[str]] = defaultdict(list)
    for role in every:
        for each in settings_of(role):
            roles[each].append(role)
    rows = (
        _row(each, "all" if which == every else ", ".join(which)) for each, which in roles.items()
    )
    return HEAD + "".join(rows)


def _row(setting: Setting, named: str) -> str:
    default = "required" if setting.required else "" if setting.default is None else setting.default
    value = " or ".join(setting.choices) if setting.choices else shown(setting)
    cells = (f"`{setting.name}`", named, value, str(default), setting.help)
    return "| " + " | ".join(each.replace("|", r"\|") for each in cells) + " |\n"


def main() -> None:
    """Write the page, or check it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--check", action="store_true")
    made = page()
    if not parser.parse_args().check:
        PAGE.write_text(made)
    elif PAGE.read_text() != made:
        sys.exit("docs/settings.md is not what the options say: run tools/gen_settings.py")


if __name__ == "__main__":
    main()
