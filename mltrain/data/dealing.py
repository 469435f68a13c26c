"""How a window is dealt: which row of its blocks each slice takes (step 4 of :mod:`mltrain.data.order`).

Integers of fixed width, on arrays: a keyed mix of 64 bits, a keyed permutation of the slices, and a window's blocks.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

U32 = NDArray[np.uint32]
U64 = NDArray[np.uint64]

ROUNDS = 4


def radices(sizes: Any) -> tuple[U32, U32]:
    """(a, b) with ``a * b >= size``, both about the square root, so that few indices have to walk."""
    root = np.sqrt(sizes.astype(np.float64))
    a = np.maximum(np.ceil(root), 1).astype(np.int64)
    return a.astype(np.uint32), (-(-sizes // a)).astype(np.uint32)


def permute(index: U32, size: Any, a: Any, b: Any, keys: Any) -> U32:
    """A keyed permutation of [0, size): a Feistel network over mixed radices.

    An index is ``left * b + right``. A round adds a hash of one half to the other, modulo that one's radix
    (generalised Feistel, Black & Rogaway, "Ciphers with arbitrary finite domains", 2002). Indices that land at or
    above ``size``, fewer than one in sqrt(size), are put through again (cycle-walking), which keeps it a bijection.

    Args:
        index: uint32, each below its size.
        size: rows of the window: one uint32, or one an index. At most 2**32 - 2**17.
        a: radix of the left half, likewise; at most 2**16.
        b: radix of the right half, likewise.
        keys: ``[ROUNDS]`` or ``[ROUNDS, n]`` uint32.
    """
    out: U32 = _feistel(index, a, b, keys)
    outside = np.flatnonzero(out >= size)
    while len(outside):
        each = [value if np.ndim(value) == 0 else value[outside] for value in (size, a, b)]
        walked = _feistel(out[outside], each[1], each[2], keys if np.ndim(keys) == 1 else keys[:, outside])
        out[outside] = walked
        outside = outside[walked >= each[0]]
        # Only those still outside go on; sizes are taken again by their index.
    return out


def mix64(values: U64, key: int) -> U64:
    """The splitmix64 finaliser of ``key + (value + 1) * golden ratio``."""
    with np.errstate(over="ignore"):
        z = (values + np.uint64(1)) * np.uint64(0x9E3779B97F4A7C15) + np.uint64(key)
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))


def block_table(blocks: int, slices: int, longer: int, key: int, rotation: int) -> tuple[U32, U32, U32]:
    """:func:`describe_blocks` of a whole window."""
    block = np.arange(blocks, dtype=np.uint32)
    return describe_blocks(block, np.uint32(slices), np.uint32(longer), np.uint32(key), np.uint32(rotation))


def describe_blocks(block: U32, slices: Any, longer: Any, key: Any, rotation: Any) -> tuple[U32, U32, U32]:
    """Of blocks: their rows, h, and where they begin.

    Args:
        block: j.
        slices: S.
        longer: of the window.
        key: for h.
        rotation: of the window.
    """
    begin: U32 = block * longer
    rows = begin & np.uint32(0xFFFF)
    rows += longer
    rows >>= np.uint32(16)
    rows += slices
    begin >>= np.uint32(16)
    begin += block * slices
    begin += rotation
    hashed: U32 = block + key
    hashed *= np.uint32(0x9E3779B1)
    hashed ^= hashed >> np.uint32(15)
    hashed *= np.uint32(0x85EBCA77)
    hashed >>= np.uint32(16)
    hashed *= rows
    hashed >>= np.uint32(16)
    return rows, hashed, begin


def dealt(rows: U32, hashed: U32, begin: U32, shift: Any, size: Any) -> U32:
    """Place in its window of the row that a slice takes of each block; ``shift`` is P(t), or S for the last slice."""
    row: U32 = hashed + shift
    # Both are below the block's rows, so one subtraction suffices; below zero it wraps to a large number.
    scratch = row - rows
    np.minimum(row, scratch, out=row)
    row += begin
    np.minimum(row, np.subtract(row, size, out=scratch), out=row)
    return row


def longer_block(number: U32, longer: Any) -> U32:
    """The block that is the ``number``-th of those with a row more."""
    wanted = (number.astype(np.uint64) + np.uint64(1)) << np.uint64(16)
    block: U32 = ((wanted + (longer - np.uint64(1))) // longer - np.uint64(1)).astype(np.uint32)
    return block


def _feistel(index: U32, a: Any, b: Any, keys: Any) -> U32:
    left: U32 = index // b
    right: U32 = index - left * b
    scratch = np.empty_like(index)
    for number in range(0, ROUNDS, 2):
        _round(left, right, keys[number], a, scratch)
        _round(right, left, keys[number + 1], b, scratch)
    # The half that was mixed last leads. The other way round, indices that are b apart stay neighbours once in b times.
    np.multiply(right, a, out=right)
    np.add(right, left, out=right)
    return right


def _round(target: U32, source: U32, key: Any, radix: Any, scratch: U32) -> None:
    """target = (target + hash(source) scaled to [0, radix)) mod radix, in place."""
    np.add(source, key, out=scratch)
    scratch *= np.uint32(0x9E3779B1)
    scratch ^= scratch >> np.uint32(15)
    scratch *= np.uint32(0x85EBCA77)
    scratch >>= np.uint32(16)
    scratch *= radix
    scratch >>= np.uint32(16)
    target += scratch
    # Both are below the radix, so one subtraction suffices; below zero it wraps to a large number.
    np.subtract(target, radix, out=scratch)
    np.minimum(target, scratch, out=target)
