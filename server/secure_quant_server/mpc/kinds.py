"""What the workers of lanes are forked from; light, so that a template can start before its front
has loaded anything else."""

from __future__ import annotations

from secure_quant.mpc.runtime.options import Border
from secure_quant_server.common.workers import WorkerKind
from secure_quant_server.mpc.messages import TO_FRONT

__all__ = ["lane_kind"]

ALLOCATOR = {
    # Material and activations are megabytes that come and go with every inference: keep the pages
    # instead of asking the kernel for zeroed ones each time.
    "MALLOC_ARENA_MAX": "1",
    "MALLOC_MMAP_THRESHOLD_": str(32 * 2**20),
    "MALLOC_TRIM_THRESHOLD_": str(512 * 2**20),
}


def lane_kind(border: Border, memory: int | None = None) -> WorkerKind:
    """What a lane's worker imports, a template does for it. memory: see WorkerKind."""
    modules = ["secure_quant_server.mpc.worker", "secure_quant.mpc.kernels.batched"]
    if border == "crypten":
        modules.append("secure_quant_server.mpc.crypten_border")
    return WorkerKind(
        name="lane", entry="secure_quant_server.mpc.worker:serve", modules=modules,
        answers=TO_FRONT, memory=memory, environment=ALLOCATOR,
    )  # fmt: skip
