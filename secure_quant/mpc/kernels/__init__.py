"""Compiled loops over batches of elements (numba). They know arrays of words, not gates."""
