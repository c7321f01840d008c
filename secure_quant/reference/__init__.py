"""The plaintext integer executor: the truth that every other executor must equal bit for bit."""

from secure_quant.reference.executor import dequantize, quantize_input, run, run_int, trace
from secure_quant.reference.kernels import evaluate

__all__ = ["dequantize", "evaluate", "quantize_input", "run", "run_int", "trace"]
