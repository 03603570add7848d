"""kernels.fused.attention as an operator of PyTorch: the same bits twice, autograd, autocast, the compiler."""

import pytest
import torch
import torch.nn.functional as F
from attention_checks import DTYPES, draw, heads_of, packed, with_gradients
from torch._subclasses.fake_tensor import FakeTensorMode

pytest.importorskip("triton")

from kernels.fused import attention

pytestmark = pytest.mark.usefixtures("tiles")


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_two_runs_give_the_same_bits(dtype, device):
    *inputs, upstream = heads_of(1, 4, 2, 20, 20, 16, device)
    first, second = (
        with_gradients(attention.causal_attention, inputs, dtype, upstream, dropout_p=0.1, dropout_seed=3)
        for _ in range(2)
    )
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def test_a_second_backward_raises_unless_the_graph_was_kept(device):
    inputs = [x.float().requires_grad_() for x in heads_of(1, 1, 1, 20, 20, 16, device)[:3]]
    out = attention.causal_attention(*inputs).sum()
    first = torch.autograd.grad(out, inputs, retain_graph=True)
    assert all(torch.equal(a, b) for a, b in zip(first, torch.autograd.grad(out, inputs), strict=True))
    with pytest.raises(RuntimeError, match="second time"):
        torch.autograd.grad(out, inputs)


def test_a_gradient_of_the_gradient_raises(device):
    inputs = [x.float().requires_grad_() for x in heads_of(1, 1, 1, 20, 20, 16, device)[:3]]
    with pytest.raises(RuntimeError, match="no second derivative"):
        torch.autograd.grad(attention.causal_attention(*inputs).sum(), inputs, create_graph=True)


@pytest.mark.parametrize("which", [0, 1, 2, 3], ids=["q", "k", "v", "seed"])
def test_an_input_changed_in_place_before_the_backward_is_noticed(which, device):
    tensors = [x.float() for x in heads_of(1, 1, 1, 20, 20, 16, device)[:3]] + [torch.tensor(5, device=device)]
    leaf = tensors[0].clone().requires_grad_()
    q = leaf * 1
    out = attention.causal_attention(q, *tensors[1:3], dropout_p=0.1, dropout_seed=tensors[3])
    with torch.no_grad():
        [q, *tensors[1:]][which].add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        out.sum().backward()


def test_only_the_gradients_that_are_wanted_are_returned(device):
    q, k, v = (x.float() for x in heads_of(1, 1, 1, 20, 20, 16, device)[:3])
    v.requires_grad_()
    attention.causal_attention(q, k, v).sum().backward()
    assert v.grad is not None and q.grad is None and k.grad is None


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_autocast_gives_what_scaled_dot_product_attention_gives(dtype, device):
    q, k, v = (x.float().requires_grad_() for x in heads_of(1, 2, 2, 20, 20, 16, device)[:3])
    mixed = (q, k.to(dtype), v)
    with torch.autocast(device, dtype=dtype):
        out = attention.causal_attention(*mixed)
        expected = F.scaled_dot_product_attention(*mixed, is_causal=True)
        packed_out = attention.causal_attention_packed(torch.cat((q, k, v), 1).transpose(1, 2).flatten(2), 2)
    assert out.dtype == expected.dtype == packed_out.dtype == dtype
    assert torch.equal(out, attention.causal_attention(*(x.to(dtype) for x in mixed)))
    assert [g.dtype for g in torch.autograd.grad(out.float().sum(), (q, k, v))] == [torch.float32] * 3


def operator_arguments(name, device):
    q, k, v, do = (x.float() for x in heads_of(1, 2, 1, 5, 9, 16, device))
    qkv, dout = (x.float() for x in draw([(1, 9, 4 * 16), (1, 9, 2 * 16)], device))
    seed = torch.tensor(3, device=device)
    if name == "causal_attention":
        return [x.requires_grad_() for x in (q, k, v)] + [0.25, 0.1, seed]
    if name == "causal_attention_packed":
        return [qkv.requires_grad_(), 2, 1, 0.25, 0.0, None]
    if name == "causal_attention_backward":
        return [do, q, k, v, *torch.ops.minilm.causal_attention(q, k, v, 0.25, 0.1, seed), 0.25, 0.1, seed]
    out, lse = torch.ops.minilm.causal_attention_packed(qkv, 2, 1, 0.25, 0.0, None)
    return [dout, qkv, out, lse, 2, 1, 0.25, 0.0, None]


@pytest.mark.parametrize(
    "name",
    ["causal_attention", "causal_attention_packed", "causal_attention_backward", "causal_attention_packed_backward"],
)
def test_the_operators_pass_opcheck(name, device):
    torch.library.opcheck(getattr(torch.ops.minilm, name).default, operator_arguments(name, device))


def test_the_compiler_traces_through_on_cuda_tensors_that_are_not_there():
    """Forward and backward operator; the autograd of a PyTorch without CUDA cannot itself hold such tensors."""

    def forward_and_backward(qkv, do):
        out, lse = torch.ops.minilm.causal_attention_packed(qkv, 2, 1, 0.25, 0.0, None)
        called = attention.causal_attention_packed(qkv, 2, 1, dropout_p=0.1, dropout_seed=3)
        return called, torch.ops.minilm.causal_attention_packed_backward(do, qkv, out, lse, 2, 1, 0.25, 0.0, None)

    with FakeTensorMode():
        qkv, do = (torch.empty(2, 24, n * 16, device="cuda", dtype=torch.bfloat16) for n in (4, 2))
        out, dqkv = torch.compile(forward_and_backward, fullgraph=True, backend="aot_eager")(qkv, do)
    assert (out.shape, out.dtype, out.device.type) == ((2, 24, 32), torch.bfloat16, "cuda")
    assert (dqkv.shape, dqkv.stride(), dqkv.device.type) == (qkv.shape, qkv.stride(), "cuda")


@pytest.mark.parametrize("dynamic", [False, True])
def test_compiled_training_gives_the_same_bits(dynamic, device):
    (qkv,) = (x.float().requires_grad_() for x in draw([(1, 20, 4 * 16)], device))
    torch._dynamo.reset()
    compiled = torch.compile(packed(2, 1), fullgraph=True, dynamic=dynamic, backend="aot_eager")

    def run(call):
        out = call(qkv, dropout_p=0.2, dropout_seed=3)
        return out, *torch.autograd.grad(out.square().sum(), qkv)

    assert all(torch.equal(a, b) for a, b in zip(run(compiled), run(packed(2, 1)), strict=True))


def test_varying_lengths_compile_once(device):
    graphs = []

    def count(graph, inputs):
        graphs.append(graph)
        return graph.forward

    torch._dynamo.reset()
    compiled = torch.compile(packed(2, 1), fullgraph=True, dynamic=True, backend=count)
    for T in (7, 12, 20):
        (qkv,) = (x.float().requires_grad_() for x in draw([(1, T, 4 * 16)], device))
        assert torch.equal(compiled(qkv), packed(2, 1)(qkv))
    assert len(graphs) == 1
