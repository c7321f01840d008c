"""A role's settings from four places: flags, the environment, a TOML file, defaults; the first that
says something counts.

A setting has one name in three spellings: ``--wait-seconds``, ``SECURE_QUANT_WAIT_SECONDS`` and
``wait_seconds`` in the table of the role (``[party0]``, ``[onehost]``, ...), or in ``[common]``.
Most come from the fields of the dataclass that the role's row in ``secure_quant.engines`` names.
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import re
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from inspect import cleandoc
from pathlib import Path
from typing import Any

from secure_quant.engines import resolved, served
from secure_quant.errors import ConfigError
from secure_quant_cli.commands import COMMANDS

__all__ = [
    "LIMITS",
    "Setting",
    "add_settings",
    "names",
    "options_of",
    "read_config",
    "resolve",
    "settings_of",
    "shown",
    "spelled",
]

PREFIX = "SECURE_QUANT_"
MAX_CONFIG = 2**20
_ENTRY = re.compile(r"(\w+)(?: {2,}(.*))?")
_TRUTH = {"1": True, "true": True, "yes": True, "0": False, "false": False, "no": False}
_KINDS = {
    "int": "int", "int | None": "int", "float": "float", "bool": "bool", "str": "text",
    "str | None": "text", "str | os.PathLike[str] | None": "path",
}  # fmt: skip
_APART = {"security", "limits", "bundles", "party", "link"}
"""Fields that are told in another way."""
LIMITS = {
    "message_bytes": ("int", "largest message sent or received; 64 MiB unless set, and never more "
                      "than the models need"),
    "keepalive_s": ("float", "idle time after which the peer is asked whether it lives; 20 s "
                    "unless set"),
    "keepalive_grace_s": ("float", "time it has to answer; 5 s unless set"),
}  # fmt: skip
"""Of secure_quant.transport.Limits, whose own docstring would bring gRPC: kind, help."""
ALTERNATIVES = (
    {"tls", "tls_ca", "tls_cert", "tls_key", "insecure_plaintext"},
    {"peer", "link_listen"},
)
"""Where one place says one of these, the places after it say none."""


@dataclass(frozen=True)
class Setting:
    """field: of the dataclass, if it is one's. kind: int, float, bool, text, path, paths."""

    name: str
    kind: str
    help: str
    field: str | None = None
    default: Any = None
    choices: tuple[str, ...] | None = None
    required: bool = False

    @property
    def flag(self) -> str:
        return "--" + self.name.replace("_", "-")

    @property
    def variable(self) -> str:
        return PREFIX + self.name.upper()


_COMMON = (
    Setting("bundle", "paths", "what `secure-quant split` made for this role (repeatable: several "
            "models)", required=True),
    Setting("log_level", "text", "least that is logged", default="info",
            choices=("debug", "info", "warning")),
    Setting("until_stdin_closes", "bool", "also stop when standard input ends: for a parent that "
            "must not leave orphans", default=False),
    Setting("tls", "path", "folder with ca.pem, ROLE.pem and ROLE.key as `secure-quant certs` "
            "writes it"),
    Setting("tls_ca", "path", "who signs the peers"),
    Setting("tls_cert", "path", "this role's certificate"),
    Setting("tls_key", "path", "its private key"),
    Setting("insecure_plaintext", "bool", "no TLS and no proof of who calls: anybody on the path "
            "reads and alters everything", default=False),
)  # fmt: skip


def settings_of(role: str) -> list[Setting]:
    """Everything that a role can be told. Raises ModuleNotFoundError without the server's code."""
    from secure_quant_server import options

    row = served()[role]
    cls = resolved(row.options)
    found = list(_COMMON)
    found += [Setting(each.setting, "text", each.help) for each in row.addresses if each.help]
    helps = _helps(cls)
    for each in dataclasses.fields(cls):
        if each.name in _APART | row.without:
            continue
        required = each.default is dataclasses.MISSING
        choices = options.CHOICES.get(each.name)
        found.append(Setting(
            spelled(each.name), "text" if choices else _KINDS[str(each.type)], helps[each.name],
            field=each.name, default=None if required else each.default, choices=choices,
            required=required,
        ))  # fmt: skip
    found += [Setting(spelled(name), kind, text) for name, (kind, text) in LIMITS.items()]
    return found


def add_settings(parser: argparse.ArgumentParser, role: str) -> None:
    """A flag for each setting. What is not given stays None: ``resolve`` fills it in."""
    parser.add_argument("--config", type=Path, metavar="FILE.toml", help="see docs/operating.md")
    for each in settings_of(role):
        text = each.help.replace("%", "%%")
        if each.default is not None and each.kind != "bool":
            text += f" (default: {each.default})"
        if each.kind == "bool":
            action = argparse.BooleanOptionalAction if each.default else "store_true"
            parser.add_argument(each.flag, action=action, default=None, help=text)
            continue
        kind = {"int": int, "float": float, "path": Path, "paths": Path}.get(each.kind, str)
        parser.add_argument(
            each.flag, type=kind, choices=each.choices, default=None, help=text,
            metavar=None if each.choices else shown(each),
            action="append" if each.kind == "paths" else "store",
        )  # fmt: skip


def read_config(path: Path) -> dict[str, dict[str, Any]]:
    """Table -> key -> value as written. Raises ConfigError."""
    try:
        if path.stat().st_size > MAX_CONFIG:
            raise ConfigError("--config", got=str(path), expected=f"<= {MAX_CONFIG} bytes")
        tables = tomllib.loads(path.read_text("utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "not UTF-8"
        raise ConfigError("--config", got=f"{path}: {reason}") from error
    except (ValueError, RecursionError) as error:
        raise ConfigError("--config", got=f"{path}: {error}", expected="TOML") from error
    known = {"common", *served(), *COMMANDS}
    for name, table in tables.items():
        if name not in known or not isinstance(table, dict):
            expected = f"tables {', '.join(sorted(known))}"
            raise ConfigError(f"{path}", got=name, expected=expected)
    return tables


def resolve(arguments: argparse.Namespace, environ: Mapping[str, str] = os.environ) -> None:
    """Fill in what no flag said. Raises ConfigError, which names the place and the setting."""
    settings = {each.name: each for each in settings_of(arguments.role)}
    for place in _places(arguments, settings, environ):
        taken = {name for name in settings if getattr(arguments, name) is not None}
        closed = set().union(*(group for group in ALTERNATIVES if group & taken))
        for name, value in place.items():
            if name not in taken and name not in closed:
                setattr(arguments, name, value)
    for name, each in settings.items():
        if getattr(arguments, name) is None:
            setattr(arguments, name, each.default)
        if each.required and getattr(arguments, name) is None:
            hint = f"a flag, {each.variable}, or {name} in [{arguments.role}]"
            raise ConfigError(each.flag, got="nothing", expected=shown(each), hint=hint)


def _places(
    arguments: argparse.Namespace, settings: Mapping[str, Setting], environ: Mapping[str, str]
) -> Iterator[dict[str, Any]]:
    yield {
        name: _from_text(each, environ[each.variable])
        for name, each in settings.items() if each.variable in environ
    }  # fmt: skip
    if arguments.config is None:
        return
    tables = read_config(arguments.config)
    for table in (arguments.role, "common"):
        values = dict(tables.get(table, {}))
        for key in list(values):
            where = f"{arguments.config.name}, [{table}] {key}"
            if key in settings:
                values[key] = _from_toml(settings[key], values[key], where, arguments.config.parent)
            elif table == "common" and any(key == s.name for r in served() for s in settings_of(r)):
                del values[key]  # of another role
            else:
                near = get_close_matches(key, settings, 1)
                hint = f"{near[0]}?" if near else None
                raise ConfigError(where, got="no setting of that name", hint=hint)
        yield values


def _from_text(setting: Setting, text: str) -> Any:
    """Of an environment variable; several paths are parted as in PATH."""
    try:
        if setting.kind in ("int", "float"):
            return int(text) if setting.kind == "int" else float(text)
        if setting.kind == "bool":
            return _TRUTH[text.lower()]
    except (ValueError, KeyError) as error:
        got = ascii(text[:80])
        raise ConfigError(setting.variable, got=got, expected=shown(setting)) from error
    if setting.kind == "paths":
        return [Path(each) for each in text.split(os.pathsep) if each]
    return Path(text) if setting.kind == "path" else _chosen(setting, text, setting.variable)


def _from_toml(setting: Setting, value: Any, where: str, folder: Path) -> Any:
    """Paths are relative to the file's folder."""
    several = [value] if setting.kind == "paths" and isinstance(value, str) else value
    fits = {
        "int": lambda: type(value) is int,
        "float": lambda: type(value) is float or (type(value) is int and abs(value) < 2**63),
        "bool": lambda: type(value) is bool,
        "text": lambda: isinstance(value, str),
        "path": lambda: isinstance(value, str),
        "paths": lambda: isinstance(several, list) and all(isinstance(p, str) for p in several),
    }
    texts = [each for each in (several if isinstance(several, list) else [value]) if each]
    if not fits[setting.kind]() or any(isinstance(each, str) and "\0" in each for each in texts):
        raise ConfigError(where, got=ascii(value)[:80], expected=shown(setting))
    if setting.kind == "paths":
        return [folder / each for each in several]
    if setting.kind == "float":
        return float(value)
    return folder / value if setting.kind == "path" else _chosen(setting, value, where)


def _chosen(setting: Setting, value: Any, where: str) -> Any:
    if setting.choices is not None and value not in setting.choices:
        raise ConfigError(where, got=ascii(value)[:80], expected=" or ".join(setting.choices))
    return value


_SHOWN = {"http_origins": "ORIGINS", "traces": "URL"}


def shown(setting: Setting) -> str:
    """What its value looks like."""
    if setting.kind == "text" and setting.choices is None:
        return _SHOWN.get(setting.name, "HOST:PORT")
    return {"int": "N", "float": "S", "bool": "true or false"}.get(setting.kind, "PATH")


def spelled(field: str) -> str:
    """The setting of a field."""
    return field.removesuffix("_s") + "_seconds" if field.endswith("_s") else field


def _helps(cls: type) -> dict[str, str]:
    """Field -> what the docstrings of the class and its bases say of it."""
    found: dict[str, str] = {}
    for each in reversed(cls.__mro__):
        name = ""
        for line in cleandoc(each.__doc__ or "").splitlines()[1:]:  # 3.13 dedents, 3.11 not
            entry = _ENTRY.fullmatch(line)
            if entry and entry[2]:
                name, found[entry[1]] = entry[1], entry[2]
            elif name and line.strip():
                found[name] += " " + line.strip()
            else:
                name = ""
    return {name: _unset(text.replace("``", "")) for name, text in found.items()}


def _unset(text: str) -> str:
    """For whoever writes no Python: a setting that is None there was not set."""
    return re.sub(r"\bNone\b", "unset", text).replace(". unset", ". Unset")


def options_of(arguments: argparse.Namespace) -> dict[str, Any]:
    """The fields of the role's dataclass, of what ``resolve`` found."""
    from secure_quant.transport import Limits

    settings = settings_of(arguments.role)
    found = {each.field: getattr(arguments, each.name) for each in settings if each.field}
    limits = {
        name: value for name in LIMITS if (value := getattr(arguments, spelled(name))) is not None
    }
    return found | {"limits": Limits(**limits)}


def names(settings: Sequence[Setting], kind: str) -> list[str]:
    """Of the settings of a kind."""
    return [each.name for each in settings if each.kind == kind]
