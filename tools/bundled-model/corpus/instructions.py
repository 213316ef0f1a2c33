"""Simple instructions: repeat, list three of a kind, spell, say hello in N words, upper case, first letter, yes or no."""

from __future__ import annotations

import random

from .document import Exchange, in_split, phrasings
from .story_words import WORDS

LISTS = {
    "fruits": ["an apple", "a pear", "a banana", "a cherry", "a plum", "an orange", "a lemon", "a grape", "a peach"],
    "animals": ["a dog", "a cat", "a horse", "a cow", "a fox", "a bear", "a lion", "a mouse", "a rabbit"],
    "colours": ["red", "blue", "green", "yellow", "black", "white", "orange", "brown", "pink"],
    "vegetables": ["a carrot", "a tomato", "a potato", "an onion", "a cabbage", "a bean", "a pumpkin"],
    "birds": ["an owl", "a duck", "a robin", "an eagle", "a swan", "a crow", "a goose"],
    "countries": ["France", "Italy", "Japan", "Brazil", "Canada", "Egypt", "India", "Norway", "Spain"],
    "cities": ["Paris", "London", "Rome", "Tokyo", "Berlin", "Madrid", "Cairo", "Lima", "Oslo"],
    "tools": ["a hammer", "a saw", "a spade", "a brush", "a rope", "a ladder"],
    "flowers": ["a rose", "a tulip", "a daisy", "a lily", "a poppy", "a violet"],
    "drinks": ["water", "milk", "tea", "coffee", "juice", "lemonade"],
    "things in a kitchen": ["a pot", "a pan", "a spoon", "a knife", "a cup", "a plate"],
    "things in a house": ["a table", "a chair", "a bed", "a lamp", "a door", "a window"],
    "numbers": ["one", "two", "three", "four", "five", "six", "seven"],
}
LIST_PATTERNS = ["List {n} {k}.", "Name {n} {k}.", "Tell me {n} {k}.", "Give me {n} {k}.", "Can you name {n} {k}?", "Say {n} {k}.", "Write a list of {n} {k}.", "I need {n} {k}."]
COUNTS = {2: "two", 3: "three", 4: "four", 5: "five"}
HELLO = {1: "Hello!", 2: "Hello there!", 3: "Hello, my friend!", 4: "Hello to you all!", 5: "Hello and a good day!", 6: "Hello, how are you doing today?"}
REPEAT_PATTERNS = [
    'Repeat the word "{w}".', "Repeat: {w}", "Say {w}.", "Repeat after me: {w}", "Say the word {w}.", 'Say "{w}".', "Please repeat {w}.",
    "Just say {w}.", 'Write "{w}".', "Write the word {w}.", "Answer only with the word {w}.", "Echo {w}",
]
SYLLABLES = "ba do ki la mo ne ri sa tu ve wi zo an el or ta shi gre pol che flu mar ten ock ist ou ple brin dar gos hem jun kra lim nop quo rast sten vor yul".split()
IS_A = [("animal", "animals"), ("fruit", "fruits"), ("colour", "colours"), ("vegetable", "vegetables"), ("country", "countries"), ("drink", "drinks"), ("flower", "flowers"), ("bird", "birds")]


def joined(items: list[str]) -> str:
    return items[0] if len(items) == 1 else ", ".join(items[:-1]) + " and " + items[-1]


def capitalised(text: str) -> str:
    return text[:1].upper() + text[1:]


def word_of(rng: random.Random, split: str) -> str:
    """Words of the held-out split are never repeated, spelled or counted in training."""
    while True:
        if split == "train" and rng.random() < 0.3:
            return "".join(rng.choice(SYLLABLES) for _ in range(rng.choice([1, 2, 2, 3])))
        word = rng.choice(WORDS)
        if in_split(split, "word", word):
            return word


def repeat(rng: random.Random, split: str) -> Exchange:
    words = [word_of(rng, split) for _ in range(rng.choice([1, 1, 1, 2, 3]))]
    phrase = " ".join(words)
    if rng.random() < 0.2:
        times = rng.choice([2, 3])
        said = " ".join([phrase] * times)
        times_word = {2: rng.choice(["twice", "two times"]), 3: "three times"}[times]
        return Exchange(rng.choice(["Say {w} {t}.", "Repeat {w} {t}.", "Write {w} {t}."]).format(w=phrase, t=times_word), said, "repeat", accepted=(said,))
    return Exchange(rng.choice(REPEAT_PATTERNS).format(w=phrase), phrase, "repeat", accepted=(phrase,))


def spell(rng: random.Random, split: str) -> Exchange:
    word = word_of(rng, split)
    answer = "-".join(word.upper())
    return Exchange(rng.choice(["Spell {w}.", "Spell the word {w}.", "How do you spell {w}?", "Can you spell {w}?"]).format(w=word), answer, "spell", accepted=(answer,))


def shout(rng: random.Random, split: str) -> Exchange:
    word = word_of(rng, split)
    pattern = rng.choice(["Write {w} in capital letters.", "Shout {w}!", "Write {w} in upper case.", "Say {w} in capital letters."])
    return Exchange(pattern.format(w=word), word.upper(), "upper-case", accepted=(word.upper(),))


def first_letter(rng: random.Random, split: str) -> Exchange:
    word = word_of(rng, split)
    which, letter = rng.choice([("first", word[0]), ("first", word[0]), ("last", word[-1])])
    answer = f"The {which} letter of {word} is {letter.upper()}."
    pattern = rng.choice(["What is the {n} letter of {w}?", "Which letter is the {n} letter of {w}?", "Tell me the {n} letter of {w}."])
    return Exchange(pattern.format(n=which, w=word), answer, "letters", accepted=(answer,))


def listing(rng: random.Random, split: str) -> Exchange:
    kind, count = rng.choice(list(LISTS)), rng.choice([2, 3, 3, 3, 4, 5])
    number = rng.choice([COUNTS[count], COUNTS[count], str(count)])
    user = rng.choice(phrasings(LIST_PATTERNS, split)).format(n=number, k=kind)
    return Exchange(user, capitalised(joined(rng.sample(LISTS[kind], count))) + ".", "lists", key="")


def hello(rng: random.Random, split: str) -> Exchange:
    count = rng.choice(list(HELLO))
    number = {1: "one", 6: "six", **COUNTS}[count] + (" word" if count == 1 else " words")
    if rng.random() < 0.3:
        number = f"{count} word" + ("s" if count > 1 else "")
    user = rng.choice(["Say hello in {n}.", "Greet me in {n}.", "Say hello with {n}.", "Can you say hello in {n}?"]).format(n=number)
    return Exchange(user, HELLO[count], "hello", accepted=(HELLO[count],))


def is_a(rng: random.Random, split: str) -> Exchange:
    kind, key = rng.choice(IS_A)
    right = rng.random() < 0.5
    other = key if right else rng.choice([k for _, k in IS_A if k != key and {k, key} != {"animals", "birds"}])
    thing = rng.choice(LISTS[other])
    article = "an" if kind[0] in "aeiou" else "a"
    no_key = next(singular for singular, plural in IS_A if plural == other)
    no_article = "an" if no_key[0] in "aeiou" else "a"
    answer = f"Yes, {thing} is {article} {kind}." if right else f"No, {thing} is {no_article} {no_key}."
    return Exchange(f"Is {thing} {article} {kind}?", answer, "is-a", accepted=(answer,))


def compare(rng: random.Random, split: str) -> Exchange:
    while True:
        a, b = rng.randint(0, 99), rng.randint(0, 99)
        if a != b and in_split(split, "compare", a, b):
            break
    bigger = rng.random() < 0.7
    word = rng.choice(["bigger", "larger", "greater"]) if bigger else "smaller"
    found = max(a, b) if bigger else min(a, b)
    user = rng.choice(["Which is {w}, {a} or {b}?", "Which number is {w}, {a} or {b}?", "What is {w}: {a} or {b}?"]).format(w=word, a=a, b=b)
    return Exchange(user, f"{found} is {word}.", "compare", key=str(found))


def exchange(rng: random.Random, split: str) -> Exchange:
    makers = [repeat, spell, shout, first_letter, listing, hello, is_a, compare]
    return rng.choices(makers, [5, 2, 1, 1, 5, 2, 2, 2])[0](rng, split)
