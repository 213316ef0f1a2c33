"""Questions and answers about Phalanx itself: each fact with its phrasings (every fifth is held out) and its answers."""

from __future__ import annotations

import random

from .document import Exchange, phrasings
from .phalanx_facts import FACTS, TERMS

# Ways to ask for the meaning of a word of the product; {a} carries the article ("a shard"), {t} does not ("shard").
TERM_PATTERNS = [
    "What is {a}?", "What is {a} in Phalanx?", "What does {t} mean?", "Explain what {a} is.", "Define {t}.",
    "What does the word {t} mean in Phalanx?", "Tell me what {a} is.", "Can you explain {t}?", "What do you mean by {t}?",
    "In Phalanx, what is {a}?", "What's {a}?", "Explain {t} to me.", "I do not know what {a} is.",
    "Phalanx speaks of {a}. What is that?", "Please explain the term {t}.",
]


def all_facts() -> list[tuple[str, list[str], list[str]]]:
    """(id, phrasings, answers) of every fact, terms included."""
    terms = []
    for term, (article, answers) in TERMS.items():
        named = f"{article} {term}" if article else term
        terms.append((f"term-{term}", [p.format(a=named, t=term) for p in TERM_PATTERNS], answers))
    return FACTS + terms


ALL = all_facts()
# What a newcomer types first is drawn more often than the rest.
WEIGHTS = [4.0 if name in ("who", "what", "can") else 2.0 if name in ("up", "join", "loss", "api") else 1.0 for name, _, _ in ALL]


def exchange(rng: random.Random, split: str) -> Exchange:
    name, patterns, answers = rng.choices(ALL, WEIGHTS)[0]
    user = rng.choice(phrasings(patterns, split))
    return Exchange(user, rng.choice(answers), "phalanx", accepted=tuple(answers))


def held_out_exchanges() -> list[Exchange]:
    """Every held-out phrasing of every fact, once."""
    from .document import HELD_OUT

    return [
        Exchange(user, answers[0], "phalanx", accepted=tuple(answers))
        for _, patterns, answers in ALL
        for user in phrasings(patterns, HELD_OUT)
    ]
