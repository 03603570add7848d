"""Small models of Hugging Face's, of random weights, that the tests hold kernels.patch against."""

import pytest
import torch

transformers = pytest.importorskip("transformers")

SIZES = {
    "llama": {"hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 4, "num_key_value_heads": 2},
    "mistral": {"hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 4, "num_key_value_heads": 2},
    "gpt2": {"n_embd": 32, "n_head": 4, "attn_pdrop": 0.0, "resid_pdrop": 0.0, "embd_pdrop": 0.0},
}
FAMILIES = ["gpt2", "llama"]
PAD = 0


def build(family: str, n_layers: int = 2, **settings):
    """A small model of random weights: large, so that attention decides; norms' too, so that theirs are seen used."""
    torch.manual_seed(0)
    special = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": PAD, "initializer_range": 0.12}
    config = transformers.AutoConfig.for_model(
        family, vocab_size=50, max_position_embeddings=64, num_hidden_layers=n_layers,
        **{**SIZES[family], **special, **settings},
    )  # fmt: skip
    model = transformers.AutoModelForCausalLM.from_config(config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" in name or "ln_" in name or name.endswith("bias"):
                parameter.add_(torch.randn_like(parameter) * 0.3)
    return model.eval()


def tokens(batch: int, length: int) -> torch.Tensor:
    return torch.randint(3, 50, (batch, length), generator=torch.Generator().manual_seed(1))


def logits_and_gradients(model, ids: torch.Tensor) -> dict[str, torch.Tensor]:
    model.zero_grad()
    logits = model(ids).logits
    upstream = torch.randn(logits.shape, generator=torch.Generator().manual_seed(2))
    logits.backward(upstream.to(logits))
    return {"logits": logits.detach(), **{n: p.grad.clone() for n, p in model.named_parameters()}}
