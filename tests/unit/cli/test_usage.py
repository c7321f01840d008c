"""Help that fits, errors with the right usage, options from a file, completion."""

from __future__ import annotations

import json
import shlex
import socket
from pathlib import Path

import pytest

from secure_quant.errors import ConfigError
from secure_quant_cli.commands import COMMANDS
from secure_quant_cli.main import build_parser, main
from secure_quant_cli.usage import parse


@pytest.mark.parametrize("command", ["", *COMMANDS, *(f"serve {r}" for r in ("party0", "he"))])
def test_help_fits_80_columns(
    command: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    with pytest.raises(SystemExit) as end:
        main([*command.split(), "--help"])
    assert end.value.code == 0
    text = capsys.readouterr().out
    assert len(text) > 150
    assert [line for line in text.splitlines() if len(line) > 80] == []


@pytest.mark.parametrize(
    ("line", "usage", "said"),
    [
        ("infer --engine he --target a:1 --input x --timeot 3", "infer", "did you mean --timeout?"),
        ("inspect m.sq --nonsense", "inspect", "unrecognized arguments: --nonsense"),
        ("serve he --bundel b", "serve he", "did you mean --bundle?"),
        ("certs", "certs", "required: --out"),
        ("serve", "serve", "required: ROLE"),
    ],
)
def test_an_error_shows_the_usage_of_its_command(
    line: str, usage: str, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as end:
        main(shlex.split(line))
    assert end.value.code == 2
    told = capsys.readouterr().err
    assert told.startswith(f"usage: secure-quant {usage} ")
    assert said in told


FILE = """
[common]
log_level = "info"
[infer]
engine = "mpc"
target = ["a.example:1", "b.example:2"]
input = "x.npz"
tls = "certs"
timeout = 3
json = true
[inspect]
model = "m.sq"
"""


@pytest.fixture
def config(tmp_path: Path) -> Path:
    (tmp_path / "c.toml").write_text(FILE)
    return tmp_path / "c.toml"


def test_a_file_gives_options_and_flags_count_more(config: Path) -> None:
    found = parse(build_parser(), ["infer", "--config", str(config)])
    assert (found.engine, found.target) == ("mpc", ["a.example:1", "b.example:2"])
    assert found.input == config.parent / "x.npz"
    assert (found.timeout, found.json) == (3.0, True)
    line = ["infer", "--timeout", "30.0", "--target", "c:1,d:2", "--config", str(config)]
    found = parse(build_parser(), [*line, "--input", "y.npz"])
    assert (found.timeout, found.target, found.input) == (30.0, ["c:1,d:2"], Path("y.npz"))
    assert parse(build_parser(), ["inspect", "--config", str(config)]).model == (
        config.parent / "m.sq"
    )


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("timeot = 3", "[infer] timeot: got no option of that name (timeout?)"),
        ("timeout = 'a'", "[infer] timeout: got 'a', expected a number"),
        ("json = 1", "[infer] json: got 1, expected true or false"),
        ("engine = 'spu'", "[infer] engine: got 'spu', expected mpc"),
        ("target = [1]", "[infer] target: got 1, expected text"),
        ("config = 'c'", "[infer] config: got no option"),
    ],
)
def test_a_file_that_does_not_fit_is_named(line: str, said: str, tmp_path: Path) -> None:
    path = tmp_path / "c.toml"
    path.write_text(f"[infer]\n{line}\n")
    with pytest.raises(ConfigError) as found:
        parse(build_parser(), ["infer", "--config", str(path)])
    assert str(path) in str(found.value)
    assert said in str(found.value)


def test_health_says_why(capsys: pytest.CaptureFixture[str]) -> None:
    with socket.socket() as taken:  # bound, and nobody listens
        taken.bind(("127.0.0.1", 0))
        target = f"127.0.0.1:{taken.getsockname()[1]}"
        line = ["health", "--role", "he", "--target", target, "--insecure-plaintext"]
        assert main(line) == 1
        assert capsys.readouterr().out.startswith("not serving: failed to connect")
        assert main([*line, "--json"]) == 1
    found = json.loads(capsys.readouterr().out)
    assert (found["role"], found["target"], found["serving"]) == ("he", target, False)
    assert "connect" in found["reason"]


@pytest.mark.parametrize("command", ["inspect", "verify", "split", "export"])
def test_a_file_that_is_no_model_is_named(
    command: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bad = tmp_path / "bad.sq"
    bad.write_bytes(b"no model")
    more = {"verify": ["--input", str(bad)], "split": ["--engine", "he", "--out", str(tmp_path)],
            "export": ["--out", str(tmp_path / "x.onnx")]}.get(command, [])  # fmt: skip
    assert main([command, str(bad), *more]) == 2
    assert f"{bad}: safetensors file" in capsys.readouterr().err


@pytest.mark.parametrize("shell", ["bash", "zsh", "tcsh"])
def test_completion(shell: str, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("shtab")
    assert main(["completion", shell]) == 0
    script = capsys.readouterr().out
    assert all(command in script for command in COMMANDS)
    assert "--model-hash" in script or "model-hash" in script
