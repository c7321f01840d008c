"""The gates: one class per kind, each with its dealing, its offline and its online half."""
