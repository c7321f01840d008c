"""One small model of every architecture of transformers that answers in one pass: classifiers of
pictures, sound, clips and text, segmentation and depth, encoders and decoders of text.

Random weights, two layers of 32 features where a configuration counts them, and the widths of the
package where it lists them by stage. Inputs are named as the model's processor names them: pixel
values, sound, or token ids with a padding mask.
"""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["of_transformers"]

SAMPLES = 8
LENGTH = 8
Given = dict[str, Tensor]

_GROUPS = (
    ("vision", "IMAGE_CLASSIFICATION"), ("audio", "AUDIO_CLASSIFICATION"),
    ("video", "VIDEO_CLASSIFICATION"), ("segmentation", "SEMANTIC_SEGMENTATION"),
    ("depth", "DEPTH_ESTIMATION"), ("encoder-decoder", "SEQ_TO_SEQ_CAUSAL_LM"),
    ("text", "MASKED_LM"), ("decoder", "CAUSAL_LM"),
    ("classifier of text", "SEQUENCE_CLASSIFICATION"),
)  # fmt: skip
"""The first task that an architecture has a head for."""
_SMALL = {
    "vocab_size": 64, "hidden_size": 32, "d_model": 32, "dim": 32, "n_embd": 32, "embed_dim": 32,
    "embedding_size": 32, "num_hidden_layers": 2, "num_layers": 2, "n_layer": 2,
    "n_layers": 2, "encoder_layers": 2, "decoder_layers": 2, "num_decoder_layers": 2,
    "num_attention_heads": 2, "num_heads": 2, "n_head": 2, "n_heads": 2,
    "encoder_attention_heads": 2, "decoder_attention_heads": 2, "num_key_value_heads": 2,
    "intermediate_size": 64, "ffn_dim": 64, "d_ff": 64, "d_kv": 16, "head_dim": 16,
    "encoder_ffn_dim": 64, "decoder_ffn_dim": 64, "n_inner": 64, "max_position_embeddings": 64,
    "n_positions": 64, "image_size": 64, "num_labels": 3, "use_cache": False,
    "word_embed_proj_dim": 32, "apply_spec_augment": False, "layerdrop": 0.0,
    "moe_intermediate_size": 32, "num_experts": 4, "num_local_experts": 4, "n_routed_experts": 4,
    "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
"""What a configuration has of these."""
_VISION = {key: _SMALL[key] for key in
           ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads",
            "image_size")} | {"patch_size": 16}  # fmt: skip
_WINDOWS = {"embed_dim": 24, "depths": [2, 1], "num_heads": [2, 4], "window_size": 4}
_SOUND = {"conv_dim": (32, 32, 32), "conv_stride": (5, 4, 2), "conv_kernel": (10, 8, 4),
          "num_feat_extract_layers": 3, "num_conv_pos_embeddings": 8,
          "num_conv_pos_embedding_groups": 2}  # fmt: skip
_OWN: dict[str, dict[str, Any]] = {
    "clip": {"vision_config": _VISION}, "metaclip_2": {"vision_config": _VISION},
    "siglip": {"vision_config": _VISION}, "siglip2": {"vision_config": _VISION},
    "swin": _WINDOWS, "swinv2": _WINDOWS, "donut-swin": _WINDOWS,
    "xmod": {"languages": ["en_XX"], "default_language": "en_XX"},
    "distilbert": {"hidden_dim": 64},
    "efficientnet": {"width_coefficient": 0.5, "depth_coefficient": 0.5, "hidden_dim": 640},
    "whisper": {"max_source_positions": 32, "num_mel_bins": 16},
    "audio-spectrogram-transformer": {"max_length": 64, "num_mel_bins": 32},
    "dpt": {"num_hidden_layers": 4, "backbone_out_indices": [0, 1, 2, 3],
            "neck_hidden_sizes": [16, 16, 32, 32], "fusion_hidden_size": 32},
    "vjepa2": {"crop_size": 32, "frames_per_clip": 4, "pred_hidden_size": 32,
               "pred_num_attention_heads": 2, "pred_num_hidden_layers": 1,
               "num_pooler_layers": 1},
    "perceiver": {"num_latents": 8, "d_latents": 32, "num_self_attends_per_block": 2,
                  "num_self_attention_heads": 2, "num_cross_attention_heads": 1},
}  # fmt: skip
"""What single architectures need besides."""
_ALIASES = {"gpt-sw3", "exaone", "internlm3", "iquestcoder", "sarvam_mla", "sarvam_moe"}
"""Names under which another architecture's class is used."""
_BY_STAGE = ("depths", "num_blocks", "layers", "layer_depths", "num_layers_per_stage", "n_blocks")
"""Lists of the blocks of each stage: one of each."""


def of_transformers() -> Iterator[tuple[str, str]]:
    """(group, type) of each architecture with a head of its own."""
    auto = importlib.import_module("transformers.models.auto.modeling_auto")
    importlib.import_module("transformers.modeling_utils")  # once, before processes are forked
    seen: set[str] = set()
    for group, task in _GROUPS:
        for kind, name in getattr(auto, f"MODEL_FOR_{task}_MAPPING_NAMES").items():
            own = name if isinstance(name, str) else name[0]
            if kind not in seen | _ALIASES and own not in seen:
                yield group, f"{kind}:{own}"
            seen |= {kind, own} if kind not in _ALIASES else {kind}


def made(name: str) -> tuple[nn.Module, Given]:
    """The model of ``type:class``, and eight samples for it."""
    kind, own = name.split(":")
    module = getattr(importlib.import_module("transformers"), own)
    config = _config(module.config_class, kind)
    model = module(config)
    with torch.no_grad():  # they begin at 0, and a LayerNorm of rows of zeros has no scale
        for key, parameter in model.named_parameters():
            if key.endswith("bias"):
                parameter.normal_(0, 0.1)
    return model, _given(model, config)


def _config(kind: Any, name: str) -> Any:
    """Small where it can be."""
    own = dict(_OWN.get(name, {}))
    held = {key: getattr(kind, key, None) for key in inspect.signature(kind.__init__).parameters}
    small: dict[str, Any] = {}
    for key, value in held.items():
        if key == "image_size" and isinstance(value, list | tuple):
            small[key] = [_SMALL[key]] * len(value)
        elif key == "embed_dim" and isinstance(held.get("num_heads"), list | tuple):
            continue
        elif key in _SMALL and not isinstance(value, list | tuple):
            small[key] = _SMALL[key]
        elif key in _SOUND and value is not None:
            small[key] = _SOUND[key]
        elif key in _BY_STAGE and isinstance(value, list | tuple):
            small[key] = [1] * len(value)
    return kind(**{**small, **own})


def _given(model: nn.Module, config: Any) -> Given:
    """What its processor makes: a picture, a clip, sound, or ids with a padding mask."""
    names = list(inspect.signature(model.forward).parameters)
    main = str(getattr(model, "main_input_name", names[0]))
    if main == "input_ids" or names[0] == "input_ids":
        shown = _counted(LENGTH).bool()
        ids = torch.randint(3, 64, (SAMPLES, LENGTH))
        pad = getattr(config, "pad_token_id", None)
        ids = ids.masked_fill(~shown, pad if isinstance(pad, int) and pad >= 0 else 0)
        given = {"input_ids": ids, "attention_mask": shown.long()}
        given["decoder_input_ids"] = torch.randint(3, 64, (SAMPLES, LENGTH))
        return {name: value for name, value in given.items() if name in names}
    if "spatial_shapes" in names:  # patches of pictures of any shape
        return {
            main: torch.randn(SAMPLES, 16, 768),
            "pixel_attention_mask": torch.ones(SAMPLES, 16, dtype=torch.long),
            "spatial_shapes": torch.full((SAMPLES, 2), 4),
        }
    if main == "inputs":
        return {main: torch.randn(SAMPLES, *_picture(config)[-3:])}
    if main.startswith("pixel_values"):
        return {main: torch.randn(SAMPLES, *_picture(config))}
    if main == "input_features" or hasattr(config, "num_mel_bins"):
        given = {main: torch.randn(SAMPLES, *_spectrum(config, names))}
        if "attention_mask" in names and not hasattr(config, "num_mel_bins"):
            given["attention_mask"] = _counted(32)
        return given
    return {main: torch.randn(SAMPLES, 800)}


def _counted(length: int) -> Tensor:
    """Masks of a few of so many places, or all."""
    least = 3 * length // 8
    return (torch.arange(length)[None] < torch.randint(least, length + 1, (SAMPLES, 1))).long()


def _picture(config: Any) -> tuple[int, ...]:
    side = getattr(config, "image_size", getattr(config, "crop_size", 64))
    side = side if isinstance(side, int) else side[0]
    frames = getattr(config, "num_frames", getattr(config, "frames_per_clip", None))
    channels = getattr(config, "num_channels", 3)
    lead = (frames,) if isinstance(frames, int) else ()
    return (*lead, channels, side, side)


def _spectrum(config: Any, names: list[str]) -> tuple[int, ...]:
    if hasattr(config, "max_length") and hasattr(config, "num_mel_bins"):
        return config.max_length, config.num_mel_bins
    if hasattr(config, "max_source_positions") and hasattr(config, "num_mel_bins"):
        return config.num_mel_bins, 2 * config.max_source_positions
    return 32, getattr(config, "feature_projection_input_dim", 80)
