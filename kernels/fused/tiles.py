"""What attention kernels share: where a head begins, tiles of its rows in and out, and dropout bits where they stand.

Device functions; a kernel of another file calls them by name. INDEX is the integer type that the offsets of one
tile's rows fit in. Where a tile begins is always calculated in 64 bits: B·H·T·D passes 2^31 at 4 GiB.
"""

import triton
import triton.language as tl


@triton.jit
def head_offset(b, h, stride_b, stride_h, ALIGNED: tl.constexpr):
    batch, head = tl.cast(b, tl.int64) * stride_b, tl.cast(h, tl.int64) * stride_h
    if ALIGNED:  # Triton itself looks for multiples of 16 only, which heads of width 40 are not
        batch, head = tl.multiple_of(batch, 8), tl.multiple_of(head, 8)
    return batch + head


@triton.jit
def load_tile(
    ptr, stride, start, end, ROWS: tl.constexpr, D: tl.constexpr, BLOCK_D: tl.constexpr,
    INDEX: tl.constexpr, RAGGED: tl.constexpr,
):  # fmt: skip
    """Rows start to start + ROWS of a (T, D) matrix as (ROWS, BLOCK_D); zero past row `end` if RAGGED, and past D."""
    rows = tl.arange(0, ROWS)
    columns = tl.arange(0, BLOCK_D)[None, :]
    ptrs = ptr + tl.cast(start, tl.int64) * stride + (rows.to(INDEX)[:, None] * stride + columns)
    inside = (start + rows < end)[:, None]
    if RAGGED and D != BLOCK_D:
        return tl.load(ptrs, mask=inside & (columns < D), other=0.0)
    elif RAGGED:
        return tl.load(ptrs, mask=inside, other=0.0)
    elif D != BLOCK_D:
        return tl.load(ptrs, mask=columns < D, other=0.0)
    else:
        return tl.load(ptrs)


@triton.jit
def store_tile(
    ptr, stride, start, end, tile, ROWS: tl.constexpr, D: tl.constexpr, BLOCK_D: tl.constexpr,
    INDEX: tl.constexpr,
):  # fmt: skip
    rows = tl.arange(0, ROWS)
    columns = tl.arange(0, BLOCK_D)[None, :]
    ptrs = ptr + tl.cast(start, tl.int64) * stride + (rows.to(INDEX)[:, None] * stride + columns)
    inside = (start + rows < end)[:, None]
    if D != BLOCK_D:
        inside = inside & (columns < D)
    tl.store(ptrs, tile.to(ptr.dtype.element_ty), mask=inside)


@triton.jit
def _hash32(x):
    x = (x ^ (x >> 16)) * 0x7FEB352D
    x = (x ^ (x >> 15)) * 0x846CA68B
    return x ^ (x >> 16)


@triton.jit
def dropout_row_keys(seed_ptr, head, rows):
    """kernels.dropout.keep_mask up to the column: what is left is one hash an element."""
    seed = tl.load(seed_ptr)
    low, high = seed.to(tl.uint32), (seed >> 32).to(tl.uint32)
    return _hash32(_hash32(low ^ _hash32(high ^ _hash32(head.to(tl.uint32)))) ^ rows.to(tl.uint32))


@triton.jit
def dropout_keeps(row_keys, columns, threshold, BITS: tl.constexpr):
    return (_hash32(row_keys ^ columns.to(tl.uint32)) >> (32 - BITS)) >= threshold.to(tl.uint32)
