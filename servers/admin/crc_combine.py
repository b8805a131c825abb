"""The CRC32C of a whole from those of its parts, without the data: as zlib's crc32_combine does it.

A CRC is a polynomial over GF(2), its bits reflected; appending n bytes multiplies it by x^(8n).
"""

from __future__ import annotations

from collections.abc import Iterable

_POLYNOMIAL = 0x82F63B78
_ONE = 1 << 31
_X_TO_THE_8 = 1 << 23


def combine(sums: Iterable[int], lengths: Iterable[int]) -> int:
    """The CRC32C of parts laid end to end, given each one's CRC32C and length in bytes."""
    total, shifts = 0, dict[int, int]()
    for part, length in zip(sums, lengths, strict=True):
        shift = shifts.get(length)
        if shift is None:
            shift = shifts[length] = _power(_X_TO_THE_8, length)
        total = _multiply(shift, total) ^ part
    return total


def _multiply(a: int, b: int) -> int:
    product, bit = 0, _ONE
    while bit:
        if a & bit:
            product ^= b
        bit >>= 1
        b = b >> 1 ^ _POLYNOMIAL if b & 1 else b >> 1
    return product


def _power(base: int, exponent: int) -> int:
    result = _ONE
    while exponent:
        if exponent & 1:
            result = _multiply(result, base)
        base = _multiply(base, base)
        exponent >>= 1
    return result
