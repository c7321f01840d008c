"""Concrete-ML (TFHE) on the MLP 64-128-10, by hand, in an environment of its own.

    python -m venv cml-env
    cml-env/bin/pip install torch==2.13.0 numpy==1.26.4 scipy scikit-learn==1.5.0 onnx==1.17.0 \\
        onnxruntime pandas==2.0.3 "protobuf>=5.28.3,<6"
    cml-env/bin/pip install --no-deps concrete-ml==1.9.0 concrete-ml-extensions==0.1.9 \\
        concrete-python==2.10.0 brevitas==0.10.2 hummingbird-ml==0.4.11 onnxoptimizer==0.3.13 \\
        skops==0.5.0 skorch==0.11.0 xgboost==1.6.2 onnxconverter-common z3-solver jsonpickle \\
        matplotlib dependencies==2.0.1 unfoldNd psutil networkx tabulate tqdm \\
        future_annotations tokenize_rt huggingface_hub onnxmltools onnxscript onnx_ir \
        ml_dtypes setuptools==75.3.0
    cml-env/bin/python bench/concrete_ml.py --bits 4 --p-error 0.01

Another kind of service: non-interactive, the whole network under encryption in one call, with
evaluation keys that stay at the server. Its tables fail with probability ``p_error`` each. Prints
one JSON object.
"""

from __future__ import annotations

import argparse
import functools
import importlib.util
import json
import time

import numpy as np


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--bits", type=int, default=4)
    parser.add_argument("--p-error", type=float, default=0.01)
    parser.add_argument("--rounding", type=int, default=6, help="bits of an accumulator kept")
    parser.add_argument("--runs", type=int, default=3)
    arguments = parser.parse_args()
    if arguments.runs < 1:
        parser.error("--runs: expected >= 1")
    if importlib.util.find_spec("concrete") is None:
        parser.error("needs concrete-ml in an environment of its own: see --help")
    import torch
    from concrete.ml.torch.compile import compile_torch_model

    # It reads the graphs of the exporter that was the default in its days.
    torch.onnx.export = functools.partial(torch.onnx.export, dynamo=False)
    torch.manual_seed(1)
    net = torch.nn.Sequential(torch.nn.Linear(64, 128), torch.nn.ReLU(), torch.nn.Linear(128, 10))
    data = np.random.default_rng(1).uniform(0, 1, (200, 64))
    start = time.perf_counter()
    rounding = {"n_bits": arguments.rounding, "method": "approximate"}
    module = compile_torch_model(
        net, data, n_bits=arguments.bits, p_error=arguments.p_error,
        rounding_threshold_bits=rounding,
    )  # fmt: skip
    module.fhe_circuit.keygen()
    prepared = time.perf_counter() - start
    times, mismatches = [], 0
    for sample in data[: arguments.runs]:
        x = sample.reshape(1, -1)
        start = time.perf_counter()
        made = module.forward(x, fhe="execute")
        times.append((time.perf_counter() - start) * 1e3)
        mismatches += int((made != module.forward(x, fhe="disable")).sum())
    circuit = module.fhe_circuit
    figures = {
        "peer": "concrete-ml 1.9.0", "model": "mlp 64-128-10", "n_bits": arguments.bits,
        "rounding_bits": arguments.rounding, "p_error": arguments.p_error,
        "latency_ms_median": float(np.median(times)),
        "compile_and_keygen_s": prepared, "mismatches": mismatches,
        "evaluation_key_bytes": circuit.size_of_bootstrap_keys + circuit.size_of_keyswitch_keys,
        "bytes_up": circuit.size_of_inputs, "bytes_down": circuit.size_of_outputs,
    }  # fmt: skip
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
