"""What transformers gets from the bundled model: chats rendered, tokens, logits, greedy answers."""

import json
from pathlib import Path

import torch
from transformers import AutoTokenizer

from files import digests, made_with, write_json, write_tensors
from tiny import load

GREEDY_TOKENS = 48
# A greedy answer is kept up to the first token whose lead is smaller: what follows hangs on the last digits.
MARGIN = 0.02
# Of the prompt's end.
POSITIONS = 2

CHATS = [
    [{"role": "user", "content": "Hello!"}],
    [{"role": "user", "content": "What is 17 + 25?"}],
    [{"role": "user", "content": "Tell me a short story about a fox."}],
    [{"role": "system", "content": "You are a helpful assistant."},
     {"role": "user", "content": "My name is Ada."},
     {"role": "assistant", "content": "Nice to meet you, Ada!"},
     {"role": "user", "content": "What is my name?"}],
    [{"role": "user", "content": "What is Phalanx? Grüße, 世界 🙂"}],
]


@torch.no_grad()
def greedy(model, tokens: list, stops: set) -> tuple[list, str]:
    """The greedy answer, its stop token included, and why it ends."""
    answer = []
    output = model(torch.tensor([tokens]), use_cache=True)
    while len(answer) < GREEDY_TOKENS:
        best = output.logits[0, -1].topk(2)
        if float(best.values[0] - best.values[1]) < MARGIN:
            return answer, "close"
        answer.append(int(best.indices[0]))
        if answer[-1] in stops:
            return answer, "stop"
        output = model(torch.tensor([answer[-1:]]), use_cache=True, past_key_values=output.past_key_values)
    return answer, "length"


def make(model_folder: Path, folder: Path) -> None:
    torch.set_num_threads(1)
    if not (model_folder / "model.safetensors").exists():
        raise SystemExit(f"{model_folder} has no model.safetensors: train the bundled model first")
    tokenizer = AutoTokenizer.from_pretrained(model_folder)
    model = load(model_folder)
    stops = json.loads((model_folder / "generation_config.json").read_text())["eos_token_id"]
    cases, tensors = [], {}
    for number, messages in enumerate(CHATS):
        text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        tokens = tokenizer(text, add_special_tokens=False)["input_ids"]
        with torch.no_grad():
            logits = model(torch.tensor([tokens])).logits[0].float()
        answer, end = greedy(model, tokens, set(stops))
        tensors[f"logits.{number}"] = logits[-POSITIONS:]
        cases.append({
            "name": f"chat {number}", "messages": messages, "text": text, "tokens": tokens,
            "logits": f"logits.{number}", "positions": list(range(len(tokens) - POSITIONS, len(tokens))),
            "greedy": answer, "greedy_end": end, "answer": tokenizer.decode(answer, skip_special_tokens=True),
        })
        print(f"{messages[-1]['content']!r}: {cases[-1]['answer']!r} ({len(answer)} tokens, {end})")
    write_tensors(folder / "bundled.safetensors", tensors)
    write_json(folder / "bundled.json", {
        "made_with": made_with(),
        "weights": {"model.safetensors": digests(model_folder / "model.safetensors")},
        "tokenizer": digests(model_folder / "tokenizer.json"),
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "cases": cases,
    })
