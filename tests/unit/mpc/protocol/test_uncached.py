"""Kernels compile where nothing can be kept on disk: a read-only package, no home."""

import logging

from numba import types

from secure_quant.mpc.kernels import bits


def test_a_kernel_without_a_place_for_its_cache_runs(caplog):
    # numba finds no folder for code that comes from no file, as for a read-only one without a home.
    space: dict[str, object] = {}
    exec("def double(x):\n    return x + x\n", space)  # noqa: S102
    bits._tell_once.cache_clear()
    with caplog.at_level(logging.WARNING, "secure_quant"):
        made = [bits.kernel(types.int64(types.int64))(space["double"]) for _ in range(2)]
    assert [double(21) for double in made] == [42, 42]
    told = [record.getMessage() for record in caplog.records]
    assert len(told) == 1
    assert "NUMBA_CACHE_DIR" in told[0]
