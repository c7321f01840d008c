"""The command line that others rely on, its exit codes and its error lines."""

import re
import shlex
from pathlib import Path

import numpy as np
import pytest

from secure_quant_cli.main import COMMANDS, build_parser, main

DOCUMENTED = """
quantize MODEL.py:factory --calibration DATA.npz --out model.sq
quantize MODEL.py:factory --calibration DATA.npz --out model.sq --mode static --scheme uniform
inspect model.sq
inspect model.sq --batch 8 --json
export model.sq --out model.onnx
export model.sq --out model.onnx --input X.npz --json
export model.sq --out model.onnx --litert
split model.sq --engine mpc --out bundles/
split model.sq --engine he --out bundles/ --objective traffic --tier T1-strict
certs --out certs/
certs --out certs/ --host a.example --host 10.0.0.1 --client alice --days 30 --force
serve party --bundle party1.sqb --listen 0.0.0.0:1 --link-listen :2 --dealer d:3 --tls certs/
serve party --bundle party0.sqb --listen 0.0.0.0:1 --peer p:2 --dealer d:3 --lanes 2 --tls certs/
serve party --bundle b --listen a:1 --peer p:2 --dealer d:3 --tls c --staged 8 --wait-seconds 2.5
serve party --bundle b --listen a:1 --peer p:2 --dealer d:3 --tls c --link-protocol grpc
serve dealer --bundle dealer.sqb --listen 0.0.0.0:1 --tls-ca a --tls-cert b --tls-key c
serve he --bundle a.sqb --bundle b.sqb --listen 0.0.0.0:1 --workers 2 --tls certs/
health --role party0 --target a:1 --tls certs/
doctor all --config deployment.toml
doctor party0 --config deployment.toml --target he=h.example:7300 --json
infer --engine mpc --target a:1 --target b:2 --input X.npz --tls certs/ --json
infer --engine he --target a:1 --input X.npz --out Y.npz --tls certs/ --model-hash 00
verify model.sq --input X.npz
verify model.sq --input X.npz --engines reference,he --float MODEL.py:factory --json
verify model.sq --input X.npz --engines reference,onnx --float MODEL.py:factory --html page.html
bench --model linear:8,32 --engine reference --batch 4
bench --model lenet --engine mpc --batch 1 --against crypten --json
bench --model model.sq --engine he --against tenseal --json
bench --model model.sq --engine he --tier T1-strict
demo
demo --images 50 --json
"""


@pytest.mark.parametrize("line", DOCUMENTED.strip().splitlines())
def test_documented_commands_parse(line: str) -> None:
    arguments = build_parser().parse_args(shlex.split(line))
    assert arguments.command == line.split()[0]


def test_every_command_has_help() -> None:
    text = build_parser().format_help()
    assert all(re.search(rf"^    {name}\s", text, re.MULTILINE) for name in COMMANDS)


@pytest.mark.parametrize(
    "line",
    [
        "",
        "nonsense",
        "quantize model.py:f",
        "split model.sq --engine spu --out x",
        "serve nobody --bundle b --listen a:1 --tls c",
        "infer --engine mpc --target a:1 --tls certs",
    ],
)
def test_bad_usage_exits_with_2(line: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        main(shlex.split(line))
    assert end.value.code == 2
    assert "error:" in capsys.readouterr().err


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    from secure_quant import __version__

    with pytest.raises(SystemExit) as end:
        main(["--version"])
    assert end.value.code == 0
    assert capsys.readouterr().out == f"secure-quant {__version__}\n"


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("inspect nowhere.sq", "nowhere.sq"),
        ("inspect nowhere.sq --batch 0", "--batch"),
        ("quantize m.py:f --calibration {x} --out nowhere/x.sq", "--out: got nowhere/x.sq"),
        ("quantize m.py:f --calibration {x} --out folder", "--out: got folder"),
        ("quantize m.py:f --calibration {x} --out x.sq --mode leveled --scheme log", "--scheme"),
        (
            "quantize m.py:f --calibration {x} --out x.sq --mode leveled --embedding client",
            "--embedding",
        ),
        ("quantize m.py:f --calibration {x} --out x.sq --mode qat --scheme log", "--scheme log"),
        ("quantize m.py:f --calibration {x} --out x.sq --mode qat", "no integer array y"),
        ("split m.sq --engine mpc --out x --tier T1", "--tier: got --engine mpc"),
        ("split m.sq --engine he-leveled --out x --objective latency", "--objective"),
        ("split m.sq --engine mpc --out x --samples-per-client 5", "expected --engine onehost"),
        ("split m.sq --engine onehost --out x --samples-per-client 0", "--samples-per-client"),
        ("inspect m.sq --samples-per-client -1", "--samples-per-client: got -1"),
        ("infer --engine mpc --target a:1 --input {x} --tls certs", "--target for mpc: got 1"),
        ("infer --engine he --target a:1 --input {x}", "no certificates given"),
        ("infer --engine he --target a --input {x} --tls c", "--target: got 'a', expected HOST"),
        ("infer --engine he --target a:99999 --input {x} --tls c", "--target: got 'a:99999'"),
        ("infer --engine he --target a:1 --input {x} --tls c --timeout nan", "--timeout: got nan"),
        ("infer --engine he --target a:1 --input {x} --tls c --model-hash xy", "--model-hash"),
        ("infer --engine he --target a:1 --input {x} --tls c --out no/y.npz", "--out: got no/y.n"),
        ("health --role he --target a:0 --tls c", "--target: got 'a:0'"),
        ("health --role he --target a:1 --tls c --timeout 0", "--timeout"),
        ("infer --engine he --target a:1 --input {x} --tls nowhere", "nowhere"),
        ("infer --engine he --target a:1 --input {x} --tls c --insecure-plaintext", "one of them"),
        ("infer --engine he --target a:1 --input {x} --tls-ca c", "expected all three"),
        ("verify nowhere.sq --input {x} --engines reference,spu", "--engines"),
        ("verify nowhere.sq --input {x} --engines ''", "--engines"),
        ("verify nowhere.sq --input {x} --html no/x.html", "--html: got no/x.html"),
        ("verify nowhere.sq --input {x}", "nowhere.sq: No such file"),
        ("bench --model resnet --engine reference", "--model: got resnet"),
        ("bench --model linear:8 --engine reference", "--model: got linear:8"),
        ("bench --model mlp --engine reference --runs 0", "--runs"),
        ("demo --images 0", "--images"),
        ("certs --out certs --days 0", "--days"),
        ("certs --out certs --days 10000000", "--days"),
        ("certs --out certs --host 'a b'", "--host: got 'a b'"),
        ("certs --out certs --client a/b", "client/a/b"),
        ("certs --out {x}", "x.npz: File exists"),
        ("bench --model linear:4,4 --engine he --against tenseal --batch 2", "--batch 2"),
        ("bench --model linear:4,4 --engine mpc --tier T1-strict", "--tier"),
        ("bench --model linear:4,4 --engine reference --seconds nan", "--seconds"),
        ("serve party --bundle b --listen a:1 --dealer d:1 --tls c", "got neither"),
        ("serve party --bundle b --listen a:1 --dealer d:1 --peer p:1 --link-listen l:1", "both"),
        ("serve he --listen a:1 --tls c", "--bundle: got nothing"),
        ("serve he --bundle b --listen nonsense --tls c", "--listen: got 'nonsense'"),
        ("serve he --bundle b --listen a:99999 --tls c", "--listen: got 'a:99999'"),
        ("serve he --bundle b --listen a:1 --metrics x --tls c", "--metrics: got 'x'"),
        ("serve party --bundle b --listen a:1 --peer p --dealer d:3 --tls c", "--peer: got 'p'"),
        ("serve party --bundle b --listen a:1 --peer p:2 --dealer d --tls c", "--dealer: got 'd'"),
        ("serve party --bundle b --listen a:1 --peer p:65535 --lanes 2 --dealer d:3", "--peer"),
        ("serve he --bundle b --listen a:1 --tls c --workers 0", "--workers"),
        ("serve he --bundle b --listen a:1 --tls c --budget 0", "--budget"),
        ("serve he --bundle b --listen a:1 --budget-window-seconds nan", "--budget-window"),
        ("serve party --bundle b --listen a:1 --peer p:2 --dealer d:3 --lanes 0", "--lanes"),
        ("serve party --bundle b --listen a:1 --peer p:2 --dealer d:3 --staged 0", "--staged"),
        ("serve dealer --bundle b --listen a:1 --stock-bytes 0", "--stock-bytes"),
        ("serve party --bundle b --listen a:1 --peer p:2 --dealer d:3 --wait-seconds 0", "--wait"),
    ],
)
def test_bad_input_is_one_line_and_exit_2(
    line: str,
    says: str,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    x = tmp_path / "x.npz"
    np.savez(x, x=np.zeros((1, 4), np.float32))
    (tmp_path / "folder").mkdir()
    assert main(shlex.split(line.format(x=x))) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("secure-quant: ")
    assert captured.err.count("\n") == 1
    assert says in captured.err
