"""Decoding: one query against a cache, split and merged, is the reference whatever the lengths and the splits."""

import pytest
import torch
from attention_checks import small_after_the_first_tile
from error_rule import assert_close_by_rule
from hypothesis import given, settings
from hypothesis import strategies as st
from op_checks import DTYPES, far_memory, force_config, fresh, run_program  # noqa: F401 (far_memory is a fixture)
from torch._subclasses.fake_tensor import FakeTensorMode

from kernels import fused, reference
from kernels.fused import decode


def draw(B, H, Hkv, S, D, dtype, device):
    q = fresh(1, (B, H, 1, D), dtype, device)
    k, v = (fresh(seed, (B, Hkv, S, D), dtype, device) for seed in (2, 3))
    return q, k, v


def assert_agrees(q, k, v, lengths, **options):
    got = fused.decode_attention(q, k, v, lengths, **options)
    exact = reference.decode_attention(q.double(), k.double(), v.double(), lengths, **options)
    assert_close_by_rule([got], lambda: [reference.decode_attention(q, k, v, lengths, **options)], [exact], ["out"])
    assert torch.equal(got, fused.decode_attention(q, k, v, lengths, **options)), "other bits at the second run"


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("B", "H", "Hkv", "S", "D"),
    [
        (2, 4, 4, 100, 16),
        (3, 6, 2, 130, 40),
        (1, 8, 1, 33, 64),
        (2, 2, 2, 16, 80),
        (1, 3, 3, 1, 128),
        (1, 2, 1, 70, 256),
    ],
)
def test_the_error_rule_holds_for_ragged_lengths(B, H, Hkv, S, D, dtype, device, nan_filled_empties):
    lengths = torch.tensor([S, 0, max(1, S // 3)][:B], device=device)
    assert_agrees(*draw(B, H, Hkv, S, D, dtype, device), lengths)


@pytest.mark.parametrize("programs", [1, 2, 16, 1024])
@pytest.mark.parametrize("dtype", DTYPES)
def test_any_number_of_splits_gives_the_same_answer(programs, dtype, device, monkeypatch, nan_filled_empties):
    """From one program a sequence to one for every 16 keys, most of them past the lengths: empty."""
    force_config(monkeypatch, PROGRAMS=programs, BLOCK_N=16, BLOCK_SPLITS=2)
    lengths = torch.tensor([200, 17, 0, 1, 16], device=device)
    assert_agrees(*draw(5, 4, 2, 200, 32, dtype, device), lengths)


@settings(max_examples=30)
@given(
    B=st.integers(1, 3), Hkv=st.integers(1, 3), group=st.integers(1, 5), S=st.integers(1, 90),
    D=st.sampled_from([8, 16, 24, 64]), dtype=st.sampled_from(DTYPES), data=st.data(),
)  # fmt: skip
def test_the_error_rule_holds_on_drawn_shapes(B, Hkv, group, S, D, dtype, data, device_name):
    lengths = torch.tensor([data.draw(st.integers(0, S)) for _ in range(B)], device=device_name)
    with pytest.MonkeyPatch.context() as patch:
        force_config(patch, BLOCK_N=16, PROGRAMS=data.draw(st.sampled_from([1, 4, 64])))
        assert_agrees(*draw(B, Hkv * group, Hkv, S, D, dtype, device_name), lengths)


@pytest.fixture(scope="module")
def device_name():
    return "cuda" if torch.cuda.is_available() else "cpu"


@pytest.mark.parametrize("rubbish", [float("nan"), float("inf")])
def test_what_lies_past_the_length_is_never_seen(rubbish, device, monkeypatch):
    force_config(monkeypatch, BLOCK_N=16, PROGRAMS=64)
    q, k, v = draw(2, 4, 2, 50, 16, torch.float32, device)
    lengths = torch.tensor([20, 0], device=device)
    clean = fused.decode_attention(q, k, v, lengths)
    for cache in (k, v):
        cache[0, :, 20:], cache[1] = rubbish, rubbish
    assert torch.equal(fused.decode_attention(q, k, v, lengths), clean)
    assert (clean[1] == 0).all()


def test_parts_of_very_different_size_merge_without_loss(device, monkeypatch):
    """The largest score of one split is a thousand above that of the next: whoever adds exponentials overflows, whoever
    adds a logarithm to it loses digits. The scores themselves are exact: small integers and four large ones."""
    force_config(monkeypatch, BLOCK_N=16, PROGRAMS=64)
    q, k, v = draw(1, 2, 2, 64, 16, torch.float32, device)
    q, k = q.round().clamp(-2, 2), k.round().clamp(-2, 2)
    q[..., 0] = 1.0
    k[..., 0] = torch.repeat_interleave(torch.tensor([0.0, 4000.0, -4000.0, 3990.0], device=device), 16)
    assert_agrees(q, k, v, torch.tensor([64], device=device))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("small", ["values", "weights"])
@pytest.mark.parametrize("programs", [1, 128])
def test_what_each_of_many_tiles_or_splits_adds_is_not_lost_to_rounding(programs, small, dtype, device, monkeypatch):
    """32 of them, of which each adds a quarter of the last place that 16 bits have for what the first brought."""
    force_config(monkeypatch, BLOCK_N=16, PROGRAMS=programs, BLOCK_SPLITS=1)
    q, k, v = (x.to(device, dtype) for x in small_after_the_first_tile(small, dtype, 1, 33 * 16))
    assert_agrees(q, k, v, torch.tensor([33 * 16], device=device), scale=1.0)


def test_a_cache_that_lies_as_time_before_heads_is_read_where_it_is(device):
    q, _, _ = draw(2, 4, 2, 40, 16, torch.float32, device)
    k, v = (fresh(seed, (2, 40, 2, 16), torch.float32, device).transpose(1, 2) for seed in (2, 3))
    lengths = torch.tensor([40, 11], device=device)
    got = fused.decode_attention(q, k, v, lengths)
    assert torch.equal(got, fused.decode_attention(q, k.contiguous(), v.contiguous(), lengths))


def test_the_last_row_of_full_attention_is_what_decoding_gives(device):
    q, k, v = (fresh(seed, (2, 4, 30, 32), torch.float32, device) for seed in (1, 2, 3))
    full = fused.causal_attention(q, k, v)[:, :, -1:]
    lengths = torch.full((2,), 30, device=device)
    torch.testing.assert_close(fused.decode_attention(q[:, :, -1:], k, v, lengths), full, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("scale", [0.7, -0.7, 0.0, 1e-30])
@pytest.mark.parametrize("programs", [1, 16])
def test_a_scale_of_ones_own_is_used(scale, programs, device, monkeypatch):
    force_config(monkeypatch, PROGRAMS=programs, BLOCK_N=16, BLOCK_SPLITS=2)
    lengths = torch.tensor([50, 20, 0], device=device)
    assert_agrees(*draw(3, 2, 2, 50, 16, torch.float32, device), lengths, scale=scale)


@pytest.mark.parametrize("scale", [1.0, -1.0])
@pytest.mark.parametrize("programs", [1, 16])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_keys_whose_scores_overflow_downwards_count_nothing(dtype, programs, scale, device, monkeypatch):
    """A first tile of -inf leaves no largest score to take out; where all of a cache is so, plain PyTorch gives NaN."""
    force_config(monkeypatch, PROGRAMS=programs, BLOCK_N=16, BLOCK_SPLITS=2)
    q, k, v = draw(3, 2, 2, 64, 16, dtype, device)
    q[..., 0] = 1e20 * scale
    k[..., 0] = 0
    k[:, :, :16, 0] = k[:, :, 32:48, 0] = -1e20
    assert_agrees(q, k, v, torch.tensor([64, 40, 0], device=device), scale=scale)
    out = fused.decode_attention(q, k, v, torch.tensor([16, 64, 0], device=device), scale=scale)
    assert out[0].isnan().all() and out[1].isfinite().all() and not out[2].any()


@pytest.mark.parametrize(
    ("S", "heads", "programs", "block", "expected"),
    [(4096, 2, 1024, 64, (64, 64)), (4096, 512, 1024, 64, (2, 2048)), (4096, 4096, 1024, 64, (1, 4096)),
     (100, 1, 1024, 64, (2, 64)), (1, 1, 1024, 64, (1, 64)), (1000, 3, 10, 64, (4, 256))],
)  # fmt: skip
def test_splits_are_whole_blocks_that_fill_the_chip_and_cover_the_cache(S, heads, programs, block, expected):
    n_splits, keys = decode.splits_of(S, heads, programs, block)
    assert (n_splits, keys) == expected
    assert keys % block == 0 and (n_splits - 1) * keys < S <= n_splits * keys


def test_it_says_that_it_has_no_gradient(device):
    q, cache = torch.randn(1, 2, 1, 16, device=device, requires_grad=True), torch.randn(1, 2, 4, 16, device=device)
    out = fused.decode_attention(q, cache, cache, torch.tensor([4], device=device))
    with pytest.raises(RuntimeError, match="decode_attention has no gradient"):
        out.sum().backward()


@pytest.mark.parametrize("S", [40, 300])
def test_the_operator_passes_opcheck_and_traces_on_cuda_tensors_that_are_not_there(S, device):
    q, k, v = draw(2, 4, 2, S, 16, torch.float32, device)
    lengths = torch.tensor([S, 3], device=device)
    torch.library.opcheck(torch.ops.minilm.decode_attention.default, (q, k, v, lengths, 0.25))
    torch._dynamo.reset()
    with FakeTensorMode(), torch.no_grad():
        fakes = [torch.empty(x.shape, dtype=x.dtype, device="cuda") for x in (q, k, v, lengths)]
        out = torch.compile(fused.decode_attention, fullgraph=True, backend="aot_eager")(*fakes)
    assert (out.shape, out.device.type) == (q.shape, "cuda")


def test_a_cache_beyond_two_billion_elements_is_read_at_the_right_place(far_memory):  # noqa: F811
    """The second sequence begins at element 2^31: one program, whatever came before it."""
    cache = far_memory[: 2**31 + 64 * 16].as_strided((2, 1, 64, 16), (2**31, 64 * 16, 16, 1))
    cache[1] = fresh(2, (1, 64, 16), torch.float16, "cpu")
    q = fresh(1, (2, 1, 1, 16), torch.float16, "cpu")
    lengths, out = torch.tensor([0, 64]), torch.empty(2, 1, 1, 16, dtype=torch.float16)
    run_program(
        decode._decode_kernel, 1, q, cache, cache, lengths, out, None, None,
        16, 16, 2**31, 1024, 16, 2**31, 1024, 16, 16, 16, 1, 64, 1, 64, 0.25 * decode.LOG2_E,
        GROUP=1, BLOCK_G=16, D=16, BLOCK_D=16, ALIGNED=True, INDEX=decode.tl.int32,
        PRECISION="ieee", RISING=True, MERGED=True, BLOCK_N=16,
    )  # fmt: skip
    exact = reference.decode_attention(q[1:].double(), cache[1:].double(), cache[1:].double(), lengths[1:])
    torch.testing.assert_close(out[1:].double(), exact, rtol=2e-3, atol=2e-3)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda q, k, v, n: (q.expand(-1, -1, 2, -1), k, v, n), "do not go together"),
        (lambda q, k, v, n: (q[..., :8], k, v, n), "do not go together"),
        (lambda q, k, v, n: (q[:, :3], k, v, n), "3 query heads are no multiple of 2"),
        (lambda q, k, v, n: (q, k, v, n[:1]), "lengths"),
        (lambda q, k, v, n: (q.double(), k, v, n), "all must be one of"),
        (lambda q, k, v, n: (q, k.mT.contiguous().mT, v, n), "the last stride of k_cache"),
    ],
)
def test_what_does_not_go_together_is_refused(change, sentence, device):
    arguments = (*draw(2, 4, 2, 20, 16, torch.float32, device), torch.tensor([20, 1], device=device))
    with pytest.raises(ValueError, match=sentence):
        fused.decode_attention(*change(*arguments))


def test_an_empty_cache_gives_zeros(device):
    q, k, v = draw(2, 4, 2, 0, 16, torch.float32, device)
    assert (fused.decode_attention(q, k, v, torch.zeros(2, dtype=torch.int64, device=device)) == 0).all()
