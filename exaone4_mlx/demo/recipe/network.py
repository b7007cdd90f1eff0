"""The demo model: its shape, its first weights, and a forward pass that trains fast on a CPU.

What takes part is transformers' own `Exaone4ForCausalLM`, so that the checkpoint is a true one.
Only the forward pass in training is ours, over the same parameters:
- products in bfloat16, master weights in float32
- attention written out as matrix products (the fused CPU kernel's backward is slow), and in blocks
  of one window on the sliding layers
- norms and rotation as one autograd function each, to pass over memory less often

Shapes: B batch, L tokens, H query heads, K key heads, R = H / K, D head size, W window, N = L / W blocks.
"""

import json
from pathlib import Path

import torch
import torch.nn.functional as F
from make_tokenizer import CONTEXT, CONTROLS, VOCABULARY
from safetensors.torch import save_file
from transformers import Exaone4Config, Exaone4ForCausalLM

ROPE = {
    "rope_type": "llama3",
    "factor": 16.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 128,
}
THETA = 1_000_000.0

# Written out in every spelling: transformers before 5 and mlx-lm read rope_theta and rope_scaling,
# transformers 5 rope_parameters; mlx-lm reads the pattern, transformers layer_types.
CONFIG = {
    "architectures": ["Exaone4ForCausalLM"],
    "attention_dropout": 0.0,
    "bos_token_id": CONTROLS.index("[BOS]"),
    "dtype": "bfloat16",
    "eos_token_id": CONTROLS.index("[|endofturn|]"),
    "head_dim": 64,
    "hidden_act": "silu",
    "hidden_size": 256,
    "initializer_range": 0.02,
    "intermediate_size": 512,
    "layer_types": (["sliding_attention"] * 3 + ["full_attention"]) * 2,
    "max_position_embeddings": CONTEXT,
    "model_type": "exaone4",
    "num_attention_heads": 4,
    "num_hidden_layers": 8,
    "num_key_value_heads": 2,
    "pad_token_id": CONTROLS.index("[PAD]"),
    "rms_norm_eps": 1e-05,
    "rope_parameters": {**ROPE, "rope_theta": THETA},
    "rope_scaling": ROPE,
    "rope_theta": THETA,
    "sliding_window": 32,
    "sliding_window_pattern": "LLLG",
    "tie_word_embeddings": True,
    "torch_dtype": "bfloat16",
    "use_cache": True,
    "vocab_size": VOCABULARY,
}

# The model that drafts for the demo in speculative decoding: the same tokens, an eighth of the weights.
DRAFT = CONFIG | {
    "hidden_size": 128,
    "intermediate_size": 256,
    "layer_types": ["sliding_attention", "full_attention"],
    "num_attention_heads": 2,
    "num_hidden_layers": 2,
    "num_key_value_heads": 1,
    "sliding_window_pattern": "LG",
}

# The layout of EXAONE 4.0 1.2B: no window, RoPE on all layers.
ALL_GLOBAL = CONFIG | {"layer_types": ["full_attention"] * 8, "sliding_window": None, "sliding_window_pattern": None}


def build(seed, config=CONFIG):
    """A model with its first weights: every branch starts at the scale of the embedding."""
    torch.manual_seed(seed)
    settings = {
        key: value for key, value in config.items() if key not in ("rope_theta", "rope_scaling", "dtype", "torch_dtype")
    }
    model = Exaone4ForCausalLM(Exaone4Config(**settings)).float()
    scale = config["hidden_size"] ** -0.5
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "embed" in name:
                weight.normal_(0, scale)
            elif "proj" in name:
                weight.normal_(0, weight.shape[1] ** -0.5)
            elif "post_" in name:
                weight.fill_(scale)
    return model


def export(model, folder, config=CONFIG):
    """Write config.json, generation_config.json and model.safetensors (bfloat16), each in one step."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    weights = {name: weight.detach().to(torch.bfloat16).contiguous() for name, weight in model.named_parameters()}
    save_file(weights, folder / "model.safetensors.new", metadata={"format": "pt"})
    (folder / "model.safetensors.new").rename(folder / "model.safetensors")
    tokens = {key: config[key] for key in ("bos_token_id", "eos_token_id", "pad_token_id")}
    for name, content in (("config.json", config), ("generation_config.json", tokens)):
        (folder / name).write_text(json.dumps(content, indent=2) + "\n")


class Norm(torch.autograd.Function):
    """RMS norm over the last axis; `weight` may have one row per head."""

    @staticmethod
    def forward(ctx, x, weight, eps):
        size = torch.linalg.vector_norm(x, dim=-1, keepdim=True, dtype=torch.float32)
        inverse = torch.rsqrt(size * size / x.shape[-1] + eps).to(x.dtype)
        unit, weight = x * inverse, weight.to(x.dtype)
        ctx.save_for_backward(unit, inverse, weight)
        return unit * weight

    @staticmethod
    def backward(ctx, gradient):
        unit, inverse, weight = ctx.saved_tensors
        product = gradient * unit
        for_weight = product.reshape(-1, *weight.shape).sum(0, dtype=torch.float32)
        along = (product @ weight).unsqueeze(-1) if weight.dim() == 1 else (product * weight).sum(-1, keepdim=True)
        return torch.addcmul(gradient * weight, unit, along, value=-1.0 / unit.shape[-1]) * inverse, for_weight, None


class Rotate(torch.autograd.Function):
    """RoPE in EXAONE's half-split layout; the gradient is the opposite rotation."""

    @staticmethod
    def forward(ctx, x, cos, sin):
        ctx.save_for_backward(cos, sin)
        half = x.shape[-1] // 2
        first, second, turned = x[..., :half], x[..., half:], torch.empty_like(x)
        torch.addcmul(first * cos, second, sin, value=-1, out=turned[..., :half])
        torch.addcmul(second * cos, first, sin, out=turned[..., half:])
        return turned

    @staticmethod
    def backward(ctx, gradient):
        cos, sin = ctx.saved_tensors
        return Rotate.apply(gradient.contiguous(), cos, -sin), None, None


def hidden_states(model, tokens, dtype=torch.bfloat16):
    """tokens (B, L) -> last hidden states (B, L, hidden), as `model.model` computes them."""
    config = model.config
    _B, L = tokens.shape
    angles = torch.arange(L)[:, None].float() * model.model.rotary_emb.inv_freq[None]
    cos, sin = angles.cos()[None, :, None].to(dtype), angles.sin()[None, :, None].to(dtype)  # (1, L, 1, D / 2)
    masks = Masks(L, config.num_attention_heads // config.num_key_value_heads, config.sliding_window, dtype)
    x = F.embedding(tokens, model.model.embed_tokens.weight).to(dtype)
    for layer, kind in zip(model.model.layers, config.layer_types, strict=False):
        local = kind == "sliding_attention"
        rotation = (cos, sin) if local or config.sliding_window is None else None
        attended = attention(layer.self_attn, x, rotation, masks, config, local)
        x = x + Norm.apply(attended, layer.post_attention_layernorm.weight, config.rms_norm_eps)
        gate, up = F.linear(x, torch.cat([layer.mlp.gate_proj.weight, layer.mlp.up_proj.weight]).to(dtype)).chunk(2, -1)
        widened = F.linear(F.silu(gate) * up, layer.mlp.down_proj.weight.to(dtype))
        x = x + Norm.apply(widened, layer.post_feedforward_layernorm.weight, config.rms_norm_eps)
    return Norm.apply(x, model.model.norm.weight, config.rms_norm_eps)


class Masks:
    """What a query must not see, as numbers to add to the scores, for whole rows and for blocks."""

    def __init__(self, length, repeats, window, dtype):
        self.window, self.repeats = window, repeats
        self.blocked = window is not None and length > 2 * window  # below that, blocks would save nothing
        row = torch.arange(length)
        distance = row[:, None] - row[None]
        self.causal = self.tensor(distance >= 0, dtype)  # (R L, L)
        if window is None:
            return
        self.local = self.tensor((distance >= 0) & (distance < window), dtype)
        # In a block, queries W..2W-1 see keys 0..2W-1: the block before, and their own.
        distance = torch.arange(window, 2 * window)[:, None] - torch.arange(2 * window)[None]
        self.block = self.tensor((distance >= 0) & (distance < window), dtype)  # (R W, 2 W)
        self.first = self.tensor(
            (distance >= 0) & (distance < window) & (torch.arange(2 * window) >= window)[None], dtype
        )

    def tensor(self, seen, dtype):
        return torch.where(seen, 0.0, -30000.0).repeat(self.repeats, 1).to(dtype)


def attention(module, x, rotation, masks, config, local):
    """One attention layer, x (B, L, hidden) -> (B, L, hidden), with a window where it is `local`."""
    B, L, _ = x.shape
    H, K, D = config.num_attention_heads, config.num_key_value_heads, config.head_dim
    projections = torch.cat([module.q_proj.weight, module.k_proj.weight, module.v_proj.weight]).to(x.dtype)
    heads = F.linear(x, projections).view(B, L, H + 2 * K, D)
    gains = torch.cat([(module.q_norm.weight * D**-0.5).expand(H, D), module.k_norm.weight.expand(K, D)])
    turned = Norm.apply(heads[:, :, : H + K], gains, config.rms_norm_eps)
    if rotation:
        turned = Rotate.apply(turned, *rotation)
    queries = turned[:, :, :H].view(B, L, K, H // K, D)
    keys, values = turned[:, :, H:], heads[:, :, H + K :]
    attend = blockwise if local and masks.blocked else rowwise
    return F.linear(attend(queries, keys, values, masks, local).reshape(B, L, H * D), module.o_proj.weight.to(x.dtype))


def rowwise(queries, keys, values, masks, local):
    """Every query against every key. (B, L, K, R, D), (B, L, K, D) twice -> (B, L, K, R, D)."""
    B, L, K, R, D = queries.shape
    q = queries.permute(0, 2, 3, 1, 4).reshape(B * K, R * L, D)
    k, v = (part.transpose(1, 2).reshape(B * K, L, D) for part in (keys, values))
    weights = torch.softmax(torch.bmm(q, k.transpose(1, 2)).add_(masks.local if local else masks.causal), -1)
    return torch.bmm(weights, v).view(B, K, R, L, D).permute(0, 3, 1, 2, 4)


def blockwise(queries, keys, values, masks, local):
    """The same within a window W: each block of W queries sees its own keys and those of the block before."""
    B, L, K, R, D = queries.shape
    W = masks.window
    N = -(-L // W)
    rest = N * W - L
    q = (
        F.pad(queries, (0, 0, 0, 0, 0, 0, 0, rest))
        .view(B, N, W, K, R, D)
        .permute(0, 3, 1, 4, 2, 5)
        .reshape(B * K * N, R * W, D)
    )
    k, v = (
        with_block_before(F.pad(part, (0, 0, 0, 0, 0, rest)).transpose(1, 2).reshape(B * K, N, W, D))
        for part in (keys, values)
    )
    scores = torch.bmm(q, k.transpose(1, 2)).view(B * K, N, R * W, 2 * W)
    scores = scores + torch.stack([masks.first] + [masks.block] * (N - 1))
    out = torch.bmm(torch.softmax(scores, -1).view(B * K * N, R * W, 2 * W), v)
    return out.view(B, K, N, R, W, D).permute(0, 2, 4, 1, 3, 5).reshape(B, N * W, K, R, D)[:, :L]


def with_block_before(blocks):
    """(B K, N, W, D) -> (B K N, 2 W, D): every block behind the one before it; zeros before the first."""
    before = F.pad(blocks[:, :-1], (0, 0, 0, 0, 1, 0))
    return torch.cat([before, blocks], 2).flatten(0, 1)


def check(length, seed=0):
    """The greatest difference to transformers in float32: (hidden states, gradients relative to their size)."""
    model = build(seed)
    model.config._attn_implementation = "eager"
    tokens = torch.randint(0, VOCABULARY, (3, length))
    targets = torch.randint(0, VOCABULARY, (3 * length,))

    def run(forward):
        model.zero_grad()
        hidden = forward()
        F.cross_entropy(F.linear(hidden.flatten(0, 1), model.lm_head.weight), targets).backward()
        return hidden.detach(), {name: weight.grad.clone() for name, weight in model.named_parameters()}

    theirs, their_gradients = run(lambda: model.model(input_ids=tokens, use_cache=False).last_hidden_state)
    ours, our_gradients = run(lambda: hidden_states(model, tokens, torch.float32))
    gradients = max(
        ((their_gradients[name] - our_gradients[name]).norm() / their_gradients[name].norm()).item()
        for name in our_gradients
    )
    return (theirs - ours).abs().max().item(), gradients


if __name__ == "__main__":
    for length in (50, 100, 333):
        print(length, "tokens: difference of hidden states {:.1e}, of gradients {:.1e}".format(*check(length)))
