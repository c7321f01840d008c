"""The options of every role -> docs/settings.md."""

from __future__ import annotations

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


def made() -> dict[Path, str]:
    """Path -> what is to stand there."""
    return {PAGE: page()}
