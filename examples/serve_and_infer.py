"""Serve a model by every engine and ask it: six processes, mutual TLS, three kinds of client.

Here all roles run on this machine for a moment. In earnest each runs on a host of its own, started
by `secure-quant serve` (see the README and deploy/); the clients' code is the same.

    python examples/serve_and_infer.py [--samples 3] [--epochs 12]
"""

import argparse
import tempfile
from pathlib import Path

import numpy as np

import secure_quant as sq
from secure_quant.quantizer import zoo
from secure_quant.transport import Tls
from secure_quant.transport.certs import make_all
from secure_quant_cli.cluster import Cluster
from secure_quant_cli.split import split_for, write_bundles
from secure_quant_client import HeClient, MpcClient, OneHostClient

ENGINES = ("mpc", "he", "onehost")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--samples", type=int, default=3, help="digits to classify")
    parser.add_argument("--epochs", type=int, default=12, help="of training")
    arguments = parser.parse_args()

    # The owner: train on handwritten digits, quantize.
    data = zoo.digits("flat")
    model = zoo.train(zoo.mlp, data, epochs=arguments.epochs)
    graph = sq.quantize(model, data.train_x[:256])
    x = data.test_x[: arguments.samples]
    truth = sq.reference.run(graph, x)

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        # One bundle per role, each with the least the role needs; one certificate per role.
        for engine in ENGINES:
            write_bundles(split_for(graph, engine), folder / engine)
        make_all(folder / "certs")
        print("starting dealer, party 0, party 1, the HE server and the one host ...")
        bundles = {engine: folder / engine for engine in ENGINES}
        cluster = Cluster(folder / "certs", folder / "logs", bundles)
        with cluster:  # every process has ended when this block is left
            tls = Tls.from_dir(folder / "certs", "client")
            # expected_hash: refuse to talk to a server that holds any other model.
            with MpcClient(cluster.targets["mpc"], tls=tls, expected_hash=graph.hash) as client:
                # Neither party sees x, the weights or the answer.
                shared, stats = client.infer_with_stats(x)
                print(f"secret sharing: {stats.rounds} rounds between the parties")
            with HeClient(cluster.targets["he"][0], tls=tls, expected_hash=graph.hash) as client:
                encrypted, stats = client.infer_with_stats(x)  # the server computes on ciphertexts
                sent = stats.bytes_up + stats.bytes_down
                print(f"homomorphic encryption: {sent:,} bytes of ciphertexts")
            host = cluster.targets["onehost"][0]
            with OneHostClient(host, tls=tls, expected_hash=graph.hash) as client:
                # The host holds the weights, and sees masked values; the client sees the answer.
                masked, stats = client.infer_with_stats(x)
                print(f"one host: {stats.flights} flights between client and host")

    for i, label in enumerate(data.test_y[: len(x)]):
        print(f"digit {label}: plaintext says {truth[i].argmax()}, secret sharing "
              f"{shared[i].argmax()}, homomorphic {encrypted[i].argmax()}, one host "
              f"{masked[i].argmax()}")  # fmt: skip
    exact = all(np.array_equal(each, truth) for each in (shared, encrypted, masked))
    print(f"bit-exact: {'yes' if exact else 'NO'}")
    return 0 if exact else 1


if __name__ == "__main__":
    raise SystemExit(main())
