"""Encoders of Hugging Face, with random weights, from token ids and a mask, as they stand."""

import numpy as np
import pytest
import torch

from secure_quant import reference
from secure_quant.quantizer import quantize

transformers = pytest.importorskip("transformers")

SIZES = {
    "vocab_size": 100, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2,
    "intermediate_size": 64, "max_position_embeddings": 32,
}  # fmt: skip
DISTIL = {
    "vocab_size": 100, "dim": 32, "n_layers": 2, "n_heads": 2, "hidden_dim": 64,
    "max_position_embeddings": 32,
}  # fmt: skip
MODELS = {
    "BertModel": ("BertConfig", SIZES),  # MiniLM and sentence-transformers are of this class
    "BertForSequenceClassification": ("BertConfig", SIZES),
    "DistilBertForSequenceClassification": ("DistilBertConfig", DISTIL),
    "ElectraModel": ("ElectraConfig", {**SIZES, "embedding_size": 32}),
    "AlbertModel": ("AlbertConfig", {**SIZES, "embedding_size": 16}),
}


@pytest.mark.parametrize("with_mask", [True, False])
@pytest.mark.parametrize("name", MODELS)
def test_from_ids_and_mask_to_every_output(name, with_mask):
    config, sizes = MODELS[name]
    torch.manual_seed(0)
    model = getattr(transformers, name)(getattr(transformers, config)(**sizes)).eval()
    given = {"input_ids": torch.randint(0, 100, (64, 8))}
    shown = torch.ones(64, 8, dtype=torch.bool)
    if with_mask:
        shown = torch.arange(8)[None] < torch.randint(3, 9, (64, 1))
        given["attention_mask"] = shown.long()
    graph = quantize(model, given, embedding="client")
    made = reference.run(graph, given)
    with torch.no_grad():
        want = {k: v.numpy() for k, v in model(**given).items() if v is not None}
    assert list(made) == list(want)
    for output, value in made.items():
        pair = [each[shown.numpy()] if value.ndim == 3 else each for each in (value, want[output])]
        a, b = (each.ravel() for each in pair)
        assert float(a @ b / np.linalg.norm(a) / np.linalg.norm(b)) > 0.995, output
