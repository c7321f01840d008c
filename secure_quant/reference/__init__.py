"""The plaintext integer executor: the truth that every other executor must equal bit for bit."""

from secure_quant.reference.executor import answer, asked, run, run_int, trace
from secure_quant.reference.kernels import evaluate
from secure_quant.reference.ports import dequantize, named, quantize_input

__all__ = [
    "answer",
    "asked",
    "dequantize",
    "evaluate",
    "named",
    "quantize_input",
    "run",
    "run_int",
    "trace",
]
