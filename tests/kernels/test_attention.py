"""What kernels.fused.attention promises, held against kernels.reference in float64."""

import math
import mmap

import pytest
import torch
import torch.nn.functional as F
from attention_checks import (
    DTYPES,
    SEED,
    draw,
    heads_of,
    hold_the_rule,
    packed,
    small_after_the_first_tile,
    with_gradients,
)
from error_rule import assert_close_by_rule
from hypothesis import given, settings
from hypothesis import strategies as st
from op_checks import small_after_the_first

pytest.importorskip("triton")

from kernels import dropout, reference
from kernels.fused import attention

pytestmark = pytest.mark.usefixtures("tiles")


# --- values and gradients --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(
    ("B", "H", "Hkv", "Tq", "Tk", "D", "blocks"),
    [
        (1, 1, 1, 1, 1, 16, (32, 16)),
        (1, 2, 2, 64, 64, 64, (16, 32)),
        (1, 1, 1, 77, 77, 64, (32, 16)),
        (2, 3, 1, 33, 33, 32, (32, 16)),
        (1, 4, 2, 35, 35, 16, (16, 32)),
        (1, 2, 2, 1, 50, 64, (32, 16)),
        (1, 2, 1, 23, 53, 40, (16, 16)),
        (1, 1, 1, 47, 48, 80, (16, 32)),
        (1, 1, 1, 31, 31, 96, (16, 16)),
        (1, 1, 1, 20, 20, 128, (16, 16)),
        (1, 1, 1, 18, 18, 256, (16, 16)),
        (1, 1, 1, 9, 9, 8, (16, 16)),
        (2, 4, 2, 32, 96, 40, (32, 16)),  # tiles end where both sequences do: nothing but the diagonal is masked
        (1, 3, 1, 48, 64, 16, (16, 32)),
        (1, 2, 1, 48, 64, 32, (32, 16)),  # those of the keys alone
    ],
    ids=str,
)
def test_output_and_gradients_are_as_close_as_the_dtype_allows(B, H, Hkv, Tq, Tk, D, blocks, dtype, device, tiles):
    tiles(*blocks)
    *inputs, upstream = heads_of(B, H, Hkv, Tq, Tk, D, device)
    hold_the_rule(inputs, dtype, upstream)


@settings(max_examples=12, derandomize=True)
@given(
    Tk=st.integers(1, 70), missing=st.integers(0, 40), group=st.integers(1, 3), D=st.integers(1, 72),
    dtype=st.sampled_from(DTYPES), dropout_p=st.sampled_from((0.0, 0.3)),
    blocks=st.sampled_from(((16, 16), (32, 16), (16, 32), (64, 32))),
)  # fmt: skip
def test_any_shape_is_as_close_as_the_dtype_allows(Tk, missing, group, D, dtype, dropout_p, blocks, device, tiles):
    tiles(*blocks)
    *inputs, upstream = heads_of(1, group, 1, max(1, Tk - missing), Tk, D, device)
    hold_the_rule(inputs, dtype, upstream, dropout_p=dropout_p, dropout_seed=SEED)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("scale", [1.0, 0.0, -0.4], ids=str)
def test_any_scale_is_allowed(scale, dtype, device):
    *inputs, upstream = heads_of(1, 1, 1, 40, 40, 16, device)
    hold_the_rule(inputs, dtype, upstream, scale=scale)


@pytest.mark.parametrize("scale", [1.0, -1.0], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_keys_whose_scores_overflow_downwards_count_nothing_wherever_they_stand(dtype, scale, device, tiles):
    """Whole tiles of -inf: the first, which leaves no largest score to take out, and one further on."""
    q, k, v, upstream = heads_of(1, 1, 1, 64, 80, 16, device)
    q[..., 0] = 1e20 * scale
    k[..., 0] = 0
    k[:, :, :16, 0] = k[:, :, 48:64, 0] = -1e20
    hold_the_rule([q, k, v], dtype, upstream, scale=scale)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_values_with_a_large_mean_keep_the_error_rule(dtype, device, tiles):
    """Where delta, made of the rounded output, nearly cancels do·v. At a mean of 100 bfloat16 may pass it by a few
    hundredths: docs/kernels/attention.md."""
    q, k, v, upstream = heads_of(1, 2, 2, 64, 64, 64, device)
    hold_the_rule([q, k, v + 10], dtype, upstream)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("small", ["values", "weights"])
def test_what_each_of_many_tiles_adds_is_not_lost_to_rounding(small, dtype, device, tiles):
    """Each of 32 tiles adds a quarter of the last place that 16 bits have for what the first one brought: to the sum of
    weights times values, or to that of the weights. Sums that are rounded to 16 bits after a tile lose them all."""
    tiles(16, 16)
    q, k, v = (x.to(device) for x in small_after_the_first_tile(small, dtype, 16, 33 * 16))
    *_, upstream = heads_of(1, 1, 1, 16, 16, 16, device)
    hold_the_rule([q, k, v], dtype, upstream, scale=1.0)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_what_each_of_many_tiles_adds_to_dq_is_not_lost_to_rounding(dtype, device, tiles):
    """The same: equal weights, whose gradients have the signs of their keys, so that none takes from the sum."""
    tiles(16, 16)
    q, _, sizes = (x.to(device) for x in small_after_the_first_tile("values", dtype, 16, 33 * 16))
    signs, upstream = torch.ones_like(sizes), torch.zeros_like(q)
    signs[:, :, 1::2] = -1
    upstream[..., 0] = 1
    hold_the_rule([0 * q, signs * sizes, signs], dtype, upstream)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_what_each_of_many_heads_adds_to_a_gradient_is_not_lost_to_rounding(dtype, device, tiles):
    """The same of dk and dv, of keys and values that 33 heads share: the gradients of all but the first are small."""
    tiles(16, 16)
    q, k, v, upstream = heads_of(1, 1, 1, 16, 16, 16, device)
    factors = small_after_the_first(33, dtype, device)[:, :, None]
    hold_the_rule([q.expand(1, 33, 16, 16), k, v], dtype, upstream * factors)


def test_a_nan_among_the_values_marks_every_row_that_sees_it_and_none_before_its_tile(device, tiles):
    q, k, v, _ = (x.float() for x in heads_of(1, 1, 1, 80, 80, 16, device))
    v[..., 50, 3] = torch.nan  # in the tile of keys 48 to 63, which rows 32 and on read
    out = attention.causal_attention(q, k, v)
    assert out[..., 50:, 3].isnan().all() and out[..., :32, :].isfinite().all()
    assert out[..., [c for c in range(16) if c != 3]].isfinite().all()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_logits_far_from_zero_cost_no_more_than_they_cost_pytorch(dtype, device):
    """Every logit of a row is 500 more, or less, which changes no weight: the maximum must be taken out in time."""
    q, k, v, upstream = heads_of(1, 1, 1, 40, 40, 64, device)
    q[..., 0] = torch.where(torch.arange(40, device=device) % 2 == 0, 50.0, -50.0)
    k[..., 0] = 80.0
    hold_the_rule([q, k, v], dtype, upstream)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_weights_that_are_all_0_or_1_are_exact_and_their_gradients_finite(dtype, device):
    """dq and dk are differences of equal numbers then; plain softmax has them exactly 0, and one pass cannot."""
    q, k, v, upstream = (x.to(dtype) for x in heads_of(1, 1, 1, 40, 40, 64, device))
    q, k = q * 60, k * 60
    fused, *gradients = with_gradients(attention.causal_attention, (q, k, v), dtype, upstream)
    ref64 = reference.causal_attention(q.double(), k.double(), v.double())
    assert_close_by_rule([fused], lambda: [reference.causal_attention(q, k, v)], [ref64], ["out"])
    assert all(gradient.isfinite().all() for gradient in gradients)


def test_lse_is_the_base_2_logarithm_of_the_row_sums(device):
    q, k, v = (x.float() for x in heads_of(1, 2, 1, 21, 37, 32, device)[:3])
    _, lse = torch.ops.minilm.causal_attention(q, k, v, 0.3, 0.0, None)
    scores = q.double() @ k.double().repeat_interleave(2, 1).mT * 0.3
    seen = torch.ones(21, 37, dtype=torch.bool, device=device).tril(16)
    expected = scores.masked_fill(~seen, -math.inf).logsumexp(-1) / math.log(2)
    torch.testing.assert_close(lse.double(), expected, rtol=1e-6, atol=1e-6)


# --- what a row may see, and what a program may touch ---------------------------------------------------------------


@pytest.mark.parametrize(("Tq", "Tk"), [(50, 50), (19, 50)])
def test_a_row_depends_on_nothing_after_it(Tq, Tk, device):
    q, k, v, _ = heads_of(1, 1, 1, Tq, Tk, 16, device)
    whole = attention.causal_attention(q.float(), k.float(), v.float())
    for row in (0, 1, 15, 16, 17, Tq - 2):
        k2, v2 = k.clone(), v.clone()
        k2[:, :, Tk - Tq + row + 1 :], v2[:, :, Tk - Tq + row + 1 :] = 1e4, -1e4
        changed = attention.causal_attention(q.float(), k2.float(), v2.float())
        assert torch.equal(changed[:, :, : row + 1], whole[:, :, : row + 1]), f"row {row} saw a later key"
        assert not torch.equal(changed[:, :, row + 1], whole[:, :, row + 1]), f"row {row + 1} did not see itself"


def test_queries_are_the_last_rows(device):
    q, k, v, _ = (x.float() for x in heads_of(1, 2, 2, 45, 45, 16, device))
    whole = attention.causal_attention(q, k, v)
    for Tq in (1, 7, 32):
        last = attention.causal_attention(q[:, :, -Tq:], k, v)
        torch.testing.assert_close(last, whole[:, :, -Tq:], rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("D", [16, 24])
def test_memory_around_the_tensors_is_neither_used_nor_written(D, device):
    """Each tensor is a window of a larger one that is NaN elsewhere, before and after every row and every head."""

    def window(T):
        whole = torch.full((1, T + 40, 3, 32), math.nan, device=device)
        return whole, whole[:, 20 : 20 + T, 1:2, 4 : 4 + D].transpose(1, 2)

    Tq, Tk = 21, 37
    *values, upstream = heads_of(1, 1, 1, Tq, Tk, D, device)
    names, lengths = ("q", "k", "v", "do", "out", "dq", "dk", "dv"), (Tq, Tk, Tk, Tq, Tq, Tq, Tk, Tk)
    wholes, views = zip(*(window(T) for T in lengths), strict=True)
    q, k, v, do, out, dq, dk, dv = views
    for view, value in zip((q, k, v, do), (*values, upstream), strict=True):
        view.copy_(value)
    around_lse = torch.full((Tq + 64,), math.nan, device=device)
    lse = around_lse[:Tq].view(1, 1, Tq)
    attention._launch_forward(q, k, v, out, lse, 0.3, 0.0, None)
    attention._launch_backward(do, q, k, v, out, lse, dq, dk, dv, 0.3, 0.0, None)
    expected = with_gradients(reference.causal_attention, values, torch.float64, upstream, scale=0.3)
    for got, wanted in zip((out, dq, dk, dv), expected, strict=True):
        torch.testing.assert_close(got.double(), wanted, rtol=1e-5, atol=1e-5)
    assert around_lse[Tq:].isnan().all()
    for name, whole, view in zip(names, wholes, views, strict=True):
        view.fill_(math.nan)
        assert whole.isnan().all(), f"something was written around {name}"


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_every_element_of_every_result_is_written(dtype, device, nan_filled_empties):
    assert torch.empty(3).isnan().all(), "this test needs torch.empty to give NaN"
    *inputs, upstream = heads_of(2, 2, 1, 17, 39, 24, device)
    for result in with_gradients(attention.causal_attention, inputs, dtype, upstream):
        assert result.isfinite().all()
    qkv, upstream = draw([(2, 19, 4 * 24), (2, 19, 2 * 24)], device)
    for result in with_gradients(packed(2, 1), [qkv], dtype, upstream):
        assert result.isfinite().all()


@pytest.mark.parametrize(
    ("shape", "strides"),
    [
        ((2, 2, 3, 16), (2**29, 2**31, 2**30 + 16, 1)),  # rows of one tile beyond 32 bits, heads too
        ((1, 1, 325, 16), (16, 16, 2**23 - 16, 1)),  # each tile within 32 bits, and the last tile beyond them
    ],
    ids=["wide", "long"],
)
def test_offsets_beyond_32_bits_reach_the_right_element(shape, strides, device, tiles):
    """Views of gigabytes of address space, of which only the pages that are touched ever become memory."""
    if device != "cpu":
        pytest.skip("a GPU has no memory that is not there; the large shapes below reach beyond 2^31 elements")
    tiles(64, 64)
    size = sum((n - 1) * s for n, s in zip(shape, strides, strict=True)) + 1

    def spread():
        flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | getattr(mmap, "MAP_NORESERVE", 0)
        space = mmap.mmap(-1, 2 * (2**31 + size), flags=flags)  # an offset that wraps around falls before the view
        space.madvise(mmap.MADV_NOHUGEPAGE)
        return torch.frombuffer(space, dtype=torch.float16).as_strided(shape, strides, storage_offset=2**31)

    near = [x.half() for x in draw([shape] * 4, device)]
    q, k, v, do, out, dq, dk, dv = (spread() for _ in range(8))
    for x, value in zip((q, k, v, do), near, strict=True):
        x.copy_(value)
    lse = torch.empty(shape[:3])
    attention._launch_forward(q, k, v, out, lse, 0.25, 0.0, None)
    attention._launch_backward(do, q, k, v, out, lse, dq, dk, dv, 0.25, 0.0, None)
    expected = with_gradients(attention.causal_attention, near[:3], torch.float16, near[3])
    for got, wanted in zip((out, dq, dk, dv), expected, strict=True):
        assert torch.equal(got, wanted)


def test_batch_times_heads_may_pass_65535(device, monkeypatch):
    """y and z of a grid end there: every program is counted on x."""
    grids = []

    class Spy:
        def __getitem__(self, grid):
            grids.append(grid)
            return lambda *args, **kwargs: None

    for name in ("_forward_kernel", "_query_gradient_kernel", "_key_gradient_kernel"):
        monkeypatch.setattr(attention, name, Spy())
    x = torch.empty(1, 1, 40, 16, device=device).expand(700, 100, 40, 16)
    lse = torch.empty(700, 100, 40, device=device)
    attention._launch_forward(x, x, x, x, lse, 1.0, 0.0, None)
    attention._launch_backward(x, x, x, x, x, lse, x, x, x, 1.0, 0.0, None)
    assert grids == [(70000 * 2,), (70000 * 2,), (70000 * 3,)]


# --- dropout ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", [0, 1, 2**32, SEED])
def test_the_dropout_mask_is_the_reference_mask_bit_by_bit(seed, device):
    """With equal logits, and the identity as values, the output shows which weights were kept."""
    T, p = 45, 0.4
    zero = torch.zeros(2, 3, T, 64, device=device)
    v = torch.eye(T, 64, device=device).expand(2, 3, T, 64)
    for offset in (0, 13):
        q = zero[:, :, offset:]
        out = attention.causal_attention(q, zero, v, dropout_p=p, dropout_seed=seed)[..., :T]
        rows, columns = torch.arange(offset, T, device=device), torch.arange(T, device=device)
        keep = dropout.keep_mask(p, seed, 6, rows, columns).view(2, 3, T - offset, T) & (columns <= rows[:, None])
        assert torch.equal(out != 0, keep)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_dropout_obeys_the_error_rule_forward_and_backward(dtype, device):
    *inputs, upstream = heads_of(2, 2, 1, 33, 40, 24, device)
    hold_the_rule(inputs, dtype, upstream, dropout_p=0.3, dropout_seed=SEED)


def test_the_seed_is_read_when_the_kernel_runs(device):
    """A CUDA graph replays the launch with the same pointer: the number behind it must count, not the one captured."""
    q, k, v = (x.float() for x in heads_of(1, 1, 1, 20, 20, 16, device)[:3])
    seed = torch.tensor(7, device=device)
    first = attention.causal_attention(q, k, v, dropout_p=0.5, dropout_seed=seed)
    assert torch.equal(first, attention.causal_attention(q, k, v, dropout_p=0.5, dropout_seed=7))
    seed += 1
    second = attention.causal_attention(q, k, v, dropout_p=0.5, dropout_seed=seed)
    assert torch.equal(second, attention.causal_attention(q, k, v, dropout_p=0.5, dropout_seed=8))
    assert not torch.equal(first, second)


# --- the edges -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("B", "Tq", "Tk"), [(0, 5, 5), (2, 0, 5), (2, 0, 0)])
def test_empty_tensors_are_allowed(B, Tq, Tk, device):
    *inputs, upstream = heads_of(B, 2, 1, Tq, Tk, 16, device)
    out, *gradients = with_gradients(attention.causal_attention, inputs, torch.float32, upstream)
    assert out.shape == (B, 2, Tq, 16)
    assert all(not g.any() for g in gradients)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda q, k, v: (q.double(), k.double(), v.double()), "one of float16, bfloat16, float32"),
        (lambda q, k, v: (q, k.half(), v), "one of float16, bfloat16, float32"),
        (lambda q, k, v: (q, k.mT.contiguous().mT, v), "last stride of k"),
        (lambda q, k, v: [F.pad(x, (0, 250)) for x in (q, k, v)], "256"),
        (lambda q, k, v: (q, k[:, :, :4], v[:, :, :4]), "last rows"),
        (lambda q, k, v: (q[:, :3], k, v), "no multiple"),
    ],
)
def test_what_cannot_be_computed_is_refused_in_a_sentence(change, message, device):
    q, k, v = (x.float() for x in heads_of(1, 4, 2, 6, 6, 16, device)[:3])
    with pytest.raises(ValueError, match=message):
        attention.causal_attention(*change(q, k, v))


def test_float32_products_are_exact_unless_tf32_was_allowed(device, monkeypatch):
    """In the interpreter tf32 is float32 anyway, so the argument is what can be seen."""
    chosen = []
    original = attention._settings

    def spy(*args):
        settings = original(*args)
        chosen.append(settings["PRECISION"])
        return settings

    monkeypatch.setattr(attention, "_settings", spy)
    q, k, v = (x.float() for x in heads_of(1, 1, 1, 4, 4, 16, device)[:3])
    before = torch.get_float32_matmul_precision()
    try:
        for precision in ("highest", "high", "medium"):
            torch.set_float32_matmul_precision(precision)
            attention.causal_attention(q, k, v)
            attention.causal_attention(q.half(), k.half(), v.half())
    finally:
        torch.set_float32_matmul_precision(before)
    assert chosen == ["ieee", "ieee", "tf32", "ieee", "tf32", "ieee"]


# --- sizes for a GPU -------------------------------------------------------------------------------------------------


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("D", [16, 32, 40, 64, 80, 96, 128, 256])
@pytest.mark.parametrize(("Tq", "Tk"), [(113, 203), (1023, 1024), (2048, 2048)])
def test_committed_configurations_obey_the_error_rule(Tq, Tk, D, dtype, device, monkeypatch):
    monkeypatch.undo()  # the committed table, not the small tiles
    *inputs, upstream = heads_of(1, 4, 2, Tq, Tk, D, device)
    hold_the_rule(inputs, dtype, upstream)
    hold_the_rule(inputs, dtype, upstream, dropout_p=0.2, dropout_seed=SEED)


@pytest.mark.gpu
def test_seventy_thousand_heads_and_four_gibibytes_run(device):
    x = torch.randn(70000, 1, 2, 16, device=device, dtype=torch.float16)
    expected = reference.causal_attention(x[-1:], x[-1:], x[-1:])
    torch.testing.assert_close(attention.causal_attention(x, x, x)[-1:], expected, rtol=1e-2, atol=1e-3)
    qkv = torch.randn(1, 2**20, 3 * 1024, device=device, dtype=torch.float16)[..., : 3 * 64]  # 6 GiB, seen in part
    out = attention.causal_attention_packed(qkv, 1, scale=100.0)
    q, k, v = reference.unpack_heads(qkv, 1)
    nearest = (q[:, :, -1:].float() @ k.float().mT).argmax()
    torch.testing.assert_close(out[0, -1], v[0, 0, nearest], rtol=1e-2, atol=1e-2)
