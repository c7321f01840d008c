"""Settings: one name, four places, the first that speaks counts; what is wrong is named."""

import argparse
import dataclasses
import re
import runpy
import shlex
from pathlib import Path
from typing import get_args

import pytest

from secure_quant.errors import ConfigError, ValueOutOfRange
from secure_quant.mpc.runtime.options import Border, LinkProtocol
from secure_quant.transport import Limits
from secure_quant_cli.main import build_parser
from secure_quant_cli.serve import check
from secure_quant_cli.settings import LIMITS, resolve, settings_of
from secure_quant_server.options import CHOICES, DealerOptions, HeOptions, PartyOptions

DOC = Path(__file__).parents[3] / "docs" / "operating.md"
FILE = """
[common]
tls = "certs"
log_level = "warning"
workers = 7
lanes = 5
[he]
bundle = ["a.sqb", "sub/b.sqb"]
listen = "0.0.0.0:7300"
budget = 10
watch_seconds = 3
reflection = false
"""


def resolved(line: str, **environ: str) -> argparse.Namespace:
    arguments = build_parser().parse_args(["serve", *shlex.split(line)])
    resolve(arguments, environ)
    return arguments


@pytest.fixture
def config(tmp_path: Path) -> Path:
    path = tmp_path / "deployment.toml"
    path.write_text(FILE)
    return path


def test_flag_before_environment_before_role_before_common_before_default(config: Path) -> None:
    plain = resolved(f"he --config {config}")
    folder = config.parent
    assert plain.bundle == [folder / "a.sqb", folder / "sub/b.sqb"]
    assert (plain.listen, plain.budget, plain.reflection) == ("0.0.0.0:7300", 10, False)
    assert (plain.workers, plain.log_level, plain.tls) == (7, "warning", folder / "certs")
    assert (plain.watch_seconds, plain.grace_seconds, plain.tokens) == (3.0, 5.0, None)
    env = {"SECURE_QUANT_WORKERS": "3", "SECURE_QUANT_REFLECTION": "yes",
           "SECURE_QUANT_BUNDLE": "c.sqb:d.sqb", "SECURE_QUANT_WATCH_SECONDS": "2.5"}  # fmt: skip
    over = resolved(f"he --config {config} --watch-seconds 1 --bundle e.sqb", **env)
    assert (over.workers, over.reflection, over.watch_seconds) == (3, True, 1.0)
    assert over.bundle == [Path("e.sqb")]
    assert resolved(f"he --config {config}", **env).bundle == [Path("c.sqb"), Path("d.sqb")]


def test_one_place_decides_among_alternatives(config: Path) -> None:
    assert resolved(f"he --config {config} --insecure-plaintext").tls is None
    made = resolved(f"he --config {config}", SECURE_QUANT_TLS_CA="x")
    assert (made.tls, made.tls_ca, made.insecure_plaintext) == (None, Path("x"), False)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("[he]\nlistne = 'a:1'", r"\[he\] listne: got no setting of that name \(listen\?\)"),
        ("[he]\nworkers = '2'", r"\[he\] workers: got '2', expected N"),
        ("[he]\nworkers = true", r"\[he\] workers: got True"),
        ("[he]\nreflection = 1", r"\[he\] reflection: got 1, expected true or false"),
        ("[he]\nbundle = [1]", r"\[he\] bundle"),
        ("[he]\nlog_level = 'loud'", r"\[he\] log_level: got 'loud', expected debug or info"),
        ("[common]\nnonsense = 1", r"\[common\] nonsense"),
        ("[hee]\nworkers = 2", "deployment.toml: got hee, expected tables"),
        ("he = 3", "deployment.toml: got he"),
        ("[he", "expected TOML"),
        ("[he]\nworkers = " + "9" * 5000, "expected TOML"),
        ("[he]\nx = " + "[" * 3000 + "]" * 3000, "expected TOML"),
        ("[he]\nwatch_seconds = 1" + "0" * 400, r"\[he\] \w+: got 10+, expected S"),
        ('[he]\ntokens = "a\\u0000b"', r"\[he\] tokens: got 'a\\x00b', expected PATH"),
        ('[he]\nbundle = ["a\\u0000b"]', r"\[he\] bundle"),
    ],
)
def test_what_is_wrong_in_a_file_is_named(config: Path, text: str, says: str) -> None:
    config.write_text(text)
    with pytest.raises(ConfigError, match=says):
        resolved(f"he --config {config} --bundle b --listen a:1")


@pytest.mark.parametrize("value", ["nan", "inf", "-1.0", "1e300", "1" + "0" * 18])
def test_durations_are_what_a_timer_takes(config: Path, value: str) -> None:
    config.write_text(f"[he]\nevaluate_seconds = {value}")
    with pytest.raises(ValueOutOfRange, match="--evaluate-seconds"):
        check(resolved(f"he --config {config} --bundle b --listen a:1"))


@pytest.mark.parametrize("value", ["0", "-1", "1" + "0" * 400])
def test_counts_are_counts(config: Path, value: str) -> None:
    config.write_text(f"[he]\nmax_calls = {value}")
    with pytest.raises(ValueOutOfRange, match="--max-calls"):
        check(resolved(f"he --config {config} --bundle b --listen a:1"))


@pytest.mark.parametrize("value", [{"message_bytes": 2**31}, {"keepalive_s": 1e7}])
def test_limits_are_what_grpc_can_count(value: dict[str, float]) -> None:
    with pytest.raises(ConfigError, match="<="):
        Limits(**value)


def test_what_is_wrong_elsewhere_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="SECURE_QUANT_WORKERS: got 'many', expected N"):
        resolved("he --bundle b --listen a:1", SECURE_QUANT_WORKERS="many")
    with pytest.raises(ConfigError, match=r"--listen: got nothing.*SECURE_QUANT_LISTEN.*\[he\]"):
        resolved("he --bundle b")
    with pytest.raises(ConfigError, match="No such file"):
        resolved(f"he --config {tmp_path / 'nowhere'}")


@pytest.mark.parametrize("role", ["party", "party0", "party1", "dealer", "he"])
def test_every_field_is_a_setting_with_help_and_the_field_s_default(role: str) -> None:
    cls = {"dealer": DealerOptions, "he": HeOptions}.get(role, PartyOptions)
    settings = settings_of(role)
    assert len({each.name for each in settings}) == len(settings)
    assert all(each.help for each in settings)
    told = {each.field: each for each in settings if each.field}
    apart = {"security", "limits", "bundles", "party", "link"}
    if role == "dealer":
        apart |= {"tokens", "budget", "budget_window_s", "budget_store", "budget_alone"}
    assert set(told) == {each.name for each in dataclasses.fields(cls)} - apart
    for each in dataclasses.fields(cls):
        if each.name in told and each.default is not dataclasses.MISSING:
            assert told[each.name].default == each.default


def test_the_few_words_are_those_of_the_code() -> None:
    assert CHOICES["link_protocol"] == get_args(LinkProtocol)
    assert CHOICES["border"] == get_args(Border)
    kinds = {each.name: each.type for each in dataclasses.fields(Limits)}
    assert {name: kind for name, (kind, _) in LIMITS.items()}.items() <= kinds.items()


def test_the_page_of_settings_is_what_the_options_say() -> None:
    done = runpy.run_path(str(DOC.parents[1] / "tools" / "gen_settings.py"))
    assert (DOC.parent / "settings.md").read_text() == done["page"]()


def test_the_documented_file_describes_every_role(tmp_path: Path) -> None:
    (text,) = re.findall(r"```toml\n(.*?)```", DOC.read_text(), re.DOTALL)
    path = tmp_path / "deployment.toml"
    path.write_text(text)
    for role in ("dealer", "party0", "party1", "he"):
        made = resolved(f"{role} --config {path}")
        assert made.tls == tmp_path / "certs"
        assert made.metrics == "9100"
        check(made)
    assert resolved(f"party0 --config {path}").peer == "b.example:7200"
    assert resolved(f"party1 --config {path}").link_listen == "0.0.0.0:7200"
