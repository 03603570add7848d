"""A GPT, to be read in one sitting: embeddings, blocks of attention and MLP on a residual stream, a head.

The three operations that take the time (attention, SwiGLU, LayerNorm) and the loss are called through a Backend
(see kernels/backend.py), so the same model runs on plain PyTorch, on PyTorch's fused operators or on Triton kernels.

Shapes: B batch, T time, C d_model, H heads, D head width, F d_ff, V vocabulary.
"""

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import kernels
from kernels import Backend
from kernels.reference import unpack_heads
from minilm import decoding
from minilm.config import ModelConfig
from minilm.decoding import KVCache, Sampling


class Linear(nn.Linear):
    """A linear layer that computes in `dtype` whatever its input and its stored weights are.

    This replaces autocast, whose list of operations differs between CPU and CUDA: here the same casts happen
    everywhere. Master weights stay in float32.
    """

    dtype = torch.float32

    def forward(self, x: Tensor) -> Tensor:
        bias = None if self.bias is None else self.bias.to(self.dtype)
        return F.linear(x.to(self.dtype), self.weight.to(self.dtype), bias)


class Norm(nn.Module):
    """LayerNorm or RMSNorm, alone or with the addition to the residual stream that goes before it."""

    def __init__(self, config: ModelConfig, ops: Backend, width: int | None = None):
        super().__init__()
        self.ops, self.rms, self.eps = ops, config.norm_type == "rmsnorm", config.norm_eps
        width = width or config.d_model
        self.weight = nn.Parameter(torch.empty(width))
        self.bias = nn.Parameter(torch.empty(width)) if config.bias and not self.rms else None

    def forward(self, x: Tensor) -> Tensor:
        """norm(x)"""
        if self.rms:
            return self.ops.rms_norm(x, self.weight, self.eps)
        return self.ops.layer_norm(x, self.weight, self.bias, self.eps)

    def add(self, branch: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
        """norm(x + branch) and x + branch, in one pass over memory."""
        if self.rms:
            return self.ops.add_rms_norm(branch, x, self.weight, self.eps)
        return self.ops.add_layer_norm(branch, x, self.weight, self.bias, self.eps)


class Attention(nn.Module):
    def __init__(self, config: ModelConfig, ops: Backend):
        super().__init__()
        self.ops, self.config = ops, config
        heads = config.n_heads + 2 * config.n_kv_heads
        self.qkv = Linear(config.d_model, heads * config.head_dim, bias=config.bias)
        self.out = Linear(config.d_model, config.d_model, bias=config.bias)
        # of the queries and keys of each head (Henry et al. 2020): scores then depend on directions alone
        self.norm_q, self.norm_k = (Norm(config, ops, config.head_dim) if config.qk_norm else None for _ in range(2))

    def forward(
        self,
        x: Tensor,
        rotation: tuple[Tensor, Tensor] | None,
        dropout_seed: Tensor | None,
        past: tuple[Tensor, Tensor, Tensor] | None = None,
    ) -> Tensor:
        n_heads, n_kv_heads = self.config.n_heads, self.config.n_kv_heads
        dropout = {"dropout_p": self.config.dropout, "dropout_seed": dropout_seed} if dropout_seed is not None else {}
        qkv = self.qkv(x)  # (B, T, (H + 2·Hkv)·D)
        if rotation is None and past is None and self.norm_q is None:
            y = self.ops.causal_attention_packed(qkv, n_heads, n_kv_heads, **dropout)  # (B, T, C)
        else:
            q, k, v = unpack_heads(qkv, n_heads, n_kv_heads)  # (B, H or Hkv, T, D)
            if self.norm_q is not None:
                q, k = self.norm_q(q), self.norm_k(k)  # type: ignore[misc]  # both or none
            if rotation is not None:  # both at once: at small sizes an operation costs more than its arithmetic
                q, k = rotate(torch.cat((q, k), dim=1), *rotation).split((n_heads, n_kv_heads), dim=1)
            y = self.ops.causal_attention(q, k, v, **dropout) if past is None else self.attend_past(q, k, v, *past)
            y = y.transpose(1, 2).flatten(2)  # (B, T, C)
        return self.out(y)

    def attend_past(self, q: Tensor, k: Tensor, v: Tensor, keys: Tensor, values: Tensor, lengths: Tensor) -> Tensor:
        """One new token (T = 1) after what the caches (B, Hkv, S, D) hold; or a whole beginning, into empty ones."""
        T = q.shape[2]
        if T > 1:
            keys[:, :, :T], values[:, :, :T] = k, v
            return self.ops.causal_attention(q, k, v)
        at = lengths[:, None, None, None].expand_as(k)
        keys.scatter_(2, at, k)
        values.scatter_(2, at, v)
        return self.ops.decode_attention(q, keys, values, lengths + 1)


class MLP(nn.Module):
    def __init__(self, config: ModelConfig, ops: Backend):
        super().__init__()
        self.ops, self.activation = ops, config.activation
        gated = config.activation == "swiglu"
        self.up = Linear(config.d_model, (2 if gated else 1) * config.d_ff, bias=config.bias)  # gate | up where gated
        self.down = Linear(config.d_ff, config.d_model, bias=config.bias)

    def forward(self, x: Tensor) -> Tensor:
        x = self.up(x)  # (B, T, F) or (B, T, 2F)
        match self.activation:
            case "swiglu":
                x = self.ops.swiglu(x)
            case "gelu":
                x = F.gelu(x)
            case "gelu_tanh":
                x = F.gelu(x, approximate="tanh")
            case "relu":
                x = F.relu(x)
            case "relu2":
                x = F.relu(x).square()  # So et al. 2021
        return self.down(x)


class Block(nn.Module):
    """Attention and MLP. A pre-norm block hands on its last branch unadded: the next norm adds it in its one pass."""

    def __init__(self, config: ModelConfig, ops: Backend):
        super().__init__()
        self.pre, self.dropout = config.norm == "pre", config.dropout
        self.norm_1 = Norm(config, ops)
        self.attention = Attention(config, ops)
        self.norm_2 = Norm(config, ops)
        self.mlp = MLP(config, ops)

    def forward(self, x: Tensor, branch: Tensor | None, rotation, dropout_seed, past=None):
        """(x, branch) after this block: x (B, T, C) and what is still to be added to it, or None."""
        if self.pre:  # x = x + attention(norm(x)); x = x + mlp(norm(x))
            h, x = (self.norm_1(x), x) if branch is None else self.norm_1.add(branch, x)
            h, x = self.norm_2.add(self.drop(self.attention(h, rotation, dropout_seed, past)), x)
            return x, self.drop(self.mlp(h))
        # post-norm (Vaswani et al. 2017): x = norm(x + attention(x)); x = norm(x + mlp(x))
        x, _ = self.norm_1.add(self.drop(self.attention(x, rotation, dropout_seed, past)), x)
        x, _ = self.norm_2.add(self.drop(self.mlp(x)), x)
        return x, None

    def drop(self, x: Tensor) -> Tensor:
        return F.dropout(x, self.dropout, self.training)


class GPT(nn.Module):
    """A decoder-only transformer (Radford et al. 2019), with the variations that ModelConfig names.

    ops: the Backend of its operations. dtype: of matrix products and attention. residual_dtype: of the residual stream
    and of what norms put out. Weights are float32 whatever these are, and state-dict keys do not depend on them.
    """

    checkpoint_activations = False  # keep what goes into each block only, and compute the rest again for the backward
    tokenizer: Any = None  # what its ids stand for, where it was loaded from a run

    def __init__(
        self,
        config: ModelConfig,
        ops: Backend | None = None,
        dtype: torch.dtype = torch.float32,
        residual_dtype: torch.dtype | None = None,
    ):
        super().__init__()
        if config.vocab_size is None:
            raise ValueError("model.vocab_size is not set: a GPT needs to know how many tokens there are")
        ops = ops or kernels.select("torch")
        self.config = config
        self.token_embedding = nn.Embedding(config.vocab_size, config.d_model)
        if config.position == "learned":
            self.position_embedding = nn.Embedding(config.context_length, config.d_model)
        self.blocks = nn.ModuleList(Block(config, ops) for _ in range(config.n_layers))
        # a post-norm block ends in a norm already
        self.final_norm = Norm(config, ops) if config.norm == "pre" else None
        self.head = Linear(config.d_model, config.vocab_size, bias=False)
        if config.tie_embeddings:
            self.head.weight = self.token_embedding.weight
        self.initialise()
        self.use(ops, dtype, residual_dtype)

    @torch.no_grad()
    def initialise(self) -> None:
        """Biases 0 and norms 1; matrices by model.init:

        gpt2: normal with standard deviation 0.02, that of projections into the residual stream divided by the square
        root of their number, 2·n_layers (Radford et al. 2019, section 2.3).
        zero_out: normal with standard deviation 1 / sqrt(inputs), so that signals keep their size whatever the width
        (LeCun et al. 1998, section 4.6); the last matrix of each branch and the head 0, so that training begins from
        the embeddings alone (Zhang et al. 2019, "Fixup Initialization"); embeddings normal with 1.
        """
        zero_out, depth = self.config.init == "zero_out", math.sqrt(2 * self.config.n_layers)
        for name, parameter in self.named_parameters():
            last = name.endswith(("attention.out.weight", "mlp.down.weight"))
            if name.endswith("bias") or (zero_out and (last or name == "head.weight")):
                parameter.zero_()
            elif "norm" in name:
                parameter.fill_(1.0)
            elif zero_out:
                parameter.normal_(0.0, 1.0 if "embedding" in name else parameter.shape[1] ** -0.5)
            else:
                parameter.normal_(0.0, 0.02 / depth if last else 0.02)

    def use(self, ops: Backend, dtype: torch.dtype = torch.float32, residual_dtype: torch.dtype | None = None) -> "GPT":
        """Switch the operations and the precision of an existing model; the weights stay as they are."""
        self.ops, self.dtype, self.residual_dtype = ops, dtype, residual_dtype or dtype
        for module in self.modules():
            if isinstance(module, Norm | Attention | MLP):
                module.ops = ops
            elif isinstance(module, Linear):
                module.dtype = dtype
        return self

    def forward(self, tokens: Tensor, targets: Tensor | None = None) -> Tensor:
        """Logits (B, T, V) for tokens (B, T) int64, T <= context_length; with targets (B, T), the mean loss instead.

        The loss is in nats a token, float32, 0-d. Raises ValueError where T is longer than the context.
        """
        x = self.hidden(tokens)  # (B, T, C)
        if targets is None:
            return self.head(x)  # (B, T, V)
        return self.ops.linear_cross_entropy(
            x.flatten(0, 1).to(self.dtype), self.head.weight.to(self.dtype), targets.flatten()
        )

    def hidden(self, tokens: Tensor, cache: KVCache | Any = None) -> Tensor:
        """What the head reads: the residual stream after the last norm, (B, T, C) in residual_dtype.

        With a cache, tokens are one more for each sequence (B, 1), or the beginnings of all, and their keys and values
        are written into it; to count them in cache.lengths is the caller's.
        """
        T = tokens.shape[1]
        if self.config.context_length < T:
            raise ValueError(f"{T} tokens are longer than the context of {self.config.context_length}")
        x = self.token_embedding(tokens)  # (B, T, C)
        rotation, one_more = None, cache is not None and T == 1
        if self.config.position == "learned":
            table = self.position_embedding.weight
            x = x + (table[cache.lengths].unsqueeze(1) if one_more else table[:T])
        elif one_more:
            angles = rotary_table(cache.lengths, self.config.head_dim, self.config.rope_base)  # (B, D/2)
            rotation = tuple(table[:, None, None] for table in angles)  # the same for all heads
        else:
            positions = torch.arange(T, device=x.device)
            rotation = rotary_table(positions, self.config.head_dim, self.config.rope_base)  # (T, D/2)
        x = F.dropout(x, self.config.dropout, self.training).to(self.residual_dtype)
        branch: Any = None
        for i, (block, seed) in enumerate(zip(self.blocks, self.dropout_seeds(x.device), strict=True)):
            past = None if cache is None else (cache.keys[i], cache.values[i], cache.lengths)
            if self.checkpoint_activations and self.training:
                x, branch = checkpoint(block, x, branch, rotation, seed, use_reentrant=False)
            else:
                x, branch = block(x, branch, rotation, seed, past)
        return x if self.final_norm is None else self.final_norm.add(branch, x)[0]

    def dropout_seeds(self, device: torch.device) -> tuple[Tensor | None, ...]:
        """A seed a block for the dropout of attention weights, from the generator that also draws other dropout."""
        if not self.training or self.config.dropout == 0:
            return (None,) * self.config.n_layers
        return torch.randint(2**62, (self.config.n_layers,), device=device).unbind()

    def generate(
        self,
        context: Tensor,
        max_new_tokens: int = 150,
        temperature: float = 1.0,
        top_k: int | None = None,
        top_p: float | None = None,
        generator: torch.Generator | None = None,
        cache: bool = True,
        *,
        min_p: float | None = None,
        repetition_penalty: float = 1.0,
        lengths: Sequence[int] | None = None,
    ) -> Tensor:
        """context (B, T) int64 and max_new_tokens more, (B, T + max_new_tokens). Temperature 0 is greedy.

        With lengths, row i begins with its first lengths[i] tokens, the new ones follow them, and zeros fill up. What
        the settings mean: decoding.Sampling; what happens past the context length: decoding.Decoder. cache=False
        computes each token from the whole text, for the same result. Decoder.write() yields tokens as they are drawn.
        """
        decoder = decoding.Decoder(self, context, max_new_tokens, lengths, cache)
        for _ in decoder.write(Sampling(repetition_penalty, temperature, top_k, top_p, min_p), generator):
            pass
        return decoder.tokens

    def count_parameters(self) -> dict[str, int]:
        """Four counts, each exact, tied weights once. Scaling laws differ by which of them they mean.

        total; non_embedding (Kaplan et al. 2020: without token and position tables and without an untied head);
        matrices_and_head (every matrix that multiplies an activation, the head too when it is tied); embedding.
        """
        total = sum(p.numel() for p in self.parameters())
        tables = [self.token_embedding.weight, *([self.position_embedding.weight] if self.learns_positions else [])]
        embedding = sum(p.numel() for p in tables)
        head = self.head.weight.numel()
        matrices = sum(p.numel() for p in self.blocks.parameters() if p.ndim == 2)
        return {
            "total": total,
            "non_embedding": total - embedding - (0 if self.config.tie_embeddings else head),
            "matrices_and_head": matrices + head,
            "embedding": embedding,
        }

    @property
    def learns_positions(self) -> bool:
        return self.config.position == "learned"

    def flops_per_token(self) -> int:
        """Floating-point operations of a training step for each token: 6 for each parameter that multiplies it, and
        attention's two products at half a square (causal): 6·n_layers·T·C. After Chowdhery et al. 2022, appendix B,
        whose attention term counts the whole square."""
        c = self.config
        return 6 * self.count_parameters()["matrices_and_head"] + 6 * c.n_layers * c.context_length * c.d_model


def rotary_table(positions: Tensor, head_dim: int, base: float = 10_000.0) -> tuple[Tensor, Tensor]:
    """cos and sin (..., D/2) in float32 of rotary positions (...) (Su et al. 2021, equation 15)."""
    frequency = base ** (-torch.arange(0, head_dim, 2, device=positions.device, dtype=torch.float32) / head_dim)
    angle = positions[..., None].float() * frequency  # (..., D/2)
    return angle.cos(), angle.sin()


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """x (B, H, T, D) with its two halves turned as pairs, as Llama lays them out; in the dtype of x."""
    a, b = x.float().chunk(2, dim=-1)
    return torch.cat((a * cos - b * sin, b * cos + a * sin), dim=-1).to(x.dtype)
