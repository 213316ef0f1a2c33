"""Measures the exported model on held-out material: loss, exact answers per kind, sample answers; and checks the export itself."""

from __future__ import annotations

import itertools
import math
import random
import re
import time
from dataclasses import dataclass, field
from pathlib import Path

import torch
from tokenizers import Tokenizer
from torch.nn import functional as F

from corpus import arithmetic, instructions, knowledge, memory, mixture, phalanx, unknown
from corpus.document import HELD_OUT, TRAIN, Exchange, Plain
from model import Llama
from tokenizer import chat_prompt, encode_document

STOPS = {0, 2}

# Asked as they stand; a newcomer types the first three.
FIRST = ["Hello! Who are you?", "What is Phalanx?", "Tell me a short story about a fox."]


@dataclass
class Results:
    loss_token: float = 0.0  # nats per target token
    loss_byte: float = 0.0  # nats per byte of the target text
    answer_loss_token: float = 0.0  # the same without stories
    rates: dict[str, tuple[int, int]] = field(default_factory=dict)  # kind -> (right, asked)
    stopped: tuple[int, int] = (0, 0)  # answers that ended by themselves
    samples: list[tuple[str, str]] = field(default_factory=list)
    wall_s: float = 0.0


def answer(model: Llama, tokenizer: Tokenizer, messages: list[tuple[str, str]], limit: int = 320) -> tuple[str, bool]:
    """The greedy answer, and whether it ended by itself."""
    ids = tokenizer.encode(chat_prompt(messages)).ids
    made = model.generate(ids, limit, STOPS)
    return tokenizer.decode(made), len(made) < limit


def right(text: str, exchange: Exchange) -> bool:
    if exchange.kind.startswith("arithmetic") or exchange.kind == "compare":
        numbers = re.findall(r"-?\d+", text.replace(" - ", " "))
        return bool(numbers) and exchange.key in (numbers[-1], numbers[0] if exchange.kind == "compare" else "")
    if exchange.key:
        return re.search(rf"\b{re.escape(exchange.key)}\b", text) is not None
    return text.strip() in (exchange.accepted or (exchange.assistant,))


def held_out_questions(seed: int, per_kind: int) -> dict[str, list[list[Exchange]]]:
    """kind -> conversations of which only the last answer counts."""
    rng = random.Random(f"{seed}/questions")

    def draw(maker) -> list[list[Exchange]]:
        return [[maker()] for _ in range(per_kind)]

    facts = phalanx.held_out_exchanges()
    rng.shuffle(facts)
    return {
        "addition, held-out pairs": draw(lambda: arithmetic.exchange(rng, HELD_OUT, "add")),
        "subtraction, held-out pairs": draw(lambda: arithmetic.exchange(rng, HELD_OUT, "sub")),
        "multiplication, held-out products": draw(lambda: arithmetic.exchange(rng, HELD_OUT, "mul")),
        "multiplication, products seen in training": draw(lambda: arithmetic.exchange(rng, TRAIN, "mul")),
        "Phalanx questions, held-out phrasings": [[e] for e in (facts if per_kind >= 20 else facts[:per_kind])],
        "capitals, held-out phrasings": draw(lambda: knowledge.capital(rng, HELD_OUT)),
        "recall of an unseen name": [memory.recall_name(rng, HELD_OUT) for _ in range(per_kind)],
        "recall of an unseen name, 20 exchanges later": [distant_name(rng, 20) for _ in range(per_kind // 4)],
        "recall of an unseen name, 80 exchanges later": [distant_name(rng, 80) for _ in range(per_kind // 4)],
        "repeat unseen words": draw(lambda: instructions.repeat(rng, HELD_OUT)),
        "animals, opposites, colours, legs": draw(lambda: knowledge.looked_up(rng, HELD_OUT)),
        "days, months and letters in order": draw(lambda: knowledge.sequence(rng, HELD_OUT)),
        "out of scope: says so": draw(lambda: unknown.exchange(rng, HELD_OUT)),
    }


def distant_name(rng: random.Random, turns: int) -> list[Exchange]:
    """A name, then so many unlike exchanges, then the question for the name."""
    first, *_, ask = memory.recall_name(rng, HELD_OUT)
    return [first, *(mixture.draw_exchange(rng, TRAIN) for _ in range(turns)), ask]


def messages_of(turns: list[Exchange]) -> list[tuple[str, str]]:
    messages = []
    for turn in turns[:-1]:
        messages += [("user", turn.user), ("assistant", turn.assistant)]
    return messages + [("user", turns[-1].user)]


@torch.no_grad()
def held_out_loss(model: Llama, tokenizer: Tokenizer, seed: int, count: int) -> tuple[float, float, float]:
    """(nats per token, nats per byte, nats per token without stories) over held-out documents, each alone."""
    sums = {"tokens": 0, "bytes": 0, "nats": 0.0, "answer_tokens": 0, "answer_nats": 0.0}
    for document in itertools.islice(mixture.documents(seed, HELD_OUT), count):
        ids, flags, _ = encode_document(tokenizer, document)
        flags[0] = False
        hidden = model(torch.tensor([ids]), torch.arange(len(ids))[None])[0]
        at = [i for i, flag in enumerate(flags) if flag]
        targets = torch.tensor([ids[i] for i in at])
        nats = F.cross_entropy(model.logits(hidden[[i - 1 for i in at]]), targets, reduction="sum").item()
        sums["nats"] += nats
        sums["tokens"] += len(at)
        sums["bytes"] += sum(len(tokenizer.decode([ids[i]]).encode()) for i in at)
        if not isinstance(document, Plain) and all(e.kind != "story" for e in document.exchanges):
            sums["answer_nats"] += nats
            sums["answer_tokens"] += len(at)
    return sums["nats"] / sums["tokens"], sums["nats"] / sums["bytes"], sums["answer_nats"] / max(1, sums["answer_tokens"])


def sample_prompts(seed: int) -> list[str]:
    """Seventeen held-out prompts after the three first ones; no held-out phrasing is picked by its answer."""
    rng = random.Random(f"{seed}/samples")
    facts = [e.user for e in phalanx.held_out_exchanges()]
    prompts = rng.sample(facts, 6)
    prompts += [arithmetic.exchange(rng, HELD_OUT, op).user for op in ("add", "sub", "mul")]
    prompts += [knowledge.capital(rng, HELD_OUT).user, knowledge.looked_up(rng, HELD_OUT).user, knowledge.sequence(rng, HELD_OUT).user]
    prompts += [instructions.listing(rng, HELD_OUT).user, instructions.repeat(rng, HELD_OUT).user, unknown.exchange(rng, HELD_OUT).user, unknown.exchange(rng, HELD_OUT).user]
    return prompts + ["Tell me a story about a walrus."]  # no walrus in the corpus


def evaluate(model: Llama, tokenizer: Tokenizer, seed: int, per_kind: int) -> Results:
    results, began, ended, asked = Results(), time.monotonic(), 0, 0
    results.loss_token, results.loss_byte, results.answer_loss_token = held_out_loss(model, tokenizer, seed, 6 * per_kind)
    for kind, conversations in held_out_questions(seed, per_kind).items():
        good = 0
        for turns in conversations:
            text, finished = answer(model, tokenizer, messages_of(turns), limit=96)
            good += right(text, turns[-1])
            ended += finished
            asked += 1
        results.rates[kind] = (good, len(conversations))
        print(f"{kind}: {good} of {len(conversations)}", flush=True)
    for prompt in FIRST + sample_prompts(seed):
        text, finished = answer(model, tokenizer, [("user", prompt)], limit=320 if per_kind >= 20 else 40)
        ended += finished
        asked += 1
        results.samples.append((prompt, text))
        print(f"> {prompt}\n{text}", flush=True)
    results.stopped = (ended, asked)
    results.wall_s = time.monotonic() - began
    print(f"held-out loss {results.loss_token:.4f} nats/token, {results.loss_byte:.4f} nats/byte; stopped by itself {ended} of {asked}")
    assert math.isfinite(results.loss_token)
    return results


def verify_layout(model: Llama, folder: Path) -> None:
    """Loads the folder with transformers as a stranger would; tokens and greedy answers must equal those of the training code."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    plain = Tokenizer.from_file(str(folder / "tokenizer.json"))
    other = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    assert type(other).__name__ == "LlamaForCausalLM"
    for prompt in FIRST + ["Grüße, 你好 🙂!", "12 + 34"]:
        text = tokenizer.apply_chat_template([{"role": "system", "content": "Be brief."}, {"role": "user", "content": prompt}], tokenize=False, add_generation_prompt=True)
        assert text == chat_prompt([("system", "Be brief."), ("user", prompt)])
        ids = tokenizer(text)["input_ids"]
        assert ids == plain.encode(text).ids and tokenizer.decode(ids) == text
        ours = model.generate(ids, 60, STOPS)
        theirs = other.generate(torch.tensor([ids]), max_new_tokens=60, do_sample=False)[0, len(ids) :].tolist()
        assert [t for t in theirs if t not in STOPS] == ours, "transformers answers differently"
        difference = (other(torch.tensor([ids])).logits[0] - model.logits(model(torch.tensor([ids]), torch.arange(len(ids))[None]))[0]).abs().max()
        assert difference < 1e-3, f"logits differ by {difference}"
    print("transformers loads the folder and gives the same tokens")
