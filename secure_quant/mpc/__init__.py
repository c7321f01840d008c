"""Exact two-party inference on additive shares, with a dealer: ``docs/spec/mpc.md``."""
