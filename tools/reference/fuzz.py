#!/usr/bin/env python3
"""Random tiny models of every family through `phalanx logits` and through transformers: run on demand, not in CI.

    python tools/reference/fuzz.py --phalanx target/debug/phalanx [--families llama,gemma4] [--count 15] [--seed 1]

Each case draws sizes (odd counts of heads, odd widths), what the family can be set to (windows, ropes, experts, ties,
biases), a dtype, one of the layouts that savers write (tensor names as in memory, or `save_pretrained`, maybe in shards),
and a prompt longer than its windows, often longer than a prefill step. Logits at every position are held to transformers'
computed in f32 from the same stored weights, and so are the greedy tokens that follow. What disagrees is kept in --keep.
"""

import argparse
import json
import random
import shutil
import subprocess
import sys
import tempfile
import warnings
from pathlib import Path

import torch
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.utils import logging

from files import write_json, write_tensors
from tiny import all_logits, weights

# Both sides compute in f32 from the weights as stored, so the dtype of these does not enter: what differs is the order
# of additions. Relative to 1 + |logit|.
TOLERANCE = {"float32": 2e-3, "bfloat16": 2e-3, "float16": 2e-3}
# Tokens are compared where the reference's best logit leads by more than both sides' tolerance.
GREEDY = 8
HEAD_DIMS = [2, 4, 6, 8, 10, 12, 14, 16, 18, 24, 32, 34, 40, 48, 64, 80]


def pick(rng, *values):
    return rng.choice(values)


def base(rng, architecture: str, model_type: str) -> dict:
    kv_heads = rng.randint(1, 5)
    heads = kv_heads * rng.randint(1, 5)
    head_dim = rng.choice(HEAD_DIMS)
    implied = rng.random() < 0.3
    hidden = heads * head_dim if implied else rng.choice([16, 24, 30, 33, 40, 57, 64, 72, 96, 130])
    config = {
        "architectures": [architecture], "model_type": model_type, "hidden_size": hidden,
        "num_hidden_layers": rng.randint(1, 5), "num_attention_heads": heads, "num_key_value_heads": kv_heads,
        "intermediate_size": rng.choice([7, 17, 24, 33, 40, 56, 61, 64, 96, 129]), "vocab_size": rng.randint(140, 420),
        "max_position_embeddings": 512, "rms_norm_eps": rng.choice([1e-5, 1e-6, 1e-3]),
        "tie_word_embeddings": rng.random() < 0.4, "rope_theta": rng.choice([10000.0, 500000.0, 1000000, 157.5]),
        "hidden_act": "silu", "bos_token_id": None, "eos_token_id": rng.choice([None, 3, [3, 7]]),
    }
    if not (implied and rng.random() < 0.5):
        config["head_dim"] = head_dim
    return config


def head_dim_of(config: dict) -> int:
    return config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"]


def scaling(rng, config: dict) -> None:
    """One of the ways that rope is stretched, in either layout."""
    kind = pick(rng, None, None, "linear", "llama3", "yarn", "yarn", "dynamic", "longrope")
    if kind is None:
        return
    factor = pick(rng, 2.0, 4.0, 8.0, 1.5)
    name = pick(rng, "rope_type", "rope_type", "type") if kind in ("linear", "dynamic") else "rope_type"
    found = {name: kind, "factor": factor}
    if kind == "llama3":
        found |= {"low_freq_factor": 1.0, "high_freq_factor": pick(rng, 4.0, 2.0),
                  "original_max_position_embeddings": pick(rng, 32, 64, 128)}
    elif kind == "yarn":
        found |= {"original_max_position_embeddings": pick(rng, 32, 64, 128)}
        found |= pick(rng, {}, {"beta_fast": 32.0, "beta_slow": 1.0}, {"beta_fast": 8, "beta_slow": 2})
        found |= pick(rng, {}, {"truncate": False}, {"attention_factor": 0.8}, {"mscale": 1.0, "mscale_all_dim": 0.7})
    elif kind == "longrope":
        pairs = head_dim_of(config) // 2
        found |= {"short_factor": [round(1.0 + rng.random(), 3) for _ in range(pairs)],
                  "long_factor": [round(1.0 + 3 * rng.random(), 3) for _ in range(pairs)],
                  "original_max_position_embeddings": 512}
        config["original_max_position_embeddings"] = 512
    config["rope_scaling"] = found


def types(rng, config: dict, kinds: list) -> list:
    return [rng.choice(kinds) for _ in range(config["num_hidden_layers"])]


def experts(rng, config: dict, one: str = "num_experts") -> None:
    count = rng.randint(1, 17)
    config |= {one: count, "num_experts_per_tok": rng.randint(1, min(count, 6)),
               "moe_intermediate_size": rng.choice([5, 8, 16, 24, 33])}


def llama(rng) -> dict:
    config = base(rng, "LlamaForCausalLM", "llama")
    config |= {"attention_bias": rng.random() < 0.3, "mlp_bias": rng.random() < 0.3}
    scaling(rng, config)
    return config


def mistral(rng) -> dict:
    config = base(rng, "MistralForCausalLM", "mistral")
    config["sliding_window"] = pick(rng, None, 5, 16, 33, 100)
    scaling(rng, config)
    return config


def windows(rng, config: dict) -> None:
    config |= {"use_sliding_window": rng.random() < 0.7, "sliding_window": pick(rng, 4, 12, 50, 200),
               "max_window_layers": rng.randint(0, config["num_hidden_layers"])}


def qwen2(rng) -> dict:
    config = base(rng, "Qwen2ForCausalLM", "qwen2")
    config.pop("head_dim", None)
    config["hidden_size"] = config["num_attention_heads"] * rng.choice(HEAD_DIMS[:12])
    windows(rng, config)
    scaling(rng, config)
    return config


def qwen3(rng) -> dict:
    config = base(rng, "Qwen3ForCausalLM", "qwen3")
    config.setdefault("head_dim", rng.choice(HEAD_DIMS))
    config["attention_bias"] = rng.random() < 0.3
    windows(rng, config)
    scaling(rng, config)
    return config


def qwen3_moe(rng) -> dict:
    config = base(rng, "Qwen3MoeForCausalLM", "qwen3_moe")
    config |= {"attention_bias": rng.random() < 0.3, "norm_topk_prob": rng.random() < 0.5,
               "decoder_sparse_step": pick(rng, 1, 1, 2),
               "mlp_only_layers": pick(rng, [], [0], [config["num_hidden_layers"] - 1])}
    if rng.random() < 0.4:
        config |= {"use_sliding_window": True, "sliding_window": pick(rng, 4, 12, 50)}
    experts(rng, config)
    scaling(rng, config)
    return config


def qwen3_5(rng, architecture="Qwen3_5ForCausalLM", model_type="qwen3_5_text") -> dict:
    config = base(rng, architecture, model_type)
    config["head_dim"] = rng.choice([8, 16, 24, 32, 40, 64])
    keys = rng.randint(1, 4)
    config |= {"linear_num_key_heads": keys, "linear_num_value_heads": keys * rng.randint(1, 4),
               "linear_key_head_dim": rng.choice([4, 6, 8, 16, 17, 32]), "linear_value_head_dim": rng.choice([4, 6, 8, 15, 16, 32]),
               "linear_conv_kernel_dim": rng.randint(2, 5), "attention_bias": rng.random() < 0.3}
    config.pop("rope_theta")
    share = pick(rng, 0.25, 0.5, 1.0)
    pairs = int(config["head_dim"] * share) // 2
    config["rope_parameters"] = {"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": share,
                                 "mrope_section": [pairs - 2 * (pairs // 3), pairs // 3, pairs // 3]}
    if rng.random() < 0.6:
        config["layer_types"] = types(rng, config, ["linear_attention", "full_attention"])
    else:
        config["full_attention_interval"] = rng.randint(1, 4)
    return config


def qwen3_5_moe(rng) -> dict:
    config = qwen3_5(rng, "Qwen3_5MoeForCausalLM", "qwen3_5_moe_text")
    config.pop("intermediate_size")
    experts(rng, config)
    config["shared_expert_intermediate_size"] = rng.choice([5, 12, 24])
    return config


def gemma(rng, architecture: str, model_type: str) -> dict:
    config = base(rng, architecture, model_type)
    config.pop("hidden_act")
    config.setdefault("head_dim", rng.choice(HEAD_DIMS))
    config["hidden_size"] = config["num_attention_heads"] * rng.randint(1, 8)
    config |= {"hidden_activation": "gelu_pytorch_tanh", "query_pre_attn_scalar": pick(rng, 4, 12, 24, 144),
               "sliding_window": pick(rng, 3, 11, 32, 90), "attention_bias": rng.random() < 0.2,
               "final_logit_softcapping": pick(rng, None, 9.0, 30.0)}
    if rng.random() < 0.5:
        config["layer_types"] = types(rng, config, ["sliding_attention", "full_attention"])
    return config


def gemma2(rng) -> dict:
    return gemma(rng, "Gemma2ForCausalLM", "gemma2") | {"attn_logit_softcapping": pick(rng, None, 3.0, 50.0)}


def gemma3(rng) -> dict:
    config = gemma(rng, "Gemma3ForCausalLM", "gemma3_text")
    if "layer_types" not in config:
        config["sliding_window_pattern"] = rng.randint(1, 6)
    if rng.random() < 0.5:
        config["rope_scaling"] = {"rope_type": "linear", "factor": pick(rng, 2.0, 8.0)}
    if rng.random() < 0.5:
        config["rope_local_base_freq"] = pick(rng, 10000.0, 1000.0)
    return config


def gemma4(rng) -> dict:
    config = gemma(rng, "Gemma4ForCausalLM", "gemma4_text")
    config.pop("query_pre_attn_scalar")
    config.pop("rope_theta")
    config["num_hidden_layers"] = rng.randint(1, 7)
    config["layer_types"] = types(rng, config, ["sliding_attention", "full_attention"])
    config["layer_types"][-1] = "full_attention"
    config["global_head_dim"] = rng.choice(HEAD_DIMS)
    if rng.random() < 0.6:
        config["rope_parameters"] = {
            "sliding_attention": {"rope_type": "default", "rope_theta": 10000.0},
            "full_attention": {"rope_type": pick(rng, "proportional", "proportional", "default"),
                               "rope_theta": 1000000.0}}
        if config["rope_parameters"]["full_attention"]["rope_type"] == "proportional":
            config["rope_parameters"]["full_attention"]["partial_rotary_factor"] = pick(rng, 0.25, 0.5, 1.0)
    shared = rng.randint(0, config["num_hidden_layers"] - 1)
    own = config["layer_types"][: config["num_hidden_layers"] - shared]
    if shared and set(own) == set(config["layer_types"]):
        config |= {"num_kv_shared_layers": shared, "use_double_wide_mlp": rng.random() < 0.5}
    config["hidden_size_per_layer_input"] = pick(rng, 0, 4, 8, 13)
    config["vocab_size_per_layer_input"] = config["vocab_size"] + pick(rng, 0, 0, 5)
    if rng.random() < 0.4:
        config["enable_moe_block"] = True
        experts(rng, config)
        config["top_k_experts"] = config.pop("num_experts_per_tok")
    if rng.random() < 0.4:
        config |= {"attention_k_eq_v": True}
        divisors = [n for n in range(1, config["num_attention_heads"] + 1) if config["num_attention_heads"] % n == 0]
        if rng.random() < 0.7:
            config["num_global_key_value_heads"] = rng.choice(divisors)
    return config


def gpt_oss(rng) -> dict:
    config = base(rng, "GptOssForCausalLM", "gpt_oss")
    config.setdefault("head_dim", rng.choice(HEAD_DIMS))
    experts(rng, config, "num_local_experts")
    config.pop("moe_intermediate_size")
    config |= {"attention_bias": rng.random() < 0.9, "sliding_window": pick(rng, 3, 10, 40)}
    if rng.random() < 0.5:
        config["layer_types"] = types(rng, config, ["sliding_attention", "full_attention"])
    if rng.random() < 0.7:
        config["rope_scaling"] = {"rope_type": "yarn", "factor": pick(rng, 4.0, 32.0), "beta_fast": 32.0, "beta_slow": 1.0,
                                  "truncate": rng.random() < 0.3, "original_max_position_embeddings": pick(rng, 64, 128)}
    return config


FAMILIES = {f.__name__: f for f in (llama, mistral, qwen2, qwen3, qwen3_moe, qwen3_5, qwen3_5_moe, gemma2, gemma3, gemma4, gpt_oss)}


def build(folder: Path, rng, config: dict) -> tuple:
    """Writes a checkpoint; returns transformers' model of it, in f32, and how it was written."""
    dtype = pick(rng, "float32", "bfloat16", "float16")
    config["dtype"] = dtype
    write_json(folder / "config.json", config)
    read = AutoConfig.from_pretrained(folder)
    tensors = {name: tensor.to(getattr(torch, dtype)) for name, tensor in weights(read, rng.randint(0, 1 << 30)).items()}
    layout = pick(rng, "memory", "saved", "saved", "shards")
    if layout == "memory":
        write_tensors(folder / "model.safetensors", tensors)
    else:
        model = AutoModelForCausalLM.from_config(read).to(getattr(torch, dtype))
        model.load_state_dict(tensors, strict=False)
        model.tie_weights()
        model.generation_config.eos_token_id = None
        model.save_pretrained(folder, max_shard_size="40KB" if layout == "shards" else "5GB")
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager",
                                                 experts_implementation="eager").eval()
    return model, dtype, layout


def ours(phalanx: str, folder: Path, tokens: list) -> torch.Tensor:
    done = subprocess.run([phalanx, "logits", "--model", str(folder), "--tokens", ",".join(map(str, tokens)), "--all", "--json",
                           "--threads", "1", "--kv-memory", "32MiB"], capture_output=True, text=True, timeout=300)
    if done.returncode:
        raise RuntimeError(done.stderr.strip().splitlines()[-1] if done.stderr.strip() else f"exit {done.returncode}")
    return torch.tensor(json.loads(done.stdout)["logits"])


def case(phalanx: str, family: str, seed: int, folder: Path) -> tuple:
    """What is wrong (nothing where all is well), and a line about the case."""
    rng = random.Random(f"{family}-{seed}")
    for _ in range(50):
        config = FAMILIES[family](rng)
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        length = rng.choice([1, 3, 17, 40, 130, 260, 300])
        tokens = [rng.randrange(config["vocab_size"]) for _ in range(length)]
        try:  # what transformers refuses, or fails to compute, is no case
            model, dtype, layout = build(folder, rng, config)
            with torch.no_grad():
                for _ in range(GREEDY):
                    tokens.append(int(all_logits(model, tokens)[-1].argmax()))
                reference = all_logits(model, tokens)
            break
        except Exception as error:
            refused = error
    else:
        raise SystemExit(f"{family} {seed}: transformers takes none of fifty: {refused}")
    line = f"{family} {seed}: {dtype} {layout}, {length} tokens, logits within {float(reference.abs().max()):.1f}"
    try:
        found = ours(phalanx, folder, tokens)
    except RuntimeError as error:
        return str(error), line
    if found.shape != reference.shape:
        return f"shape {tuple(found.shape)} for {tuple(reference.shape)}", line
    off = (found - reference).abs() / (1 + reference.abs())
    worst = float(off.max())
    if not worst <= TOLERANCE[dtype]:
        row = int((off.max(dim=1).values > TOLERANCE[dtype]).nonzero()[0])
        return f"logits off by {worst:.2g}, first at position {row}, {int((off.max(dim=1).values > TOLERANCE[dtype]).sum())} rows", line
    for at in range(length - 1, len(tokens) - 1):
        best = reference[at].topk(2).values
        if float(best[0] - best[1]) > 2 * TOLERANCE[dtype] * (1 + float(best[0].abs())) and int(found[at].argmax()) != tokens[at + 1]:
            return f"greedy token {at + 1 - length} is {int(found[at].argmax())} for {tokens[at + 1]}", line
    return "", f"{line}, off by {worst:.1g}"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--phalanx", required=True)
    parser.add_argument("--families", default=",".join(FAMILIES))
    parser.add_argument("--count", type=int, default=15)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--keep", type=Path, help="where disagreeing checkpoints are kept")
    parser.add_argument("--quiet", action="store_true")
    options = parser.parse_args()
    warnings.filterwarnings("ignore")
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    torch.set_num_threads(1)
    wrong = 0
    for family in options.families.split(","):
        bad = 0
        for seed in range(options.seed, options.seed + options.count):
            with tempfile.TemporaryDirectory() as place:
                folder = Path(place) / "model"
                folder.mkdir()
                what, line = case(options.phalanx, family, seed, folder)
                if what:
                    bad += 1
                    print(f"WRONG {line}: {what}", flush=True)
                    if options.keep:
                        kept = options.keep / f"{family}-{seed}"
                        shutil.rmtree(kept, ignore_errors=True)
                        shutil.copytree(folder, kept)
                elif not options.quiet:
                    print(line, flush=True)
        print(f"{family}: {options.count - bad} of {options.count} agree", flush=True)
        wrong += bad
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
