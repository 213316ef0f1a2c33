"""Tiny checkpoints in GGUF and MLX, with the logits that transformers gets from what their weights dequantise to.

gguf and mlx are their own projects' packages: block layouts, tensor names and codes are theirs, not ours.
"""

import json
import shutil
from pathlib import Path

import numpy as np
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from files import CHATML, letters, made_with, write_byte_tokenizer, write_json, write_tensors
from tiny import GREEDY_TOKENS, LLAMA3, LONG, MARGIN, SHORT, VOCABULARY, all_logits, greedy, llama, qwen3, weights

# Where K blocks keep their halves, and the bytes between that are scales.
K_BLOCKS = {"Q4_K": ([0, 2], range(4, 16)), "Q5_K": ([0, 2], range(4, 16)), "Q6_K": ([208], range(192, 208))}
HALVES = {"Q4_K": [0.0006, 0.0045], "Q5_K": [0.0003, 0.0045], "Q6_K": [0.00006]}


def quantise(values: np.ndarray, kind: str, rng) -> tuple[np.ndarray, np.ndarray]:
    """Stored bytes of `kind`, and what they dequantise to. K blocks are drawn: gguf has no quantiser for them."""
    from gguf import GGML_QUANT_SIZES, GGMLQuantizationType
    from gguf.quants import dequantize, quantize

    which = GGMLQuantizationType[kind]
    if kind not in K_BLOCKS:
        stored = quantize(values, which)
        return stored, dequantize(stored, which).astype(np.float32)
    elements, size = GGML_QUANT_SIZES[which]
    rows, columns = values.shape
    blocks = rng.integers(0, 256, (rows * columns // elements, size), dtype=np.uint8)
    halves, scales = K_BLOCKS[kind]
    for at, value in zip(halves, HALVES[kind]):
        blocks[:, at:at + 2] = np.full(len(blocks), value, dtype=np.float16)[:, None].view(np.uint8)
    blocks = blocks.reshape(rows, -1)
    return blocks, dequantize(blocks, which).astype(np.float32)


def permute(values: np.ndarray, heads: int) -> np.ndarray:
    """llama.cpp turns neighbours, transformers halves."""
    shape = values.shape
    return values.reshape(heads, 2, shape[0] // heads // 2, *shape[1:]).swapaxes(1, 2).reshape(shape)


def gguf_name(name: str) -> str:
    for old, new in [("model.embed_tokens", "token_embd"), ("model.norm", "output_norm"), ("lm_head", "output"),
                     ("model.layers", "blk"), ("input_layernorm", "attn_norm"), ("post_attention_layernorm", "ffn_norm"),
                     ("self_attn.q_proj", "attn_q"), ("self_attn.k_proj", "attn_k"), ("self_attn.v_proj", "attn_v"),
                     ("self_attn.o_proj", "attn_output"), ("self_attn.q_norm", "attn_q_norm"),
                     ("self_attn.k_norm", "attn_k_norm"), ("mlp.gate_proj", "ffn_gate"), ("mlp.up_proj", "ffn_up"),
                     ("mlp.down_proj", "ffn_down")]:
        name = name.replace(old, new)
    return name


def write_gguf(path: Path, config: dict, stored: dict, rope_factors) -> None:
    import gguf

    arch = config["model_type"]
    writer = gguf.GGUFWriter(path, arch)
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_rope_freq_base(config["rope_theta"])
    head_dim = config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"]
    writer.add_key_length(head_dim)
    writer.add_value_length(head_dim)
    writer.add_rope_dimension_count(head_dim)
    table = letters()
    marks = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    unused = [f"[PAD{number}]" for number in range(VOCABULARY - 259)]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list([table[byte] for byte in range(256)] + marks + unused)
    writer.add_token_types([1] * 256 + [3] * 3 + [5] * len(unused))
    writer.add_token_merges(["t h"])
    writer.add_eos_token_id(258)
    writer.add_chat_template(CHATML)
    if rope_factors is not None:
        writer.add_tensor("rope_freqs.weight", rope_factors)
    for name, (kind, values) in stored.items():
        writer.add_tensor(gguf_name(name), values, raw_dtype=gguf.GGMLQuantizationType[kind])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def reference(config: dict, tensors: dict):
    """transformers' model with these weights, in f32."""
    config = {name: value for name, value in config.items() if name not in ("architectures", "model_type")} | {
        "model_type": config["model_type"]}
    read = AutoConfig.for_model(**config)
    model = AutoModelForCausalLM.from_config(read, attn_implementation="eager").float()
    missing, unexpected = model.load_state_dict(
        {name: torch.from_numpy(np.array(values)) for name, values in tensors.items()}, strict=False)
    assert not unexpected and all("lm_head" in name and config["tie_word_embeddings"] for name in missing)
    model.tie_weights()
    return model.eval()


def expect(folder: Path, model, note: str, seed: int) -> bool:
    short, lead_short = greedy(model, SHORT, GREEDY_TOKENS)
    long, lead_long = greedy(model, LONG, GREEDY_TOKENS)
    if min(lead_short, lead_long) < MARGIN or len(set(short)) <= 3 or len(set(long)) <= 3:
        return False
    write_tensors(folder / "expected.safetensors",
                  {"logits.short": all_logits(model, SHORT), "logits.long": all_logits(model, LONG)[-4:]})
    write_json(folder / "expected.json", {"note": note, "made_with": made_with(), "seed": seed, "cases": [
        {"name": "short", "tokens": SHORT, "logits": "logits.short", "positions": list(range(len(SHORT))),
         "greedy": short},
        {"name": "long", "tokens": LONG, "logits": "logits.long",
         "positions": list(range(len(LONG) - 4, len(LONG))), "greedy": long},
    ]})
    return True


def rope_factors(head_dim: int, config: dict) -> np.ndarray:
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    read = AutoConfig.for_model(**{k: v for k, v in config.items() if k != "architectures"})
    scaled, _ = ROPE_INIT_FUNCTIONS["llama3"](read, torch.device("cpu"))
    plain = 1.0 / config["rope_theta"] ** (torch.arange(0, head_dim, 2, dtype=torch.float32) / head_dim)
    return (plain / scaled).numpy().astype(np.float32)


def make_gguf(folder: Path, config: dict, kinds: list, note: str) -> None:
    llama_like = config["model_type"] == "llama"
    for seed in range(1, 200):
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        rng = np.random.default_rng(seed)
        read = AutoConfig.for_model(**{k: v for k, v in config.items() if k != "architectures"})
        stored, exact, place = {}, {}, 0
        for name, tensor in weights(read, seed).items():
            values = tensor.numpy().astype(np.float32)
            if values.ndim < 2:
                stored[name], exact[name] = ("F32", values), values
                continue
            kind = kinds[place % len(kinds)]
            place += 1
            bytes_, exact[name] = quantise(values, kind, rng)
            heads = {"q_proj": config["num_attention_heads"], "k_proj": config["num_key_value_heads"]}
            of = next((count for part, count in heads.items() if part in name), None)
            stored[name] = (kind, permute(bytes_, of) if llama_like and of else bytes_)
        head_dim = config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"]
        factors = rope_factors(head_dim, config) if config.get("rope_scaling") else None
        if expect(folder, reference(config, exact), note, seed):
            write_gguf(folder / "model.gguf", config, stored, factors)
            print(f"{folder.name}: seed {seed}")
            return
    raise SystemExit(f"{folder.name}: no seed gives greedy tokens that lead by {MARGIN}")


def make_mlx(folder: Path, config: dict, note: str) -> None:
    import mlx.core as mx

    mx.set_default_device(mx.cpu)
    for seed in range(1, 200):
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        read = AutoConfig.for_model(**{k: v for k, v in config.items() if k != "architectures"})
        stored, exact = {}, {}
        quantization = {"group_size": 32, "bits": 4, "mode": "affine"}
        for name, tensor in weights(read, seed).items():
            values = mx.array(tensor.numpy().astype(np.float32)).astype(mx.float16)
            stem = name.removesuffix(".weight")
            if values.ndim < 2:
                stored[name], exact[name] = values, np.array(values.astype(mx.float32))
                continue
            bits, group = (8, 64) if "down_proj" in name or "embed" in name else (4, 32)
            if (bits, group) != (4, 32):
                quantization[stem] = {"group_size": group, "bits": bits}
            codes, scales, biases = mx.quantize(values, group_size=group, bits=bits)
            stored |= {f"{stem}.weight": codes, f"{stem}.scales": scales, f"{stem}.biases": biases}
            wide = mx.dequantize(codes, scales.astype(mx.float32), biases.astype(mx.float32), group_size=group, bits=bits)
            exact[name] = np.array(wide)
        if expect(folder, reference(config, exact), note, seed):
            mx.save_safetensors(str(folder / "model.safetensors"), stored, metadata={"format": "mlx"})
            write_json(folder / "config.json", config | {"quantization": quantization,
                                                         "quantization_config": quantization})
            write_byte_tokenizer(folder)
            print(f"{folder.name}: seed {seed}")
            return
    raise SystemExit(f"{folder.name}: no seed gives greedy tokens that lead by {MARGIN}")


def make(folder: Path) -> None:
    torch.set_num_threads(1)
    small = {"hidden_size": 64, "intermediate_size": 96, "num_attention_heads": 4, "num_key_value_heads": 2}
    make_gguf(folder / "llama-gguf", llama(**small, tie_word_embeddings=True, rope_theta=500000.0,
                                           rope_scaling=LLAMA3),
              ["Q8_0", "Q4_0", "Q5_1", "F16", "Q4_1", "BF16", "Q5_0", "MXFP4"],
              "types of 32, Llama 3's rope as factors, head is the embedding")
    large = {"hidden_size": 256, "intermediate_size": 256, "num_attention_heads": 4, "num_key_value_heads": 2,
             "num_hidden_layers": 1, "head_dim": 64}
    make_gguf(folder / "qwen3-gguf-k", qwen3(**large), ["Q6_K", "Q4_K", "Q5_K"], "types of 256, norms on q and k")
    make_mlx(folder / "qwen3-mlx", qwen3(**small | {"intermediate_size": 128}, tie_word_embeddings=True),
             "4 bits in groups of 32, 8 in groups of 64 for some modules")
