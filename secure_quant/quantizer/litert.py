"""A model in QDQ form as a LiteRT file, by Google's own converter where that is installed."""

from __future__ import annotations

import contextlib
import io
import tempfile
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch.fx import GraphModule, Node

from secure_quant.errors import ConfigError, UnsupportedModule
from secure_quant.quantizer._torchao import quiet
from secure_quant.quantizer.capture import capture
from secure_quant.quantizer.files.onnx_model import OnnxModule, checked
from secure_quant.quantizer.kept import kept_scales
from secure_quant.quantizer.kept.lowered import as_pairs
from secure_quant.quantizer.kept.weights import kept_weight
from secure_quant.quantizer.opset import WEIGHTED
from secure_quant.quantizer.passes import rewrite
from secure_quant.quantizer.passes.edit import constant_of
from secure_quant.quantizer.refuse import first_line

__all__ = ["to_litert"]

_OPS: Any = torch.ops.quantized_decomposed


def to_litert(qdq: Any) -> bytes:
    """A LiteRT file of an ONNX model in QDQ form with one input and one output: float32[1, ...] in
    and out, int8 within, with the model's own scales and zero points.

    Raises ConfigError where the package litert-torch is missing, UnsupportedModule for tables that
    are looked up, 12-bit values, several inputs or outputs, and what the converter refuses.
    """
    if find_spec("litert_torch") is None:
        raise ConfigError(
            "a LiteRT file", got="no package litert-torch",
            hint="install litert-torch, in an environment of its own: it brings much",
        )  # fmt: skip
    module = OnnxModule(checked(qdq))
    if len(module.inputs) != 1 or len(module.outputs) != 1:
        got = f"{len(module.inputs)} inputs, {len(module.outputs)} outputs"
        raise UnsupportedModule("a LiteRT file", got=got, expected="one of each")
    shape = [each.dim_value for each in qdq.graph.input[0].type.tensor_type.shape.dim[1:]]
    scales = kept_scales(module)
    with quiet(), torch.random.fork_rng(devices=[]):
        graph = rewrite(capture(module, torch.zeros(2, *shape)))
        as_pairs(graph)
        for node in list(graph.graph.nodes):
            if node.target in WEIGHTED and scales is not None:
                _as_integers(graph, node, scales)
        graph.graph.eliminate_dead_code()
        graph.recompile()
        return _converted(graph, torch.zeros(1, *shape))


def _as_integers(graph: GraphModule, node: Node, scales: torch.Tensor) -> None:
    """Quantize and dequantize nodes around a layer's weight, which the converter makes int8 of."""
    source: Any = node.args[1]
    value = constant_of(graph, source)
    if value is None:
        return
    steps = torch.from_numpy(kept_weight(node, value, scales).steps.copy()).float()
    names = [f"sq_{kind}_{node.name}" for kind in ("scale", "zero")]
    graph.register_buffer(names[0], steps)
    graph.register_buffer(names[1], torch.zeros(len(steps), dtype=torch.int64))
    with graph.graph.inserting_before(node):
        scale, zero = (graph.graph.get_attr(name) for name in names)
        grid = (scale, zero, 0, -127, 127, torch.int8)
        whole = graph.graph.call_function(_OPS.quantize_per_channel.default, (source, *grid))
        real = graph.graph.call_function(_OPS.dequantize_per_channel.default, (whole, *grid))
    node.update_arg(1, real)


def _converted(graph: GraphModule, example: torch.Tensor) -> bytes:
    import litert_torch
    from litert_torch.quantize import pt2e_quantizer as own
    from litert_torch.quantize.quant_config import QuantConfig

    static = own.get_symmetric_quantization_config(is_per_channel=True, is_dynamic=False)
    # It quantizes nothing here: it tells the converter what the nodes that stand there mean.
    config = QuantConfig(pt2e_quantizer=own.PT2EQuantizer().set_global(static))
    graph.graph.set_codegen(torch.fx.graph.CodeGen())
    plain = GraphModule(graph, graph.graph)  # an exporter's own refuses eval()
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        try:
            made = litert_torch.convert(plain.eval(), (example,), quant_config=config)
        except Exception as error:
            raise UnsupportedModule("LiteRT's converter", got=first_line(error)) from error
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "model.tflite"
            made.export(str(path))
            return path.read_bytes()
