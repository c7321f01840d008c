"""The integer model: ops, graph, verifier, bounds and the model file. No arithmetic on data."""

from secure_quant.ir.artifact import load, save
from secure_quant.ir.graph import Graph
from secure_quant.ir.values import Interval, Value

__all__ = ["Graph", "Interval", "Value", "load", "save"]
