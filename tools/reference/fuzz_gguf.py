#!/usr/bin/env python3
"""As fuzz.py, of GGUF: random tiny checkpoints are converted by llama.cpp's own converter before `phalanx logits` reads them.

    python tools/reference/fuzz_gguf.py --phalanx PATH --llamacpp CLONE [--families ...] [--count 15] [--seed 1]

CLONE is a checkout of llama.cpp (its convert_hf_to_gguf.py and what that imports). What no GGUF file says of a family
(windows of Mistral and Qwen, odd patterns of layers) is left out of the configurations. The stored type is the
checkpoint's, so nothing is rounded and the logits of transformers hold exactly as in fuzz.py.
"""

import argparse
import os
import random
import shutil
import sys
import tempfile
import warnings
from pathlib import Path

import torch
from transformers.utils import logging

import fuzz


# Of these the converter computes new numbers (norms plus one, decays) in the stored type, and so rounds halves.
ROUNDED = ("gemma2", "gemma3", "qwen3_5", "qwen3_5_moe")


def narrow(family: str, config: dict) -> dict:
    """What GGUF can say."""
    scaling = config.get("rope_scaling") or {}
    kind = scaling.get("rope_type", scaling.get("type"))
    allowed = {"llama": ("linear", "llama3", "yarn"), "gemma3": ("linear",), "gpt_oss": ("yarn",)}.get(family, ("linear", "yarn"))
    if kind not in allowed:
        config.pop("rope_scaling", None)
    for key in ("truncate", "mscale", "mscale_all_dim"):
        scaling.pop(key, None)
    if family == "gpt_oss" and scaling:
        scaling["truncate"] = False
    if family == "llama":
        config["mlp_bias"] = False
    if family == "mistral":
        config["sliding_window"] = None
    if family in ("qwen2", "qwen3", "qwen3_moe"):
        config |= {"use_sliding_window": False}
        config.pop("sliding_window", None)
    if family == "qwen3_moe":
        config |= {"norm_topk_prob": True, "mlp_only_layers": [], "decoder_sparse_step": 1}
    if family.startswith("qwen3"):
        config["attention_bias"] = False
    if family.startswith("gemma"):
        config |= {"tie_word_embeddings": True, "attention_bias": False}
    if family in ("gemma2", "gemma3", "gpt_oss"):
        config.pop("layer_types", None)
        config.pop("sliding_window_pattern", None)
    if family in ("gemma2", "gemma3"):
        config["query_pre_attn_scalar"] = config["head_dim"]
    if family == "gemma2":
        config |= {"rope_theta": 10000.0,  # which no file says
                   "attn_logit_softcapping": config["attn_logit_softcapping"] or 30.0,
                   "final_logit_softcapping": config["final_logit_softcapping"] or 20.0}
    if family == "gemma4":
        ropes = config.get("rope_parameters")
        if ropes:
            ropes["full_attention"] = {"rope_type": "proportional", "rope_theta": 1000000.0,
                                       "partial_rotary_factor": random.Random(str(config)).choice([0.25, 0.5, 1.0])}
    if family == "gpt_oss":
        config["attention_bias"] = True
        config.setdefault("rope_scaling", {"rope_type": "yarn", "factor": 4.0, "truncate": False,
                                           "original_max_position_embeddings": 64})
    return config


def convert(folder: Path, dtype: str, fuse: bool) -> Path:
    import gguf
    from conversion import ModelBase, ModelType, get_model_architecture, get_model_class

    architecture = get_model_architecture(ModelBase.load_hparams(folder, False), ModelType.TEXT)
    known = get_model_class(architecture)
    cls = type(known.__name__, (known,), {"set_vocab": lambda self: self._set_vocab_none(), "model_arch": known.model_arch,
                                         "no_mtp": True})
    kinds = {"float32": gguf.LlamaFileType.ALL_F32, "float16": gguf.LlamaFileType.MOSTLY_F16,
             "bfloat16": gguf.LlamaFileType.MOSTLY_BF16}
    out = folder.parent / "model.gguf"
    with torch.inference_mode():
        cls(folder, kinds[dtype], out, use_temp_file=False, eager=True, fuse_gate_up_exps=fuse).write()
    return out


def case(phalanx: str, family: str, seed: int, folder: Path) -> tuple:
    rng = random.Random(f"gguf-{family}-{seed}")
    refused = None
    for _ in range(50):
        config = narrow(family, fuzz.FAMILIES[family](rng))
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        length = rng.choice([1, 3, 17, 40, 130, 260])
        tokens = [rng.randrange(config["vocab_size"]) for _ in range(length)]
        try:
            model, dtype, layout = fuzz.build(folder, rng, config)
            with torch.no_grad():
                reference = fuzz.all_logits(model, tokens)
            if dtype == "float16" and family in ROUNDED:
                continue
            # The converter counts the vocabulary by it, and writes none of it.
            fuzz.write_json(folder / "tokenizer.json", {"model": {"vocab": {f"t{n}": n for n in range(config["vocab_size"])}},
                                                        "added_tokens": []})
            file = convert(folder, dtype, family in ("qwen3_5_moe", "gemma4") and rng.random() < 0.4)
            break
        except Exception as error:
            refused = error
    else:
        raise SystemExit(f"{family} {seed}: none of fifty could be converted: {refused!r}")
    line = f"{family} {seed}: {dtype} {layout}, {length} tokens"
    try:
        found = fuzz.ours(phalanx, file, tokens)
    except RuntimeError as error:
        return str(error), line
    worst = float(((found - reference).abs() / (1 + reference.abs())).max())
    return ("" if worst <= fuzz.TOLERANCE[dtype] else f"logits off by {worst:.2g}"), f"{line}, off by {worst:.1g}"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--phalanx", required=True)
    parser.add_argument("--llamacpp", required=True, type=Path)
    parser.add_argument("--families", default=",".join(fuzz.FAMILIES))
    parser.add_argument("--count", type=int, default=15)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--keep", type=Path)
    options = parser.parse_args()
    sys.path[:0] = [str(options.llamacpp / "gguf-py"), str(options.llamacpp)]
    warnings.filterwarnings("ignore")
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    import logging as plain
    plain.disable(plain.WARNING)
    os.environ["TQDM_DISABLE"] = "1"
    torch.set_num_threads(1)
    wrong = 0
    for family in options.families.split(","):
        bad = 0
        for seed in range(options.seed, options.seed + options.count):
            with tempfile.TemporaryDirectory() as place:
                what, line = case(options.phalanx, family, seed, Path(place) / "model")
                print(f"WRONG {line}: {what}" if what else line, flush=True)
                bad += bool(what)
                if what and options.keep:
                    kept = options.keep / f"gguf-{family}-{seed}"
                    shutil.rmtree(kept, ignore_errors=True)
                    shutil.copytree(place, kept)
        print(f"{family}: {options.count - bad} of {options.count} agree", flush=True)
        wrong += bad
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
