"""The model: the same whatever the kernels, the same as GPT-2's, counted exactly, started as it should."""

import dataclasses
import math

import pytest
import torch

import kernels
from minilm.config import ModelConfig, build
from minilm.errors import UserError
from minilm.hardware import saved_bytes
from minilm.model import GPT, rotary_table, rotate

SMALL = {"n_layers": 2, "n_heads": 4, "d_model": 32, "vocab_size": 50, "context_length": 16}
KINDS = {
    "gpt": {},
    "gpt, no bias, untied": {"bias": False, "tie_embeddings": False},
    "llama": {"norm_type": "rmsnorm", "position": "rope", "activation": "swiglu", "n_kv_heads": 2, "bias": False},
    "post-norm, relu": {"norm": "post", "activation": "relu"},
    "dropout": {"dropout": 0.3},
    "normed queries and keys, squared relu": {
        **{"qk_norm": True, "activation": "relu2", "position": "rope", "rope_base": 500.0},
        **{"tie_embeddings": False, "bias": False},
    },
    "normed by rmsnorm, positions learned": {"qk_norm": True, "norm_type": "rmsnorm"},
}


def make(seed=0, ops="torch", **changes):
    torch.manual_seed(seed)
    return GPT(ModelConfig(**{**SMALL, **changes}), kernels.select(ops))


def batch(seed=1, rows=3):
    torch.manual_seed(seed)
    return torch.randint(50, (rows, 17)).split((16, 1), dim=1)[0], torch.randint(50, (rows, 16))


@pytest.mark.parametrize("kind", KINDS)
def test_backends_agree_on_logits_loss_and_every_gradient(kind):
    results = []
    for ops in ("reference", "torch"):
        model = make(ops=ops, **KINDS[kind])
        tokens, targets = batch()
        torch.manual_seed(7)  # of the dropout
        loss = model(tokens, targets)
        loss.backward()
        results.append((loss, model.eval()(tokens), {n: p.grad for n, p in model.named_parameters()}))
    (loss_a, logits_a, grads_a), (loss_b, logits_b, grads_b) = results
    torch.testing.assert_close(loss_a, loss_b, rtol=1e-6, atol=0)
    torch.testing.assert_close(logits_a, logits_b, rtol=0, atol=1e-5)
    assert grads_a.keys() == grads_b.keys()
    for name in grads_a:
        assert (grads_a[name] - grads_b[name]).abs().max() <= 1e-5 * grads_a[name].abs().max() + 1e-8, name


@pytest.mark.parametrize("kind", KINDS)
def test_backends_agree_over_a_hundred_steps(kind):
    """DESIGN's margin: losses at most 1e-4 apart in float32."""
    curves = []
    for ops in ("reference", "torch"):
        model = make(ops=ops, **KINDS[kind])
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
        torch.manual_seed(5)
        losses = []
        for step in range(100):
            loss = model(*batch(step % 4))  # few enough to be learned by heart
            losses.append(loss.item())
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        curves.append(torch.tensor(losses))
    assert (curves[0] - curves[1]).abs().max() <= 1e-4
    assert curves[0][0] > curves[0][-1]


def test_state_dict_keys_do_not_depend_on_the_kernels_or_the_precision():
    a, b = make(ops="reference"), make(ops="torch")
    b.use(kernels.select("torch"), torch.bfloat16, torch.float32)
    assert list(a.state_dict()) == list(b.state_dict())
    assert {t.dtype for t in b.state_dict().values()} == {torch.float32}


def test_logits_are_those_of_gpt2():
    transformers = pytest.importorskip("transformers")
    config = dataclasses.asdict(build("gpt2").model) | {**SMALL, "d_ff": 128, "n_kv_heads": 4}
    ours = make(**{k: v for k, v in config.items() if k not in SMALL}).eval()
    torch.manual_seed(3)
    for parameter in ours.parameters():  # biases and norms too, so that each is seen to be used
        parameter.data.normal_(0, 0.2)
    settings = transformers.GPT2Config(
        vocab_size=50, n_positions=16, n_embd=32, n_layer=2, n_head=4, n_inner=128, activation_function="gelu_new"
    )
    theirs = transformers.GPT2LMHeadModel(settings).eval()
    names = {
        "token_embedding": "transformer.wte",
        "position_embedding": "transformer.wpe",
        "final_norm": "transformer.ln_f",
        "head": "lm_head",
        "blocks": "transformer.h",
        "norm_1": "ln_1",
        "norm_2": "ln_2",
        "attention.qkv": "attn.c_attn",
        "attention.out": "attn.c_proj",
        "mlp.up": "mlp.c_fc",
        "mlp.down": "mlp.c_proj",
    }
    state = {}
    for name, value in ours.state_dict().items():
        is_linear = name.startswith("blocks") and value.ndim == 2
        for old, new in names.items():
            name = name.replace(old, new)
        state[name] = value.T if is_linear else value  # GPT-2's Conv1D holds its matrix the other way round
    missing = theirs.load_state_dict(state, strict=False)
    assert not missing.unexpected_keys and not [k for k in missing.missing_keys if "attn.bias" not in k]
    tokens, _ = batch()
    with torch.no_grad():
        torch.testing.assert_close(ours(tokens), theirs(tokens).logits, rtol=0, atol=1e-5)


def test_zero_out_begins_from_the_embeddings_alone():
    model = make(init="zero_out", tie_embeddings=False, d_model=256, vocab_size=1000, n_layers=2, activation="relu2")
    for name, p in model.named_parameters():
        if name.endswith(("out.weight", "down.weight", "bias")) or name == "head.weight":
            assert (p == 0).all(), name
        elif p.ndim == 2:
            expected = 1.0 if "embedding" in name else p.shape[1] ** -0.5
            assert p.std().item() == pytest.approx(expected, rel=0.03), name
    tokens, targets = batch()
    assert model(tokens, targets).item() == pytest.approx(math.log(1000), rel=1e-6)
    with pytest.raises(UserError, match=r"model.init is 'zero_out'; it must be gpt2 where model.tie_embeddings"):
        make(init="zero_out")


def test_normed_queries_and_keys_do_not_know_their_size():
    """Scores depend on directions alone, so scaled projections change nothing; without the norm they do."""
    for qk_norm in (True, False):
        model = make(qk_norm=qk_norm, bias=False).eval()
        tokens, _ = batch()
        before = model(tokens)
        with torch.no_grad():
            for block in model.blocks:
                block.attention.qkv.weight[:64] *= 30  # of queries and keys
        assert torch.allclose(model(tokens), before, atol=1e-4) == qk_norm


def test_initialisation_is_gpt2s():
    model = make(n_layers=8, d_model=256, vocab_size=1000)
    for name, p in model.named_parameters():
        if name.endswith("bias"):
            assert p.abs().max() == 0, name
        elif "norm" in name:
            assert (p == 1).all(), name
        else:
            expected = 0.02 / 4 if name.endswith(("out.weight", "down.weight")) else 0.02
            spread = 6 * expected / math.sqrt(2 * p.numel())  # six standard errors of a standard deviation
            assert p.std().item() == pytest.approx(expected, abs=spread), name
    tokens, targets = torch.randint(1000, (4, 16)), torch.randint(1000, (4, 16))
    assert model(tokens, targets).item() == pytest.approx(math.log(1000), rel=0.02)


@pytest.mark.parametrize("kind", KINDS)
def test_parameter_counts_are_exact(kind):
    model = make(**KINDS[kind])
    c, counts = model.config, model.count_parameters()
    unique = {id(p): p.numel() for p in model.parameters()}
    assert counts["total"] == sum(unique.values())
    tables = c.vocab_size * c.d_model + (c.context_length * c.d_model if c.position == "learned" else 0)
    assert counts["embedding"] == tables
    head = 0 if c.tie_embeddings else c.vocab_size * c.d_model
    assert counts["non_embedding"] == counts["total"] - tables - head
    kv = c.n_kv_heads * c.head_dim
    per_block = c.d_model * (2 * c.d_model + 2 * kv) + (3 if c.activation == "swiglu" else 2) * c.d_model * c.d_ff
    assert counts["matrices_and_head"] == c.n_layers * per_block + c.vocab_size * c.d_model


def test_the_capstone_has_25_million_parameters_beside_its_embeddings():
    with torch.device("meta"):
        model = GPT(build("capstone", {"model": {"vocab_size": 70}}).model)
    counts = model.count_parameters()
    assert counts["non_embedding"] == 8 * (12 * 512**2 + 13 * 512) + 2 * 512 == 25_220_096
    assert counts["total"] == counts["non_embedding"] + (70 + 256) * 512


def test_swiglu_keeps_the_parameters_of_the_plain_mlp():
    plain, gated = (ModelConfig(d_model=768, n_heads=12, activation=a) for a in ("gelu", "swiglu"))
    assert 3 * gated.d_ff == pytest.approx(2 * plain.d_ff, rel=0.01)


def test_positions_of_rope_turn_pairs_by_their_angle():
    x = torch.randn(1, 1, 5, 8)
    cos, sin = rotary_table(torch.arange(5), 8)
    turned = rotate(x, cos, sin)
    torch.testing.assert_close(turned.norm(dim=-1), x.norm(dim=-1))
    position, pair = 3, 1
    angle = position * 10_000 ** (-2 * pair / 8)
    a, b = x[0, 0, position, pair], x[0, 0, position, pair + 4]
    expected = a * math.cos(angle) - b * math.sin(angle)
    torch.testing.assert_close(turned[0, 0, position, pair], expected)


def test_precision_settings_are_obeyed():
    model = make().use(kernels.select("torch"), torch.bfloat16, torch.float32)
    tokens, targets = batch()
    assert model.hidden(tokens).dtype == torch.float32 and model(tokens).dtype == torch.bfloat16
    assert model.use(model.ops, torch.bfloat16).hidden(tokens).dtype == torch.bfloat16
    loss = model(tokens, targets)
    loss.backward()
    assert loss.dtype == torch.float32 and {p.grad.dtype for p in model.parameters()} == {torch.float32}


def test_dropout_acts_in_training_only_and_follows_the_generator():
    model = make(dropout=0.5)
    tokens, targets = batch()

    def loss(seed):
        torch.manual_seed(seed)
        return model(tokens, targets).item()

    assert loss(1) == loss(1) != loss(2)
    model.eval()
    assert loss(1) == loss(2)


def test_too_long_an_input_is_refused():
    with pytest.raises(ValueError, match="17 tokens are longer than the context of 16"):
        make()(torch.zeros(1, 17, dtype=torch.int64))


@pytest.mark.parametrize("kind", KINDS)
def test_activations_computed_again_are_the_same_to_the_bit_and_take_less_memory(kind):
    """Dropout included: it is drawn again as it was."""
    results, kept = [], []
    tokens, targets = batch()
    for again in (False, True):
        model = make(**{"n_layers": 6, **KINDS[kind]})
        model.checkpoint_activations = again
        torch.manual_seed(7)
        loss = model(tokens, targets)
        loss.backward()
        results.append([loss, *(p.grad for p in model.parameters())])
        kept.append(saved_bytes(model, tokens, targets))
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))
    assert kept[1] < 0.5 * kept[0]


def test_bytes_kept_for_the_backward_are_counted_on_meta_tensors():
    real = make(ops="reference")
    tokens, targets = batch()
    with torch.device("meta"):
        meta = GPT(real.config, kernels.select("reference"))
    counted, kept = saved_bytes(meta, tokens.to("meta"), targets.to("meta")), saved_bytes(real, tokens, targets)
    assert counted == pytest.approx(kept, rel=1e-3) and kept > 100_000  # a few scalars differ between devices
