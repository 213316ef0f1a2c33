"""Surface variety: the same question as different people type it (greetings, politeness, case, punctuation)."""

from __future__ import annotations

import random
from dataclasses import replace

from .document import Exchange

GREETINGS = ["Hello!", "Hi!", "Hey!", "Hello,", "Hi,", "Hey,", "Hi there!", "Good morning!", "Hello there.", "Good day!"]
OPENERS = [
    "Please tell me:", "I have a question.", "Quick question:", "Tell me,", "So,", "OK,", "One more thing:", "Please,",
    "Can you help me?", "I wonder:", "I am new here.", "Question:",
]
CLOSERS = ["Thanks!", "Thank you.", "Please answer briefly.", "Please.", "I would like to know.", "Thanks in advance!"]


def lower_first(text: str) -> str:
    return text[:1].lower() + text[1:] if text[:2] not in ("I ", "I'") else text


def upper_first(text: str) -> str:
    return text[:1].upper() + text[1:]


def mistype(rng: random.Random, text: str) -> str:
    """One slip of the fingers: two neighbouring letters swapped, one dropped or one doubled. Numbers stay as they are."""
    places = [i for i in range(1, len(text) - 1) if text[i].isalpha() and text[i + 1].isalpha()]
    if not places:
        return text
    i = rng.choice(places)
    return rng.choice([text[:i] + text[i + 1] + text[i] + text[i + 2 :], text[:i] + text[i + 1 :], text[:i] + text[i] + text[i:]])


def vary(rng: random.Random, exchange: Exchange, greet_back: bool = True, slips: bool = False) -> Exchange:
    """Returns the exchange with its user turn said in another way; a greeting is sometimes answered with one."""
    user, assistant = exchange.user, exchange.assistant
    draw = rng.random()
    accepted = exchange.accepted
    if draw < 0.10:
        user = f"{rng.choice(GREETINGS)} {user}"
        if greet_back:
            assistant = f"Hello! {assistant}"
            accepted = tuple(f"Hello! {a}" for a in accepted)
    elif draw < 0.18:
        opener = rng.choice(OPENERS)
        user = f"{opener} {user if opener[-1] in '.?' else lower_first(user)}"
    elif draw < 0.23:
        user = f"{user} {rng.choice(CLOSERS)}"
    draw = rng.random()
    if draw < 0.10:
        user = user.lower()
    elif draw < 0.22 and user[-1] in ".?!":
        user = user[:-1]
    elif draw < 0.26 and user[-1] in ".?!":
        user = user[:-1].lower()
    elif draw < 0.265:
        user = user.upper()
    if slips and rng.random() < 0.05:
        user = mistype(rng, user)
    return replace(exchange, user=user, assistant=assistant, accepted=accepted)
