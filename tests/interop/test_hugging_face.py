"""Models of Hugging Face, with random weights, from token ids and a mask, as they stand."""

import numpy as np
import pytest
import torch

from secure_quant import reference
from secure_quant.errors import UnsupportedModule
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
GPT2 = {
    "vocab_size": 100, "n_embd": 32, "n_layer": 2, "n_head": 2, "n_positions": 32,
    "use_cache": False, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
LLAMA = {
    "num_attention_heads": 4, "num_key_value_heads": 2, "use_cache": False, "bos_token_id": 1,
    "eos_token_id": 2,
}  # fmt: skip
T5 = {"vocab_size": 100, "d_model": 32, "d_kv": 16, "d_ff": 64, "num_layers": 2, "num_heads": 2}
MODELS = {
    "BertModel": ("BertConfig", SIZES),  # MiniLM and sentence-transformers are of this class
    "BertForSequenceClassification": ("BertConfig", SIZES),
    "DistilBertForSequenceClassification": ("DistilBertConfig", DISTIL),
    "ElectraModel": ("ElectraConfig", {**SIZES, "embedding_size": 32}),
    "AlbertModel": ("AlbertConfig", {**SIZES, "embedding_size": 16}),
    "GPT2Model": ("GPT2Config", GPT2),
    "LlamaModel": ("LlamaConfig", {**SIZES, **LLAMA}),
}


def test_relative_places():
    torch.manual_seed(0)
    model = transformers.T5EncoderModel(transformers.T5Config(**T5)).eval()
    given = {"input_ids": torch.randint(0, 100, (64, 8))}
    made = reference.run(quantize(model, given, embedding="client"), given)
    with torch.no_grad():
        want = model(**given).last_hidden_state.numpy()
    assert cosine(made["last_hidden_state"], want) > 0.995
    shown = torch.arange(8)[None] < torch.randint(3, 9, (64, 1))
    given["attention_mask"] = shown.long()
    made = reference.run(quantize(model, given, embedding="client"), given)
    with torch.no_grad():
        want = model(**given).last_hidden_state.numpy()
    assert cosine(made["last_hidden_state"][shown], want[shown]) > 0.995


def cosine(a, b):
    a, b = a.ravel(), b.ravel()
    return float(a @ b / np.linalg.norm(a) / np.linalg.norm(b))


def test_places_and_types_as_inputs():
    """RoBERTa counts its places by the ids, which the client alone knows."""
    torch.manual_seed(0)
    model = transformers.RobertaModel(transformers.RobertaConfig(**SIZES)).eval()
    given = {
        "input_ids": torch.randint(2, 100, (64, 8)),
        "position_ids": torch.arange(2, 10)[None].repeat(64, 1),
        "token_type_ids": torch.zeros(64, 8, dtype=torch.long),
    }
    with pytest.raises(UnsupportedModule, match="reads too"):
        quantize(model, {"input_ids": given["input_ids"]}, embedding="client")
    made = reference.run(quantize(model, given, embedding="client"), given)
    with torch.no_grad():
        want = model(**given).last_hidden_state.numpy()
    assert cosine(made["last_hidden_state"], want) > 0.995


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
        assert cosine(*pair) > 0.995, output
