"""Random orders of any length, one place at a time: neither time nor memory grows with the number of examples."""

from __future__ import annotations

import hashlib

ROUNDS = 6


def shuffled(place: int, count: int, run_seed: int, *counters: int | str) -> int:
    """What stands at a place of a random permutation of `0 … count − 1`.

    A Feistel network over the next power of four, walked until it lands below `count` (Black and Rogaway, "Ciphers with
    arbitrary finite domains", 2002): a bijection, at most four times the evaluations on average.

    Args:
        place: from 0.
        count: length of the permutation.
        run_seed: the run's seed.
        *counters: what the order is for: a purpose, then for example the epoch.

    Returns:
        A number from 0, another one for each place.

    Raises:
        IndexError: if there is no such place.
    """
    if not 0 <= place < count:
        raise IndexError(f"an order of {count} has no place {place}")
    bits = ((count - 1).bit_length() + 1) // 2
    key = "/".join(f"{type(part).__name__}:{part}" for part in (int(run_seed), *counters)).encode()
    while True:
        place = _permuted(place, bits, key)
        if place < count:
            return place


def _permuted(value: int, bits: int, key: bytes) -> int:
    mask = (1 << bits) - 1
    left, right = value >> bits, value & mask
    for number in range(ROUNDS):
        message = number.to_bytes(1, "little") + right.to_bytes(8, "little") + key
        mixed = int.from_bytes(hashlib.blake2b(message, digest_size=8).digest(), "little")
        left, right = right, left ^ (mixed & mask)
    return left << bits | right
