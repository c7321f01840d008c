"""The models that ``bench`` and ``demo`` make for themselves."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from secure_quant.errors import ConfigError

if TYPE_CHECKING:
    from secure_quant.ir import Graph
    from secure_quant.quantizer.zoo import Split

__all__ = ["NAMES", "bench_model", "quantize_shown", "trained_lenet", "warned"]

NAMES = ("linear:IN,OUT", "mlp", "lenet", "resnet20", "transformer", "FILE.sq")


def bench_model(name: str) -> Graph:
    """One of NAMES as a graph: random weights from a fixed seed, except for a file.

    Raises ConfigError for another name, and what loading a file raises.
    """
    if name.endswith(".sq"):
        from secure_quant.ir import load

        return load(name)
    import torch

    from secure_quant.quantizer import zoo

    torch.manual_seed(0)
    made: dict[str, Callable[[], tuple[Any, Any]]] = {
        "mlp": lambda: (zoo.mlp(), zoo.digits("flat").train_x[:256]),
        "lenet": lambda: (zoo.LeNet(), zoo.digits("image").train_x[:256]),
        "resnet20": lambda: (zoo.ResNet(), zoo.digits("image").train_x[:64]),
        "transformer": lambda: (zoo.TransformerEncoder(), torch.randn(64, 16, 64)),
    }
    if name in made:
        return quantize_shown(*made[name]())
    kind, _, sizes = name.partition(":")
    features = [int(size) for size in sizes.split(",") if size.isdecimal() and int(size) > 0]
    if kind != "linear" or len(features) != 2:
        raise ConfigError("--model", got=name, expected=", ".join(NAMES))
    return quantize_shown(zoo.linear(*features), torch.randn(256, features[0]))


def quantize_shown(
    model: Any, data: Any, *, mode: Any = "static", scheme: str = "uniform", targets: Any = None,
    max_error: float | None = None, embedding: Any = None,
) -> Graph:  # fmt: skip
    """``quantize`` with its progress and its warning on stderr."""
    from secure_quant.quantizer import quantize
    from secure_quant_cli.arrays import samples_of
    from secure_quant_cli.console import progress

    with warned(), progress(f"quantizing with {samples_of(data)} samples") as line:
        return quantize(
            model, data, mode=mode, scheme=scheme, targets=targets, progress=line.step,
            max_error=max_error, embedding=embedding,
        )  # fmt: skip


@contextmanager
def warned() -> Iterator[None]:
    """A warning of large errors becomes a line on stderr, once the progress line has ended."""
    from secure_quant.quantizer import AccuracyWarning

    with warnings.catch_warnings(record=True, action="always", category=AccuracyWarning) as seen:
        yield
    for each in seen:
        if isinstance(each.message, AccuracyWarning):
            print(f"warning: {each.message}", file=sys.stderr)
        else:
            warnings.warn_explicit(each.message, each.category, each.filename, each.lineno)


def trained_lenet(data: Split, cache: Path) -> tuple[Any, bool]:
    """The LeNet for the digits, and whether it came from the file ``cache`` (safetensors)."""
    import safetensors.torch

    from secure_quant.quantizer import zoo
    from secure_quant_cli.console import progress

    if cache.is_file():
        model = zoo.LeNet()
        model.load_state_dict(safetensors.torch.load_file(cache))
        return model.eval(), True
    with progress(f"training a LeNet on {len(data.train_x)} digits") as line:
        made = zoo.train(zoo.LeNet, data, progress=line.step)
    cache.parent.mkdir(parents=True, exist_ok=True)
    whole = cache.with_suffix(".part")
    safetensors.torch.save_file(made.state_dict(), whole)
    whole.replace(cache)  # never half a file
    return made, False
