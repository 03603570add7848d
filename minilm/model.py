"""A GPT, to be read in one sitting: embeddings, blocks of attention and MLP on a residual stream, a head.

The three operations that take the time (attention, SwiGLU, LayerNorm) and the loss are called through a Backend
(see kernels/backend.py), so the same model runs on plain PyTorch, on PyTorch's fused operators or on Triton kernels.

Shapes: B batch, T time, C d_model, H heads, D head width, F d_ff, V vocabulary.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import kernels
from kernels import Backend
from kernels.reference import unpack_heads
from minilm.config import ModelConfig

EPS = 1e-5  # in every norm, as in GPT-2


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

    def __init__(self, config: ModelConfig, ops: Backend):
        super().__init__()
        self.ops, self.rms = ops, config.norm_type == "rmsnorm"
        self.weight = nn.Parameter(torch.empty(config.d_model))
        self.bias = nn.Parameter(torch.empty(config.d_model)) if config.bias and not self.rms else None

    def forward(self, x: Tensor) -> Tensor:
        """norm(x)"""
        if self.rms:
            return self.ops.rms_norm(x, self.weight, EPS)
        return self.ops.layer_norm(x, self.weight, self.bias, EPS)

    def add(self, branch: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
        """norm(x + branch) and x + branch, in one pass over memory."""
        if self.rms:
            return self.ops.add_rms_norm(branch, x, self.weight, EPS)
        return self.ops.add_layer_norm(branch, x, self.weight, self.bias, EPS)


class Attention(nn.Module):
    def __init__(self, config: ModelConfig, ops: Backend):
        super().__init__()
        self.ops, self.config = ops, config
        heads = config.n_heads + 2 * config.n_kv_heads
        self.qkv = Linear(config.d_model, heads * config.head_dim, bias=config.bias)
        self.out = Linear(config.d_model, config.d_model, bias=config.bias)

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
        if rotation is None and past is None:
            y = self.ops.causal_attention_packed(qkv, n_heads, n_kv_heads, **dropout)  # (B, T, C)
        else:
            q, k, v = unpack_heads(qkv, n_heads, n_kv_heads)  # (B, H or Hkv, T, D)
            if rotation is not None:
                q, k = rotate(q, *rotation), rotate(k, *rotation)
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


class KVCache:
    """Keys and values of what a GPT has read: (n_layers, B, Hkv, S, D) each, of which lengths (B,) int64 are filled.

    Its shape never changes, so that a decoding step can be compiled or captured in a graph.
    """

    def __init__(self, model: "GPT", batch_size: int):
        c, device = model.config, model.head.weight.device
        shape = (c.n_layers, batch_size, c.n_kv_heads, c.context_length, c.head_dim)
        self.keys, self.values = (torch.zeros(shape, dtype=model.dtype, device=device) for _ in range(2))
        self.lengths = torch.zeros(batch_size, dtype=torch.int64, device=device)


class GPT(nn.Module):
    """A decoder-only transformer (Radford et al. 2019), with the variations that ModelConfig names.

    ops: the Backend of its operations. dtype: of matrix products and attention. residual_dtype: of the residual stream
    and of what norms put out. Weights are float32 whatever these are, and state-dict keys do not depend on them.
    """

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
        """GPT-2's: normal with standard deviation 0.02, that of projections into the residual stream divided by the
        square root of their number, 2·n_layers (Radford et al. 2019, section 2.3); biases 0, norms 1."""
        for name, parameter in self.named_parameters():
            if name.endswith("bias"):
                parameter.zero_()
            elif "norm" in name:
                parameter.fill_(1.0)
            else:
                into_residual = name.endswith(("attention.out.weight", "mlp.down.weight"))
                parameter.normal_(0.0, 0.02 / math.sqrt(2 * self.config.n_layers) if into_residual else 0.02)

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

    def hidden(self, tokens: Tensor, cache: KVCache | None = None) -> Tensor:
        """What the head reads: the residual stream after the last norm, (B, T, C) in residual_dtype.

        With a cache, tokens are one more for each sequence (B, 1), or the beginnings of all, and their keys and values
        are written into it; to count them in cache.lengths is the caller's.
        """
        T = tokens.shape[1]
        if self.config.context_length < T:
            raise ValueError(f"{T} tokens are longer than the context of {self.config.context_length}")
        x = self.token_embedding(tokens)  # (B, T, C)
        rotation, positions = None, slice(T) if cache is None or T > 1 else cache.lengths
        if self.config.position == "learned":
            x = x + self.position_embedding.weight[positions].unsqueeze(-2 if T == 1 else 0)
        else:
            end = T if isinstance(positions, slice) else self.config.context_length
            rotation = rotary_table(end, self.config.head_dim, x.device)
            if cache is not None and T == 1:
                rotation = tuple(table[positions][:, None, None] for table in rotation)  # (B, 1, 1, D/2)
        x = F.dropout(x, self.config.dropout, self.training).to(self.residual_dtype)
        branch = None
        for i, (block, seed) in enumerate(zip(self.blocks, self.dropout_seeds(x.device), strict=True)):
            past = None if cache is None else (cache.keys[i], cache.values[i], cache.lengths)
            x, branch = block(x, branch, rotation, seed, past)
        return x if self.final_norm is None else self.final_norm.add(branch, x)[0]

    def dropout_seeds(self, device: torch.device) -> tuple[Tensor | None, ...]:
        """A seed a block for the dropout of attention weights, from the generator that also draws other dropout."""
        if not self.training or self.config.dropout == 0:
            return (None,) * self.config.n_layers
        return torch.randint(2**62, (self.config.n_layers,), device=device).unbind()

    @torch.no_grad()
    def generate(
        self,
        context: Tensor,
        max_new_tokens: int = 150,
        temperature: float = 1.0,
        top_k: int | None = None,
        top_p: float | None = None,
        generator: torch.Generator | None = None,
        cache: bool = True,
    ) -> Tensor:
        """context (B, T) int64 and max_new_tokens more, (B, T + max_new_tokens). Temperature 0 is greedy.

        Past the context length the model sees a window of the last tokens: when it is full it begins anew with its
        last three quarters, encoded again. cache=False encodes the same windows whole for every token.
        """
        drawn = self.stream(context, max_new_tokens, temperature, top_k, top_p, generator, cache)
        return torch.cat((context, *drawn), dim=1)

    @torch.no_grad()
    def stream(self, context, max_new_tokens=150, temperature=1.0, top_k=None, top_p=None, generator=None, cache=True):
        """The tokens of generate(), each (B, 1) as soon as it is drawn."""
        if context.shape[1] == 0:
            raise ValueError("the context is empty: a model needs one token to go on from")
        training, past, start = self.training, KVCache(self, len(context)) if cache else None, -1
        self.eval()
        try:
            for _ in range(max_new_tokens):
                before, start = start, self.window_start(context.shape[1])
                anew = past is None or start != before
                if past is not None and anew:
                    past.lengths.zero_()
                tokens = context[:, start:] if anew else context[:, -1:]
                last = self.hidden(tokens, past)[:, -1]  # (B, C)
                if past is not None:
                    past.lengths += tokens.shape[1]
                token = draw(self.head(last).float(), temperature, top_k, top_p, generator)
                context = torch.cat((context, token), dim=1)
                yield token
        finally:
            self.train(training)

    def window_start(self, n: int) -> int:
        """Where the window of a text of n tokens begins: 0 while it fits the context, then on by quarters of it."""
        quarter = max(1, self.config.context_length // 4)
        return -(-max(0, n - self.config.context_length) // quarter) * quarter

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


def rotary_table(T: int, head_dim: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """cos and sin (T, D/2) in float32 of rotary positions, base 10000 (Su et al. 2021, equation 15)."""
    frequency = 10_000.0 ** (-torch.arange(0, head_dim, 2, device=device, dtype=torch.float32) / head_dim)
    angle = torch.arange(T, device=device, dtype=torch.float32)[:, None] * frequency  # (T, D/2)
    return angle.cos(), angle.sin()


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """x (B, H, T, D) with its two halves turned as pairs, as Llama lays them out; in the dtype of x."""
    a, b = x.float().chunk(2, dim=-1)
    return torch.cat((a * cos - b * sin, b * cos + a * sin), dim=-1).to(x.dtype)


def draw(
    logits: Tensor, temperature: float, top_k: int | None, top_p: float | None, generator: torch.Generator | None
) -> Tensor:
    """One token a row, (B, 1), from logits (B, V): the likeliest at temperature 0, else drawn from the softmax.

    top_k keeps the k likeliest; top_p then the smallest set whose probability reaches p (Holtzman et al. 2020).
    """
    if temperature == 0:
        return logits.argmax(dim=-1, keepdim=True)
    logits = logits / temperature
    if top_k is not None and top_k < logits.shape[-1]:
        kth = logits.topk(top_k).values[:, -1:]
        logits = logits.masked_fill(logits < kth, -math.inf)
    if top_p is not None and top_p < 1:
        ordered, order = logits.sort(dim=-1, descending=True)
        before = ordered.softmax(dim=-1).cumsum(dim=-1) - ordered.softmax(dim=-1)  # probability of likelier tokens
        dropped = before >= top_p
        logits = logits.masked_fill(torch.zeros_like(dropped).scatter(1, order, dropped), -math.inf)
    return torch.multinomial(logits.softmax(dim=-1), 1, generator=generator)
