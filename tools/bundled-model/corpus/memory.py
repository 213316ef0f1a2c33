"""Conversations that need what was said before: the user's name, a number, a favourite; and follow-up questions."""

from __future__ import annotations

import random

from . import knowledge, small_talk, stories
from .document import Exchange, in_split
from .story_words import NAMES_HE, NAMES_SHE

NAMES = sorted(set(NAMES_HE + NAMES_SHE) | set(
    "Alice Bob Carol David Eve Frank Grace Henry Isabel James Laura Mark Peter Quentin Rachel Steve Ursula Victor Wendy Xavier Yara Zach Aisha Bjorn Chen Dmitri Elena Fatima Gita Hans Ines "
    "Jorge Kenji Lars Mei Nadia Omar Priya Rosa Sofia Tariq Uma Vera Wei Yusuf Zara Adam Brian Chloe Daniel Erik Fiona George Hannah Ian Julia Kevin Linda Martin Nancy Oliver Patrick Robert "
    "Sarah Thomas Walter Amelia Arthur Bettina Carlos Diego Dora Edgar Fritz Gustav Heidi Igor Jonas Katja Lorenzo Marta Nils Otis Paula Ralf Stella Tobias Viktor Yvonne Marie Simon Lena".split()
))
LIKES = {
    "colour": ["red", "blue", "green", "yellow", "black", "white", "orange", "brown", "pink", "purple", "grey"],
    "animal": ["cat", "dog", "horse", "fox", "bear", "owl", "rabbit", "lion", "mouse", "duck", "wolf", "tiger"],
    "food": ["soup", "pizza", "bread", "cheese", "rice", "cake", "pasta", "salad", "fish", "potatoes"],
    "number": [str(n) for n in range(2, 100)],
    "city": ["Paris", "London", "Rome", "Tokyo", "Berlin", "Madrid", "Cairo", "Lima", "Oslo", "Vienna", "Athens"],
}
INTRODUCTIONS = ["My name is {n}.", "I am {n}.", "Hello, my name is {n}.", "Hi, I am {n}.", "Call me {n}.", "I'm {n}.", "You can call me {n}.", "Hello! I am {n}.", "Good morning, I am {n}.", "my name is {n}"]
NAME_QUESTIONS = ["What is my name?", "Do you remember my name?", "What's my name?", "Who am I?", "Can you say my name?", "Do you know my name?", "Tell me my name.", "what is my name"]


def name_of(rng: random.Random, split: str) -> str:
    """A name of the split; training also sees made-up names, so that copying is learnt and not a list of names."""
    if split == "train" and rng.random() < 0.4:
        made_up = "".join(rng.choice(["ba", "do", "ki", "la", "mo", "ne", "ri", "sa", "tu", "ve", "wi", "zo", "an", "el", "or", "ta", "shi", "gre", "pol", "che"]) for _ in range(rng.choice([2, 2, 3])))
        return made_up.capitalize()
    while True:
        name = rng.choice(NAMES)
        if in_split(split, "name", name):
            return name


def greet(rng: random.Random, name: str) -> Exchange:
    user = rng.choice(INTRODUCTIONS).format(n=name)
    return Exchange(user, rng.choice([f"Hello, {name}! How can I help you?", f"Nice to meet you, {name}!"]), "memory")


def recall_name(rng: random.Random, split: str, between: int | None = None) -> list[Exchange]:
    """A name is told and, after `between` other exchanges (a few where None), asked for."""
    name = name_of(rng, split)
    ask = Exchange(rng.choice(NAME_QUESTIONS), f"Your name is {name}.", "name-recall", key=name)
    turns = [greet(rng, name)]
    for _ in range(rng.choice([0, 0, 1, 1, 2, 3]) if between is None else between):
        turns.append(rng.choice([small_talk.exchange, knowledge.exchange])(rng, "train"))
    return turns + [ask]


def recall_like(rng: random.Random, split: str) -> list[Exchange]:
    kind = rng.choice(list(LIKES))
    while True:
        liked = rng.choice(LIKES[kind])
        if in_split(split, "like", liked):
            break
    article = "the " if kind == "animal" else ""
    told = Exchange(rng.choice(["My favourite {k} is {v}.", "My favorite {k} is {v}.", "I like {v}. It is my favourite {k}."]).format(k=kind, v=article + liked),
                    rng.choice([f"I will remember that your favourite {kind} is {article}{liked}.", "That is a good choice!"]), "memory")
    ask = Exchange(rng.choice(["What is my favourite {k}?", "Which {k} do I like?", "Do you remember my favourite {k}?"]).format(k=kind),
                   f"Your favourite {kind} is {article}{liked}.", "like-recall", key=liked)
    turns = [told]
    for _ in range(rng.choice([0, 0, 1, 2])):
        turns.append(rng.choice([small_talk.exchange, knowledge.exchange])(rng, "train"))
    return turns + [ask]


def unknown_name(rng: random.Random, split: str) -> list[Exchange]:
    """Asked for a name that was never told."""
    return [Exchange(rng.choice(NAME_QUESTIONS), "You have not told me your name yet.", "name-unknown", accepted=("You have not told me your name yet.",))]


def story_follow_up(rng: random.Random, split: str) -> list[Exchange]:
    """A question about the story that was just told."""
    story = stories.compose(rng, split)
    hero = story.hero
    turns = [Exchange(rng.choice(stories.REQUESTS).format(k=stories.article(hero.kind)), story.text, "story")]
    follow_ups = [
        (rng.choice([f"What was the name of the {hero.kind}?", "Who was the story about?", "What was the name in the story?"]), f"The {hero.kind} was called {hero.name}."),
        (rng.choice(["Thanks, that was nice.", "I like this story.", "What a nice story!"]), "I am glad that you like it!"),
    ]
    user, answer = rng.choice(follow_ups)
    return turns + [Exchange(user, answer, "follow-up")]


def what_about(rng: random.Random, split: str) -> list[Exchange]:
    """An elliptical follow-up: "And Italy?" after a question about a capital."""
    (first, city), (second, other) = rng.sample(list(knowledge.CAPITALS.items()), 2)
    user = rng.choice([f"And of {second}?", f"And {second}?", f"What about {second}?", f"And what about {second}?"])
    return [Exchange(f"What is the capital of {first}?", f"The capital of {first} is {city}.", "capitals", key=city),
            Exchange(user, f"The capital of {second} is {other}.", "follow-up", key=other)]


def exchanges(rng: random.Random, split: str) -> list[Exchange]:
    maker = rng.choices([recall_name, recall_like, unknown_name, story_follow_up, what_about], [8, 3, 1, 1, 2])[0]
    turns = maker(rng, split)
    if rng.random() < 0.2:
        turns.append(small_talk.thanks(rng))
    return turns
