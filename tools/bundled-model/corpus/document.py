"""The shapes every corpus module produces, and the rule that keeps held-out material out of training."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field

TRAIN = "train"
HELD_OUT = "held_out"

# Percent of arithmetic instances, names and the like that training never sees.
HELD_OUT_PERCENT = 15


@dataclass(frozen=True)
class Exchange:
    """One user turn and its answer.

    `accepted` lists every answer that evaluation counts as exact. `key`, where set, is the one word or number that
    a right answer must contain; evaluation then looks for the key instead of comparing the whole text.
    """

    user: str
    assistant: str
    kind: str
    accepted: tuple[str, ...] = ()
    key: str = ""


@dataclass
class Conversation:
    """A chat: an optional system prompt and one or more exchanges. Loss is taken on the answers only."""

    exchanges: list[Exchange]
    system: str | None = None


@dataclass
class Plain:
    """A raw text document, as `/v1/completions` sees it. Loss is taken on every token."""

    text: str
    kind: str = field(default="plain")


def is_held_out(*parts: object) -> bool:
    """Stable across runs and Python versions: depends on the instance alone, never on the seed."""
    digest = hashlib.blake2b("|".join(map(str, parts)).encode(), digest_size=4).digest()
    return int.from_bytes(digest, "little") % 100 < HELD_OUT_PERCENT


def in_split(split: str, *parts: object) -> bool:
    return is_held_out(*parts) == (split == HELD_OUT)


def phrasings(patterns: list[str], split: str) -> list[str]:
    """Every fifth phrasing of a list (its 4th, 9th, ...) is held out; the first three are always trained."""
    if split == HELD_OUT:
        return patterns[3::5]
    return [p for i, p in enumerate(patterns) if i % 5 != 3]
