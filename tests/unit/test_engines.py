"""The registry of engines: whatever a row says is there."""

from __future__ import annotations

import dataclasses
import importlib
import inspect
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import get_args, get_type_hints

import pytest
from e2e.mpc_cluster import small_net
from unit.he.leveled.models import random_model

import secure_quant_client
from conformance.executors import EXECUTORS
from plain_insecure import ENGINE as PLAIN
from secure_quant.engines import Engine, Role, engines, find, registered, resolved, roles, served
from secure_quant.errors import ConfigError, InsecureRefused, MalformedModel
from secure_quant_cli.engines import Exact, OwnModels
from secure_quant_cli.main import build_parser
from secure_quant_cli.settings import settings_of
from secure_quant_client.connection import AsyncClient, SyncClient
from secure_quant_server.options import ServerOptions

ROOT = Path(__file__).parents[2]
ROWS = [*engines(), PLAIN]
SERVED = [role for row in ROWS for role in (*row.either, *row.roles)]


def named(row: Engine | Role) -> str:
    return row.name


def dotted(row: Engine | Role) -> Iterator[str]:
    """Every entry point that a row names."""
    for field in dataclasses.fields(row):
        value = getattr(row, field.name)
        if isinstance(value, str) and re.fullmatch(r"[\w.]+:\w+", value):
            yield value


def model_for(row: Engine) -> object:
    return random_model((6, 4, 2)) if row.file_format else small_net()


@pytest.mark.parametrize("row", [*ROWS, *SERVED], ids=named)
def test_what_a_row_names_is_there(row: Engine | Role) -> None:
    found = list(dotted(row))
    wanted = 5 if isinstance(row, Engine) else 3
    assert len(found) >= wanted
    for name in found:
        assert resolved(name) is not None


@pytest.mark.parametrize("row", ROWS, ids=named)
def test_names_and_words_are_those_of_the_code(row: Engine) -> None:
    split = resolved(row.split)
    parameters, hints = inspect.signature(split).parameters, get_type_hints(split)
    for field, words in (("objective", row.objectives), ("tier", row.tiers)):
        assert bool(words) == (field in parameters)
        if words:
            assert words[0] == parameters[field].default
            assert set(words) == set(get_args(hints[field]))
    assert row.budgeted == ("calls" in parameters)
    assert row.budgeted == ("calls" in inspect.signature(resolved(row.plan)).parameters)
    assert set(row.called) <= {role.name for role in row.roles}
    assert row.together or len(row.roles) == 1
    assert (row.file_format is None) == (row.mode is None)
    assert isinstance(resolved(row.commands), OwnModels if row.file_format else Exact)
    assert importlib.import_module(row.package)


@pytest.mark.parametrize("row", ROWS, ids=named)
def test_clients_of_both_kinds_call_the_roles_in_order(row: Engine) -> None:
    for name, kind in ((row.client, SyncClient), (row.aio_client, AsyncClient)):
        found = resolved(name)
        assert issubclass(found, kind)
        assert found._service.roles == row.called
        if row.protects:
            assert getattr(secure_quant_client, found.__name__) is found
            assert found.__name__ in secure_quant_client.__all__


@pytest.mark.parametrize("row", ROWS, ids=named)
def test_every_role_takes_its_own_bundle_and_no_other(row: Engine) -> None:
    model = model_for(row)
    bundles = row.bundles_of(model)
    assert set(bundles) == row.bundles
    for role in row.roles:
        read: Callable[[str, bytes], str] = resolved(role.model_of)
        assert read(role.name, bundles[role.bundle]) == model.hash
        for other in row.bundles - {role.bundle}:
            with pytest.raises(MalformedModel):
                read(role.name, bundles[other])


@pytest.mark.parametrize("row", ROWS, ids=named)
def test_words_that_an_engine_does_not_know_are_refused(row: Engine) -> None:
    for option in ("objective", "tier"):
        with pytest.raises(ConfigError, match=f"--{option} for {row.name}: got none such"):
            row.bundles_of(model_for(row), **{option: "none such"})
    if not row.budgeted:
        with pytest.raises(ConfigError, match=f"--samples-per-client for {row.name}: got 5"):
            row.bundles_of(model_for(row), samples_per_client=5)
    with pytest.raises(ConfigError, match=f"--target for {row.name}: got 0"):
        row.connect([])


def test_addresses_of_several_cells_stand_one_after_the_other() -> None:
    parties, one = find("mpc"), find("he")
    assert parties.cells_of("ab") == [["a", "b"]]
    assert parties.cells_of("abcd") == [["a", "b"], ["c", "d"]]
    assert one.cells_of("a") == [["a"]]
    for row, targets in ((parties, ""), (parties, "abc"), (one, "ab"), (one, "")):
        with pytest.raises(ConfigError, match=f"got {len(targets)}, expected {len(row.called)}"):
            row.cells_of(targets)


@pytest.mark.parametrize("role", SERVED, ids=named)
def test_every_role_can_be_told_all_that_it_needs(role: Role) -> None:
    options = resolved(role.options)
    assert issubclass(options, ServerOptions)
    fields = {field.name for field in dataclasses.fields(options)}
    assert role.without <= fields
    listening = {each.of for other in SERVED for each in other.addresses if each.listens}
    with registered(PLAIN):
        settings = {each.name: each for each in settings_of(role.name)}
        places = listening | set(roles())
    assert {each.of for each in role.addresses} <= places
    assert {each.setting for each in role.addresses} <= set(settings)
    assert role.workers is None or role.workers in settings
    assert all(each.help for each in settings.values())


@pytest.mark.parametrize("row", ROWS, ids=named)
def test_every_engine_has_a_page_and_what_is_exact_an_executor(row: Engine) -> None:
    assert len((ROOT / row.spec).read_text()) > 500
    assert row.exact == (row.name in {each.engine for each in EXECUTORS})


@pytest.mark.parametrize("row", engines(), ids=named)
def test_documents_name_every_engine(row: Engine) -> None:
    readme = (ROOT / "README.md").read_text()
    if row.exact:
        assert f"| **{row.title}**" in readme
    assert f"--engine {row.name} " in readme
    line = rf"\| `{row.name}` \|.*\| \[.*\]\({re.escape(row.spec)}\) \|"
    (found,) = re.findall(line, (ROOT / "ARCHITECTURE.md").read_text())
    assert all(f"`{role.name}`" in found for role in row.roles)


def test_the_command_line_offers_what_the_registry_has() -> None:
    (commands,) = build_parser()._subparsers._group_actions

    def offered(command: str, option: str) -> set[str]:
        parser = commands.choices[command]
        return {word for each in parser._actions if option in each.option_strings
                for word in each.choices}  # fmt: skip

    every, exact = {row.name for row in engines()}, {row.name for row in engines() if row.exact}
    assert offered("split", "--engine") == offered("infer", "--engine") == every
    assert offered("bench", "--engine") == exact | {"reference"}
    assert offered("health", "--role") == set(roles())
    assert exact | {"reference", "onnx"} <= set(
        re.findall(r"[\w-]+", commands.choices["verify"].format_help())
    )
    (serve,) = commands.choices["serve"]._subparsers._group_actions
    assert set(serve.choices) == set(served())
    modes = {row.mode for row in engines() if row.mode}
    assert modes < offered("quantize", "--mode")


def test_a_row_more_lasts_as_long_as_its_block() -> None:
    before = engines()
    with registered(PLAIN):
        assert find(PLAIN.name) is PLAIN
        assert PLAIN.name in roles()
        with pytest.raises(ConfigError, match="a name of its own"), registered(PLAIN):
            pass
    assert engines() == before
    with pytest.raises(ConfigError, match="plain-insecure"):
        find(PLAIN.name)


def test_what_protects_nothing_must_say_so() -> None:
    harmless = dataclasses.replace(PLAIN, name="plain")
    with pytest.raises(InsecureRefused, match="-insecure"), registered(harmless):
        pass
    with (
        pytest.raises(InsecureRefused, match="-insecure"),
        registered(dataclasses.replace(find("he"), name="he-insecure")),
    ):
        pass
    assert all(row.protects for row in engines())


def test_no_engine_takes_another_one_s_role() -> None:
    (role,) = PLAIN.roles
    for name in ("he", "client"):
        taken = dataclasses.replace(PLAIN, roles=(dataclasses.replace(role, name=name),))
        with pytest.raises(ConfigError, match="role"), registered(taken):
            pass


@pytest.mark.parametrize(
    "folder",
    ["secure_quant", "server", "client", "cli", "deploy", "protos", "bench", "examples", "tools"],
)
def test_the_engine_for_tests_is_one_folder_that_nothing_names(folder: str) -> None:
    for path in (ROOT / folder).rglob("*.*"):
        if path.suffix in {".py", ".proto", ".toml", ".yaml", ".yml", ".Dockerfile"}:
            assert not re.search(r"plain[-_]insecure|PlainInsecure", path.read_text()), path
