"""Homomorphic engine: rotation-free, exact CKKS on TenSEAL's SEAL. Holds no user's secret."""
