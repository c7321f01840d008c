"""Write a model file as ONNX, twice.

NAME.onnx has standard integer operators alone, and any runtime computes the integers of every
engine here with it: int8 in, int64 out. NAME.qdq.onnx is a float model, float32 in and out, with
QuantizeLinear and DequantizeLinear around its operators, which mobile runtimes compile for their
integer units; its integers are those of the model but for rounding. Both hold the weights. With
--litert NAME.tflite is written as well, from the second by Google's converter (the package
litert-torch): int8 in, float32 out, one sample at a time.
--input DATA.npz runs both in onnxruntime and says how far they are from plaintext here.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import onnx

    from secure_quant.ir import Graph
    from secure_quant_cli.arrays import Arrays

__all__ = ["HELP", "configure", "run"]

HELP = "integer model file -> ONNX for other runtimes"


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the options."""
    parser.add_argument("model", type=Path, metavar="model.sq")
    parser.add_argument("--out", type=Path, required=True, metavar="NAME.onnx",
                        help="the exact one; NAME.qdq.onnx stands beside it")  # fmt: skip
    parser.add_argument("--input", type=Path, metavar="DATA.npz", help="samples to compare on")
    parser.add_argument("--litert", action="store_true", help="write NAME.tflite too")
    parser.add_argument("--json", action="store_true")


def run(arguments: argparse.Namespace) -> int:
    """Write both files; 1 if integers of the exact one differ."""
    from secure_quant.errors import ConfigError
    from secure_quant.interop.onnx_export import to_onnx
    from secure_quant.interop.qdq_export import to_qdq
    from secure_quant.ir import load
    from secure_quant_cli.arrays import read_inputs
    from secure_quant_cli.checks import can_write
    from secure_quant_cli.console import human_bytes, print_json

    out: Path = arguments.out
    if out.suffix != ".onnx":
        raise ConfigError("--out", got=out.name, expected="a name that ends in .onnx")
    beside, small = out.with_suffix(".qdq.onnx"), out.with_suffix(".tflite")
    for path in (out, beside, *([small] if arguments.litert else [])):
        can_write("--out", path)
    graph = load(arguments.model)
    names = [port.name for port in graph.input_ports] if graph.has_ports else None
    x = None if arguments.input is None else read_inputs(arguments.input, names)
    made: dict[str, dict[str, Any]] = {}
    for kind, path, model in (("exact", out, to_onnx(graph)), ("qdq", beside, to_qdq(graph))):
        path.write_bytes(model.SerializeToString())
        made[kind] = {"file": str(path), "bytes": path.stat().st_size}
        if x is not None:
            measured = _differing if kind == "exact" else _distance
            made[kind] |= measured(graph, model, x)
    if arguments.litert:
        from secure_quant.quantizer.litert import to_litert

        small.write_bytes(to_litert(to_qdq(graph)))
        made["litert"] = {"file": str(small), "bytes": small.stat().st_size}
    if arguments.json:
        print_json({"hash": graph.hash, **made})
    else:
        for each in made.values():
            said = f"{each['file']}: {human_bytes(each['bytes'])}"
            if "mismatches" in each:
                said += f", {each['mismatches']} of {each['compared']} integers differ"
            if "relative" in each:
                said += f", outputs {each['relative']:.2g} off, relative, root mean square"
            print(said)
    return 1 if made["exact"].get("mismatches") else 0


def _run(model: onnx.ModelProto, feed: dict[str, Any]) -> dict[str, Any]:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(names, feed), strict=True))


def _differing(graph: Graph, model: onnx.ModelProto, x: Arrays) -> dict[str, int]:
    from secure_quant import reference
    from secure_quant.interop.onnx_export import feeds, packed

    q = reference.quantize_input(graph, x)
    want = reference.run_int(graph, q)
    got = packed(graph, _run(model, feeds(graph, q)))
    return {"compared": want.size, "mismatches": int((got != want).sum())}


def _distance(graph: Graph, model: onnx.ModelProto, x: Arrays) -> dict[str, float]:
    """The largest over the outputs."""
    import numpy as np

    from secure_quant import reference
    from secure_quant.interop.qdq_export import real_feeds
    from secure_quant.interop.writer import border_names

    q = reference.quantize_input(graph, x)
    want = reference.named(graph, reference.dequantize(graph, reference.run_int(graph, q)))
    got = _run(model, real_feeds(graph, x))
    found = []
    for name, port in border_names(graph)[1].items():
        mine = want[port.name].astype(np.float64)
        size = float(np.sqrt((mine**2).mean())) or 1.0
        found.append(float(np.sqrt(((got[name] - mine) ** 2).mean())) / size)
    return {"relative": max(found)}
