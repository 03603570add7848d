"""What attention kernels share: where a head begins, tiles of its rows in and out, and dropout bits where they stand.

Device functions; a kernel of another file calls them by name. INDEX is the integer type that the offsets of one
tile's rows fit in. Where a tile begins is always calculated in 64 bits: B·H·T·D passes 2^31 at 4 GiB.

Since Hopper a chip can be asked for a whole tile (TMA) by a descriptor, which takes the addresses off the threads:
tile_descriptor makes one on the host, place_of_head and next_tile use it.
"""

import triton
import triton.language as tl
from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor


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


def tile_descriptor(x: Tensor, rows: int) -> TensorDescriptor | None:
    """Of x (B, H, T, D) for tiles of `rows` rows of a head, or None where its layout or dtype has none.

    All of x is one matrix to it, whose rows are stride_t apart: a head begins at a row, or at a column of a row, or
    both (place_of_head). Nothing past T is masked: T must be a multiple of `rows`.
    """
    B, H, T, D = x.shape
    stride_b, stride_h, stride_t, stride_d = x.stride()
    if x.numel() == 0 or x.element_size() != 2 or D not in (16, 32, 64, 128, 256) or stride_d != 1 or stride_t < D:
        return None
    side_by_side = 1 if stride_h % stride_t == 0 else H  # heads in a row
    columns = (side_by_side - 1) * stride_h + D
    rows_in_all = (B - 1) * (stride_b // stride_t) + (H - 1) * (stride_h // stride_t) + T
    aligned = stride_t % 8 == stride_b % stride_t == x.data_ptr() % 16 == 0
    if not aligned or columns > stride_t or max(stride_b, stride_h, rows_in_all) >= 2**31:  # counted in 32 bits
        return None
    return TensorDescriptor(x, [rows_in_all, columns], [stride_t, 1], [rows, D])


@triton.jit
def place_of_head(tiles, b, h, stride_b, stride_h, stride_t):
    """(row, column) at which a head begins in the matrix of its descriptor. Where there is none stride_t may be 0."""
    if tiles is None:
        return 0, 0
    else:
        return b * (stride_b // stride_t) + h * (stride_h // stride_t), h * (stride_h % stride_t)


@triton.jit
def next_tile(
    tiles, row, column, ptr, stride, start, end, ROWS: tl.constexpr, D: tl.constexpr, BLOCK_D: tl.constexpr,
    INDEX: tl.constexpr, RAGGED: tl.constexpr,
):  # fmt: skip
    """load_tile, by the descriptor `tiles` where there is one."""
    if tiles is None:
        return load_tile(ptr, stride, start, end, ROWS, D, BLOCK_D, INDEX, RAGGED)
    else:
        return tiles.load([row + start, column])


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
