"""One party of a CrypTen program: ``python crypten_party.py RANK LINK DEALER CERTS``; prints JSON.

The program below is CrypTen's own API and knows nothing of our session.
"""

import asyncio
import json
import sys

import torch

from secure_quant.mpc.crypten.compat import ArithmeticSharedTensor, BinarySharedTensor, crypten
from secure_quant.mpc.crypten.session import connect
from secure_quant.transport import Tls


def ints(generator, shape, bits):
    return torch.randint(-(2**bits), 2**bits, shape, generator=generator)


def exact(generator) -> dict[str, bool]:
    """Integers mod 2^64: every difference counts."""
    x, w = ints(generator, (2, 4, 9, 8), 40), ints(generator, (6, 2, 3, 3), 40)
    a, b = ints(generator, (5, 7), 62), ints(generator, (7, 3), 62)
    share = {
        name: ArithmeticSharedTensor(value, precision=0, src=src)
        for name, value, src in (("x", x, 0), ("w", w, 1), ("a", a, 0), ("b", b, 1))
    }
    options = {"stride": (2, 1), "padding": 1, "groups": 2}
    p, q = (BinarySharedTensor(value, src=0) for value in (a, a * 3 + 1))
    found = {
        "conv2d": (
            share["x"].conv2d(share["w"], **options).reveal(),
            torch.nn.functional.conv2d(x, w, **options),
        ),
        "matmul": (share["a"].matmul(share["b"]).reveal(), a @ b),
        "square": (share["a"].square().reveal(), a * a),
        "mul": (share["x"].mul(share["x"]).reveal(), x * x),
        "and": ((p & q).reveal(), a & (a * 3 + 1)),
        "xor": ((p ^ q).reveal(), a ^ (a * 3 + 1)),
    }
    return {name: bool((got == expected).all()) for name, (got, expected) in found.items()}


def close(generator) -> dict[str, float]:
    """Fixed point with CrypTen's own precision: largest absolute error."""
    f, h = torch.randn(4, 5, generator=generator), torch.randn(4, 5, generator=generator)
    image = torch.randn(1, 2, 6, 6, generator=generator)
    secret, other = crypten.cryptensor(f, src=0), crypten.cryptensor(h, src=1)
    pooled = crypten.cryptensor(image, src=1).max_pool2d(2)
    unknown = f if crypten.communicator.get().get_rank() == 0 else torch.empty(0)
    shown = crypten.cryptensor(unknown, src=0, broadcast_size=True)
    found = {
        "relu": (secret.relu(), f.relu()),
        "gt": (secret > other, (f > h).float()),
        "product": (secret * other, f * h),
        "max_pool2d": (pooled, torch.nn.functional.max_pool2d(image, 2)),
        "broadcast size": (shown, f),
        "reciprocal": ((secret.abs() + 1).reciprocal(), 1 / (f.abs() + 1)),
    }
    return {
        name: float((got.get_plain_text() - expected).abs().max())
        for name, (got, expected) in found.items()
    }


def program():
    torch.manual_seed(0)
    generator = torch.Generator().manual_seed(7)
    zeros = [ArithmeticSharedTensor(torch.zeros(8, dtype=torch.long), precision=0, src=0)
             for _ in range(2)]  # fmt: skip
    return {
        "exact": exact(generator),
        "close": close(generator),
        "zero shares": [zero.share.tolist() for zero in zeros],
    }


async def main(rank: int, link: str, dealer: str, certs: str) -> None:
    tls = Tls.from_dir(certs, f"party{rank}")
    async with connect(rank, link=link, dealer=dealer, security=tls) as session:
        print(json.dumps(await session.run(program)))


if __name__ == "__main__":
    asyncio.run(main(int(sys.argv[1]), *sys.argv[2:]))
