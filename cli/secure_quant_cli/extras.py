"""What to say when a package is missing: which extra brings it, or which command.

No line names a package index: `secure-quant[he]` on a public one may be anybody's.
"""

from __future__ import annotations

__all__ = ["ADD_CRYPTEN", "EXTRAS", "how_to_get", "how_to_install"]

ADD_CRYPTEN = "secure-quant add-crypten"

# Top-level module -> the extra that brings it.
EXTRAS = {
    "PIL": "images",
    "aiohttp": "gateway",
    "grpc_reflection": "server",
    "grpc_status": "server",
    "matplotlib": "report",
    "numba": "mpc",
    "omegaconf": "mpc",
    "onnx": "onnx",
    "onnxruntime": "onnx",
    "opentelemetry": "traces",
    "prometheus_client": "server",
    "redis": "budgets",
    "safetensors": "quantize",
    "shtab": "cli",
    "sklearn": "demo",
    "tenseal": "he",
    "torch": "quantize",
    "torchao": "quantize",
    "uvloop": "server",
    "yaml": "mpc",
}


def how_to_install(extra: str) -> str:
    """One line on how to install ``extra`` of this distribution."""
    return f"install the extra '{extra}' of secure-quant (in a checkout: pip install '.[{extra}]')"


def how_to_get(module: str, engine: str | None = None) -> str | None:
    """One line on how to get a missing module, by its dotted name; None if nothing of ours wants
    it. engine: which the command is about, by name, or that of a role which it serves."""
    package = module.partition(".")[0]
    if package == "crypten":
        return f"run: {ADD_CRYPTEN}"
    extra = EXTRAS.get(package)
    from secure_quant.engines import engines

    if extra in {row.extra for row in engines()}:  # others may bring it as well
        for row in engines():
            if engine == row.name or engine in {role.name for role in row.roles}:
                extra = row.extra
    return None if extra is None else how_to_install(extra)
