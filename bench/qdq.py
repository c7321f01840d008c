"""The QDQ form beside the exact one and float32, in onnxruntime on one core: bytes, milliseconds of
one sample, and how far the integers of the QDQ form are from the graph's.

    python bench/qdq.py --models lenet resnet20 --seconds 1

``differ`` is the share of all activations' integers that are not equal, ``most`` the largest
difference in steps, ``output`` the root mean square difference at the output relative to it, each
with onnxruntime's integer kernels; ``float`` is the same of the graph against the float model.
"""

from __future__ import annotations

import io
import time
import warnings
from typing import Any

import numpy as np
import onnxruntime
import torch
from arguments import parser, run
from onnx_equality import ZOO

from secure_quant import reference
from secure_quant.interop.onnx_export import to_onnx
from secure_quant.interop.qdq_export import to_qdq
from secure_quant.quantizer import quantize

SAMPLES = 64


def main() -> int:
    line = parser(__doc__)
    line.add_argument("--models", nargs="+", choices=tuple(ZOO), default=tuple(ZOO))
    line.add_argument("--seconds", type=float, default=1.0, help="of each timing")
    arguments = line.parse_args()
    print(f"{'':16}{'bytes':>30}{'ms':>27}")
    print(f"{'':16}" + "".join(f"{n:>10}" for n in ("float32", "exact", "QDQ"))
          + "".join(f"{n:>9}" for n in ("float32", "exact", "QDQ"))
          + "".join(f"{n:>9}" for n in ("differ", "most", "output", "float")))  # fmt: skip
    for name in arguments.models:
        print(f"{name:16}{measured(name, arguments.seconds)}", flush=True)
    return 0


def measured(name: str, seconds: float) -> str:
    build, shape = ZOO[name]
    torch.manual_seed(1)
    module = build().eval()
    x = torch.randn(SAMPLES, *shape)
    graph = quantize(module, torch.randn(128, *shape))
    floats, exact, qdq = (
        exported(module, x[:1]), to_onnx(graph).SerializeToString(),
        to_qdq(graph).SerializeToString(),
    )  # fmt: skip
    q = reference.quantize_input(graph, x.numpy())
    feeds = ({"x": x.numpy()[:1]}, {"x": q[:1]}, {"x": x.numpy()[:1]})
    times = [
        milliseconds(model, feed, seconds)
        for model, feed in zip((floats, exact, qdq), feeds, strict=True)
    ]
    made = outputs(to_qdq(graph, inner=True).SerializeToString(), {"x": x.numpy()})
    truth = reference.trace(graph, q)
    off = np.concatenate(
        [np.abs(value - truth[key[3:]]).ravel() for key, value in made.items() if key != "y"]
    )
    want = reference.run(graph, x.numpy())
    with torch.no_grad():
        real = module(x).numpy().reshape(want.shape)
    sizes = "".join(f"{len(model):>10,}" for model in (floats, exact, qdq))
    return (sizes + "".join(f"{t:>9.3f}" for t in times)
            + f"{(off > 0).mean():>9.1%}{int(off.max()):>9}"
            + f"{relative(outputs(qdq, {'x': x.numpy()})['y'], want):>9.2%}"
            + f"{relative(want, real):>9.2%}")  # fmt: skip


def relative(got: Any, want: Any) -> float:
    return float(np.sqrt(((got - want) ** 2).mean() / (want**2).mean()))


def exported(module: Any, x: torch.Tensor) -> bytes:
    """float32 ONNX by torch's older exporter, which needs no package more."""
    file = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(module, (x,), file, input_names=["x"], dynamo=False,
                          dynamic_axes={"x": {0: "batch"}})  # fmt: skip
    return file.getvalue()


def session(model: bytes) -> Any:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])


def outputs(model: bytes, feed: dict[str, Any]) -> dict[str, Any]:
    made = session(model)
    names = [each.name for each in made.get_outputs()]
    return dict(zip(names, made.run(names, feed), strict=True))


def milliseconds(model: bytes, feed: dict[str, Any], seconds: float) -> float:
    """The median of one call after another."""
    made, times = session(model), []
    end = time.perf_counter() + seconds
    while time.perf_counter() < end or len(times) < 10:
        start = time.perf_counter()
        made.run(None, feed)
        times.append(time.perf_counter() - start)
    return float(np.median(times)) * 1000


if __name__ == "__main__":
    run(main)
