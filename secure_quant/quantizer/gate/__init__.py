"""No silent wrong number: what the quantizer made is compared with the user's own module."""

from secure_quant.quantizer.gate.accuracy import (
    AccuracyWarning,
    Bounds,
    check_accuracy,
    judge,
    relative_error,
)
from secure_quant.quantizer.gate.capture import Gate
from secure_quant.quantizer.gate.steps import largest_steps, steps_off

__all__ = [
    "AccuracyWarning",
    "Bounds",
    "Gate",
    "check_accuracy",
    "judge",
    "largest_steps",
    "relative_error",
    "steps_off",
]
