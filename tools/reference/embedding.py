"""Tiny seeded checkpoints of models that give embeddings, saved as sentence-transformers saves them, with the vectors that
transformers' hidden states give, pooled by torch as sentence-transformers does."""

import json
import shutil
from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import AutoConfig, AutoModel

from files import digests, made_with, write_byte_tokenizer, write_json, write_tensors
from tiny import GEMMA, LONG, SHORT, llama, qwen3, weights

TEXTS = [bytes(SHORT).decode(), bytes(LONG).decode(), "a", "Schildkröten ☂"]
END = 256


@dataclass
class Model:
    name: str
    dtype: torch.dtype
    config: dict
    pooling: str
    normalise: bool
    # The text's end mark behind every text, as Qwen3-Embedding has it.
    ends: bool = False


MODELS = [
    Model("qwen3-last", torch.bfloat16, qwen3(tie_word_embeddings=True), "lasttoken", True, ends=True),
    Model("llama-mean", torch.float32, llama(), "mean_tokens", False),
    Model("gemma3-mean", torch.float32,
          {key: value for key, value in llama(architectures=["Gemma3TextModel"], model_type="gemma3_text", head_dim=16,
                                              num_hidden_layers=3, sliding_window_pattern=2, **GEMMA).items()
           if value != "absent"}, "mean_tokens", True),
    Model("llama-first", torch.float16, llama(tie_word_embeddings=True), "cls_token", False),
]
MODES = ["cls_token", "mean_tokens", "max_tokens", "mean_sqrt_len_tokens", "weightedmean_tokens", "lasttoken"]


def write_card(folder: Path, model: Model, hidden: int) -> None:
    kinds = [("", "Transformer"), ("1_Pooling", "Pooling"), *([("2_Normalize", "Normalize")] if model.normalise else [])]
    write_json(folder / "modules.json", [
        {"idx": index, "name": str(index), "path": path, "type": f"sentence_transformers.models.{kind}"}
        for index, (path, kind) in enumerate(kinds)
    ])
    (folder / "1_Pooling").mkdir()
    write_json(folder / "1_Pooling/config.json", {
        "word_embedding_dimension": hidden, **{f"pooling_mode_{mode}": mode == model.pooling for mode in MODES},
        "include_prompt": True,
    })


def write_end(folder: Path) -> None:
    """What the tokenizer puts behind a text."""
    path = folder / "tokenizer.json"
    tokenizer = json.loads(path.read_text(encoding="utf-8"))
    mark = tokenizer["added_tokens"][END - 256]["content"]
    template = lambda name: [{"Sequence": {"id": name, "type_id": 0}}, {"SpecialToken": {"id": mark, "type_id": 0}}]
    tokenizer["post_processor"] = {
        "type": "TemplateProcessing", "single": template("A"), "pair": template("A") + template("B"),
        "special_tokens": {mark: {"id": mark, "ids": [END], "tokens": [mark]}},
    }
    path.write_text(json.dumps(tokenizer, ensure_ascii=False) + "\n", encoding="utf-8")


@torch.no_grad()
def vector(reference, model: Model, tokens: list) -> list:
    rows = reference(torch.tensor([tokens]), use_cache=False).last_hidden_state[0].float()
    pooled = {"lasttoken": rows[-1], "mean_tokens": rows.mean(0), "cls_token": rows[0]}[model.pooling]
    return (torch.nn.functional.normalize(pooled, dim=0) if model.normalise else pooled).tolist()


def make_one(folder: Path, model: Model) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    write_json(folder / "config.json", dict(model.config, dtype=str(model.dtype).removeprefix("torch.")))
    read = AutoConfig.from_pretrained(folder)
    # Saved as the decoder alone: no head, and no name before the tensors'.
    tensors = {name.removeprefix("model."): tensor.to(model.dtype) for name, tensor in weights(read, 11).items()
               if name != "lm_head.weight"}
    write_tensors(folder / "model.safetensors", tensors)
    write_byte_tokenizer(folder)
    if model.ends:
        write_end(folder)
    write_card(folder, model, read.hidden_size)
    reference = AutoModel.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager").eval()
    cases = []
    for text in TEXTS:
        tokens = list(text.encode()) + ([END] if model.ends else [])
        cases.append({"text": text, "tokens": tokens, "vector": vector(reference, model, tokens)})
    write_json(folder / "expected.json", {
        "made_with": made_with(), "weights": digests(folder / "model.safetensors"), "normalised": model.normalise,
        "cases": cases,
    })
    print(f"{model.name}: {len(cases)} texts, vectors within {max(abs(x) for case in cases for x in case['vector']):.2f}")


def make(folder: Path) -> None:
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    for model in MODELS:
        make_one(folder / model.name, model)
