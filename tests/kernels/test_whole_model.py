"""The whole model on Triton kernels is the whole model on the reference: loss, every gradient, and what it becomes."""

import pytest
import torch

import kernels
from minilm.config import ModelConfig
from minilm.hardware import saved_bytes
from minilm.model import GPT

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
SMALL = {"n_layers": 2, "n_heads": 2, "d_model": 32, "vocab_size": 40, "context_length": 24}
KINDS = {
    "gpt": {},
    "gpt, no bias, untied, dropout": {"bias": False, "tie_embeddings": False, "dropout": 0.2},
    "llama": {"norm_type": "rmsnorm", "position": "rope", "activation": "swiglu", "n_kv_heads": 1, "bias": False},
    "post-norm": {"norm": "post"},
}


def make(ops, **changes):
    torch.manual_seed(0)
    with torch.device(DEVICE):
        return GPT(ModelConfig(**{**SMALL, **changes}), kernels.select(ops, DEVICE))


def batch(seed):
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.randint(40, (2, 25), generator=generator).to(DEVICE)
    return tokens[:, :-1], tokens[:, 1:]


@pytest.mark.parametrize("kind", KINDS)
def test_loss_and_every_gradient_are_those_of_the_reference(kind):
    results = []
    for ops in ("reference", "triton"):
        model = make(ops, **KINDS[kind])
        torch.manual_seed(3)  # of the dropout
        loss = model(*batch(1))
        loss.backward()
        results.append((loss.item(), {name: p.grad for name, p in model.named_parameters()}))
    (loss_a, grads_a), (loss_b, grads_b) = results
    assert loss_b == pytest.approx(loss_a, rel=1e-6)
    for name, grad in grads_a.items():
        assert (grads_b[name] - grad).abs().max() <= 1e-5 * grad.abs().max() + 1e-8, name


@pytest.mark.parametrize("kind", KINDS)
def test_decoding_with_a_cache_gives_the_text_of_the_reference_without_one(kind):
    context = batch(1)[0][:, :4]
    texts = []
    for ops, cache in (("reference", False), ("triton", True)):
        model = make(ops, **{**KINDS[kind], "context_length": 8}).eval()
        with torch.no_grad():
            for parameter in model.blocks.parameters():
                parameter.mul_(8.0 if parameter.ndim == 2 else 1.0)
        texts.append(model.generate(context, 12, 0.0, cache=cache))
    assert torch.equal(*texts)


def test_twenty_steps_of_training_are_those_of_the_reference():
    """The project's margin in float32: losses at most 1e-4 apart."""
    curves = []
    for ops in ("reference", "triton"):
        model = make(ops, n_layers=1)
        optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
        losses = []
        for step in range(20):
            loss = model(*batch(step % 2))
            losses.append(loss.item())
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        curves.append(torch.tensor(losses))
    assert (curves[0] - curves[1]).abs().max() <= 1e-4
    assert curves[1][-1] < 0.8 * curves[1][0]


def test_a_model_of_the_reference_writes_the_same_greedy_text_on_triton():
    model = make("reference").eval()
    context = torch.tensor([[1, 2, 3]], device=DEVICE)
    text = model.generate(context, 10, temperature=0.0)
    assert torch.equal(model.use(kernels.select("triton", DEVICE)).generate(context, 10, temperature=0.0), text)


def test_memory_is_estimated_on_meta_tensors():
    """The fake implementations answer for meta tensors too; the kernels keep less than the reference does."""
    kept = {}
    for ops in ("reference", "triton"):
        with torch.device("meta"):
            model = GPT(ModelConfig(**SMALL), kernels.select(ops, DEVICE))
            tokens = torch.empty(2, 24, dtype=torch.int64)
        kept[ops] = saved_bytes(model, tokens, tokens)
    assert 0 < kept["triton"] < 0.8 * kept["reference"]
