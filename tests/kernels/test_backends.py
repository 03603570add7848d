"""The switch: every backend has the same operations, and reference and torch compute the same."""

import inspect
import math
import subprocess
import sys

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

import kernels
from kernels import aten, reference
from kernels.backend import OPS
from kernels.dropout import keep_mask, threshold
from tests.kernels.error_rule import assert_close_by_rule

REFERENCE, TORCH = kernels.select("reference"), kernels.select("torch")


def test_kernels_import_needs_neither_triton_nor_torch():
    code = (
        "import sys; sys.modules['triton'] = None; sys.modules['torch'] = None; import kernels; "
        "print(kernels.BACKENDS, any(m.startswith('torch.') for m in sys.modules))"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert out.split() == ["('reference',", "'torch',", "'triton')", "False"]


def test_every_backend_has_every_operation_with_the_same_signature():
    for op in OPS:
        ours, theirs = (inspect.signature(getattr(module, op)) for module in (reference, aten))
        assert list(ours.parameters) == list(theirs.parameters), op
        assert [p.default for p in ours.parameters.values()] == [p.default for p in theirs.parameters.values()], op


def test_auto_is_torch_without_a_gpu_and_says_why(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    name, why = kernels.explain("auto", "cpu")
    assert name == "torch" and why.startswith("auto: not triton, because")


def test_an_unknown_backend_names_the_known_ones():
    with pytest.raises(ValueError, match="auto, reference, torch, triton"):
        kernels.select("cuda")


# ---- the reference against its equations, written out element by element in Python floats


def attention_by_hand(q, k, v, scale, keep=None, p=0.0):
    H, Tq, D = q.shape
    Tk = k.shape[1]
    out = torch.zeros(H, Tq, D, dtype=torch.float64)
    for h in range(H):
        g = h // (H // k.shape[0])
        for i in range(Tq):
            last = Tk - Tq + i
            scores = [scale * sum(float(q[h, i, d] * k[g, j, d]) for d in range(D)) for j in range(last + 1)]
            top = max(scores)
            weights = [math.exp(s - top) for s in scores]
            for j in range(last + 1):
                if keep is None or keep[h, i, j]:
                    out[h, i] += weights[j] / sum(weights) / (1 - p) * v[g, j]
    return out


@pytest.mark.parametrize(("H", "Hkv", "Tq", "Tk"), [(2, 2, 5, 5), (4, 2, 3, 6), (3, 1, 1, 4), (1, 1, 1, 1)])
def test_reference_attention_is_its_equation(H, Hkv, Tq, Tk):
    torch.manual_seed(0)
    q, k, v = (torch.randn(1, h, t, 4, dtype=torch.float64) for h, t in ((H, Tq), (Hkv, Tk), (Hkv, Tk)))
    expected = attention_by_hand(q[0], k[0], v[0], 0.3)
    torch.testing.assert_close(reference.causal_attention(q, k, v, scale=0.3)[0], expected, rtol=1e-12, atol=1e-12)
    default = attention_by_hand(q[0], k[0], v[0], 1 / 2)
    torch.testing.assert_close(reference.causal_attention(q, k, v)[0], default, rtol=1e-12, atol=1e-12)


def test_reference_attention_drops_what_the_mask_drops():
    torch.manual_seed(0)
    q, k, v = (torch.randn(1, 2, 6, 4, dtype=torch.float64) for _ in "qkv")
    positions = torch.arange(6)
    keep = keep_mask(0.4, 11, 2, positions, positions)
    expected = attention_by_hand(q[0], k[0], v[0], 0.5, keep, 0.4)
    actual = reference.causal_attention(q, k, v, dropout_p=0.4, dropout_seed=11)[0]
    torch.testing.assert_close(actual, expected, rtol=1e-12, atol=1e-12)


def test_reference_norms_are_their_equations():
    x, w, b = (torch.randn(*s, dtype=torch.float64) for s in ((3, 7), (7,), (7,)))
    for row, y, r in zip(x, reference.layer_norm(x, w, b, 1e-3), reference.rms_norm(x, w, 1e-3), strict=True):
        mean = sum(row) / 7
        var = sum((e - mean) ** 2 for e in row) / 7
        torch.testing.assert_close(y, (row - mean) / (var + 1e-3).sqrt() * w + b)
        torch.testing.assert_close(r, row / (sum(e**2 for e in row) / 7 + 1e-3).sqrt() * w)


def test_reference_swiglu_gates_with_the_first_half():
    x = torch.randn(5, 6, dtype=torch.float64)
    expected = x[:, :3] / (1 + torch.exp(-x[:, :3])) * x[:, 3:]
    torch.testing.assert_close(reference.swiglu(x), expected)


def test_reference_loss_is_its_equation_and_does_not_count_what_is_ignored():
    h, w = torch.randn(4, 3, dtype=torch.float64), torch.randn(5, 3, dtype=torch.float64)
    targets = torch.tensor([1, -100, 4, 0])
    logits = h @ w.T
    expected = sum(
        math.log(sum(math.exp(z) for z in logits[i])) - float(logits[i, t]) for i, t in ((0, 1), (2, 4), (3, 0))
    )
    for chunk in (None, 1, 3):
        actual = reference.linear_cross_entropy(h, w, targets, chunk=chunk)
        assert float(actual) == pytest.approx(expected / 3, rel=1e-12)


def test_packed_attention_is_attention_of_the_parts_without_a_copy():
    qkv = torch.randn(2, 5, (4 + 2 * 2) * 8)
    q, k, v = reference.unpack_heads(qkv, 4, 2)
    assert {x.untyped_storage().data_ptr() for x in (q, k, v)} == {qkv.untyped_storage().data_ptr()}
    assert torch.equal(q[1, 3, 2], qkv[1, 2, 3 * 8 : 4 * 8]) and torch.equal(v[0, 1, 4], qkv[0, 4, 7 * 8 :])
    for ops in (REFERENCE, TORCH):
        apart = ops.causal_attention(q, k, v).transpose(1, 2).flatten(2)
        assert torch.equal(ops.causal_attention_packed(qkv, 4, 2), apart)


def test_the_gradient_of_a_packed_projection_is_put_together_with_one_copy():
    qkv = torch.randn(2, 5, (4 + 2 * 2) * 8, requires_grad=True)
    parts = reference.unpack_heads(qkv, 4, 2)
    upstream = [torch.randn(2, 5, x.shape[1], 8).transpose(1, 2) for x in parts]
    launched = []

    class Launched(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            launched.append(str(function.overloadpacket))
            return function(*args, **(kwargs or {}))

    with Launched():
        (gradient,) = torch.autograd.grad(parts, qkv, upstream)
    views = {"aten.transpose", "aten.view", "aten._unsafe_view", "aten.detach"}
    assert [name for name in launched if name not in views] == ["aten.cat"]
    assert torch.equal(gradient, torch.cat([x.transpose(1, 2).flatten(2) for x in upstream], dim=-1))


# ---- torch against reference: outputs and every gradient, judged by the error of plain PyTorch in the same dtype


def qkv_inputs(B, H, Hkv, Tq, Tk, D):
    return [torch.randn(B, h, t, D) for h, t in ((H, Tq), (Hkv, Tk), (Hkv, Tk))]


LENGTHS = torch.tensor([0, 3, 9])
CASES = {
    "attention": (lambda ops, q, k, v: ops.causal_attention(q, k, v), lambda: qkv_inputs(2, 4, 2, 9, 9, 16)),
    "attention, last queries": (lambda o, q, k, v: o.causal_attention(q, k, v), lambda: qkv_inputs(2, 2, 2, 3, 11, 8)),
    "attention, one token": (lambda o, q, k, v: o.causal_attention(q, k, v), lambda: qkv_inputs(1, 2, 2, 1, 1, 8)),
    "attention, dropout": (
        lambda o, q, k, v: o.causal_attention(q, k, v, dropout_p=0.3, dropout_seed=5),
        lambda: qkv_inputs(2, 2, 2, 8, 8, 8),
    ),
    "packed attention": (lambda o, x: o.causal_attention_packed(x, 4, 2), lambda: [torch.randn(2, 7, 64)]),
    "decoding": (lambda o, q, k, v: o.decode_attention(q, k, v, LENGTHS), lambda: qkv_inputs(3, 4, 2, 1, 9, 8)),
    "layer norm": (lambda o, x, w, b: o.layer_norm(x, w, b), lambda: [torch.randn(s) for s in ((5, 33), (33,), (33,))]),
    "layer norm, no bias": (lambda o, x, w: o.layer_norm(x, w), lambda: [torch.randn(s) for s in ((5, 33), (33,))]),
    "add layer norm": (
        lambda o, x, r, w, b: torch.cat(o.add_layer_norm(x, r, w, b)),
        lambda: [torch.randn(s) for s in ((5, 33), (5, 33), (33,), (33,))],
    ),
    "rms norm": (lambda o, x, w: o.rms_norm(x, w), lambda: [torch.randn(s) for s in ((5, 33), (33,))]),
    "add rms norm": (
        lambda o, x, r, w: torch.cat(o.add_rms_norm(x, r, w)),
        lambda: [torch.randn(s) for s in ((5, 33), (5, 33), (33,))],
    ),
    "swiglu": (lambda o, x: o.swiglu(x), lambda: [torch.randn(5, 34)]),
    "swiglu, unpacked": (lambda o, g, u: o.swiglu_unpacked(g, u), lambda: [torch.randn(5, 17) for _ in "gu"]),
    "loss": (
        lambda o, h, w: o.linear_cross_entropy(h, w, torch.tensor([1, 3, -100, 0, 6])),
        lambda: [torch.randn(5, 12), torch.randn(7, 12)],
    ),
    "loss in chunks": (
        lambda o, h, w: o.linear_cross_entropy(h, w, torch.tensor([1, 3, -100, 0, 6]), chunk=2),
        lambda: [torch.randn(5, 12), torch.randn(7, 12)],
    ),
}


def run(case, ops, inputs):
    inputs = [x.detach().clone().requires_grad_() for x in inputs]
    out = case(ops, *inputs)
    upstream = torch.linspace(-1, 1, out.numel(), dtype=torch.float64).view_as(out).to(out.dtype)
    return [out.detach(), *torch.autograd.grad(out, inputs, upstream)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", CASES)
def test_torch_agrees_with_reference_on_outputs_and_gradients(name, dtype):
    case, make = CASES[name]
    torch.manual_seed(0)
    inputs = [x.to(dtype) for x in make()]
    exact = run(case, REFERENCE, [x.double() for x in inputs])
    names = [f"{name}, {what}" for what in ("output", *(f"gradient of input {i}" for i in range(len(inputs))))]
    assert_close_by_rule(run(case, TORCH, inputs), lambda: run(case, REFERENCE, inputs), exact, names)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("rows", [40, 30], ids=["square", "fewer queries"])
@pytest.mark.parametrize("scale", [0.0, -0.4])
def test_torch_takes_a_scale_that_is_not_above_zero(scale, rows, dtype):
    """PyTorch's own operator gives NaN there: on a CPU in float32."""
    torch.manual_seed(0)
    inputs = [torch.randn(2, 2, n, 16).to(dtype) for n in (rows, 40, 40)]

    def attend(ops, q, k, v):
        return ops.causal_attention(q, k, v, scale=scale)

    def decode(ops, q, k, v):
        return ops.decode_attention(q[:, :, :1], k, v, torch.tensor([40, 7]), scale=scale)

    for call in (attend, decode):
        exact = run(call, REFERENCE, [x.double() for x in inputs])
        names = ("output", "dq", "dk", "dv")
        assert_close_by_rule(run(call, TORCH, inputs), lambda call=call: run(call, REFERENCE, inputs), exact, names)


@pytest.mark.parametrize("ops", [REFERENCE, TORCH], ids=lambda ops: ops.name)
class TestBoth:
    def test_the_future_does_not_reach_the_past(self, ops):
        qkv = torch.randn(1, 8, 3 * 16)
        changed = qkv.clone()
        changed[:, 5:] += 1
        before, after = (ops.causal_attention_packed(x, 2) for x in (qkv, changed))
        assert torch.equal(before[:, :5], after[:, :5]) and not torch.allclose(before[:, 5:], after[:, 5:])

    def test_no_valid_target_gives_zero_loss_and_zero_gradients(self, ops):
        h, w = torch.randn(3, 4, requires_grad=True), torch.randn(5, 4, requires_grad=True)
        loss = ops.linear_cross_entropy(h, w, torch.full((3,), -100))
        loss.backward()
        assert loss.item() == 0 and h.grad.abs().max() == 0 and w.grad.abs().max() == 0

    def test_decoding_never_reads_past_the_length(self, ops):
        q, k, v = qkv_inputs(3, 2, 2, 1, 9, 8)
        out = ops.decode_attention(q, k, v, LENGTHS)
        for row, length in enumerate(LENGTHS):
            k[row, :, length:], v[row, :, length:] = math.nan, math.nan
        assert torch.equal(ops.decode_attention(q, k, v, LENGTHS), out)
        assert out[0].abs().max() == 0
        full = ops.causal_attention(q[2:], k[2:], v[2:])
        torch.testing.assert_close(out[2:], full)

    def test_the_sum_keeps_the_dtype_of_the_residual_stream(self, ops):
        x, residual = torch.randn(3, 8, dtype=torch.bfloat16), torch.randn(3, 8)
        for normed, total in (
            ops.add_layer_norm(x, residual, torch.ones(8), torch.zeros(8)),
            ops.add_rms_norm(x, residual, torch.ones(8)),
        ):
            assert normed.dtype == total.dtype == torch.float32
            assert torch.equal(total, residual + x.float())
        normed, total = ops.add_layer_norm(x.float(), residual.bfloat16(), torch.ones(8), None)
        assert normed.dtype == total.dtype == torch.bfloat16

    @pytest.mark.parametrize(
        ("shapes", "options", "message"),
        [
            (((1, 2, 5, 4), (1, 2, 3, 4), (1, 2, 3, 4)), {}, "5 queries against 3 keys"),
            (((1, 3, 4, 4), (1, 2, 4, 4), (1, 2, 4, 4)), {}, "3 query heads are no multiple of 2"),
            (((1, 2, 4, 4), (1, 2, 4, 8), (1, 2, 4, 8)), {}, "do not go together"),
            (((1, 2, 4, 4),) * 3, {"dropout_p": 0.1}, "dropout_seed is missing"),
            (((1, 2, 4, 4),) * 3, {"dropout_p": 1.0, "dropout_seed": 1}, "below 1"),
        ],
    )
    def test_arguments_that_do_not_fit_are_named(self, ops, shapes, options, message):
        with pytest.raises(ValueError, match=message):
            ops.causal_attention(*(torch.randn(s) for s in shapes), **options)

    def test_a_packed_width_that_does_not_divide_is_named(self, ops):
        with pytest.raises(ValueError, match="packed width 50"):
            ops.causal_attention_packed(torch.randn(1, 4, 50), 4)


# ---- the dropout mask


def test_the_mask_drops_the_stated_share_everywhere():
    rows = torch.arange(256)
    keep = keep_mask(0.2, 3, 16, rows, rows).double()  # 2^20 draws: standard deviation of a mean 0.0004
    assert keep.mean().item() == pytest.approx(0.8, abs=0.002)
    assert (keep.mean(dim=(0, 1)) - 0.8).abs().max() < 0.035  # of each column, 4096 draws: 5.6 standard deviations
    assert (keep.mean(dim=(0, 2)) - 0.8).abs().max() < 0.035
    neighbours = (keep[..., 1:] * keep[..., :-1]).mean().item(), (keep[:, 1:] * keep[:, :-1]).mean().item()
    assert neighbours == pytest.approx((0.64, 0.64), abs=0.003)


def test_the_mask_is_a_function_of_position_head_and_seed():
    rows, columns = torch.arange(32), torch.arange(40)
    whole = keep_mask(0.5, 7, 3, rows, columns)
    assert torch.equal(keep_mask(0.5, torch.tensor(7), 3, rows[10:20], columns[5:9]), whole[:, 10:20, 5:9])
    for other in (keep_mask(0.5, 8, 3, rows, columns), keep_mask(0.5, 7 + 2**32, 3, rows, columns), whole.roll(1, 0)):
        assert 0.4 < (other ^ whole).double().mean() < 0.6


def hash_by_hand(x):
    x = (x ^ x >> 16) * 0x7FEB352D % 2**32
    x = (x ^ x >> 15) * 0x846CA68B % 2**32
    return x ^ x >> 16


def test_the_mask_is_its_hash_in_plain_integers():
    seed, p = 0x1234_5678_9ABC_DEF0, 0.3
    rows, columns = torch.tensor([0, 5, 100_000]), torch.tensor([0, 1, 70_000])
    keep = keep_mask(p, seed, 2, rows, columns)
    for head in range(2):
        for i, row in enumerate(rows.tolist()):
            for j, column in enumerate(columns.tolist()):
                key = hash_by_hand(seed % 2**32 ^ hash_by_hand(seed >> 32 ^ hash_by_hand(head)))
                bits = hash_by_hand(hash_by_hand(key ^ row) ^ column) >> 8
                assert keep[head, i, j].item() == (bits >= round(p * 2**24))


def test_the_mask_never_changes_between_versions():
    bits = keep_mask(0.5, 12345678901234, 2, torch.arange(2), torch.arange(8)).int().flatten().tolist()
    assert "".join(map(str, bits)) == GOLDEN
    assert threshold(0.5) == 2**23


GOLDEN = "00010011011011000101000111100110"
