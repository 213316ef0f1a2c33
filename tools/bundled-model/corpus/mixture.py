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
MAKERS = [maker for maker, _ in SINGLE_TURN]
WEIGHTS = [weight for _, weight in SINGLE_TURN]


def draw_exchange(rng: random.Random, split: str) -> Exchange:
    maker = rng.choices(MAKERS, WEIGHTS)[0]
    if maker is arithmetic.exchange and rng.random() < 0.06:
        return vary(rng, arithmetic.beyond(rng), greet_back=False)
    exchange = maker(rng, split)
    if maker is small_talk.exchange:
        return exchange
    literal = maker in (stories.exchange, instructions.exchange)  # what is asked for must be copied as it stands
    return vary(rng, exchange, greet_back=not literal, slips=not literal)


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


def draw_long_conversation(rng: random.Random, split: str = TRAIN) -> Conversation:
    """Many turns about unlike things; where a name was told first, it is asked for at the end."""
    turns = memory.recall_name(rng, split) if rng.random() < 0.5 else []
    ask = turns.pop() if turns else None
    for _ in range(rng.randint(8, 24)):
        turns.append(draw_exchange(rng, split))
    return Conversation(turns + ([ask] if ask else []), draw_system(rng))


def documents(seed: int, split: str = TRAIN) -> Iterator[Conversation | Plain]:
    """An endless, reproducible stream."""
    rng = random.Random(f"{seed}/{split}")
    while True:
        yield draw_document(rng, split)
