"""Tiny seeded checkpoints of every family, with the logits and the greedy tokens that transformers gets from them."""

import json
import shutil
from dataclasses import dataclass, field
from pathlib import Path

import torch
from transformers import AutoConfig, AutoModelForCausalLM

from files import digests, made_with, write_byte_tokenizer, write_json, write_tensors

# Enough for 256 bytes and three marks, and a few rows that no token has, as real checkpoints have.
VOCABULARY = 264
GREEDY_TOKENS = 24
# Greedy tokens must not hang on the last digits: the best logit leads by so much at every step.
MARGIN = 0.01
SHORT = list(b"The phalanx moved as one")
LONG = list(b"Each shield covered the man to its left, and so the line held: nobody fought alone, and nobody fell alone. ")


@dataclass
class Tiny:
    name: str
    dtype: torch.dtype
    config: dict
    shards: int = 1
    rope_layout: str = "old"
    prompt: bytes = b""
    note: str = ""
    seed: int = field(default=1)


def llama(**changes) -> dict:
    return {
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 32, "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_key_value_heads": 2, "intermediate_size": 56, "vocab_size": VOCABULARY,
        "max_position_embeddings": 256, "rms_norm_eps": 1e-5, "tie_word_embeddings": False, "rope_theta": 10000.0,
        "hidden_act": "silu", "attention_bias": False, "mlp_bias": False, "bos_token_id": None,
        "eos_token_id": [256, 258], **changes,
    }


def qwen3(**changes) -> dict:
    changes = {"head_dim": 16, "rope_theta": 1000000, "rms_norm_eps": 1e-6, **changes}
    return llama(architectures=["Qwen3ForCausalLM"], model_type="qwen3", **changes)


def small(**changes) -> dict:
    """A llama whose experts and heads are so small that a family's whole pattern of layers fits a fixture."""
    return llama(**{"vocab_size": 160, "hidden_size": 32, "intermediate_size": 40, "head_dim": 8, "eos_token_id": 158, **changes})


def family(architecture: str, model_type: str, **changes) -> dict:
    config = small(architectures=[architecture], model_type=model_type, **changes)
    return {key: value for key, value in config.items() if value != "absent"}


def experts(**changes) -> dict:
    return {"num_experts": 5, "num_experts_per_tok": 2, "moe_intermediate_size": 16, **changes}


DELTA = {
    "linear_num_key_heads": 2, "linear_num_value_heads": 4, "linear_key_head_dim": 8, "linear_value_head_dim": 6,
    "linear_conv_kernel_dim": 4, "rope_theta": "absent", "num_hidden_layers": 4, "head_dim": 16,
    "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 0.25,
                        "mrope_section": [1, 1, 0]},
}
GEMMA = {"hidden_act": "absent", "hidden_activation": "gelu_pytorch_tanh", "query_pre_attn_scalar": 12,
         "tie_word_embeddings": True, "sliding_window": 11, "rope_theta": "absent"}
# With the embedding as the head a random model repeats its last token: these have heads of their own.
GEMMA_UNTIED = {**GEMMA, "tie_word_embeddings": False}
YARN = {"rope_type": "yarn", "factor": 4.0, "beta_fast": 32.0, "beta_slow": 1.0, "truncate": False,
        "original_max_position_embeddings": 64}
ROPES = {"sliding_attention": {"rope_type": "default", "rope_theta": 10000.0},
         "full_attention": {"rope_type": "proportional", "partial_rotary_factor": 0.25, "rope_theta": 1000000.0}}
GEMMA4 = {**GEMMA, "query_pre_attn_scalar": "absent", "num_hidden_layers": 6, "global_head_dim": 16, "rope_parameters": ROPES,
          "layer_types": ["sliding_attention", "full_attention"] * 3, "vocab_size_per_layer_input": 160}

LLAMA3 = {
    "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 32,
    "rope_type": "llama3",
}

TINIES = [
    Tiny("llama-f32", torch.float32, llama(), note="grouped heads, head of its own"),
    Tiny("llama-bf16-tied", torch.bfloat16, llama(num_key_value_heads=4, tie_word_embeddings=True),
         note="as many KV heads as heads, head is the embedding"),
    Tiny("llama-f16-llama3-rope", torch.float16, llama(rope_scaling=LLAMA3, rope_theta=500000.0),
         note="Llama 3.1's rope scaling in the layout before transformers 5"),
    Tiny("llama-bf16-biases", torch.bfloat16,
         llama(attention_bias=True, num_key_value_heads=1, rope_scaling={"type": "linear", "factor": 2.0}),
         rope_layout="new", note="biases, one KV head, linear rope scaling in the layout of transformers 5"),
    Tiny("qwen3-f32", torch.float32, qwen3(), note="norms on q and k, heads wider than hidden size / heads"),
    Tiny("qwen3-bf16-tied-sharded", torch.bfloat16, qwen3(tie_word_embeddings=True, attention_bias=True), shards=2,
         note="two files and an index, biases"),
    Tiny("qwen3-f16-window", torch.float16,
         qwen3(use_sliding_window=True, sliding_window=12, max_window_layers=1),
         note="the second layer sees 12 positions only"),
    Tiny("mistral-f16-window", torch.float16, family("MistralForCausalLM", "mistral", sliding_window=9),
         note="all layers see nine positions"),
    Tiny("qwen2-bf16-yarn", torch.bfloat16, family("Qwen2ForCausalLM", "qwen2", rope_scaling={**YARN, "truncate": True}),
         note="biases on q, k and v; YaRN"),
    Tiny("qwen3-moe-bf16", torch.bfloat16,
         family("Qwen3MoeForCausalLM", "qwen3_moe", norm_topk_prob=True, num_hidden_layers=3, mlp_only_layers=[1], **experts()),
         note="experts, and one layer without"),
    Tiny("qwen3-5-f32", torch.float32, family("Qwen3_5ForCausalLM", "qwen3_5_text", **DELTA),
         note="delta nets and gated attention"),
    Tiny("qwen3-5-moe-bf16", torch.bfloat16,
         family("Qwen3_5MoeForCausalLM", "qwen3_5_moe_text", intermediate_size="absent", shared_expert_intermediate_size=12,
                **experts(), **DELTA),
         note="delta nets, experts and a shared one"),
    Tiny("gemma2-f32", torch.float32,
         family("Gemma2ForCausalLM", "gemma2", attn_logit_softcapping=3.0, final_logit_softcapping=20.0, **GEMMA_UNTIED),
         note="capped scores and logits, windows in every second layer"),
    Tiny("gemma3-bf16", torch.bfloat16,
         family("Gemma3ForCausalLM", "gemma3_text", num_hidden_layers=3, sliding_window_pattern=3,
                rope_local_base_freq=10000.0, rope_scaling={"rope_type": "linear", "factor": 8.0}, **GEMMA_UNTIED),
         note="two ropes, norms on q and k"),
    Tiny("gemma4-f32", torch.float32,
         family("Gemma4ForCausalLM", "gemma4_text", num_kv_shared_layers=2, use_double_wide_mlp=True,
                hidden_size_per_layer_input=8, final_logit_softcapping=9.0, **GEMMA4),
         note="shared keys and values, a second embedding, wider heads in layers that see everything"),
    Tiny("gemma4-moe-bf16", torch.bfloat16,
         family("Gemma4ForCausalLM", "gemma4_text", hidden_size_per_layer_input=0, enable_moe_block=True, top_k_experts=2,
                num_experts=5, moe_intermediate_size=12, attention_k_eq_v=True, num_global_key_value_heads=1, **GEMMA4),
         note="experts beside the feed-forward, values that are keys"),
    Tiny("gpt-oss-f32", torch.float32,
         family("GptOssForCausalLM", "gpt_oss", num_local_experts=5, num_experts_per_tok=2, sliding_window=10,
                attention_bias=True, rope_scaling=YARN, intermediate_size=24, num_hidden_layers=4),
         note="sinks, windows in every second layer, experts with biases, YaRN"),
]


def zero_centred(model_type: str, name: str) -> bool:
    """Whether a norm stores the difference from one."""
    if model_type in ("gemma2", "gemma3_text"):
        return True
    return model_type in ("qwen3_5_text", "qwen3_5_moe_text") and "linear_attn" not in name


def weights(config, seed: int) -> dict:
    """Weights by name: spread so that every part of the model matters to the logits."""
    model = AutoModelForCausalLM.from_config(config)
    generator = torch.Generator().manual_seed(seed)
    tensors = {}
    for name, parameter in sorted(model.state_dict().items()):
        if name == "lm_head.weight" and config.tie_word_embeddings:
            continue
        if name.endswith("A_log"):
            tensors[name] = torch.randn(parameter.shape, generator=generator, dtype=torch.float32) * 0.7
            continue
        draw = torch.randn(parameter.shape, generator=generator, dtype=torch.float32)
        if name.endswith(("layernorm.weight", "norm.weight", "layernorm_1.weight", "layernorm_2.weight", "scale", "layer_scalar")):
            draw = (0.0 if zero_centred(config.model_type, name) else 1.0) + 0.2 * draw
        elif name.endswith("sinks"):
            draw = 1.5 * draw
        elif name.endswith("conv1d.weight"):
            draw = 0.6 * draw
        elif name.endswith("experts.gate_up_proj") and config.model_type == "gpt_oss":
            draw = 2.5 * draw / parameter.shape[1] ** 0.5
        elif name.endswith("bias"):
            draw = 0.3 * draw
        elif "embed_tokens" in name or name == "lm_head.weight":
            draw = 0.5 * draw
        else:
            draw = 1.5 * draw / parameter.shape[-1] ** 0.5
        tensors[name] = draw
    return tensors


def write_checkpoint(folder: Path, tiny: Tiny, tensors: dict) -> None:
    tensors = {name: tensor.to(tiny.dtype) for name, tensor in tensors.items()}
    if tiny.shards == 1:
        write_tensors(folder / "model.safetensors", tensors)
        return
    names = sorted(tensors)
    size = sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())
    weight_map = {}
    for shard in range(tiny.shards):
        file = f"model-{shard + 1:05}-of-{tiny.shards:05}.safetensors"
        mine = names[shard * len(names) // tiny.shards:(shard + 1) * len(names) // tiny.shards]
        write_tensors(folder / file, {name: tensors[name] for name in mine})
        weight_map |= {name: file for name in mine}
    write_json(folder / "model.safetensors.index.json", {"metadata": {"total_size": size}, "weight_map": weight_map})


def load(folder: Path):
    """As stored, computed in f32: what a backend with f32 activations is held to."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager")
    return model.eval()


@torch.no_grad()
def all_logits(model, tokens: list) -> torch.Tensor:
    return model(torch.tensor([tokens]), use_cache=False).logits[0].float()


@torch.no_grad()
def greedy(model, tokens: list, count: int) -> tuple[list, float]:
    """The greedy tokens (no stop tokens), and by how much the best logit led at least."""
    tokens, lead = list(tokens), float("inf")
    begin = len(tokens)
    for _ in range(count):
        best = all_logits(model, tokens)[-1].topk(2)
        lead = min(lead, float(best.values[0] - best.values[1]))
        tokens.append(int(best.indices[0]))
    return tokens[begin:], lead


def make_one(folder: Path, tiny: Tiny) -> None:
    for seed in range(tiny.seed, tiny.seed + 200):
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        config = dict(tiny.config, dtype=str(tiny.dtype).removeprefix("torch."))
        write_json(folder / "config.json", config)
        read = AutoConfig.from_pretrained(folder)
        if tiny.rope_layout == "new":
            read.architectures = config["architectures"]
            read.dtype = config["dtype"]
            read.save_pretrained(folder)
        write_checkpoint(folder, tiny, weights(read, seed))
        model = load(folder)
        short, lead_short = greedy(model, SHORT, GREEDY_TOKENS)
        long, lead_long = greedy(model, LONG, GREEDY_TOKENS)
        if min(lead_short, lead_long) >= MARGIN and len(set(short)) > 3 and len(set(long)) > 3:
            break
    else:
        raise SystemExit(f"{tiny.name}: no seed gives greedy tokens that lead by {MARGIN}")
    write_byte_tokenizer(folder)
    long_logits = all_logits(model, LONG)
    write_tensors(folder / "expected.safetensors",
                  {"logits.short": all_logits(model, SHORT), "logits.long": long_logits[-4:]})
    weight_files = sorted(path for path in folder.glob("model*.safetensors"))
    write_json(folder / "expected.json", {
        "note": tiny.note, "made_with": made_with(), "seed": seed,
        "weights": {path.name: digests(path) for path in weight_files},
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "cases": [
            {"name": "short", "tokens": SHORT, "logits": "logits.short", "positions": list(range(len(SHORT))),
             "greedy": short},
            {"name": "long", "tokens": LONG, "logits": "logits.long",
             "positions": list(range(len(LONG) - 4, len(LONG))), "greedy": long},
        ],
    })
    print(f"{tiny.name}: seed {seed}, leads {lead_short:.3f} and {lead_long:.3f}, "
          f"logits within {float(long_logits.abs().max()):.1f}")


def make(folder: Path, families: Path) -> None:
    """Checkpoints of Llama and Qwen 3 with tokenizers for the engine's tests; of every other family for those of nn."""
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    for tiny in TINIES:
        small_one = tiny.config["vocab_size"] != VOCABULARY
        place = (families if small_one else folder) / tiny.name
        make_one(place, tiny)
        if small_one:
            for name in ["tokenizer.json", "tokenizer_config.json"]:
                (place / name).unlink()
    paths = [path for root in (folder, families) for path in root.rglob("*") if path.is_file()]
    total = sum(path.stat().st_size for path in paths)
    print(f"{len(TINIES)} checkpoints, {total / 1e6:.2f} MB")
    assert total < 4_000_000, "the fixtures outgrow what the repository should carry"
