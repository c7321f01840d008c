"""The models of published families, with random weights, that ``model_coverage.py`` goes through.

Sizes are those of the package, but for the picture: the smallest that the architecture takes, since
nothing about what can be quantized depends on it. torchvision and timm are to be installed; their
compiled operators (detection's last steps) are not needed.
"""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

__all__ = ["FAMILIES", "Listed", "listed"]

Shape = tuple[int, ...]
Made = tuple[nn.Module, Shape | Mapping[str, torch.Tensor]]
"""A module, and the shape of one sample, or samples of each input by name."""


@dataclass(frozen=True)
class Listed:
    """A model of a group of a family. first: the smallest of its architecture."""

    family: str
    group: str
    name: str
    first: bool
    make: Callable[[str], Made]

    @property
    def key(self) -> str:
        return f"{self.family}/{self.group}/{self.name}"


def listed(family: str, everything: bool) -> Iterator[Listed]:
    """The models of a family: the smallest of each architecture first, then the others."""
    models = list(FAMILIES[family]())
    yield from (model for model in models if model.first)
    if everything:
        yield from (model for model in models if not model.first)


_OPERATORS = torch.library.Library("torchvision", "FRAGMENT")


def _torchvision() -> Any:
    """torchvision also where its compiled operators do not load, as beside a torch of another
    build: it registers shapes of two of them while it is imported."""
    for name in ("nms", "qnms"):
        if not hasattr(torch.ops.torchvision, name):
            _OPERATORS.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    return importlib.import_module("torchvision.models")


_SMALLEST = (
    "alexnet", "convnext_tiny", "densenet121", "efficientnet_b0", "efficientnet_v2_s", "googlenet",
    "inception_v3", "maxvit_t", "mnasnet0_5", "mobilenet_v2", "mobilenet_v3_small",
    "regnet_x_400mf", "regnet_y_400mf", "resnet18", "resnext50_32x4d", "shufflenet_v2_x0_5",
    "squeezenet1_1", "swin_t", "swin_v2_t", "vgg11", "vgg11_bn", "vit_b_32", "wide_resnet50_2",
)  # fmt: skip
"""Of torchvision's classifiers, one for each architecture."""
_PICTURES = {"inception_v3": 96, "vit_h_14": 56, "densenet": 64, "vgg": 32}
_CLIPS = {"s3d": (3, 16, 64, 64), "mvit_v1_b": (3, 16, 224, 224), "mvit_v2_s": (3, 16, 224, 224),
          "swin3d": (3, 8, 64, 64)}  # fmt: skip


def _beginning(table: dict[str, Any], name: str, otherwise: Any) -> Any:
    """The entry whose key the name begins with."""
    return next((value for key, value in table.items() if name.startswith(key)), otherwise)


def _of_torchvision() -> Iterator[Listed]:
    models = _torchvision()
    groups: dict[str, tuple[Any, Callable[[str], Made]]] = {
        "classification": (models, _classifier),
        "segmentation": (models.segmentation, _segmentation),
        "detection backbone": (models.detection, _backbone),
        "video": (models.video, _video),
    }
    for group, (module, make) in groups.items():
        for name in models.list_models(module):
            first = group != "classification" or name in _SMALLEST
            yield Listed("torchvision", group, name, first, make)


def _classifier(name: str) -> Made:
    size, options = _beginning(_PICTURES, name, 64), {}
    if name.startswith("vit_"):
        options = {"image_size": size}
    elif name in ("googlenet", "inception_v3"):
        options = {"init_weights": False, "aux_logits": False}
    elif name == "maxvit_t":
        return _maxvit(size), (3, size, size)
    return _torchvision().get_model(name, weights=None, **options), (3, size, size)


def _maxvit(size: int) -> nn.Module:
    """maxvit_t, with windows as large as the last map, as they are for 224 pixels."""
    made: nn.Module = _torchvision().MaxVit(
        input_size=(size, size), stem_channels=64, block_channels=[64, 128, 256, 512],
        block_layers=[2, 2, 5, 2], head_dim=32, stochastic_depth_prob=0.2,
        partition_size=size // 32,
    )  # fmt: skip
    return made


def _segmentation(name: str) -> Made:
    made = _torchvision().get_model(name, weights=None, weights_backbone=None)
    return made, (3, 64, 64)


def _backbone(name: str) -> Made:
    made = _torchvision().get_model(name, weights=None, weights_backbone=None)
    size = 300 if name == "ssd300_vgg16" else 64  # its last maps come of six halvings
    return made.backbone, (3, size, size)


def _video(name: str) -> Made:
    return _torchvision().get_model(name, weights=None), _beginning(_CLIPS, name, (3, 8, 32, 32))


_SIZES = (64, 96, 128, 160, 192, 224)


def _of_timm() -> Iterator[Listed]:
    _torchvision()
    for line in _TIMM.split():
        group, name = line.split(":")
        yield Listed("timm", group, name, True, _timm)


def _timm(name: str) -> Made:
    """With the smallest picture that its forward takes."""
    create = importlib.import_module("timm").create_model
    whole = create(name, pretrained=False)
    own = tuple(whole.default_cfg["input_size"])
    for size in _SIZES:
        if size >= own[1]:
            break
        try:
            fixed = whole.default_cfg.get("fixed_input_size")
            made = create(name, pretrained=False, img_size=size) if fixed else whole
            with torch.no_grad():
                made.eval()(torch.zeros(2, 3, size, size))
        except Exception:  # noqa: BLE001, S112  whatever it says of a size: try the next
            continue
        return made, (3, size, size)
    return whole, own


_TIMM = """
beit:beit_base_patch16_224 byoanet:halonet_h1 byobnet:mobileone_s1 cait:cait_xxs24_224
coat:coat_tiny convit:convit_tiny convmixer:convmixer_768_32 convnext:convnext_atto
cpubone:cpubone_nano crossvit:crossvit_tiny_240 csatv2:csatv2 cspnet:cs3darknet_focus_s
cspnext:cspnext_tiny davit:davit_tiny deepseek_vit:deepseek_vit_412m deit:deit_tiny_patch16_224
densenet:densenet121 dla:dla46x_c dpn:dpn48b edgenext:edgenext_xx_small
efficientformer:efficientformer_l1 efficientformer_v2:efficientformerv2_s0 efficientnet:tinynet_e
efficientvim:efficientvim_m1 efficientvit_mit:efficientvit_b0 efficientvit_msra:efficientvit_m0
eva:vit_tiny_patch16_dinov3_qkvb fasternet:fasternet_t0 fastvit:fastvit_t8
focalnet:focalnet_tiny_srf gcvit:gcvit_xxtiny gemma4_vit:gemma4_vit_167m ghostnet:ghostnet_050
hardcorenas:hardcorenas_b hgnet:hgnetv2_b0 hiera:hiera_tiny_224 hieradet_sam2:sam2_hiera_tiny
hrnet:hrnet_w18_small iformer:iformer_t inception_next:inception_next_atto
inception_resnet_v2:inception_resnet_v2 inception_v3:inception_v3 inception_v4:inception_v4
lcnetv2:lcnetv2_small levit:levit_128s lowformer:lowformer_b0 mambaout:mambaout_femto
maxxvit:coatnet_nano_cc_224 metaformer:poolformerv2_s12 mlp_mixer:gmixer_12_224
mobilenetv3:mobilenetv3_small_050 mobilenetv5:mobilenetv5_base mobilevit:mobilevit_xxs
mvitv2:mvitv2_tiny naflexvit:naflexvit_base_patch16_gap nasnet:nasnetalarge nest:nest_tiny
nextvit:nextvit_small nfnet:nf_regnet_b0 pit:pit_xs_224 pnasnet:pnasnet5large pvt_v2:pvt_v2_b0
qwen3_vit:qwen3_vit_88m rdnet:rdnet_tiny regnet:regnetx_002 repghost:repghostnet_050
repvit:repvit_m1 res2net:res2net50_14w_8s resnest:resnest14d resnet:resnet10t resnetv2:resnetv2_18
rexnet:rexnet_130 selecsls:selecsls42 senet:legacy_seresnet18 sequencer:sequencer2d_s
shvit:shvit_s1 sknet:skresnet18 starnet:starnet_s050 swiftformer:swiftformer_xs
swin_transformer:swin_tiny_patch4_window7_224 swin_transformer_v2:swinv2_tiny_window8_256
swin_transformer_v2_cr:swinv2_cr_tiny_224 tiny_vit:tiny_vit_5m_224 tnt:tnt_s_legacy_patch16_224
tresnet:tresnet_m twins:twins_svt_small vgg:vgg11 visformer:visformer_tiny
vision_transformer:vit_tiny_patch16_224 vision_transformer_hybrid:vit_tiny_r_s16_p8_224
vision_transformer_relpos:vit_srelpos_small_patch16_224
vision_transformer_sam:samvit_base_patch16_224 vitamin:vitamin_small_224 volo:volo_d1_224
vovnet:ese_vovnet19b_slim xception:legacy_xception xception_aligned:xception41p
xcit:xcit_nano_12_p8_224
"""
"""A family, that is a file of timm 1.0, and its model of the fewest parameters."""


def _of_transformers() -> Iterator[Listed]:
    own = importlib.import_module("families_hf")
    if importlib.util.find_spec("torchvision"):
        _torchvision()
    for group, name in own.of_transformers():
        yield Listed("transformers", group, name, True, own.made)


FAMILIES: dict[str, Callable[[], Iterator[Listed]]] = {
    "torchvision": _of_torchvision,
    "timm": _of_timm,
    "transformers": _of_transformers,
}
