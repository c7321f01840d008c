#!/usr/bin/env python3
"""Bits of security of LPN over GF(2) with regular noise, as Ferret rests on it, by known attacks.

    python tools/lpn_estimate.py                          the sets named below
    python tools/lpn_estimate.py 655360 73728 1280        n samples, k secret bits, t noisy ones

n samples in t blocks of β = n / t, one noisy place in each. Every figure is log2 of an attack's
operations, memory free of charge; the least counts. Where published models differ, or bound a
search that is not bounded here, what favours the attack is taken. Formulas are of the papers, the
code is not:

gauss, sd, sd2  pooled Gauss, statistical decoding and its second version, on the n - t samples and
                k - t secret bits that are left when the sum of each block, which is known to be 1,
                is used up: Liu, Wang, Yang and Yu, "The hardness of LPN over any integer ring and
                field for PCG applications" (EUROCRYPT 2024)
stern           Stern's and Dumer's information set decoding, likewise and there
regular         regular information set decoding by permutations, by enumeration and by
                representations: Esser and Santini, "Not just regular decoding" (CRYPTO 2024)
algebra         e_i·e_j = 0 inside a block, some places guessed, to degree 5: Briaud and Øygarden
                (EUROCRYPT 2023)
algebra2        the same with its elimination done once for many guesses (eprint 2025/1476)
hybrid          guesses that leave quadratic equations to linearise (eprint 2025/1284)
sparse          our own, of a code whose rows have ten ones: ``sparse`` below
free            not an attack: the tries of ``regular`` and of ``sparse``, the less of both, each
                for one operation, so that no better reuse of what is solved gets below it

``least_check`` asks whether rows of ten ones make a better linear test than random rows.
"""

from __future__ import annotations

import sys
from math import ceil, floor, inf, lgamma, log, log2

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

LN2 = log(2)
OMEGA = 2.8
DEGREE = 5
"""Highest of the algebraic attacks: above it Macaulay matrices alone exceed 2^128."""
LOCAL = 10
"""Ones in a row of the code."""

SETS = {
    "Ferret, 2^13 leaves, published": (10485760, 452000, 1280),
    "Ferret, 2^12 leaves, published": (10268672, 238000, 2507),
    "Ferret, 2^11 leaves, published": (10180608, 124000, 4971),
    "Ferret, set of its bootstrap": (649728, 36288, 1269),
    "served here": (655360, 73728, 1280),
}


def binomial(n: float, k: float) -> float:
    """log2."""
    if k < 0 or k > n:
        return -inf
    return (lgamma(n + 1) - lgamma(k + 1) - lgamma(n - k + 1)) / LN2


def gauss(n: int, k: int, t: int) -> float:
    """k places without noise, and a matrix to invert."""
    return OMEGA * log2(min(k, n - k)) + binomial(n, t) - binomial(n - k, t)


def statistical(n: int, k: int, t: int) -> float:
    """Parity checks of weight k + 1, which take no search."""
    return log2(k + 1) + 2 * t * log2((n - t + 1) / (n - k - t))


def statistical2(n: int, k: int, t: int) -> float:
    """Some secret bits by a transform of Fourier, as many as pooled Gauss takes bits."""
    return statistical(n, k - floor(gauss(n, k, t)), t)


def stern(n: int, k: int, t: int) -> float:
    """Two lists of p/2 noisy places in (k + l)/2 each, that meet in l places."""
    best = inf
    for p in range(0, min(t, 40), 2):
        least = best
        for l in _about(2 * binomial(k // 2, p // 2) / 2, n - k - 8):  # noqa: E741
            half = binomial((k + l) // 2, p // 2)
            reduce = log2(n - k - l) + log2(n) - log2(log2(n - k - l))
            each = _sum(reduce, 1 + half, 1 + 2 * half - l)
            chance = binomial(n - k - l, t - p) + 2 * half - binomial(n, t)
            least = min(least, log2(n) + each - min(chance, 0))
        if p and least >= best:
            return best
        best = least
    return best


def _about(middle: float, most: int) -> range:
    low = max(1, floor(0.4 * middle))
    return range(low, max(low + 1, min(most, ceil(1.8 * middle) + 20)))


def _sum(*logs: float) -> float:
    return float(np.logaddexp2.reduce(np.array(logs)))


def _cut(n: int, k: int, t: int) -> tuple[int, int, int]:
    """(n, k, β) with blocks of β exactly: what is over is left out of both."""
    block = n // t
    return block * t, k - (n - block * t), block


def regular(n: int, k: int, t: int) -> float:
    """The least of Esser's and Santini's three, with a parity check for each block."""
    n, k, block = _cut(n, k, t)
    free, found = k - t, 3 * log2(n) + free_tries(n, k, t)  # permutations
    found = min(found, log2(n) + 2 * log2(n - free) + free_tries(n, k, t))
    for p in range(2, min(t, 80), 2):
        most = inf
        for l in _about(binomial(t / 2, p // 2) + p / 2 * log2(free / t), n - free - 1):  # noqa: E741
            known = (free + l) / t
            if known >= block:
                break
            chance = (
                binomial(t // 2, p // 2) + binomial(t - t // 2, p // 2)
                + p * log2(known / block) + (t - p) * log2(1 - known / block)
            )  # fmt: skip
            listed = binomial(t / 2, p // 2) + p / 2 * log2(known)
            cost = max(2 * log2(n - free), 1 + listed, 2 * listed - l)
            if p % 4 == 0:
                cost = min(cost, _represented(n - free, t, p, known, l))
            most = min(most, log2(n) + cost - chance)
        if p > 8 and most > found + 8:
            break
        found = min(found, most)
    return found


def _represented(rows: int, t: int, p: int, known: float, l: int) -> float:  # noqa: E741
    """Of one try of depth two: ``more`` places in each half that cancel."""
    best = inf
    for more in range(0, 32, 2):
        agree = floor(2 * (binomial(p / 2, p / 4) + binomial(t / 2 - p / 2, more / 2)))
        weight = p / 4 + more / 2
        listed = binomial(t / 2, weight) + weight * log2(known)
        joined = 2 * listed - agree
        best = min(best, max(2 * log2(rows), 2 + listed, 1 + joined, 2 * joined - (l - agree)))
    return best


def free_tries(n: int, k: int, t: int) -> float:
    """Tries until k - t places, spread evenly over blocks, are all without noise."""
    n, k, _ = _cut(n, k, t)
    return -t * log2(1 - (k - t) / n)


def _series(
    block: int, t: int, guessed: Floats, each: Floats, less: float, degree: int
) -> list[Floats]:
    """Coefficients of z^0 .. z^degree of (1 + (β-1-each)·z)^guessed · (1 + (β-1)·z)^(t - guessed)
    / (1 + z)^less, by Newton's identities: no cancellation but the real one."""
    powers = []
    for i in range(1, degree + 1):
        whole = guessed * (block - 1 - each) ** i + (t - guessed) * float(block - 1) ** i - less
        powers.append(whole if i % 2 else -whole)
    made = [np.ones_like(guessed)]
    for j in range(1, degree + 1):
        made.append(sum((powers[i] * made[j - 1 - i] for i in range(j)), np.zeros(1)) / j)
    return made


def _guesses(block: int, t: int, k: int, points: int = 400) -> tuple[Floats, Floats, Floats]:
    """(blocks guessed in, places guessed in each, log2 of the tries), not more than k in all."""
    blocks = np.unique(np.linspace(0, t, min(t + 1, points)).round())
    places = np.unique(
        np.concatenate([np.arange(0, min(block, 200)), np.linspace(0, block - 1, points).round()])
    )
    guessed, each = (made.ravel() for made in np.meshgrid(blocks, places[places < block]))
    fits = guessed * each < k + 1
    guessed, each = guessed[fits], each[fits]
    return guessed, each, -guessed * np.log2(1 - each / block)


def algebra(n: int, k: int, t: int) -> tuple[float, float]:
    """(Briaud and Øygarden, the same with one elimination for many guesses)."""
    n, k, block = _cut(n, k, t)
    guessed, each, tries = _guesses(block, t, k)
    all_ = _series(block, t, guessed, each, 0, DEGREE)
    left = _series(block, t, guessed, each, n - k - 1, DEGREE)
    first = second = inf
    with np.errstate(divide="ignore", invalid="ignore"):
        for degree in range(2, DEGREE + 1):
            columns = np.maximum(sum(all_[1 : degree + 1]), 2.0)
            rest = np.maximum(sum(left[1 : degree + 1]), 1.0)
            solved = rest <= 1
            if not solved.any():
                continue
            wide = np.log2(columns)
            each_try = 2 * wide + np.log2(np.maximum(3 * (k + 1 - guessed * each), 1.0))
            first = min(first, float((each_try + tries)[solved].min()))
            rank = np.log2(np.maximum(columns - rest, 2.0))
            outer = np.minimum(log2(5.64) + OMEGA * wide, wide + 2 * rank - np.log2(rank))
            inner = log2(5.64) + OMEGA * np.minimum(np.log2(rest), rank)
            whole = np.logaddexp2(outer + tries, inner + float(tries[solved].min()))
            second = min(second, first, float(whole.min()))
    return first, second


def hybrid(n: int, k: int, t: int) -> float:
    """Places guessed, alike in all blocks but ``whole`` ones whose place is tried last; of what is
    left the products inside blocks are equations enough for all products of two unknowns."""
    n, k, block = _cut(n, k, t)
    best = inf
    for whole in np.unique(np.concatenate([np.arange(min(t, 40)), np.linspace(0, t - 1, 40)])):
        blocks = t - floor(whole)
        places = np.arange(0, (block - 2) * blocks, max(1, (block - 2) * blocks // 20000))
        every, more = places // blocks, places % blocks
        tries = -(
            more * np.log2(1 - (every + 1) / block) + (blocks - more) * np.log2(1 - every / block)
        )
        unknown = k - t - places.astype(float)
        rows = np.maximum(n - k - (n - k) // (block - 1) * (block - every - 2), 1.0)
        reduce = np.log2(np.maximum(rows * (n - k) * (rows + np.maximum(unknown, 0)), 1.0))
        equations = (
            (blocks - more) * (block - every - 2.0) * (block - every - 1)
            + more * (block - every - 2.0) * (block - every - 3)
        ) / 2
        last = (block - 1) * floor(whole)
        over = unknown - last
        fits = (unknown <= 0) | ((over >= 0) & (over <= np.sqrt(2 * equations) - 2))
        one = np.log2(np.maximum(over, 1)) * 4 + 2 * np.log2(np.maximum(unknown, 1)) - 3
        one -= np.log2(np.maximum(np.log2(np.maximum(over**2 / 2, 2)), 1))
        narrow = np.maximum(2.5 * over, 2)
        per = 1.25 * (2 * np.maximum(over, 0) ** 2 * last + np.maximum(over, 0) * last**2)
        per += np.where(over > 0, narrow**3 / np.log2(narrow), 0)
        per = np.log2(np.maximum(per, 1)) + floor(whole) * log2(block)
        cost = np.where(
            unknown <= 0, reduce,
            np.logaddexp2(np.logaddexp2(reduce, np.maximum(one, 0)), per),
        ) + tries  # fmt: skip
        if fits.any():
            best = min(best, float(cost[fits].min()))
    return best


def sparse(n: int, k: int, t: int, ones: int = LOCAL) -> float:
    """Secret bits are left out: rows whose ``ones`` ones all lie among s of the k bits are an LPN
    problem of s bits. With s of n·(s/k)^ones such rows and p of them noisy, s rows are tried at a
    time; solving them takes 2·ones·s² / 64 words by the method of Wiedemann, and p places are found
    by two lists of p/2.

    s is the least for which s such rows are expected among any choice of s bits, so that no way to
    choose them is better, and choosing costs nothing.
    """
    s, best = least_support(n, k, ones), inf
    solve = 2 * log2(s) + log2(2 * ones / 64)
    for p in range(0, min(t, 200), 2):
        tries = -(binomial(s, p) + p * log2(t / n) + (s - p) * log2(1 - t / n))
        cost = tries + _sum(solve, binomial(s, p) / 2)
        if cost > best + 8:
            break
        best = min(best, cost)
    return best


def least_support(n: int, k: int, ones: int = LOCAL) -> int:
    """The first s for which log2 of C(k, s), times the chance that s of n rows lie within given s
    bits, is not negative: the chance by Chernoff's bound, which is above it."""

    def exists(s: int) -> bool:
        inside, share = (s / k) ** ones, s / n
        if inside >= share:
            return True
        far = share * log2(share / inside) + (1 - share) * log2((1 - share) / (1 - inside))
        return binomial(k, s) >= n * far

    low, high = 2, k
    while low < high:
        s = (low + high) // 2
        low, high = (low, s) if exists(s) else (s + 1, high)
    return low


def least_check(n: int, k: int, ones: int | None = LOCAL) -> int:
    """The least weight of a parity check of the code, where 2^-40 of them are expected; of rows
    with ``ones`` ones in random places, or of random rows. No linear test has less, whatever is
    spent to find it.

    Of w rows, of w·ones random places, all cancel with probability 2^-k Σ_j C(k, j)·(1 - 2j/k)^
    (w·ones), and random rows with 2^-k.
    """
    j = np.arange(0, k // 2 + 1, dtype=np.float64)
    chosen = np.array([LN2 * binomial(k, i) for i in j])
    share = np.log(np.maximum(1 - 2 * j / k, 1e-300))

    def expected(w: int) -> float:
        if ones is None:
            return binomial(n, w) - k
        terms = chosen + w * ones * share
        return binomial(n, w) + float(np.logaddexp.reduce(terms) / LN2) + 1 - k

    for w in range(2, 65):
        if expected(w) >= -40:
            return w
    low, high = 65, k
    while low < high:
        w = (low + high) // 2
        low, high = (low, w) if expected(w) >= -40 else (w + 1, high)
    return low


def estimate(n: int, k: int, t: int) -> dict[str, float]:
    """log2 of the operations of every attack, and of ``free`` tries."""
    first, second = algebra(n, k, t)
    less = n - t, k - t, t
    return {
        "gauss": gauss(*less), "sd": statistical(*less), "sd2": statistical2(*less),
        "stern": stern(*less), "regular": regular(n, k, t), "algebra": first,
        "algebra2": second, "hybrid": hybrid(n, k, t), "sparse": sparse(n, k, t),
        "free": min(free_tries(n, k, t), -least_support(n, k) * log2(1 - t / n)),
    }  # fmt: skip


def main() -> None:
    """Prints, for what the command line asks."""
    wanted = [int(each) for each in sys.argv[1:]]
    if len(wanted) not in (0, 3):
        raise SystemExit(__doc__)
    sets = SETS if not wanted else {"asked": (wanted[0], wanted[1], wanted[2])}
    for name, (n, k, t) in sets.items():
        print(f"{name}: n = {n}, k = {k}, t = {t}, blocks of {n // t}")
        for attack, bits in estimate(n, k, t).items():
            print(f"  {attack:9}{bits:7.1f}")
        local, random = least_check(n, k), least_check(n, k, None)
        print(f"  least parity check: {local} rows of the local code, {random} of a random one")


if __name__ == "__main__":
    main()
