"""A transformer on integers: reads a digit row by row, attention and LayerNorm included.

Softmax, LayerNorm and GELU become sums, products and small public tables (docs/quantization.md
says how), so secret sharing computes them exactly as plaintext does.

    python examples/transformer.py [--epochs 12] [--samples 2]
"""

import argparse
from collections import Counter

import torch

import secure_quant as sq
from secure_quant.mpc.protocol.plan import plan
from secure_quant.quantizer import zoo
from secure_quant_cli.engines import in_process


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--epochs", type=int, default=12, help="of training")
    parser.add_argument("--samples", type=int, default=2, help="inputs under secret sharing")
    arguments = parser.parse_args()

    data = zoo.digits("rows")  # float32[n, 8, 8]: eight rows of eight pixels
    model = zoo.train(zoo.RowClassifier, data, epochs=arguments.epochs)
    with torch.no_grad():
        floats = model(torch.from_numpy(data.test_x)).numpy()

    graph = sq.quantize(model, data.train_x[:256])
    made = sq.reference.run(graph, data.test_x)
    print(f"accuracy: float {zoo.accuracy(floats, data.test_y):.2%}, "
          f"integers {zoo.accuracy(made, data.test_y):.2%}")  # fmt: skip

    # What is left of softmax, LayerNorm and GELU.
    kinds = Counter(type(node).__name__ for node in graph.nodes)
    print("steps: " + ", ".join(f"{n} {kind}" for kind, n in kinds.most_common()))

    # The cost is known before any key exists: it depends on the public graph alone.
    cost = plan(graph).cost(batch=1)
    print(f"secret sharing, one sequence: {cost.rounds} rounds, "
          f"{cost.online_bytes_per_direction:,} bytes each way")  # fmt: skip

    q = sq.reference.quantize_input(graph, data.test_x[: arguments.samples])
    shared = in_process("mpc", graph)(q).values[graph.output.name]
    exact = bool((shared == sq.reference.run_int(graph, q)).all())
    print(f"bit-exact: {'yes' if exact else 'NO'}")
    return 0 if exact else 1


if __name__ == "__main__":
    raise SystemExit(main())
