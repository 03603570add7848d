"""What bench.traffic counts, against arithmetic done by hand."""

import pytest
import torch
import torch.nn.functional as F

from bench import breakdown, steps, traffic
from minilm.config import build

RATES = (1e12, 1e9)


def cost_of(call, *inputs):
    with traffic.Count(*RATES) as counted:
        call(*(torch.empty(shape, device="meta") for shape in inputs))
    return counted.costs


def test_an_operator_reads_its_inputs_once_and_writes_what_is_new():
    costs = cost_of(lambda a, b: torch.add(a, b).view(-1).mul_(2.0), (4, 5), (4, 5))
    assert (costs["add"].calls, costs["add"].bytes) == (1, 3 * 80)
    assert costs["mul_"].bytes == 2 * 80, "in place: read and written"
    assert set(costs) == {"add", "mul_"}, "a view moves nothing"
    assert costs["add"].seconds == 240 / RATES[1]


def test_an_expanded_tensor_is_read_as_often_as_it_is_held():
    assert cost_of(lambda a, b: a + b.expand(4, 5), (4, 5), (1, 5))["add"].bytes == 80 + 20 + 80


def test_a_gather_reads_what_it_is_asked_for_and_a_fill_reads_nothing():
    def look_up(n):
        return lambda table: F.embedding(torch.empty(n, dtype=torch.int64, device="meta"), table)

    assert cost_of(look_up(3), (1000, 8))["embedding"].bytes == 3 * 8 + 2 * 3 * 8 * 4
    assert cost_of(look_up(300), (2, 8))["embedding"].bytes == 300 * 8 + 2 * 8 * 4 + 300 * 8 * 4, (
        "a small table is read once"
    )
    assert cost_of(lambda x: x.zero_(), (4, 5))["zero_"].bytes == 80
    assert cost_of(lambda x, y: x.copy_(y), (4, 5), (4, 5))["copy_"].bytes == 160
    assert cost_of(lambda a, b, c: torch.mm(a, b, out=c), (4, 5), (5, 6), (4, 6))["mm"].bytes == 4 * (20 + 30 + 24)


def test_a_product_takes_whichever_is_longer():
    costs = cost_of(lambda a, b: a @ b, (8, 16), (16, 32))
    assert costs["mm"].flops == 2 * 8 * 16 * 32
    assert costs["mm"].seconds == 4 * (8 * 16 + 16 * 32 + 8 * 32) / RATES[1]
    with traffic.Count(1.0, 1e9) as counted:
        torch.empty(8, 16, device="meta") @ torch.empty(16, 32, device="meta")
    assert counted.costs["mm"].seconds == 2 * 8 * 16 * 32


@pytest.mark.parametrize("kernels", ["reference", "torch", "triton"])
def test_every_backend_does_the_same_arithmetic_and_none_less_than_the_floor(kernels):
    config = build("tiny", {"model": {"vocab_size": 96}})
    found = {cost.operator: cost for cost in traffic.count(config, kernels, torch.bfloat16, (798e12, 3e12))}
    m, n = config.model, config.train.batch_size * config.model.context_length
    matrices = m.n_layers * (4 * m.d_model**2 + 2 * m.d_model * m.d_ff) + m.d_model * 96
    attention = m.n_layers * 7 * n * m.context_length * m.d_model  # causal; multiplied out it is the whole square
    expected = 6 * n * matrices + attention * {"reference": 12 / 7}.get(kernels, 1)
    assert sum(cost.flops for cost in found.values()) == expected
    floor = sum(breakdown.floors(config, torch.bfloat16, 798e12, 3e12).values())
    assert sum(cost.seconds for cost in found.values()) > floor
    assert found["adamw"].bytes == 28 * sum(p.numel() for p in traffic.GPT(config.model).parameters())


def test_an_update_of_several_micro_batches_has_one_optimizer_step():
    whole, parts = (
        {c.operator: c for c in traffic.count(config, "torch", torch.bfloat16, RATES)}
        for config in (build("tiny", {"model": {"vocab_size": 96}, "train": {"grad_accumulation": n}}) for n in (1, 4))
    )
    assert parts["adamw"] == whole["adamw"] and parts["mm"].calls == 4 * whole["mm"].calls
    assert parts["mm"].flops == whole["mm"].flops


def test_the_vocabulary_is_that_of_the_presets_data():
    assert steps.with_vocabulary("gpt2").model.vocab_size == 16_384
    assert steps.with_vocabulary("tiny").model.vocab_size == 96


def test_it_is_told_as_a_table(capsys):
    assert traffic.main(["--preset", "tiny", "--kernels", "torch"]) == 0
    out = capsys.readouterr().out
    assert "A step of tiny by torch, bfloat16, eager" in out and "native_layer_norm" in out
    assert "256 tokens in" in out
    for wrong in ("0", "inf", "nan"):
        with pytest.raises(SystemExit) as stop:
            traffic.main(["--tflops", wrong])
        assert stop.value.code == 2 and "must be a number above 0" in capsys.readouterr().err
