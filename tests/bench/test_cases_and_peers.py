"""What is measured, and against whom: a case tells its own work and times nothing else; a peer gets what it takes."""

import dataclasses
import sys
import types

import pytest
import torch

from bench import cases, contest, peers
from bench.peers import providers
from kernels import reference
from tests.bench.small_cases import CPU, SMALL, small


def test_published_attention_is_of_tensors_that_flash_attention_takes_without_a_copy():
    case = SMALL["attention_apart"]
    inputs = case.inputs(CPU)
    (above,) = case.upstream(case.reference(*inputs))
    assert all(x.is_leaf and x.requires_grad for x in inputs) and len(inputs) == 3 and not above.requires_grad
    for x in (*inputs, above):
        assert x.shape == (2, 3, 16, 8) and x.transpose(1, 2).is_contiguous()
    assert len({x.sum().item() for x in inputs}) == 3


class Launched(torch.utils._python_dispatch.TorchDispatchMode):
    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.names.append(str(function))
        return function(*args, **(kwargs or {}))


@small
def test_a_call_that_is_timed_does_what_the_implementation_does_and_nothing_else(case):
    inputs = case.inputs(CPU)
    with Launched() as launched:
        case.call(lambda *given: given[0], inputs)
    assert launched.names == []


@small
def test_the_least_traffic_of_a_forward_pass_is_what_goes_in_and_comes_out(case):
    inputs = case.inputs(CPU)
    outputs = case.reference(*inputs)
    activations = [x for x in [*inputs, *outputs] if x.ndim > 1]
    traffic = sum(x.numel() * x.element_size() for x in activations)
    if case.op == "linear_cross_entropy":  # both gradients too, and each input twice
        assert case.work("both")[1] == pytest.approx(3 * traffic)
    else:
        assert case.work("forward")[1] == pytest.approx(traffic, rel=0.07)  # and a number or two a row


def test_what_the_capstone_uses_comes_first_and_nothing_twice():
    ordered = list(map(str, cases.in_order(torch.device("cuda"))))
    assert len(set(ordered)) == len(ordered) == sum(len(f(torch.device("cuda"))) for f in cases.CASES.values())
    assert ordered[:4] == [
        *(f"causal_attention_packed B=64 H=8 T={T} D=64 bfloat16" for T in (256, 512, 1024)),
        "add_layer_norm rows=16384 width=512 bfloat16",
    ]
    first = sum(cases.FIRST.values())
    for early in ("rms_norm rows=65536 width=512", "swiglu rows=16384 width=2048", "linear_cross_entropy rows=16384"):
        assert any(early in case for case in ordered[:first]), early
    for published in ("layer_norm rows=4096 width=1024 float32", "swiglu rows=8192 width=3072 bfloat16"):
        assert published in ordered[first:]
    apart = [case for case in ordered if case.startswith("causal_attention ")]
    assert apart[:3] == [
        f"causal_attention B={B} H={H} T={T} D={D} bfloat16"
        for B, H, T, D in ((16, 32, 1024, 64), (16, 16, 1024, 128), (4, 32, 4096, 64))
    ]
    assert not {*apart} & {*ordered[:first]}


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("name", ["attention", "attention_apart"])
def test_the_reference_is_not_timed_at_lengths_where_it_would_hold_too_much_and_tells_how_much(
    name, dtype, monkeypatch
):
    case = dataclasses.replace(SMALL[name], dtype=dtype)
    kept = {}

    def keep(x):
        if x.numel() == 2 * 3 * 16 * 16:  # an attention weight each
            kept[x.untyped_storage().data_ptr()] = x.nbytes
        return x

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x):
        outputs = case.reference(*case.inputs(CPU))
    assert case.kept_by_reference == sum(kept.values()) and outputs[0].requires_grad
    every = [p for p in providers(case.op, CPU) if p.name in ("reference", "torch")]
    monkeypatch.setattr(peers, "LONGEST_PLAIN", 16)
    assert {row.status for row in contest.measure(case, CPU, every, ["both"], 0.01)} == {"ok"}
    monkeypatch.setattr(peers, "LONGEST_PLAIN", 15)
    plain, fused = contest.measure(case, CPU, every, ["both"], 0.01)
    assert (plain.status, plain.median, fused.status) == ("absent", None, "ok")
    assert plain.reason == f"would hold {sum(kept.values()) / 2**30:.3g} GiB of attention weights; timed up to T = 15"


def test_plain_attention_over_the_whole_cache_decodes():
    case = SMALL["decode"]
    (plain,) = (p for p in peers.PEERS[case.op] if p.name == "sdpa")
    assert [row.status for row in contest.measure(case, CPU, [plain], case.passes, 0.01)] == ["ok"]


def attend(q, k, v, causal, deterministic=False):
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))
    assert causal and deterministic in (True, False)
    return reference.causal_attention(q, k, v).transpose(1, 2)


def loss(input, weight, target, accum_dtype=None):
    assert accum_dtype in (None, torch.float32)
    return reference.linear_cross_entropy(input, weight, target)


def residual_first(x, weight=None, bias=None, residual=None, eps=1e-6, prenorm=False):
    return reference.add_rms_norm(x, residual, weight, eps) if prenorm else reference.rms_norm(x, weight, eps)


def packed(qkv, softmax_scale=None, causal=False, deterministic=False):
    return attend(*qkv.unbind(2), causal, deterministic)


def liger_rms_norm(X, W, eps, offset=0.0, casting_mode="llama", in_place=True):
    assert not in_place
    return reference.rms_norm(X, W, eps)


def liger_add_rms_norm(X, R, W, eps, offset=0.0, casting_mode="llama", in_place=True):
    assert not in_place
    return reference.add_rms_norm(X, R, W, eps)


def apart(q, k, v, causal=False, deterministic=False):
    assert all(x.shape == (2, 16, 3, 8) for x in (q, k, v))
    return attend(q, k, v, causal, deterministic)


MODULES = {  # as flash-attn 2.8 and 3.0, flash-attn-4 4.0, liger-kernel 0.8.5 and quack-kernels 0.6.5 have them
    "flash_attn": {"flash_attn_qkvpacked_func": packed, "flash_attn_func": apart},
    "flash_attn_interface": {"flash_attn_qkvpacked_func": packed, "flash_attn_func": apart},
    "flash_attn.cute": {"flash_attn_func": apart},
    "liger_kernel.ops": {"LigerFusedGateUpSiLUMulFunction": types.SimpleNamespace(apply=reference.swiglu)},
    "liger_kernel.transformers.functional": {
        "liger_layer_norm": reference.layer_norm,
        "liger_rms_norm": liger_rms_norm,
        "liger_fused_add_rms_norm": liger_add_rms_norm,
        "liger_fused_linear_cross_entropy": loss,
    },
    "quack": {"rmsnorm": residual_first},
    "quack.linear_cross_entropy": {
        "chunked_linear_cross_entropy": lambda x, weight, target, tuned=True: loss(x, weight, target)
    },
}
ANSWERS = [(name, False) for name in SMALL] + [("attention", True), ("attention_apart", True)]


@pytest.mark.parametrize(("name", "statistics"), ANSWERS)
def test_peers_are_given_what_they_take_and_take_part(name, statistics, monkeypatch):
    """Versions of FlashAttention differ in whether they return the statistics of the softmax beside the output."""
    case = SMALL[name]
    for name, functions in MODULES.items():
        module = types.ModuleType(name)
        vars(module).update(functions)
        if statistics:
            vars(module).update({n: lambda *a, f=f, **o: (f(*a, **o), None) for n, f in functions.items()})
        monkeypatch.setitem(sys.modules, name, module)
    theirs = [p for p in peers.PEERS.get(case.op, ()) if p.package != "torch"]
    rows = contest.measure(case, CPU, theirs, case.passes, 0.01)
    assert [(row.provider, row.status) for row in rows] == [(p.name, "ok") for _ in case.passes for p in theirs]


def test_peers_that_are_not_installed_are_absent_and_say_so(monkeypatch):
    for name in MODULES:
        monkeypatch.setitem(sys.modules, name, None)
    for case in SMALL.values():
        theirs = [p for p in peers.PEERS.get(case.op, ()) if p.package != "torch"]
        for row in contest.measure(case, CPU, theirs, ["both"], 0.01) if theirs else ():
            assert row.status == "absent" and row.reason.startswith("not installed")
