"""The dropout mask of attention, as a pure function of where an element stands.

Whether the weight at (batch·head, row, column) is kept depends on those numbers and the seed alone: no generator
state, no order of evaluation. Every backend can therefore draw the very same mask, whole or tile by tile, forward
and again in the backward, and two backends can be compared bit by bit.

The generator is a chain of 32-bit integer hashes (xor-shift-multiply finalisers with the constants that Wellons'
hash prospector found, "lowbias32", bias 0.17): one hash a row and one an element, which is what a GPU can afford
inside attention. It is meant for dropout, not for cryptography.
"""

import torch

MASK32 = 0xFFFFFFFF
BITS = 24  # a keep decision compares the top 24 bits of the hash with the threshold


def hash32(x: torch.Tensor) -> torch.Tensor:
    """A bijective hash of 32-bit values held in int64 (any shape). Products wrap in int64 but keep their low bits."""
    x = (x ^ (x >> 16)) * 0x7FEB352D & MASK32
    x = (x ^ (x >> 15)) * 0x846CA68B & MASK32
    return x ^ (x >> 16)


def threshold(dropout_p: float) -> int:
    """An element is dropped when its 24 bits are below this: dropout_p to within 2^-25."""
    return round(dropout_p * 2**BITS)


def keep_mask(
    dropout_p: float, seed: int | torch.Tensor, n_batch_heads: int, rows: torch.Tensor, columns: torch.Tensor
) -> torch.Tensor:
    """Which attention weights stay, as bool (n_batch_heads, len(rows), len(columns)).

    seed: any 64-bit integer, or a 0-d int64 tensor (so that a captured graph can be replayed with a new one).
    rows, columns: int64 positions of queries and keys in the whole sequence, on the device of the mask.
    """
    seed = torch.as_tensor(seed, dtype=torch.int64, device=rows.device)
    low, high = seed & MASK32, (seed >> 32) & MASK32
    head = torch.arange(n_batch_heads, device=rows.device)
    key = hash32(low ^ hash32(high ^ hash32(head)))[:, None]  # (BH, 1)
    key = hash32(key ^ (rows & MASK32))[..., None]  # (BH, Tq, 1)
    bits = hash32(key ^ (columns & MASK32)) >> (32 - BITS)  # (BH, Tq, Tk)
    return bits >= threshold(dropout_p)
