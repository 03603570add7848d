"""The projection and cross-entropy in one: the reference's loss and gradients without the logits ever being whole."""

import importlib
import math
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from error_rule import assert_close_by_rule
from hypothesis import given, settings
from hypothesis import strategies as st
from op_checks import (
    DTYPES,
    assert_agrees,
    assert_compiles_whole,
    assert_same_bits_twice,
    cuda_autocast_dtypes,
    far_memory,  # noqa: F401
    force_config,
    fresh,
    outputs_and_gradients,
    run_program,
    small_after_the_first,
)

from kernels import aten, fused, reference

module = importlib.import_module("kernels.fused.cross_entropy")


def case(N, C, V, dtype, device, ignored=0.3, ignore_index=-100):
    """hidden and weight, and targets of which about a share `ignored` does not count."""
    hidden, weight = fresh(0, (N, C), dtype, device), fresh(1, (V, C), dtype, device) / math.sqrt(C)
    generator = torch.Generator().manual_seed(2)
    targets = torch.randint(V, (N,), generator=generator)
    targets[torch.rand(N, generator=generator) < ignored] = ignore_index
    return [hidden, weight.to(dtype)], targets.to(device)


def losses(targets, **options):
    """The fused operation and the reference as functions of hidden and weight."""
    plain = {name: value for name, value in options.items() if name != "chunk"}
    return (
        lambda hidden, weight: fused.linear_cross_entropy(hidden, weight, targets, **options),
        lambda hidden, weight: reference.linear_cross_entropy(hidden, weight, targets, **plain),
    )


UPSTREAM = [torch.tensor(1.0), torch.tensor(-3.7)]


@pytest.mark.parametrize("upstream", UPSTREAM, ids=["1", "-3.7"])
@pytest.mark.parametrize("chunk", [None, 1, 4, 100])
@pytest.mark.parametrize("V", [65, 64, 1000])
@pytest.mark.parametrize("dtype", DTYPES)
def test_loss_and_gradients_keep_the_error_rule(dtype, V, chunk, upstream, device, nan_filled_empties):
    inputs, targets = case(10, 24, V, dtype, device)
    assert_agrees(*losses(targets, chunk=chunk), inputs, [upstream.to(device)])


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_vocabulary_of_many_blocks_keeps_the_error_rule(dtype, device, nan_filled_empties):
    inputs, targets = case(5, 8, 50257, dtype, device)
    assert_agrees(*losses(targets), inputs, [UPSTREAM[1].to(device)])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_what_each_of_many_blocks_adds_to_the_sum_is_not_lost_to_rounding(dtype, device, monkeypatch):
    """33 blocks of the vocabulary, of equal weights within a block."""
    force_config(monkeypatch, BLOCK_V=16)
    hidden, weight = torch.zeros(2, 16, device=device), torch.zeros(33 * 16, 16, device=device)
    hidden[:, 0] = 1
    weight[:, :1] = small_after_the_first(33, dtype, device).log().repeat_interleave(16, 0)
    targets = torch.tensor([3, 20], device=device)
    assert_agrees(*losses(targets), [hidden.to(dtype), weight.to(dtype)], [UPSTREAM[0].to(device)])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_what_each_of_many_chunks_adds_to_the_weight_gradient_is_not_lost_to_rounding(dtype, device):
    hidden = fresh(0, (1, 16), torch.float64, device) * small_after_the_first(33, dtype, device)
    weight, targets = torch.zeros(8, 16, dtype=dtype, device=device), torch.full((33,), 5, device=device)
    assert_agrees(*losses(targets, chunk=1), [hidden.to(dtype), weight], [UPSTREAM[0].to(device)])


@pytest.mark.parametrize("V", [262_144])
def test_a_vocabulary_of_256k(V, device):
    inputs, targets = case(2, 4, V, torch.float32, device, ignored=0)
    assert_agrees(*losses(targets), inputs, [UPSTREAM[0].to(device)])


@settings(max_examples=30, derandomize=True)
@given(
    N=st.integers(2, 9),
    C=st.integers(8, 40),
    V=st.integers(2, 400),
    dtype=st.sampled_from(DTYPES),
    chunk=st.sampled_from([None, 1, 3, 4]),
    ignored=st.sampled_from([0.0, 0.5]),
    ignore_index=st.sampled_from([-100, -1, 0, 1]),
)
def test_loss_and_gradients_keep_the_error_rule_on_drawn_shapes(N, C, V, dtype, chunk, ignored, ignore_index, device):
    inputs, targets = case(N, C, V, dtype, device, ignored, ignore_index)
    fused_op, reference_op = losses(targets, chunk=chunk, ignore_index=ignore_index)
    assert_agrees(fused_op, reference_op, inputs, [UPSTREAM[1].to(device)])


def test_rows_that_do_not_count_have_no_gradient_and_no_part_in_the_mean(device):
    (hidden, weight), targets = case(12, 16, 70, torch.float32, device, ignored=0.5)
    counts = targets != -100
    _, dhidden, _ = outputs_and_gradients(losses(targets, chunk=5)[0], [hidden, weight], [UPSTREAM[0].to(device)])
    assert not dhidden[~counts].any() and dhidden[counts].any(dim=1).all()
    ours = fused.linear_cross_entropy(hidden, weight, targets)
    dense = fused.linear_cross_entropy(hidden[counts], weight, targets[counts])
    torch.testing.assert_close(ours, dense, rtol=2 * torch.finfo(torch.float32).eps, atol=0.0)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("N", [0, 3])
def test_no_target_that_counts_gives_no_loss_and_no_gradient(N, dtype, device, nan_filled_empties):
    inputs, _ = case(N, 8, 65, dtype, device)
    targets = torch.full((N,), -100, device=device)
    for result in outputs_and_gradients(losses(targets, chunk=2)[0], inputs, [UPSTREAM[0].to(device)]):
        assert torch.equal(result, torch.zeros_like(result))


def test_logits_of_minus_infinity_are_words_that_cannot_come(device, monkeypatch):
    force_config(monkeypatch, BLOCK_V=16)  # whole blocks of nothing else, the first one among them
    for dtype in (torch.float32, torch.float16):
        logits = fresh(0, (4, 128), dtype, device)
        logits[:, :40] = logits[1, 50:] = -math.inf
        targets = torch.tensor([41, 45, 100, 127], device=device)

        def losses_of(logits, targets=targets):
            wide = logits.to(torch.promote_types(logits.dtype, torch.float32))
            return F.cross_entropy(wide, targets, reduction="none")

        ones = torch.ones(4, device=device)
        exact = outputs_and_gradients(losses_of, [logits.double()], [ones.double()])
        plain = partial(outputs_and_gradients, losses_of, [logits.clone()], [ones])
        found = torch.full((4,), math.nan, device=device)
        module._loss_and_dlogits[(4,)](
            logits, targets, found, 1, -100, V=128, PADDED=128, BLOCK_V=16, GRADIENT=True, num_warps=1
        )
        assert_close_by_rule([found, logits], plain, exact, ["loss", "gradient"])


def test_a_target_that_cannot_come_costs_infinitely_much(device):
    hidden = torch.tensor([[300.0], [1.0]], device=device, dtype=torch.float16)
    weight = torch.tensor([[1.0], [-300.0], [2.0]], device=device, dtype=torch.float16)  # 300 · -300 overflows
    for targets in ([0, 0], [1, 0]):
        targets = torch.tensor(targets, device=device)
        ours, theirs = (loss(hidden, weight) for loss in losses(targets))
        assert torch.equal(ours, theirs) and ours.isinf() == (targets[0] == 1)


@pytest.mark.parametrize("scale", [30.0, 1e4])
def test_extreme_logits_keep_the_error_rule(scale, device):
    inputs, targets = case(6, 16, 200, torch.float32, device)
    assert_agrees(*losses(targets), [inputs[0] * scale, inputs[1]], [UPSTREAM[0].to(device)])


def test_small_float16_gradients_do_not_drown_in_a_large_number_of_rows(device):
    """A probability over the number of rows falls below what float16 can hold, if it is divided before it is summed."""
    inputs, targets = case(128, 8, 1000, torch.float16, device, ignored=0)
    upstream = torch.tensor(1 / 64, device=device)  # one of 64 batches whose gradients are accumulated
    ours, plain = (outputs_and_gradients(loss, inputs, [upstream])[2] for loss in losses(targets))
    exact = outputs_and_gradients(losses(targets)[1], [x.double() for x in inputs], [upstream.double()])[2]
    no_target = torch.ones(1000, dtype=torch.bool, device=device).index_fill(0, targets, False)
    ours_err, plain_err = ((x - exact)[no_target].abs().max() for x in (ours, plain))
    assert ours_err < 0.25 * plain_err


def test_many_chunks_add_up_in_float32(device):
    """In bfloat16 a sum of equal terms stops growing at 256 of them."""
    (_, weight), _ = case(1, 8, 65, torch.bfloat16, device)
    hidden = fresh(0, (300, 8), torch.bfloat16, device, mean=3.0)
    targets = torch.full((300,), 7, device=device)
    assert_agrees(*losses(targets, chunk=1), [hidden, weight], [UPSTREAM[0].to(device)])


def test_gradients_are_scaled_in_float32(device):
    """In float16 the factor here would be 38% too large, and in bfloat16 any factor is off by up to 0.4%."""
    dloss, n_valid = torch.tensor(1.3e-7, device=device), torch.tensor(3, device=device)
    gradients = torch.full((4, 8), 5e4, device=device, dtype=torch.float16), torch.empty(0, device=device)
    scaled, _ = torch.ops.minilm.linear_cross_entropy_backward(dloss, n_valid, *gradients, torch.float16, torch.float32)
    expected = torch.full_like(scaled, 5e4 * 1.3e-7 / 3)
    torch.testing.assert_close(scaled, expected, rtol=torch.finfo(torch.float16).eps, atol=0.0)


@pytest.mark.parametrize("V", [65, 50257, 262_144])
def test_the_default_chunk_keeps_its_logits_within_a_stated_size(V):
    chunk = module.default_chunk(V)
    assert chunk % 128 == 0 and chunk * V <= module.CHUNK_LOGITS < (chunk + 128) * V


def test_no_more_than_a_chunk_of_logits_is_ever_made(device, monkeypatch):
    sizes = []
    kernel = module._loss_and_dlogits

    class Recorder:
        def __getitem__(self, grid):
            return lambda logits, *args, **kwargs: (
                sizes.append((grid[0], logits.numel())) or kernel[grid](logits, *args, **kwargs)
            )

    monkeypatch.setattr(module, "_loss_and_dlogits", Recorder())
    (hidden, weight), targets = case(10, 8, 65, torch.float32, device)
    fused.linear_cross_entropy(hidden, weight, targets, chunk=4)
    assert sizes == [(4, 4 * 128), (4, 4 * 128), (2, 4 * 128)]
    monkeypatch.setattr(module, "CHUNK_LOGITS", 65 * 128)
    sizes.clear()
    fused.linear_cross_entropy(hidden[:1].expand(130, 8), weight, targets[:1].expand(130))
    assert [rows for rows, _ in sizes] == [128, 2]


def test_without_a_gradient_to_come_only_the_loss_is_calculated(device):
    (hidden, weight), targets = case(6, 8, 65, torch.float32, device)
    asked = []
    forward = module._forward

    def record(*args):
        asked.append(args[-2:])
        return forward(*args)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "_forward", record)
        plain = fused.linear_cross_entropy(hidden, weight, targets)
        weight.requires_grad_()
        half = fused.linear_cross_entropy(hidden, weight, targets)
        with torch.no_grad():
            none = fused.linear_cross_entropy(hidden, weight, targets)
    assert asked == [(False, False), (False, True), (False, False)]
    assert torch.equal(plain, half) and torch.equal(plain, none) and not none.requires_grad
    half.backward()
    assert weight.grad.any()
    *_, dhidden, dweight = torch.ops.minilm.linear_cross_entropy(
        hidden, weight.detach(), targets, -100, None, torch.float32, False, False
    )
    assert dhidden.numel() == dweight.numel() == 0


@pytest.mark.parametrize("V", [64, 65])
def test_a_target_outside_the_vocabulary_gives_nan_in_the_gradients_too_and_reads_nothing(V, device):
    """No training goes on as if nothing had been: the gradient of its row, and of every weight, says so too."""
    (hidden, weight), targets = case(3, 8, V, torch.float32, device, ignored=0)
    leaves = [hidden.requires_grad_(), weight.requires_grad_()]
    for wrong in (V, 127, 2**40, -1):
        targets[1] = wrong
        loss = fused.linear_cross_entropy(*leaves, targets)
        dhidden, dweight = torch.autograd.grad(loss, leaves)
        assert loss.isnan() and dhidden[1].isnan().all() and dweight.isnan().all()
        if device == "cpu":
            for module in (reference, aten):
                with pytest.raises(IndexError, match="out of bounds"):
                    module.linear_cross_entropy(*leaves, targets)


def test_hidden_weight_and_targets_of_any_stride(device):
    (hidden, weight), targets = case(6, 8, 70, torch.float32, device)
    hidden, weight = hidden.t().contiguous().t(), fresh(1, (70, 20), torch.float32, device)[:, 3:11]
    targets = targets.repeat_interleave(2)[::2]
    assert_agrees(*losses(targets, chunk=4), [hidden, weight], [UPSTREAM[0].to(device)])


def test_two_runs_give_the_same_bits(device):
    inputs, targets = case(20, 16, 300, torch.bfloat16, device)
    assert_same_bits_twice(losses(targets, chunk=6)[0], inputs, [UPSTREAM[1].to(device)])


def test_what_does_not_go_together_is_refused_in_one_sentence(device):
    (hidden, weight), targets = case(6, 8, 65, torch.float32, device)
    for args, options, message in (
        ((hidden, weight[:, :7], targets), {}, r"\(6, 8\), \(65, 7\) and \(6,\)"),
        ((hidden, weight, targets[:5]), {}, r"\(5,\)"),
        ((hidden[None], weight, targets), {}, r"\(1, 6, 8\)"),
        ((hidden.bfloat16(), weight, targets), {}, "without autocast"),
        ((hidden.double(), weight.double(), targets), {}, "float64"),
        ((hidden, weight, targets.int()), {}, "int64"),
        ((hidden, weight, targets), {"chunk": 0}, "chunk is 0"),
    ):
        with pytest.raises(ValueError, match=message):
            fused.linear_cross_entropy(*args, **options)


def test_a_second_backward_raises_and_a_retained_graph_repeats(device):
    (hidden, weight), targets = case(6, 8, 65, torch.float32, device)
    hidden.requires_grad_()
    loss = fused.linear_cross_entropy(hidden, weight, targets)
    first, second = (torch.autograd.grad(loss, hidden, retain_graph=keep)[0] for keep in (True, False))
    assert torch.equal(first, second)
    with pytest.raises(RuntimeError, match="second time"):
        loss.backward()
    loss = fused.linear_cross_entropy(hidden, weight, targets)
    with pytest.raises(RuntimeError, match="no second derivative"):
        torch.autograd.grad(loss, hidden, create_graph=True)


def test_gradients_are_those_of_the_values_that_the_forward_saw(device):
    (hidden, weight), targets = case(6, 8, 65, torch.float32, device)
    leaves = [hidden.requires_grad_(), weight.requires_grad_()]
    loss = fused.linear_cross_entropy(*leaves, targets)
    expected = torch.autograd.grad(loss, leaves, retain_graph=True)
    with torch.no_grad():
        hidden.zero_()
        weight.zero_()
    targets.zero_()
    assert all(torch.equal(a, b) for a, b in zip(expected, torch.autograd.grad(loss, leaves), strict=True))


def test_torch_compile_traces_it_whole():
    inputs, targets = case(6, 8, 65, torch.bfloat16, "cpu")
    assert_compiles_whole(fused.linear_cross_entropy, [*inputs, targets])


@pytest.mark.parametrize("grads", [(True, True), (False, True), (True, False), (False, False)])
def test_opcheck(grads, device):
    inputs, targets = case(5, 8, 65, torch.float32, device)
    leaves = [x.requires_grad_(g) for x, g in zip(inputs, grads, strict=True)]
    args = (*leaves, targets, -100, 2, torch.float32, *grads)
    torch.library.opcheck(torch.ops.minilm.linear_cross_entropy.default, args)
    outputs = (x.detach() for x in torch.ops.minilm.linear_cross_entropy(*args))
    args = (*outputs, torch.bfloat16, torch.float16)
    torch.library.opcheck(torch.ops.minilm.linear_cross_entropy_backward.default, args)


@pytest.mark.parametrize("dtypes", [(torch.float32, torch.float32), (torch.bfloat16, torch.float32)])
def test_autocast_takes_products_in_its_dtype_and_keeps_the_gradients_dtypes(dtypes, device):
    """float32 gradients of float32 weights then never pass through the lower dtype, where PyTorch's own are rounded."""
    inputs, targets = case(7, 16, 65, torch.float32, device)
    inputs = [x.to(dtype) for x, dtype in zip(inputs, dtypes, strict=True)]
    upstream = [UPSTREAM[0].to(device)]

    def cast(function):
        def run(hidden, weight):
            if hidden.dtype == torch.float64:
                hidden, weight = hidden.bfloat16().double(), weight.bfloat16().double()
                return function(hidden, weight)
            with torch.autocast(torch.device(device).type, dtype=torch.bfloat16):
                return function(hidden, weight)

        return run

    def plain(hidden, weight):
        loss = F.cross_entropy(F.linear(hidden, weight), targets)
        return loss if hidden.dtype == torch.float64 else loss.float()

    assert_agrees(cast(losses(targets, chunk=3)[0]), cast(plain), inputs, upstream)
    assert cuda_autocast_dtypes(
        fused.linear_cross_entropy, [*inputs, targets.cpu()], torch.float16
    ) == cuda_autocast_dtypes(lambda h, w, t: F.cross_entropy(F.linear(h, w), t), [*inputs, targets], torch.float16)


def test_logits_may_pass_2_to_the_31_elements(far_memory):  # noqa: F811
    V = 1024
    row = 2**31 // V
    logits = far_memory[2**31 :][2**31 : 2**31 + V]
    logits.copy_(fresh(0, (V,), torch.float16, "cpu"))
    targets, found = torch.full((row + 1,), 5), torch.zeros(row + 1)
    expected = F.cross_entropy(logits.float()[None], targets[:1])
    run_program(
        module._loss_and_dlogits, row, far_memory[2**31 :], targets, found, 1, -100,
        V=V, PADDED=V, BLOCK_V=V, GRADIENT=True,
    )  # fmt: skip
    torch.testing.assert_close(found[row], expected)
    assert logits[5] < 0 and logits.float().sum().abs() < V * torch.finfo(torch.float16).eps
