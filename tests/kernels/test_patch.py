"""kernels.patch: somebody else's model computes the same with our operations, and is given back as it was."""

import copy

import pytest
import torch
from error_rule import assert_close_by_rule
from small_models import FAMILIES, build, logits_and_gradients, tokens
from torch import nn

import kernels
from kernels import attention_interface

# --- the same model ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("backend", ["reference", "torch", "triton"])
@pytest.mark.parametrize("family", FAMILIES)
def test_logits_and_every_gradient_stay_within_the_error_rule(family, backend, dtype, device):
    small = backend == "triton" and device == "cpu"  # which is interpreted
    model = build(family, n_layers=1 if small else 2).to(device, dtype).train()
    ids = tokens(2, 5 if small else 9).to(device)
    plain = logits_and_gradients(model, ids)
    unpatched = copy.deepcopy(model)
    with kernels.patch(model, backend) as patched:
        fused = logits_and_gradients(model, ids)
    n = len(model.base_model.layers if family == "llama" else model.base_model.h)
    norms = {"layer_norm": 2 * n + 1} if family == "gpt2" else {"rms_norm": 2 * n + 1, "swiglu": n}
    assert patched.swapped == {**norms, "attention": n} and patched.left == ()
    exact = copy.deepcopy(model).double()
    kernels.patch(exact, "reference")  # transformers' own Llama takes some steps in float32 whatever its dtype
    exact = logits_and_gradients(exact, ids)
    if dtype == torch.float32:  # the judge itself computes this model
        assert all((plain[name] - x).abs().max() < 1e-5 * x.abs().max() for name, x in exact.items())
    ours, right = ([results[name] for name in plain] for results in (fused, exact))
    names = [f"{family}, {backend}, {name}" for name in plain]
    assert_close_by_rule(ours, lambda: list(logits_and_gradients(unpatched, ids).values()), right, names)


@pytest.mark.parametrize("family", FAMILIES)
def test_each_operation_computes_through_the_backend(family, monkeypatch):
    """Numbers alone do not show it: a patch that changed nothing would pass them."""
    called = []
    real = kernels.select("reference")

    def spy(op):
        return lambda *args, **kwargs: called.append(op) or getattr(real, op)(*args, **kwargs)

    spies = kernels.Backend("reference", **{op: spy(op) for op in kernels.backend.OPS})
    monkeypatch.setattr("kernels.patching.select", lambda *_: spies)
    monkeypatch.setattr("kernels.attention_interface._ops", lambda *_: spies)
    model = build(family)
    kernels.patch(model, "reference")
    model(tokens(1, 4))
    norm = "layer_norm" if family == "gpt2" else "rms_norm"
    assert called.count(norm) == 5 and called.count("causal_attention") == 2
    assert called.count("swiglu_unpacked") == (0 if family == "gpt2" else 2)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_state_dict_is_the_same_tensors_under_the_same_keys(family):
    model = build(family)
    before, modules = model.state_dict(), list(model.modules())
    with kernels.patch(model, "torch"):
        during = model.state_dict()
        assert list(during) == list(before) and list(model.modules()) == modules
        assert all(during[key].data_ptr() == before[key].data_ptr() for key in before)
        model.load_state_dict(before)


@pytest.mark.parametrize("family", FAMILIES)
def test_undoing_gives_the_very_bits_back(family):
    model, ids = build(family, attn_implementation="eager"), tokens(2, 6)
    before = logits_and_gradients(model, ids)
    patched = kernels.patch(model, "reference")
    assert model.config._attn_implementation == "minilm_reference"
    assert not torch.equal(model(ids).logits, before["logits"])  # else nothing below would show anything
    patched.undo()
    after = logits_and_gradients(model, ids)
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert model.config._attn_implementation == "eager"
    assert not any("forward" in vars(m) or attention_interface.NAME in str(vars(m).keys()) for m in model.modules())
    with pytest.raises(KeyError), kernels.patch(model, "reference"):
        raise KeyError
    assert torch.equal(model(ids).logits, before["logits"])
    kernels.unpatch(model)  # nothing to undo is no error


def test_a_copy_of_a_patched_model_stands_alone():
    model, ids = build("llama"), tokens(1, 5)
    before = model(ids).logits
    kernels.patch(model, "reference")
    copied, during = copy.deepcopy(model), model(ids).logits
    with torch.no_grad():
        model.model.norm.weight.zero_()
    assert torch.equal(copied(ids).logits, during)
    kernels.unpatch(copied)
    assert torch.equal(copied(ids).logits, before)


def test_a_patched_model_compiles_whole():
    torch._dynamo.reset()
    model, ids = build("llama", n_layers=1), tokens(2, 6)
    kernels.patch(model, "torch")
    model.set_attn_implementation("minilm")  # whose backend is found at the first call
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    written = compiled(ids, use_cache=False).logits
    torch.testing.assert_close(written, model(ids, use_cache=False).logits)


# --- any module -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_norms_of_torch_are_swapped_in_any_module(dtype):
    torch.manual_seed(0)
    layers = (nn.LayerNorm(8), nn.LayerNorm(8, eps=0.1, bias=False), nn.RMSNorm(8), nn.RMSNorm(8, eps=0.1))
    module = nn.Sequential(*layers).to(dtype)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(torch.randn_like(parameter))
    # so small that what an RMSNorm takes for eps, where it has none, decides
    for x in (torch.randn(3, 5, 8), torch.randn(3, 5, 8) * 1e-3):
        for layer in module:
            plain, exact = copy.deepcopy(layer), copy.deepcopy(layer)
            for name, parameter in exact.named_parameters():
                setattr(exact, name, nn.Parameter(parameter.double()))
            if exact.eps is None:
                exact.eps = torch.finfo(torch.float32).eps
            with kernels.patch(layer, "reference"):
                ours, right = [layer(x.to(dtype))], [exact(x.to(dtype).double())]
                assert_close_by_rule(ours, lambda plain=plain, x=x: [plain(x.to(dtype))], right, [str(layer)])
    assert kernels.patch(module, "torch").swapped == {"layer_norm": 2, "rms_norm": 2}


def test_what_is_not_ours_is_left_and_named():
    class Upcast(nn.LayerNorm):
        def forward(self, x):
            return super().forward(x.float()).to(x.dtype)

    module = nn.ModuleList([nn.LayerNorm(4), nn.LayerNorm(4, elementwise_affine=False), nn.RMSNorm((2, 4)), Upcast(4)])
    patched = kernels.patch(module, "torch")
    assert patched.swapped == {"layer_norm": 1}
    assert patched.left == ("LayerNorm without weights", "RMSNorm over 2 dimensions")
    assert str(patched) == "1 x layer_norm by torch; left: LayerNorm without weights; left: RMSNorm over 2 dimensions"
    gelu = build("llama", n_layers=1, hidden_act="gelu")
    assert kernels.patch(gelu, "torch").left == ("LlamaMLP with GELUActivation for SiLU",)


@pytest.mark.parametrize(("op", "n"), [("layer_norm", 1), ("rms_norm", 4), ("swiglu", 1), ("attention", 1)])
def test_only_what_is_asked_for_is_swapped(op, n):
    llama = build("llama", n_layers=1)
    assert kernels.patch(nn.ModuleList([llama, nn.LayerNorm(4), nn.RMSNorm(4)]), "torch", (op,)).swapped == {op: n}
    assert llama.config._attn_implementation == ("minilm_torch" if op == "attention" else "sdpa")


def test_what_cannot_be_patched_is_said_in_a_sentence():
    with pytest.raises(ValueError, match="'norm'; there are layer_norm, rms_norm, swiglu, attention"):
        kernels.patch(nn.LayerNorm(4), ops=("norm",))
    with pytest.raises(ValueError, match="nothing in this Linear can be swapped"):
        kernels.patch(nn.Linear(4, 4))
    model = build("llama", n_layers=1)
    for ops in (("rms_norm",), ("attention",)):
        with kernels.patch(model, "torch", ops), pytest.raises(ValueError, match="patch"):
            kernels.patch(model, "torch", ops)
    hooked = nn.LayerNorm(4)
    hooked.forward = lambda x: x
    with pytest.raises(ValueError, match="a LayerNorm .layer_norm. has a forward set on the instance already"):
        kernels.patch(hooked)
    assert hooked(1) == 1
