"""Plain TenSEAL 0.3.18 through its own vectors: ``CKKSVector.mm`` for a linear layer, and for a
convolution one encrypted vector per im2col column, scaled by each kernel weight and added up.

Client-aided like ours: encrypt, one linear layer, decrypt, activation in the clear at the client.
N = 4096 with [40, 29, 40] bits is its fastest 128-bit setting; the answer is approximate.

``python -m secure_quant_cli.peers.tenseal_plain MODEL.sq --runs R`` prints one JSON object:
``latency_ms`` (sum over the layers), ``layer_ms``, ``bytes_up``, ``bytes_down``, ``key_bytes``,
``max_error`` against float64.
"""

from __future__ import annotations

import argparse
import json
import time
from typing import Any

import numpy as np
from numpy.typing import NDArray

from secure_quant.ir import load, ops
from secure_quant.ir.verify import conv_output
from secure_quant.reference.kernels import im2col, windows
from secure_quant_cli.peers import figures_of
from secure_quant_cli.peers.layers import Layer, layers

__all__ = ["main", "run"]

Plain = NDArray[np.float64]


def run(model: str, runs: int, *, timeout: float = 900) -> dict[str, Any]:
    """The figures of plain TenSEAL on a model file. Raises InternalError, DeadlineExceeded."""
    return figures_of(__name__, model, "--runs", str(runs), timeout=timeout)


def main() -> None:
    """Measure in this process."""
    parser = argparse.ArgumentParser()
    parser.add_argument("model")
    parser.add_argument("--runs", type=int, default=3)
    arguments = parser.parse_args()
    graph = load(arguments.model)
    plain = list(layers(graph, chain=True))
    low, high = (np.array([-128, 127]) - graph.input.zero_point) * graph.input.scale
    x = np.random.default_rng(7).uniform(low, high, (1, *graph.input.shape))
    peer = _Peer()
    turns = [peer.infer(plain, x) for _ in range(arguments.runs)]
    figures = {
        "latency_ms": [sum(turn.values()) for turn in turns],
        "layer_ms": {name: float(np.median([turn[name] for turn in turns])) for name in turns[0]},
        "bytes_up": peer.up // arguments.runs,
        "bytes_down": peer.down // arguments.runs,
        "key_bytes": peer.key_bytes,
        "max_error": peer.error,
    }
    print(json.dumps(figures), flush=True)


class _Peer:
    def __init__(self) -> None:
        import tenseal

        self._ts = tenseal
        self._context = tenseal.context(
            tenseal.SCHEME_TYPE.CKKS, poly_modulus_degree=4096, coeff_mod_bit_sizes=[40, 29, 40]
        )
        self._context.global_scale = 2.0**29
        self._context.generate_galois_keys()
        self.key_bytes = len(self._context.serialize(save_secret_key=False))
        self.up = self.down = 0
        self.error = 0.0

    def infer(self, plain: list[Layer], x: Plain) -> dict[str, float]:
        """Milliseconds of each encrypted layer of one inference."""
        times: dict[str, float] = {}
        for layer in plain:
            node: Any = layer.node
            if layer.weight is None or layer.bias is None:
                x = _clear(layer, x)
                continue
            start = time.perf_counter()
            if layer.kind == "linear":
                made = self._linear(layer.weight, layer.bias, x)
                expected = x @ layer.weight.T + layer.bias
            else:
                made, expected = self._conv(node, layer.weight, layer.bias, x)
            times[node.name] = (time.perf_counter() - start) * 1e3
            self.error = max(self.error, float(np.abs(made - expected).max()))
            x = expected
        return times

    def _linear(self, weight: Plain, bias: Plain, x: Plain) -> Plain:
        # mm's own bias addition would come at another scale, so it is left to the client.
        vector = self._send(x.reshape(-1))
        return np.array([self._receive(vector.mm(weight.T.tolist()))]) + bias

    def _conv(self, node: ops.Conv2d, weight: Plain, bias: Plain, x: Plain) -> tuple[Plain, Plain]:
        columns = im2col(x, node)[0]  # [groups, H'·W', terms]
        kernels = weight.reshape(node.groups, -1, columns.shape[-1])
        rows = []
        for group, kernel in zip(columns, kernels, strict=True):
            sent = [self._send(column) for column in group.T]
            for weights in kernel:
                total = sent[0] * float(weights[0])
                for column, w in zip(sent[1:], weights[1:], strict=True):
                    total += column * float(w)
                rows.append(self._receive(total))
        expected = (kernels @ columns.swapaxes(-1, -2)).reshape(len(bias), -1) + bias[:, None]
        shape = (1, len(bias), *conv_output(x.shape[1:], node))
        return (np.array(rows) + bias[:, None]).reshape(shape), expected.reshape(shape)

    def _send(self, values: Plain) -> Any:
        vector = self._ts.ckks_vector(self._context, values.tolist())
        wire = vector.serialize()
        self.up += len(wire)
        return self._ts.ckks_vector_from(self._context, wire)

    def _receive(self, vector: Any) -> list[float]:
        wire = vector.serialize()
        self.down += len(wire)
        opened: list[float] = self._ts.ckks_vector_from(self._context, wire).decrypt()
        return opened


def _clear(layer: Layer, x: Plain) -> Plain:
    node: Any = layer.node
    as_any: Any = x
    if layer.kind == "relu":
        return np.maximum(x, 0)
    if layer.kind in ("maxpool", "avgpool"):
        pool = (node.kernel, node.stride, node.padding, (1, 1))
        largest = layer.kind == "maxpool"
        view: Any = windows(as_any, *pool, fill=-(2**62) if largest else 0)
        return np.asarray(view.max((-2, -1)) if largest else view.mean((-2, -1)))
    return x.reshape(len(x), *node.shape)


if __name__ == "__main__":
    main()
