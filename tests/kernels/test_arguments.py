"""What does not go together is refused by every backend, with the same sentence."""

import pytest
import torch

import kernels

BACKENDS = [kernels.select(name) for name in ("reference", "torch", "triton")]
every_backend = pytest.mark.parametrize("ops", BACKENDS, ids=lambda ops: ops.name)


def x(*shape):
    return torch.ones(shape)


def attention(q, k, v=None, **options):
    return "causal_attention", (q, k, k if v is None else v), options


def seeded(seed):
    return attention(x(1, 1, 2, 8), x(1, 1, 2, 8), dropout_p=0.5, dropout_seed=seed)


def packed(qkv, *heads):
    return "causal_attention_packed", (qkv, *heads), {}


def decode(q, k, v=None, lengths=(2,), dtype=torch.int64):
    return "decode_attention", (q, k, k if v is None else v, torch.tensor(lengths, dtype=dtype)), {}


def loss(hidden, weight, targets=(1, 2), dtype=torch.int64, **options):
    return "linear_cross_entropy", (hidden, weight, torch.tensor(targets, dtype=dtype)), options


CACHE = (1, 1, 4, 8)
REFUSED = [
    (attention(x(), x()), "do not go together"),
    (attention(x(2, 4, 8), x(2, 4, 8)), "do not go together"),
    (attention(x(1, 1, 2, 4, 8), x(1, 1, 2, 4, 8)), "do not go together"),
    (attention(x(1, 1, 2, 8), x(1, 1, 2, 8), x(1, 1, 2, 4)), "do not go together"),
    (attention(x(2, 1, 2, 8), x(1, 1, 2, 8)), "do not go together"),
    (attention(x(1, 1, 2, 0), x(1, 1, 2, 0)), "width 0; each is at least 1"),
    (attention(x(1, 0, 2, 8), x(1, 0, 2, 8)), "0 query and 0 key-value heads"),
    (attention(x(1, 2, 2, 8), x(1, 0, 2, 8)), "2 query and 0 key-value heads"),
    (attention(x(1, 3, 2, 8), x(1, 2, 2, 8)), "3 query heads are no multiple of 2"),
    (attention(x(1, 1, 3, 8), x(1, 1, 2, 8)), "3 queries against 2 keys"),
    (attention(x(1, 1, 2, 8), x(1, 1, 2, 8), dropout_p=-0.1), "dropout_p is -0.1"),
    (attention(x(1, 1, 2, 8), x(1, 1, 2, 8), dropout_p=float("nan")), "dropout_p is nan"),
    (seeded(None), "dropout_seed is missing"),
    (seeded(1.5), "dropout_seed is 1.5; it must be an integer of 64 bits"),
    (seeded(2**63), "dropout_seed is 9223372036854775808"),
    (seeded(torch.tensor([1, 2])), r"dropout_seed is torch.int64 of shape \(2,\)"),
    (seeded(torch.tensor(1.0)), "dropout_seed is torch.float32"),
    (packed(x(), 1), r"a packed projection is \(B, T, width\), not \(\)"),
    (packed(x(3, 24), 1), "a packed projection"),
    (packed(x(1, 3, 24), 5), "packed width 24 is no multiple of 5"),
    (packed(x(1, 3, 24), 0), "no multiple of 0 query"),
    (packed(x(1, 3, 24), -1), "no multiple of -1 query"),
    (packed(x(1, 3, 24), 3, 0), "3 query and 2 x 0 key-value heads"),
    (packed(x(1, 3, 0), 1), "width 0; each is at least 1"),
    (decode(x(), x()), "do not go together"),
    (decode(x(1, 1, 8), x(1, 4, 8)), "do not go together"),
    (decode(x(1, 1, 2, 8), x(*CACHE)), "do not go together"),
    (decode(x(2, 1, 1, 8), x(*CACHE), lengths=(1, 1)), "do not go together"),
    (decode(x(1, 1, 1, 4), x(*CACHE)), "do not go together"),
    (decode(x(1, 1, 1, 8), x(*CACHE), x(1, 1, 3, 8)), "do not go together"),
    (decode(x(1, 1, 1, 8), x(1, 0, 4, 8)), "1 query and 0 key-value heads"),
    (decode(x(1, 3, 1, 8), x(1, 2, 4, 8)), "3 query heads are no multiple of 2"),
    (decode(x(1, 1, 1, 8), x(*CACHE), lengths=(1, 2)), r"lengths are torch.int64 of shape \(2,\)"),
    (decode(x(1, 1, 1, 8), x(*CACHE), lengths=1), r"lengths are torch.int64 of shape \(\)"),
    (decode(x(1, 1, 1, 8), x(*CACHE), lengths=(1.0,), dtype=torch.float32), "lengths are torch.float32"),
    (("layer_norm", (x(), x()), {}), "layer_norm of a 0-d tensor"),
    (("rms_norm", (x(), x(1)), {}), "rms_norm of a 0-d tensor"),
    (("layer_norm", (x(2, 4), x()), {}), r"weight and bias of shape \(4,\)"),
    (("layer_norm", (x(2, 4), x(2, 4)), {}), r"weight and bias of shape \(4,\)"),
    (("layer_norm", (x(2, 4), x(4), x(3)), {}), r"weight and bias of shape \(4,\)"),
    (("layer_norm", (x(2, 4), None), {}), r"weight and bias of shape \(4,\)"),
    (("rms_norm", (x(2, 4), x(3)), {}), r"weight and bias of shape \(4,\)"),
    (("add_layer_norm", (x(2, 4), x(4), x(4)), {}), "shapes must be equal"),
    (("add_layer_norm", (x(2, 4), None, x(4)), {}), "residual None; the shapes must be equal"),
    (("add_rms_norm", (x(2, 4), x(4), x(4)), {}), "shapes must be equal"),
    (("add_rms_norm", (x(), x(), x()), {}), "add_rms_norm of a 0-d tensor"),
    (("swiglu", (x(),), {}), "swiglu of a 0-d tensor"),
    (("swiglu", (x(2, 5),), {}), "swiglu of a width of 5"),
    (("swiglu_unpacked", (x(2, 3), x(3)), {}), "shapes must be equal"),
    (loss(x(), x(), 0), r"takes \(N, C\)"),
    (loss(x(4), x(5, 4), 0), r"takes \(N, C\)"),
    (loss(x(2, 2, 4), x(5, 4)), r"takes \(N, C\)"),
    (loss(x(2, 4), x(5, 3)), r"takes \(N, C\)"),
    (loss(x(3, 4), x(5, 4)), r"takes \(N, C\)"),
    (loss(x(2, 4), x(0, 4)), "a vocabulary of 0"),
    (loss(x(2, 4), x(5, 4), dtype=torch.int32), "takes int64 targets, not torch.int32"),
    (loss(x(2, 4), x(5, 4), chunk=0), "chunk is 0"),
    (loss(x(2, 4), x(5, 4), chunk=-1), "chunk is -1"),
]


@every_backend
@pytest.mark.parametrize(("call", "sentence"), REFUSED, ids=[f"{i} {c[0]}" for i, (c, _) in enumerate(REFUSED)])
def test_what_does_not_go_together_is_refused_by_all_with_one_sentence(call, sentence, ops):
    op, args, options = call
    with pytest.raises(ValueError, match=sentence) as error:
        getattr(ops, op)(*args, **options)
    assert "\n" not in str(error.value)


@every_backend
def test_a_gate_and_a_value_may_be_numbers(ops):
    gate, up = torch.tensor(1.0, requires_grad=True), torch.tensor(3.0, requires_grad=True)
    out = ops.swiglu_unpacked(gate, up)
    sigmoid = 1 / (1 + torch.tensor(-1.0).exp())
    torch.testing.assert_close(out.detach(), 3 * sigmoid)
    dgate, dup = torch.autograd.grad(out, (gate, up))
    torch.testing.assert_close((dgate, dup), (3 * sigmoid * (2 - sigmoid), sigmoid))


@every_backend
@pytest.mark.parametrize("rows", [0, 3])
def test_no_rows_and_no_queries_give_nothing(rows, ops):
    assert ops.causal_attention(x(1, 1, 0, 8), x(1, 1, rows, 8), x(1, 1, rows, 8)).shape == (1, 1, 0, 8)
