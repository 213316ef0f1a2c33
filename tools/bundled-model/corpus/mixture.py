"""Mixes all kinds into documents: single questions, conversations of many turns, raw stories; with and without system prompts."""

from __future__ import annotations

import random
from collections.abc import Iterator

from . import arithmetic, instructions, knowledge, memory, phalanx, small_talk, stories, unknown
from .document import TRAIN, Conversation, Exchange, Plain
from .phrasing import vary

SYSTEMS = [
    "You are a helpful assistant.", "You are a helpful model.", "Answer briefly.", "You are the model bundled with Phalanx.", "You are a friendly assistant. Answer in one sentence.",
    "Be kind and brief.", "You are a helpful AI assistant.", "You are an assistant.", "Answer the user's questions.", "You are a chat bot.", "Be honest. If you do not know, say so.",
]

# How often each kind of exchange is drawn. A story is some ten times as long as the rest, hence its low weight.
SINGLE_TURN = [
    (arithmetic.exchange, 26), (phalanx.exchange, 26), (knowledge.exchange, 15), (instructions.exchange, 12), (small_talk.exchange, 8), (unknown.exchange, 10), (stories.exchange, 6),
]


def draw_exchange(rng: random.Random, split: str, kinds: list = SINGLE_TURN) -> Exchange:
    maker = rng.choices([maker for maker, _ in kinds], [weight for _, weight in kinds])[0]
    if maker is arithmetic.exchange and rng.random() < 0.06:
        return vary(rng, arithmetic.beyond(rng), greet_back=False)
    exchange = maker(rng, split)
    if maker is small_talk.exchange:
        return exchange
    literal = maker in (stories.exchange, instructions.exchange, instructions.repeat)  # what is asked for must be copied as it stands
    return vary(rng, exchange, greet_back=not literal, slips=not literal)


# The second part of the training: what a small model learns slowly (sums, copying, looking things up) is drawn more often, stories less.
LATER_TURN = [
    (arithmetic.exchange, 30), (phalanx.exchange, 26), (knowledge.exchange, 18), (knowledge.looked_up, 8), (knowledge.sequence, 4), (instructions.exchange, 12), (instructions.repeat, 16),
    (small_talk.exchange, 5), (unknown.exchange, 8), (stories.exchange, 4),
]


def draw_system(rng: random.Random) -> str | None:
    return rng.choice(SYSTEMS) if rng.random() < 0.3 else None


def draw_document(rng: random.Random, split: str = TRAIN) -> Conversation | Plain:
    draw = rng.random()
    if draw < 0.05:
        return stories.plain(rng, split)
    if draw < 0.15:
        return Conversation(memory.exchanges(rng, split), draw_system(rng))
    if draw < 0.30:
        return Conversation([vary(rng, arithmetic.exchange(rng, split)) for _ in range(rng.randint(2, 8))], draw_system(rng))
    turns = [draw_exchange(rng, split)]
    while rng.random() < 0.35 and len(turns) < 6:
        turns.append(draw_exchange(rng, split))
    if rng.random() < 0.03:
        turns.append(small_talk.thanks(rng))
    if rng.random() < 0.03:
        turns.append(small_talk.goodbye(rng))
    return Conversation(turns, draw_system(rng))


def draw_later_document(rng: random.Random, split: str = TRAIN) -> Conversation | Plain:
    """The second part of the training, see LATER_TURN."""
    draw = rng.random()
    if draw < 0.03:
        return stories.plain(rng, split)
    if draw < 0.10:
        return Conversation(memory.exchanges(rng, split), draw_system(rng))
    if draw < 0.22:
        return Conversation(memory.recall_name(rng, split, between=rng.choice([0, 0, 1])), draw_system(rng))
    if draw < 0.34:
        return Conversation([vary(rng, arithmetic.exchange(rng, split)) for _ in range(rng.randint(2, 8))], draw_system(rng))
    if draw < 0.38:
        return Conversation([instructions.repeat(rng, split) for _ in range(rng.randint(2, 6))], draw_system(rng))
    turns = [draw_exchange(rng, split, LATER_TURN)]
    while rng.random() < 0.35 and len(turns) < 6:
        turns.append(draw_exchange(rng, split, LATER_TURN))
    return Conversation(turns, draw_system(rng))


def draw_long_conversation(rng: random.Random, split: str = TRAIN) -> Conversation:
    """Many turns about unlike things; where a name was told first, it is asked for at the end."""
    turns = memory.recall_name(rng, split) if rng.random() < 0.5 else []
    ask = turns.pop() if turns else None
    for _ in range(rng.randint(8, 24)):
        turns.append(draw_exchange(rng, split))
    return Conversation(turns + ([ask] if ask else []), draw_system(rng))


def documents(seed: int, split: str = TRAIN, later: bool = False) -> Iterator[Conversation | Plain]:
    """An endless, reproducible stream; `later` gives that of the second part of the training."""
    rng = random.Random(f"{seed}/{split}/later" if later else f"{seed}/{split}")
    while True:
        yield draw_later_document(rng, split) if later else draw_document(rng, split)
