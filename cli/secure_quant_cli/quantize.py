"""Turn a float torch model into an integer model file.

The file is written only if the integers are close to the float model; from a fifth of the bound
on with a warning. MODEL is FILE.py:FACTORY, which is executed and so must be your own code, or a
float model as .onnx (checked with onnxruntime), .pt2 of torch.export or .ts of TorchScript.
DATA.npz holds representative inputs, float[samples, *input shape], as the array "x" or its only
array, or an array for each argument of a forward that takes several, under its name; the mode qat,
which trains, also reads labels, the integers "y". With --images DATA is a folder of images instead,
and SPEC says how each becomes an input: "size=224 resize=256 mean=0.485,0.456,0.406
std=0.229,0.224,0.225 mode=RGB", of which size alone is needed. The mode leveled makes a shallow
model, Linear and secure_quant.quantizer.leveled.Square in turn, for one approximate round trip of
CKKS.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from secure_quant.engines import Engine
    from secure_quant_cli.arrays import Arrays

__all__ = ["HELP", "configure", "run"]

HELP = "float torch model -> integer model file"

MODES = ("static", "weight-only", "qat", "dynamic")
SCHEMES = ("uniform", "log", "clip", "kmeans")


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the options."""
    from secure_quant_cli.owner_code import MODEL_HELP, add_weights

    parser.add_argument("model", metavar="MODEL", help=MODEL_HELP)
    add_weights(parser)
    parser.add_argument("--calibration", type=Path, required=True, metavar="DATA.npz")
    parser.add_argument("--images", metavar="SPEC", help="DATA is a folder of images: see above")
    parser.add_argument("--out", type=Path, required=True, metavar="model.sq")
    parser.add_argument("--mode", choices=(*MODES, *_own_modes()), default="static")
    parser.add_argument("--scheme", choices=SCHEMES, default="uniform", help="weight grid")
    parser.add_argument("--max-error", type=float, metavar="E",
                        help="largest error at the output, relative to the float model's output, "
                             "for which a file is written: 0.25 if left out, 0.5 with log and "
                             "kmeans; inf writes it at any")  # fmt: skip
    parser.add_argument("--embedding", choices=("client", "private"),
                        help="of tables that an integer input chooses rows of; client: they become "
                             "public, and clients look them up themselves; private: nobody "
                             "but you knows them, nor servers the numbers (mpc alone)")  # fmt: skip
    parser.add_argument("--json", action="store_true", help="print the sizes as JSON")


def run(arguments: argparse.Namespace) -> int:
    """Write the model file and say what it holds."""
    from secure_quant.errors import ConfigError
    from secure_quant.ir import save
    from secure_quant_cli.arrays import samples_of
    from secure_quant_cli.checks import can_write
    from secure_quant_cli.console import human_bytes, print_json, progress, ratio
    from secure_quant_cli.engines import own_models
    from secure_quant_cli.models import quantize_shown
    from secure_quant_cli.sizes import float_bytes

    can_write("--out", arguments.out)
    if arguments.max_error is not None and not arguments.max_error > 0:
        raise ConfigError("--max-error", got=arguments.max_error, expected="> 0")
    own = _own_modes().get(arguments.mode)
    if (own or arguments.mode == "qat") and arguments.scheme != "uniform":
        got = f"--scheme {arguments.scheme}"
        raise ConfigError(f"--mode {arguments.mode}", got=got, expected="uniform")
    ignored = [name for name in ("embedding", "images") if getattr(arguments, name) is not None]
    if own is not None and ignored:
        raise ConfigError(f"--mode {arguments.mode}", got=f"--{ignored[0]}",
                          expected="a model of one array")  # fmt: skip
    if own is not None:
        return own_models(own).quantize(arguments)
    found = _calibration(arguments)
    targets = None
    if arguments.mode == "qat":
        targets = _labels(arguments.calibration, samples_of(found))
    with progress("importing the float model"):
        model, data = _model_and_data(arguments, found)
    graph = quantize_shown(
        model, data, mode=arguments.mode, scheme=arguments.scheme, targets=targets,
        max_error=arguments.max_error, embedding=arguments.embedding,
    )  # fmt: skip
    save(graph, arguments.out)
    stored, plain = arguments.out.stat().st_size, float_bytes(graph)
    if arguments.json:
        print_json(
            {"hash": graph.hash, "nodes": len(graph.nodes), "bytes": stored, "float_bytes": plain}
        )
    else:
        share = ratio(stored, plain) if plain else "–"
        print(f"{arguments.out}: {len(graph.nodes)} nodes, {human_bytes(stored)}, "
              f"{share} of {human_bytes(plain)} float32")  # fmt: skip
        print(f"hash {graph.hash}")
    return 0


def _own_modes() -> dict[str, Engine]:
    """Those whose files one engine alone takes."""
    from secure_quant.engines import engines

    return {each.mode: each for each in engines() if each.mode is not None}


def _calibration(arguments: argparse.Namespace) -> Arrays:
    """What a file of arrays holds but labels, or a folder of images."""
    from secure_quant_cli.arrays import read_named

    if arguments.images is None:
        return read_named(arguments.calibration, lambda name: name != "y")
    import numpy as np

    from secure_quant.errors import ConfigError
    from secure_quant.quantizer import ImageFolder, ImageSpec
    from secure_quant_cli.console import progress

    if arguments.mode == "qat":
        raise ConfigError(
            "--mode qat", got="a folder of images", expected="labels, in an .npz file"
        )
    images = ImageFolder(arguments.calibration, ImageSpec.of(arguments.images))
    with progress(f"reading {len(images)} images"):
        return np.concatenate(list(images))


def _model_and_data(arguments: argparse.Namespace, found: Arrays) -> tuple[Any, Arrays]:
    """What is quantized, and the inputs to calibrate with: those that a forward names, or all that
    were ``found`` beside a model file."""
    from secure_quant.quantizer.files import SUFFIXES, input_names, read
    from secure_quant_cli.arrays import read_named
    from secure_quant_cli.owner_code import owner_model

    path = Path(arguments.model)
    if path.suffix.lower() in SUFFIXES:
        names = (input_names(read(path)) or ()) if path.is_file() else ()
        if "y" in names and arguments.images is None:  # no labels
            found = read_named(arguments.calibration, lambda name: name in names)
        return owner_model(arguments.model, arguments.weights, found), found
    model = owner_model(arguments.model, arguments.weights)
    if arguments.images is not None:
        return model, found
    return model, read_named(arguments.calibration, _takes(model))


def _takes(model: Any) -> Callable[[str], bool]:
    """Whether a name is that of an argument of the model's forward."""
    import inspect

    parameters = inspect.signature(model.forward).parameters
    return lambda name: name in parameters


def _labels(path: Path, samples: int) -> NDArray[Any]:
    """int64[samples]. Raises ConfigError."""
    from secure_quant.errors import ConfigError
    from secure_quant_cli.arrays import read_labels

    labels = read_labels(path)
    if labels is None or labels.shape != (samples,):
        got = "no integer array y" if labels is None else f"labels y of shape {labels.shape}"
        raise ConfigError("--mode qat", got=got, expected=f"{samples} labels y in {path}")
    return labels.astype("int64")
