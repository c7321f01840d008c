"""Keys in ``node.meta``: what one pass finds out and a later step must know."""

from __future__ import annotations

__all__ = [
    "BITS", "CENTRING", "CHANNELS", "COUNT", "CUT", "EXACT", "FREE", "HIDES", "LARGEST",
    "NORMALIZED", "POSITIVE", "SHOWN", "SQUARES", "STEPS", "TABLE_RANGE", "TRUTH", "UNROUNDED",
]  # fmt: skip

BITS = "secure_quant_bits"
"""Bits of the activation a node becomes, where 8 are too few."""
CENTRING = "secure_quant_centring"
"""True for a mean over features and for the difference from it."""
CHANNELS = "secure_quant_channels"
"""True for a product with a constant for each channel that gives an activation its channels'
scales. Its integers stay, and only sums read it."""
COUNT = "secure_quant_count"
"""Least and largest of a whole number that a value is, whatever calibration saw."""
CUT = "secure_quant_cut"
"""Least and largest value of an activation: what is beyond is cut off."""
EXACT = "secure_quant_exact"
"""True where a sum stays an accumulator, because only sums read it."""
FREE = "secure_quant_free"
"""Of the input: true where a size that the exporter fixed was made free."""
HIDES = "secure_quant_hides"
"""True for a mask that is an input, as real numbers, and for the sum by which it hides scores."""
LARGEST = "secure_quant_largest"
"""Largest |x̂| that the activation may have, so that what is summed over it stays in int32."""
NORMALIZED = "secure_quant_normalized"
"""True for the product that ends a normalization, before gain and bias."""
SHOWN = "secure_quant_shown"
"""True for the product of a function of scores, 0 far below them all, with a mask of 0 and 1: made
by a sum in front of the function."""
STEPS = "secure_quant_steps"
"""Largest integer of an activation from 0 on that needs few."""
SQUARES = "secure_quant_squares"
"""True for the product of a row of differences from its mean with itself: made of the values and of
their sum, so that no difference is rounded."""
TRUTH = "secure_quant_truth"
"""True for a comparison with a half of what is 0 or 1 to the last bit."""
TABLE_RANGE = "secure_quant_table_range"
"""Least and largest value, and 0, that there may be whatever calibration saw: in the table that an
input chooses rows of, or by a sum that is rounded later."""
UNROUNDED = "secure_quant_unrounded"
"""True for a layer whose accumulator the one sum that reads it takes as it stands."""
POSITIVE = "secure_quant_positive"
"""Above 0 where a value is never near 0 and its relative error counts: the factor by which it may
be smaller or larger than any that was seen."""
