"""attn_implementation="minilm": causal_attention in models of Hugging Face transformers.

transformers lets a model look its attention up by name, in an AttentionInterface, and a second table under the same
name makes the mask that is handed to it. Both are filled here. A mask is made only where there is something to mask
but the future: None means that queries are the last rows of the keys and see all up to themselves, which is what
causal_attention computes. Any mask (padding, a sliding window, packed sequences, a static cache that is not full, a
mask of the user's) goes to transformers' own attention over scaled_dot_product_attention, which knows them all; so does
attention that is not causal. What neither can do is refused by name.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from kernels.backend import BACKENDS, Backend, BackendUnavailable, select

NAME = "minilm"  # for the backend that suits the device; minilm_reference, minilm_torch, minilm_triton for one by name

# Arguments of attention that change what comes out, and that causal_attention has no place for.
REFUSED = {
    "output_attentions": "the weights of attention are never held, 'eager' has them",
    "softcap": "scores are not capped",
    "s_aux": "there are no attention sinks",
    "position_bias": "nothing is added to the scores",
    "head_mask": "heads are not masked",
    "cache": "paged caches are not read",
    "cu_seq_lens_q": "packed sequences are told by position_ids, with use_cache=False",
}
# Tensors that transformers passes along and that attention, a mask being made for it, has no use for.
UNUSED = {"position_ids", "cache_position", "num_items_in_batch"}


def implementation_name(backend: str) -> str:
    """What to give as attn_implementation for a backend: "minilm" for "auto", "minilm_torch" for "torch"."""
    return NAME if backend == "auto" else f"{NAME}_{backend}"


def register_with_transformers() -> tuple[str, ...]:
    """Make attn_implementation="minilm" known to transformers, and minilm_reference, minilm_torch, minilm_triton.

        kernels.register_with_transformers()
        model = AutoModelForCausalLM.from_pretrained(folder, attn_implementation="minilm")

    Returns the four names; calling it again changes nothing. Dropout of attention weights draws its seed from PyTorch's
    generator, and is another draw than that of PyTorch's own attention. Raises BackendUnavailable where transformers is
    missing or older than its present interface for masks (5.23 is the version that is tested).
    """
    try:
        from transformers import AttentionInterface, AttentionMaskInterface
        from transformers.masking_utils import sdpa_mask
    except ImportError as error:
        raise BackendUnavailable(
            f"transformers cannot be imported ({error}); pip install 'transformers>=5.23'"
        ) from None
    if "q_offset" not in inspect.signature(sdpa_mask).parameters:
        raise BackendUnavailable("this transformers makes masks in an older way; pip install 'transformers>=5.23'")
    names = {implementation_name(backend): backend for backend in ("auto", *BACKENDS)}
    for name, backend in names.items():
        AttentionInterface.register(name, _attention_of(backend))
        AttentionMaskInterface.register(name, mask_or_none)
    return tuple(names)


def _attention_of(backend: str) -> Callable[..., tuple[Tensor, None]]:
    def attention(module, query, key, value, attention_mask, **options):
        return attend(backend, module, query, key, value, attention_mask, **options)

    return attention


def attend(
    backend: str,
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    is_causal: bool | None = None,
    **others: Any,
) -> tuple[Tensor, None]:
    """What transformers calls: query (B, H, Tq, D), key, value (B, Hkv, Tk, D) to (B, Tq, H, D), and no weights.

    attention_mask: None, or a mask (B, 1, Tq, Tk), bool or additive. Raises ValueError naming what it cannot do.
    """
    for name, given in others.items():
        if name in REFUSED and given is not None and given is not False:
            raise ValueError(f'attn_implementation="{NAME}" does not take {name}: {REFUSED[name]}.')
        if isinstance(given, Tensor) and name not in UNUSED:
            raise ValueError(f'attn_implementation="{NAME}" does not know what {name} means to attention.')
    causal = getattr(module, "is_causal", True) if is_causal is None else is_causal
    if attention_mask is not None or not causal or key.shape != value.shape:
        from transformers.integrations.sdpa_attention import sdpa_attention_forward

        options = {"dropout": dropout, "scaling": scaling, "is_causal": is_causal}
        return sdpa_attention_forward(module, query, key, value, attention_mask, **options)
    # drawn anew at every call, and drawn again alike where checkpointing runs a forward twice
    seed = torch.randint(2**62, (), device=query.device) if dropout > 0 else None
    out = _ops(backend, query.device.type).causal_attention(
        query, key, value, scale=scaling, dropout_p=dropout, dropout_seed=seed
    )
    return out.transpose(1, 2), None


@functools.cache
def _ops(backend: str, device_type: str) -> Backend:
    return select(backend, device_type)


def mask_or_none(
    q_length: int,
    kv_length: int,
    q_offset: int | Tensor = 0,
    kv_offset: int = 0,
    mask_function: Callable[..., Any] | None = None,
    attention_mask: Tensor | None = None,
    local_size: int | None = None,
    allow_is_causal_skip: bool = True,
    allow_is_bidirectional_skip: bool = False,
    **others: Any,
) -> Tensor | None:
    """None where the mask is that of causal_attention, else the mask, bool (B, 1, q_length, kv_length).

    Queries stand at q_offset, keys at kv_offset, in the sequence; attention_mask (B, kv_length) is False at padding.
    transformers' own version also answers None where queries are the first rows (an empty static cache) and where
    nothing is causal; neither may reach causal_attention.
    """
    from transformers.masking_utils import causal_mask_function, sdpa_mask

    causal = mask_function is causal_mask_function
    last_rows = isinstance(q_offset, int) and q_offset + q_length == kv_offset + kv_length
    # transformers does not look at the function where it may skip, but at the window: a wide one masks nothing
    skip = allow_is_causal_skip and last_rows and (causal or local_size is not None)
    if skip and causal and not torch.compiler.is_compiling():
        unpadded = attention_mask is None or (attention_mask.shape[-1] == kv_length and bool(attention_mask.all()))
        if unpadded:  # transformers has a mask made for 1 < q_length < kv_length, of which its own attention has need
            return None
    return sdpa_mask(
        q_length=q_length,
        kv_length=kv_length,
        q_offset=q_offset,
        kv_offset=kv_offset,
        mask_function=causal_mask_function if mask_function is None else mask_function,
        attention_mask=attention_mask,
        local_size=local_size,
        allow_is_causal_skip=skip,
        **others,
    )
