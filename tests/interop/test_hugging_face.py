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
DEBERTA = {"relative_attention": True, "pos_att_type": ["p2c", "c2p"]}
PLACES = {"position_ids": torch.arange(2, 10)[None].repeat(64, 1)}
TYPES = {"token_type_ids": torch.zeros(64, 8, dtype=torch.long)}
BART = {
    "vocab_size": 100, "d_model": 32, "encoder_layers": 1, "decoder_layers": 1,
    "encoder_attention_heads": 2, "decoder_attention_heads": 2, "encoder_ffn_dim": 64,
    "decoder_ffn_dim": 64, "max_position_embeddings": 32, "use_cache": False,
}  # fmt: skip
OPT = {**SIZES, "ffn_dim": 64, "use_cache": False, "word_embed_proj_dim": 32}
BERTISH = {
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "cls_token_id": 1,
    "sep_token_id": 2,
}
MORE = {
    "RobertaForSequenceClassification": ("RobertaConfig", SIZES, {}),
    "RobertaModel": ("RobertaConfig", SIZES, PLACES | TYPES),
    "XLMRobertaModel": ("XLMRobertaConfig", SIZES, {}),
    "MPNetModel": ("MPNetConfig", SIZES, {}),
    "DebertaModel": ("DebertaConfig", {**SIZES, **DEBERTA, "max_relative_positions": 16}, {}),
    "DebertaV2Model": (
        "DebertaV2Config",
        {**SIZES, **DEBERTA, "position_buckets": 8, "share_att_key": True,
         "norm_rel_ebd": "layer_norm"}, {},
    ),
    "ModernBertModel": ("ModernBertConfig", {**SIZES, **BERTISH}, {}),
    "MistralModel": ("MistralConfig", {**SIZES, **LLAMA}, {}),
    "Qwen2Model": ("Qwen2Config", {**SIZES, **LLAMA}, {}),
    "GPTNeoXModel": ("GPTNeoXConfig", {**SIZES, "use_cache": False}, {}),
    "MptModel": (
        "MptConfig",
        {"vocab_size": 100, "d_model": 32, "n_layers": 2, "n_heads": 2, "max_seq_len": 32,
         "use_cache": False, "expansion_ratio": 2}, {},
    ),
    "OPTModel": ("OPTConfig", OPT, {}),
    "BloomModel": (
        "BloomConfig",
        {"vocab_size": 100, "hidden_size": 32, "n_layer": 2, "n_head": 2, "use_cache": False}, {},
    ),
    "BartModel": ("BartConfig", BART, {"decoder_input_ids": torch.randint(3, 100, (64, 8))}),
}  # fmt: skip
"""With what else they read."""
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


@pytest.mark.heavy
@pytest.mark.parametrize("attention", ["its own", "eager"])
@pytest.mark.parametrize("name", MORE)
def test_other_classes_with_padding(name, attention):
    config, sizes, besides = MORE[name]
    torch.manual_seed(0)
    made = getattr(transformers, config)(**sizes)
    if attention == "eager":
        made._attn_implementation = attention
    model = getattr(transformers, name)(made).eval()
    with torch.no_grad():  # a LayerNorm of rows that are 0, as these begin, has no scale
        for key, parameter in model.named_parameters():
            if key.endswith("bias"):
                parameter.normal_(0, 0.1)
    shown = torch.arange(8)[None] < torch.randint(3, 9, (64, 1))
    given = {"input_ids": torch.randint(3, 100, (64, 8)), "attention_mask": shown.long(), **besides}
    got = reference.run(quantize(model, given, embedding="private"), given)
    with torch.no_grad():
        want = {k: v.numpy() for k, v in model(**given).items() if isinstance(v, torch.Tensor)}
    assert list(got) == list(want)
    for output, value in got.items():
        whole = value.ndim < 3 or "decoder_input_ids" in given
        pair = [each if whole else each[shown.numpy()] for each in (value, want[output])]
        assert cosine(*pair) > 0.995, output


SOUND = {
    "vocab_size": 20, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2,
    "intermediate_size": 64, "conv_dim": (16, 16, 16), "conv_stride": (5, 4, 2),
    "conv_kernel": (10, 8, 4), "num_feat_extract_layers": 3, "num_conv_pos_embeddings": 8,
    "num_conv_pos_embedding_groups": 2, "apply_spec_augment": False, "layerdrop": 0.0,
}  # fmt: skip


@pytest.mark.heavy
def test_a_mask_of_samples_is_refused_with_a_way_out():
    """How many frames it leaves, a forward finds out by writing at places that depend on it."""
    model = transformers.Wav2Vec2Model(transformers.Wav2Vec2Config(**SOUND)).eval()
    mask = torch.arange(800)[None] < torch.randint(500, 801, (64, 1))
    given = {"input_values": torch.randn(64, 800), "attention_mask": mask.long()}
    with pytest.raises(UnsupportedModule, match="inputs of one length"):
        quantize(model, given)


PICTURE = {
    "hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 64,
    "image_size": 32, "patch_size": 8,
}  # fmt: skip
WINDOWS = {"image_size": 32, "embed_dim": 16, "depths": [2], "num_heads": [2], "window_size": 4}
STAGES = {"depths": [1, 1, 1, 1], "hidden_sizes": [8, 16, 24, 32]}
PICTURES = {
    "ViTForImageClassification": ("ViTConfig", PICTURE),
    "DeiTForImageClassification": ("DeiTConfig", PICTURE),
    "SwinForImageClassification": ("SwinConfig", WINDOWS),
    "ConvNextForImageClassification": ("ConvNextConfig", STAGES),
    "SegformerForSemanticSegmentation": ("SegformerConfig", STAGES | {
        "num_attention_heads": [1, 2, 3, 4], "decoder_hidden_size": 16}),
}  # fmt: skip


@pytest.mark.heavy
@pytest.mark.parametrize("name", PICTURES)
def test_models_of_pictures(name):
    config, sizes = PICTURES[name]
    torch.manual_seed(0)
    model = getattr(transformers, name)(getattr(transformers, config)(**sizes)).eval()
    with torch.no_grad():  # as for text: tokens of their own begin at 0
        for parameter in model.parameters():
            if not parameter.any():
                parameter.normal_(0, 0.1)
    side = sizes.get("image_size", 64)
    given = {"pixel_values": torch.randn(16, 3, side, side)}
    with torch.no_grad():
        want = model(**given).logits.numpy()
    made = reference.run(quantize(model, given), given)["logits"]
    assert cosine(made, want) > 0.99


@pytest.mark.heavy
@pytest.mark.parametrize("name", ["Wav2Vec2Model", "Wav2Vec2ForCTC", "HubertModel"])
def test_encoders_of_sound(name):
    kind = name.partition("For")[0].removesuffix("Model")
    torch.manual_seed(0)
    config = getattr(transformers, f"{kind}Config")(**SOUND)
    model, x = getattr(transformers, name)(config).eval(), torch.randn(64, 800)
    with torch.no_grad():
        want = {k: v.numpy() for k, v in model(x).items() if isinstance(v, torch.Tensor)}
    got = reference.run(quantize(model, {"input_values": x}), {"input_values": x})
    for output, value in got.items():
        assert cosine(value, want[output]) > 0.995, output
