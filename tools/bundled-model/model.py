"""A compact Llama in torch for training, its greedy decoding with a KV cache, and its export to Hugging Face layout."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional as F


@dataclass(frozen=True)
class Shape:
    vocabulary: int = 2048
    layers: int = 6
    hidden: int = 256
    heads: int = 8
    kv_heads: int = 4
    head_dim: int = 32
    feed_forward: int = 512
    context: int = 8192
    rope_theta: float = 10000.0
    norm_eps: float = 1e-5


def rotary(shape: Shape, positions: Tensor) -> tuple[Tensor, Tensor]:
    """cos and sin for positions [B, T]: each [B, 1, T, D] f32, halves repeated as Hugging Face's Llama does."""
    frequency = shape.rope_theta ** (-torch.arange(0, shape.head_dim, 2, dtype=torch.float32) / shape.head_dim)
    angle = positions.float()[:, None, :, None] * torch.cat([frequency, frequency])
    return angle.cos(), angle.sin()


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    a, b = x.chunk(2, dim=-1)
    return x * cos.to(x.dtype) + torch.cat([-b, a], dim=-1) * sin.to(x.dtype)


class Norm(nn.Module):
    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        return F.rms_norm(x, (x.shape[-1],), self.weight.to(x.dtype), self.eps)


class Block(nn.Module):
    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.shape = shape
        q, kv = shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim
        self.norm_1 = Norm(shape.hidden, shape.norm_eps)
        self.norm_2 = Norm(shape.hidden, shape.norm_eps)
        self.qkv = nn.Linear(shape.hidden, q + 2 * kv, bias=False)
        self.out = nn.Linear(q, shape.hidden, bias=False)
        self.gate_up = nn.Linear(shape.hidden, 2 * shape.feed_forward, bias=False)
        self.down = nn.Linear(shape.feed_forward, shape.hidden, bias=False)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor, mask: Tensor | None, cache: dict | None) -> Tensor:
        s = self.shape
        batch, length, _ = x.shape
        q, k, v = self.qkv(self.norm_1(x)).split([s.heads * s.head_dim, s.kv_heads * s.head_dim, s.kv_heads * s.head_dim], dim=-1)
        q = rotate(q.view(batch, length, s.heads, s.head_dim).transpose(1, 2), cos, sin)
        k = rotate(k.view(batch, length, s.kv_heads, s.head_dim).transpose(1, 2), cos, sin)
        v = v.view(batch, length, s.kv_heads, s.head_dim).transpose(1, 2)
        if cache is not None:
            if "k" in cache:
                k, v = torch.cat([cache["k"], k], dim=2), torch.cat([cache["v"], v], dim=2)
            cache["k"], cache["v"] = k, v
        repeat = s.heads // s.kv_heads
        k, v = k.repeat_interleave(repeat, dim=1), v.repeat_interleave(repeat, dim=1)
        if mask is None:
            mixed = F.scaled_dot_product_attention(q, k, v, is_causal=length > 1)
        else:
            # Written out: on a CPU this is twice as fast as the fused kernel with a mask, backward included.
            scores = torch.matmul(q * s.head_dim**-0.5, k.transpose(-1, -2)) + mask
            mixed = torch.matmul(F.softmax(scores, dim=-1, dtype=scores.dtype), v)
        x = x + self.out(mixed.transpose(1, 2).reshape(batch, length, -1))
        gate, up = self.gate_up(self.norm_2(x)).chunk(2, dim=-1)
        return x + self.down(F.silu(gate) * up)


class Llama(nn.Module):
    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.shape = shape
        self.embed = nn.Embedding(shape.vocabulary, shape.hidden)
        self.blocks = nn.ModuleList(Block(shape) for _ in range(shape.layers))
        self.norm = Norm(shape.hidden, shape.norm_eps)
        for name, parameter in self.named_parameters():
            if parameter.dim() == 2:
                deep = name.endswith(("out.weight", "down.weight"))
                nn.init.normal_(parameter, std=0.02 * ((2 * shape.layers) ** -0.5 if deep else 1.0))

    def forward(self, ids: Tensor, positions: Tensor, mask: Tensor | None = None, caches: list[dict] | None = None) -> Tensor:
        """ids, positions: [B, T]; mask: [B, 1, T, T] additive, or None for causal. Returns hidden states [B, T, E]."""
        cos, sin = rotary(self.shape, positions)
        x = self.embed(ids)
        for i, block in enumerate(self.blocks):
            x = block(x, cos, sin, mask, caches[i] if caches is not None else None)
        return self.norm(x)

    def logits(self, hidden: Tensor) -> Tensor:
        return F.linear(hidden, self.embed.weight)

    @torch.no_grad()
    def generate(self, ids: list[int], limit: int, stops: set[int]) -> list[int]:
        """Greedy decoding; the stop id is not returned."""
        caches: list[dict] = [{} for _ in self.blocks]
        made: list[int] = []
        feed, start = torch.tensor([ids]), 0
        while len(made) < limit:
            positions = torch.arange(start, start + feed.shape[1])[None]
            token = int(self.logits(self(feed, positions, caches=caches)[0, -1]).argmax())
            if token in stops:
                break
            made.append(token)
            start += feed.shape[1]
            feed = torch.tensor([[token]])
        return made


def rounded(model: Llama) -> Llama:
    """A copy whose weights are rounded to bf16 and computed in f32: what the exported file holds."""
    copy = Llama(model.shape)
    copy.load_state_dict({k: v.to(torch.bfloat16).float() for k, v in model.state_dict().items()})
    return copy.eval()


def export(model: Llama, folder: Path) -> None:
    """Writes config.json, generation_config.json and model.safetensors (bf16) for LlamaForCausalLM."""
    s = model.shape
    q, kv = s.heads * s.head_dim, s.kv_heads * s.head_dim
    tensors = {"model.embed_tokens.weight": model.embed.weight, "model.norm.weight": model.norm.weight}
    for i, block in enumerate(model.blocks):
        prefix = f"model.layers.{i}."
        wq, wk, wv = block.qkv.weight.split([q, kv, kv])
        gate, up = block.gate_up.weight.chunk(2)
        tensors |= {
            prefix + "input_layernorm.weight": block.norm_1.weight, prefix + "post_attention_layernorm.weight": block.norm_2.weight,
            prefix + "self_attn.q_proj.weight": wq, prefix + "self_attn.k_proj.weight": wk, prefix + "self_attn.v_proj.weight": wv,
            prefix + "self_attn.o_proj.weight": block.out.weight,
            prefix + "mlp.gate_proj.weight": gate, prefix + "mlp.up_proj.weight": up, prefix + "mlp.down_proj.weight": block.down.weight,
        }
    tensors = {name: tensor.detach().to(torch.bfloat16).contiguous().clone() for name, tensor in tensors.items()}
    save_file(tensors, str(folder / "model.safetensors"), metadata={"format": "pt"})
    (folder / "model.safetensors").chmod(0o644)
    config = {
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "torch_dtype": "bfloat16", "vocab_size": s.vocabulary, "hidden_size": s.hidden, "intermediate_size": s.feed_forward,
        "num_hidden_layers": s.layers, "num_attention_heads": s.heads, "num_key_value_heads": s.kv_heads, "head_dim": s.head_dim, "max_position_embeddings": s.context,
        "rope_theta": s.rope_theta, "rope_scaling": None, "rms_norm_eps": s.norm_eps, "hidden_act": "silu", "tie_word_embeddings": True, "attention_bias": False, "mlp_bias": False,
        "attention_dropout": 0.0, "initializer_range": 0.02, "use_cache": True, "bos_token_id": None, "eos_token_id": [2, 0], "pad_token_id": 0,
    }
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    generation = {"eos_token_id": [2, 0], "pad_token_id": 0, "do_sample": False}
    (folder / "generation_config.json").write_text(json.dumps(generation, indent=2) + "\n")


def describe(shape: Shape) -> dict:
    return asdict(shape)
