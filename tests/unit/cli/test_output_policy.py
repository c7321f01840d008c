"""``split --output``: what clients learn of the output."""

from pathlib import Path

import numpy as np
import pytest

import secure_quant as sq
from conformance.cases import lenet
from secure_quant.ir.policy import with_output
from secure_quant.mpc.protocol.bundle import load_client
from secure_quant_cli.main import main


@pytest.fixture
def model(tmp_path: Path) -> Path:
    sq.save(lenet(), tmp_path / "model.sq")
    return tmp_path / "model.sq"


def split(model: Path, engine: str, *options: str) -> int:
    out = str(model.parent / engine)
    return main(["split", str(model), "--engine", engine, "--out", out, *options])


def test_under_secret_sharing_the_class_alone(
    model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert split(model, "mpc", "--output", "argmax") == 0
    made = with_output(lenet(), "argmax")
    told = capsys.readouterr().out
    assert f"model {made.hash}, which answers argmax" in told
    assert "note" not in told
    graph, plan = load_client((model.parent / "mpc" / "client.sqb").read_bytes())
    assert (graph.hash, plan.graph.output_ports[0].shape) == (made.hash, (1,))


def test_under_homomorphic_encryption_it_hides_nothing_and_says_so(
    model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert split(model, "he", "--output", "top-3") == 0
    assert "they see every score, and the policy hides nothing" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("engine", "output", "words"),
    [
        ("onehost", "argmax", "with one host"),
        ("mpc", "best", "argmax, or top-K"),
        ("mpc", "top-11", "10 scores"),
    ],
)
def test_what_is_refused(
    model: Path, engine: str, output: str, words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert split(model, engine, "--output", output) == 2
    assert words in capsys.readouterr().err
    assert not (model.parent / engine).exists()


def test_the_reference_answers_as_the_bundles_do() -> None:
    graph = with_output(lenet(), "argmax")
    x = np.random.default_rng(0).normal(size=(3, *graph.input.shape))
    assert sq.reference.run(graph, x).shape == (3, 1)
