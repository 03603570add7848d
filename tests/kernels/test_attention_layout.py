"""Attention reads and writes its tensors where they lie: packed, of any strides, by pointers or by descriptor."""

import pytest
import torch
import torch.nn.functional as F
from attention_checks import DTYPES, SEED, draw, heads_of, hold_the_rule, packed, with_gradients
from error_rule import assert_close_by_rule

pytest.importorskip("triton")

from kernels import reference
from kernels.fused import attention
from kernels.fused.tiles import tile_descriptor

pytestmark = pytest.mark.usefixtures("tiles")


# --- strides ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("H", "Hkv", "D"), [(2, 2, 16), (3, 1, 40)])
def test_packed_is_as_close_as_the_dtype_allows(H, Hkv, D, dtype, device):
    qkv, upstream = (x.to(dtype) for x in draw([(2, 37, (H + 2 * Hkv) * D), (2, 37, H * D)], device))

    def run(module, dtype):
        return with_gradients(packed(H, Hkv, module), [qkv], dtype, upstream, dropout_p=0.2, dropout_seed=SEED)

    ref64 = run(reference, torch.float64)
    assert_close_by_rule(run(attention, dtype), lambda: run(reference, dtype), ref64, ("out", "dqkv"))


def test_packed_gives_the_bits_of_separate_tensors_and_one_gradient(device):
    qkv, upstream = (x.half() for x in draw([(2, 37, 4 * 16), (2, 37, 2 * 16)], device))
    out, dqkv = with_gradients(packed(2, 1), [qkv], torch.float16, upstream)
    separate = reference.unpack_heads(qkv, 2, 1)
    upstream = upstream.view(2, 37, 2, 16).transpose(1, 2)
    expected, *gradients = with_gradients(attention.causal_attention, separate, torch.float16, upstream)
    assert torch.equal(out, expected.transpose(1, 2).flatten(2))
    assert torch.equal(dqkv, torch.cat(gradients, dim=1).transpose(1, 2).flatten(2))
    assert dqkv.is_contiguous()


def test_nothing_is_copied_but_a_gradient_whose_last_stride_is_not_1(device, monkeypatch):
    qkv, upstream, wide = (x.float() for x in draw([(1, 20, 4 * 16), (1, 20, 2 * 16), (1, 20, 2 * 32)], device))
    qkv.requires_grad_()
    copies = []
    for name in ("contiguous", "clone", "copy_", "reshape"):
        original = getattr(torch.Tensor, name)

        def spy(self, *args, name=name, original=original, **kwargs):
            copies.append(name)
            return original(self, *args, **kwargs)

        monkeypatch.setattr(torch.Tensor, name, spy)
    out = attention.causal_attention_packed(qkv, 2, 1)
    assert out.is_contiguous()
    torch.autograd.grad(out, qkv, upstream, retain_graph=True)
    torch.autograd.grad(out, qkv, wide[..., :32], retain_graph=True)
    assert copies == []
    torch.autograd.grad(out, qkv, wide[..., ::2])
    assert copies == ["contiguous"]


def test_any_strides_give_the_same_bits(device):
    """Time before heads, heads before batch, keys expanded over heads, rows far apart, an odd start."""
    q, k, v, upstream = (x.half() for x in heads_of(2, 2, 2, 21, 21, 16, device))
    k, v = k[:, :1].expand(2, 2, 21, 16), v[:1].expand(2, 2, 21, 16)

    def layout(x, order):
        return x.permute(order).contiguous().permute([order.index(i) for i in range(4)])

    def spaced(x):
        return F.pad(x, (1, 2))[..., 1:-2]

    def forms(x):
        return layout(x, (0, 2, 1, 3)), layout(x, (1, 0, 2, 3)), spaced(x)

    expected = with_gradients(attention.causal_attention, [q, k.clone(), v.clone()], torch.float16, upstream)
    for form in range(3):
        inputs = [forms(q)[form], k, forms(v)[form]]
        leaves = [x.detach().requires_grad_() for x in inputs]
        out = attention.causal_attention(*leaves)
        for got, wanted in zip([out, *torch.autograd.grad(out, leaves, forms(upstream)[form])], expected, strict=True):
            assert torch.equal(got, wanted)


def test_upstream_gradients_of_any_stride_give_the_same_bits(device):
    inputs = [x.half().requires_grad_() for x in heads_of(1, 2, 2, 21, 21, 16, device)[:3]]
    out = attention.causal_attention(*inputs)
    row = torch.linspace(-1, 1, 16, device=device, dtype=torch.float16)
    full = row.expand(1, 2, 21, 16).contiguous()
    for strange in (
        row.expand(1, 2, 21, 16),
        full.mT.contiguous().mT,
        full.transpose(0, 2).contiguous().transpose(0, 2),
    ):
        for got, wanted in zip(
            torch.autograd.grad(out, inputs, strange, retain_graph=True),
            torch.autograd.grad(out, inputs, full, retain_graph=True),
            strict=True,
        ):
            assert torch.equal(got, wanted)
    ones = torch.autograd.grad(out, inputs, torch.ones_like(out), retain_graph=True)
    for got, wanted in zip(torch.autograd.grad(out.sum(), inputs), ones, strict=True):
        assert torch.equal(got, wanted)


# --- tiles by descriptor ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("layout", ["packed", "heads first", "heads last"])
@pytest.mark.parametrize(("B", "H", "Hkv", "Tq", "Tk", "D"), [(2, 4, 2, 64, 64, 32), (1, 2, 2, 32, 96, 64)], ids=str)
def test_tiles_that_the_chip_fetches_give_the_same_bits(B, H, Hkv, Tq, Tk, D, layout, device, monkeypatch):
    """TMA in a table's entry changes how a tile arrives, and nothing of what is in it."""
    if device == "cuda" and torch.cuda.get_device_capability()[0] < 9:
        pytest.skip("the chip has no TMA")
    if layout == "packed":
        (row,) = draw([(B, Tk, (H + 2 * Hkv) * D)], device)
        parts = row.bfloat16().split([H * D, Hkv * D, Hkv * D], -1)
        q, k, v = (x.unflatten(-1, (-1, D)).transpose(1, 2) for x in parts)
        q = q[:, :, Tk - Tq :]
    elif layout == "heads first":
        q, k, v = (x.bfloat16() for x in heads_of(B, H, Hkv, Tq, Tk, D, device)[:3])
    else:
        drawn = draw([(B, Tq, H, D), (B, Tk, Hkv, D), (B, Tk, Hkv, D)], device)
        q, k, v = (x.bfloat16().transpose(1, 2) for x in drawn)
    inputs = [x.detach().requires_grad_() for x in (q, k, v)]
    upstream = draw([(B, H, Tq, D)], device, seed=1)[0].bfloat16()
    made = []
    monkeypatch.setattr(attention, "tile_descriptor", lambda *a: made.append(tile_descriptor(*a)) or made[-1])
    found = []
    for tma in ({}, {"TMA": 1}):
        config = {"BLOCK_M": 32, "BLOCK_N": 16, "num_warps": 4, "num_stages": 2, **tma}
        monkeypatch.setattr(attention.tuning, "lookup", lambda *_, config=config, **__: config)
        out = attention.causal_attention(*inputs)
        found.append((out, *torch.autograd.grad(out, inputs, upstream)))
    assert len(made) == 6 and all(made)
    for by_pointer, by_descriptor in zip(*found, strict=True):
        assert torch.equal(by_pointer, by_descriptor)


def test_no_queries_are_allowed_where_tiles_are_fetched(device, monkeypatch):
    """dK and dV of keys that no query sees are zero."""
    config = {"BLOCK_M": 16, "BLOCK_N": 16, "num_warps": 4, "num_stages": 1, "TMA": 1}
    monkeypatch.setattr(attention.tuning, "lookup", lambda *_, **__: config)
    q, k, v = (torch.ones(1, 2, T, 32, device=device, dtype=torch.bfloat16, requires_grad=True) for T in (0, 64, 64))
    out = attention.causal_attention(q, k, v)
    dq, dk, dv = torch.autograd.grad(out, (q, k, v), torch.ones_like(out))
    assert out.shape == dq.shape == q.shape and not dk.any() and not dv.any()


def test_what_has_no_descriptor_is_read_by_pointers(device, monkeypatch):
    """Ragged lengths, float32, odd widths, rows that are not on 16 bytes."""
    assert tile_descriptor(torch.zeros(2, 2, 32, 40, device=device, dtype=torch.bfloat16), 16) is None
    assert tile_descriptor(torch.zeros(2, 2, 32, 32, device=device), 16) is None
    assert tile_descriptor(torch.zeros(2, 2, 32, 36, device=device, dtype=torch.bfloat16)[..., :32], 16) is None
    assert tile_descriptor(torch.zeros(2, 2, 33, 40, device=device, dtype=torch.bfloat16)[..., 4:36], 16) is None
    one = torch.zeros(2, 2, 1, 32, device=device, dtype=torch.bfloat16)
    assert tile_descriptor(one.expand(2, 2, 32, 32), 16) is None  # every row is the same
    assert tile_descriptor(one.expand(2, 2, 16, 32)[:, :1].expand(2, 2, 16, 32), 16) is None
    far = torch.empty_strided((1, 2, 16, 32), (4096, 2**31, 128, 1), device="meta", dtype=torch.bfloat16)
    assert tile_descriptor(far, 16) is None  # a descriptor counts in 32 bits
    config = {"BLOCK_M": 16, "BLOCK_N": 16, "num_warps": 4, "num_stages": 1, "TMA": 1}
    monkeypatch.setattr(attention.tuning, "lookup", lambda *_, **__: config)
    for T, D, dtype in ((33, 32, torch.bfloat16), (32, 40, torch.bfloat16), (32, 32, torch.float32)):
        *inputs, upstream = heads_of(1, 2, 1, T, T, D, device)
        hold_the_rule(inputs, dtype, upstream)
