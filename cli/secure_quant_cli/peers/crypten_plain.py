"""Plain CrypTen 0.4.1: two parties and its trusted third party, encrypted weights and input.

``python -m secure_quant_cli.peers.crypten_plain MODEL.sq --batch N --runs R`` starts the three
processes over loopback (plain TCP, gloo), times encrypt → infer → decrypt between barriers, and
prints ``{"latency_ms": [...], "bytes_per_party": n, "peak_memory_bytes": m, "max_error": e}``, the
bytes and the memory of the first party.
"""

from __future__ import annotations

import argparse
import json
import os
import socket
import subprocess
import sys
import time
from typing import Any

import numpy as np

from secure_quant.ir import Graph, load, ops
from secure_quant_cli.peers import figures_of
from secure_quant_cli.peers.layers import Layer, layers
from secure_quant_cli.processes import bind_to_half, own_cores, peak_memory

__all__ = ["main", "run"]


def run(
    model: str,
    batch: int,
    runs: int,
    *,
    provider: str = "TTP",
    bound: bool = False,
    timeout: float = 900,
) -> dict[str, Any]:
    """The figures of plain CrypTen on a model file. Raises InternalError, DeadlineExceeded.

    bound: each party on its half of the cores, as our own are; CrypTen's launcher leaves that to
    the system.
    """
    options = ["--batch", str(batch), "--runs", str(runs), "--provider", provider]
    options += ["--bound"] if bound else []
    return figures_of(__name__, model, *options, timeout=timeout)


def main() -> None:
    """Start the ranks, or be one of them."""
    parser = argparse.ArgumentParser()
    parser.add_argument("model")
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--provider", choices=["TTP", "TFP"], default="TTP")
    parser.add_argument("--bound", action="store_true")
    arguments = parser.parse_args()
    if "RANK" in os.environ:
        _rank(arguments)
    else:
        _launch(3 if arguments.provider == "TTP" else 2)


def _launch(ranks: int) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    base = dict(
        os.environ, WORLD_SIZE="2", RENDEZVOUS=f"tcp://127.0.0.1:{port}",
        DISTRIBUTED_BACKEND="gloo", OMP_NUM_THREADS="1",
    )  # fmt: skip
    command = [sys.executable, "-m", "secure_quant_cli.peers.crypten_plain", *sys.argv[1:]]
    processes = [
        subprocess.Popen(command, env=base | {"RANK": str(rank)})  # noqa: S603 - our own module
        for rank in range(ranks)
    ]
    try:
        codes = [process.wait() for process in processes]
    finally:
        for process in processes:
            process.kill()
    if any(codes):
        raise SystemExit(f"a CrypTen rank failed: exit codes {codes}")


def _rank(arguments: argparse.Namespace) -> None:
    from secure_quant.mpc.crypten.compat import crypten

    crypten.cfg.mpc.provider = arguments.provider
    if arguments.bound and os.environ["RANK"] != "2":
        bind_to_half(0, int(os.environ["RANK"]), own_cores())
    if os.environ["RANK"] == "2":
        from crypten.mpc.provider import TTPServer

        TTPServer()
        return
    crypten.init()
    figures = _measure(crypten, load(arguments.model), arguments.batch, arguments.runs)
    if os.environ["RANK"] == "0":
        print(json.dumps(figures), flush=True)
    crypten.uninit()


def _measure(crypten: Any, graph: Graph, batch: int, runs: int) -> dict[str, Any]:
    import torch

    plain = list(layers(graph))
    secret = [_encrypt(crypten, torch, layer) for layer in plain]
    low, high = (np.array([-128, 127]) - graph.input.zero_point) * graph.input.scale
    rng = np.random.default_rng(7)
    x = rng.uniform(low, high, (batch, *graph.input.shape))
    communicator = crypten.communicator.get()
    latencies: list[float] = []
    sent = 0
    for turn in range(runs + 1):
        # The first turn warms up and counts bytes, which CrypTen does in its verbose mode only.
        crypten.cfg.communicator.verbose = turn == 0
        communicator.barrier()
        communicator.reset_communication_stats()
        start = time.perf_counter()
        made = _forward(crypten.cryptensor(torch.tensor(x).float(), src=0), plain, secret)
        opened = made.get_plain_text()
        if turn:
            latencies.append((time.perf_counter() - start) * 1e3)
        else:
            sent = int(communicator.comm_bytes)
    expected = _forward(torch.tensor(x), plain, [_tensors(torch, layer) for layer in plain])
    return {
        "latency_ms": latencies,
        "bytes_per_party": sent,
        "peak_memory_bytes": peak_memory(os.getpid()),
        "max_error": float((opened.double() - expected).abs().max()),
    }


def _tensors(torch: Any, layer: Layer) -> Any:
    if layer.weight is None or layer.bias is None:
        return None
    shape = (-1, 1, 1) if layer.kind == "conv" else (-1,)
    return torch.tensor(layer.weight), torch.tensor(layer.bias).reshape(shape)


def _encrypt(crypten: Any, torch: Any, layer: Layer) -> Any:
    pair = _tensors(torch, layer)
    return pair and tuple(crypten.cryptensor(t.float(), src=0) for t in pair)


def _forward(x: Any, plain: list[Layer], tensors: list[Any]) -> Any:
    """``x`` is what the input is: the layers read each other by the names of their nodes."""
    values: dict[str, Any] = {}
    for layer, pair in zip(plain, tensors, strict=True):
        read = [values.get(name, x) for name in layer.inputs]
        last = values[layer.node.name] = _apply(layer, pair, *read)
    return last


def _apply(layer: Layer, pair: Any, x: Any, *others: Any) -> Any:
    node: Any = layer.node
    if layer.kind == "conv":
        options = {
            "stride": node.stride,
            "padding": node.padding,
            "dilation": node.dilation,
            "groups": node.groups,
        }
        return _conv(x, pair[0], options) + pair[1]
    if layer.kind == "linear":
        return x.matmul(pair[0].t()) + pair[1]
    if layer.kind == "relu":
        return x.relu()
    if layer.kind in ("maxpool", "avgpool"):
        return _pool(layer.kind, x, node)
    if layer.kind == "add":
        return x + others[0]
    return x.reshape(x.shape[0], *node.shape)


def _conv(x: Any, weight: Any, options: dict[str, Any]) -> Any:
    if hasattr(x, "get_plain_text"):
        return x.conv2d(weight, **options)
    import torch

    return torch.nn.functional.conv2d(x, weight, **options)


def _pool(kind: str, x: Any, node: ops.MaxPool | ops.SumPool) -> Any:
    name = "max_pool2d" if kind == "maxpool" else "avg_pool2d"
    options = {"stride": node.stride, "padding": node.padding}
    if hasattr(x, "get_plain_text"):
        return getattr(x, name)(node.kernel, **options)
    import torch

    return getattr(torch.nn.functional, name)(x, node.kernel, **options)


if __name__ == "__main__":
    main()
