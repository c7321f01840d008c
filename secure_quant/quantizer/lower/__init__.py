"""The converted pt2e graph -> the integer graph. Torch is left behind here."""

from secure_quant.quantizer.lower.record import lower_recorded

__all__ = ["lower_recorded"]
