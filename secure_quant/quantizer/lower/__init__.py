"""The converted pt2e graph -> the integer graph. Torch is left behind here."""

from secure_quant.quantizer.lower.interpret import lower

__all__ = ["lower"]
