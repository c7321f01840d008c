"""Peers measured beside us by ``secure-quant bench --against``: stock CrypTen and stock TenSEAL.

Each module runs the same network as a given model file with the peer's own high-level interface,
in processes of its own, and prints one JSON object. They are used as their authors intend, with
nothing of ours inside.
"""
