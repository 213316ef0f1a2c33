"""Short stories composed from a grammar: who, where, with whom, about what, which plot, told in which words."""

from __future__ import annotations

import random
import re
from dataclasses import dataclass

from . import story_words as words
from .document import Exchange, Plain, in_split
from .story_plots import CLOSINGS, MORALS, OPENINGS, PLOTS

ALTERNATIVES = re.compile(r"\[([^\[\]]*)\]")
PRONOUNS = {
    "he": {"he": "he", "him": "him", "his": "his", "He": "He", "His": "His", "himself": "himself"},
    "she": {"he": "she", "him": "her", "his": "her", "He": "She", "His": "Her", "himself": "herself"},
    "it": {"he": "it", "him": "it", "his": "its", "He": "It", "His": "Its", "himself": "itself"},
}


def expand(rng: random.Random, text: str) -> str:
    """Replaces each `[one|another]` by one of its alternatives, innermost first."""
    while match := ALTERNATIVES.search(text):
        text = text[: match.start()] + rng.choice(match[1].split("|")) + text[match.end() :]
    return text


@dataclass(frozen=True)
class Character:
    kind: str
    name: str
    gender: str


def article(noun: str) -> str:
    return f"an {noun}" if noun[0] in "aeio" or noun.startswith("ugly") else f"a {noun}"


def draw_character(rng: random.Random, kind: str | None = None, avoid: str = "") -> Character:
    if kind is None and rng.random() < 0.2:
        kind = rng.choice([k for k in words.RARE if k != avoid])
    elif kind is None:
        pool = rng.choices([words.ANIMALS, words.PEOPLE_HE, words.PEOPLE_SHE, words.PEOPLE_IT], [10, 4, 4, 2])[0]
        kind = rng.choice([k for k in pool if k != avoid])
    if kind in words.PEOPLE_HE:
        gender = "he"
    elif kind in words.PEOPLE_SHE:
        gender = "she"
    elif kind in words.PEOPLE_IT:
        gender = "it"
    else:
        gender = rng.choice(["he", "she"])
    name = rng.choice(words.NAMES_SHE if gender == "she" else words.NAMES_HE)
    return Character(kind, name, gender)


@dataclass(frozen=True)
class Story:
    text: str
    hero: Character
    thing: str  # what the plot turns on ("a golden key"), empty where the plot has no such thing
    plot: str
    friend: str  # the friend's kind, empty where the plot told does not name it


def compose(rng: random.Random, split: str, hero: Character | None = None, plot: str | None = None) -> Story:
    """Composes one story. The combination (hero, plot, friend) decides the split it belongs to."""
    while True:
        name = plot or rng.choice(list(PLOTS))
        main = hero or draw_character(rng)
        friend = draw_character(rng, avoid=main.kind)
        if friend.name != main.name and in_split(split, "story", main.kind, name, friend.kind):
            break
    thing = rng.choice(words.OBJECTS)
    trait = rng.choice(words.TRAITS)
    slots = {
        "N": main.name, "kind": main.kind, "a_kind": article(f"{trait} {main.kind}".replace("little little", "little").replace("old old", "old")),
        "place": rng.choice(words.PLACES), "F": friend.name, "friend": friend.kind, "a_friend": article(friend.kind),
        "thing": thing, "the_thing": "the " + thing.split(" ", 1)[1], "food": rng.choice(words.FOODS), "weather": rng.choice(words.WEATHER),
        "skill": rng.choice(words.SKILLS), "plant": rng.choice(words.PLANTS), "fear": rng.choice(words.FEARS), **PRONOUNS[main.gender],
        **{f"f_{k}": v for k, v in PRONOUNS[friend.gender].items()},
    }
    slots["the_plant"] = "the " + slots["plant"].split(" ", 1)[1]
    beats = [rng.choice(OPENINGS), *PLOTS[name]]
    beats += [rng.choice(MORALS[name])] if rng.random() < 0.5 else []
    beats += [rng.choice(CLOSINGS)] if rng.random() < 0.6 else []
    text = " ".join(expand(rng, beat) for beat in beats).format(**slots)
    used = slots["the_thing"] if slots["the_thing"] in text else ""
    return Story(text, main, thing if used else "", name, friend.kind if friend.kind in text else "")


REQUESTS = [
    "Tell me a short story about {k}.", "Tell me a story about {k}.", "Write a short story about {k}.", "Write a story about {k}.", "Can you tell me a story about {k}?", "A story about {k}, please.",
    "I want to hear a story about {k}.", "Please tell me a short story about {k}.", "story about {k}", "Do you know a story about {k}?", "Make up a story about {k}.", "Tell a tale about {k}.",
    "Could you write a short story about {k}?", "Tell me something about {k} as a story.", "Give me a story about {k}.",
]
OPEN_REQUESTS = [
    "Tell me a story.", "Tell me a short story.", "Write a story.", "Can you tell me a story?", "A story, please.", "I want to hear a story.", "Write a short story.", "Please tell me a story.",
    "Tell me a bedtime story.", "Do you know a story?", "Make up a story.", "Tell me another story.", "Once more, a story please.",
]


def exchange(rng: random.Random, split: str) -> Exchange:
    story = compose(rng, split)
    hero, draw = story.hero, rng.random()
    if draw < 0.12:
        user = rng.choice(OPEN_REQUESTS)
    else:
        subject = article(hero.kind)
        if draw < 0.34:
            subject = rng.choice([f"{subject} named {hero.name}", f"{subject} called {hero.name}"])
        if draw > 0.86 and story.thing:
            subject += f" and {story.thing}"
        elif draw > 0.70 and story.friend:
            subject += f" and {article(story.friend)}"
        user = rng.choice(REQUESTS).format(k=subject)
    return Exchange(user, story.text, "story")


def plain(rng: random.Random, split: str) -> Plain:
    return Plain(compose(rng, split).text, "story")
