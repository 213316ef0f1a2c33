"""Simple general knowledge: capitals, colours, days, months, animals, opposites, counting, the alphabet."""

from __future__ import annotations

import random

from .document import Exchange, phrasings

CAPITALS = {
    "France": "Paris", "Germany": "Berlin", "Italy": "Rome", "Spain": "Madrid", "Portugal": "Lisbon", "England": "London",
    "Ireland": "Dublin", "Scotland": "Edinburgh", "Austria": "Vienna", "Switzerland": "Bern", "Belgium": "Brussels",
    "the Netherlands": "Amsterdam", "Denmark": "Copenhagen", "Sweden": "Stockholm", "Norway": "Oslo", "Finland": "Helsinki",
    "Poland": "Warsaw", "Hungary": "Budapest", "Greece": "Athens", "Turkey": "Ankara", "Russia": "Moscow", "Ukraine": "Kyiv",
    "Egypt": "Cairo", "Kenya": "Nairobi", "Morocco": "Rabat", "Japan": "Tokyo", "China": "Beijing", "India": "New Delhi",
    "South Korea": "Seoul", "Thailand": "Bangkok", "Vietnam": "Hanoi", "Australia": "Canberra", "Canada": "Ottawa",
    "the United States": "Washington", "Mexico": "Mexico City", "Brazil": "Brasilia", "Argentina": "Buenos Aires",
    "Chile": "Santiago", "Peru": "Lima", "Cuba": "Havana", "Iceland": "Reykjavik", "Romania": "Bucharest",
}
CAPITAL_PATTERNS = [
    "What is the capital of {c}?", "capital of {c}", "Which city is the capital of {c}?", "Tell me the capital of {c}.", "What's the capital of {c}?",
    "Name the capital of {c}.", "Do you know the capital of {c}?", "The capital of {c}?", "Can you name the capital of {c}?", "What city is the capital of {c}?",
    "What is the capital city of {c}?", "Which city is {c}'s capital?", "I want to know the capital of {c}.", "Give me the capital of {c}.",
]
CITY_PATTERNS = ["Where is {t}?", "In which country is {t}?", "Which country has the capital {t}?", "{t} is the capital of which country?", "What country is {t} in?"]

SOUNDS = {
    "dog": "barks", "cat": "meows", "cow": "moos", "sheep": "bleats", "horse": "neighs", "duck": "quacks", "pig": "oinks",
    "lion": "roars", "wolf": "howls", "snake": "hisses", "bee": "buzzes", "frog": "croaks", "owl": "hoots", "mouse": "squeaks",
    "donkey": "brays", "hen": "clucks", "goat": "bleats", "bird": "sings",
}
SOUND_PATTERNS = [
    "What sound does a {x} make?", "What does a {x} say?", "How does a {x} sound?", "Which sound does a {x} make?", "What noise does a {x} make?",
    "Tell me the sound of a {x}.", "What is the sound of a {x}?",
]
OPPOSITES = [
    ("hot", "cold"), ("big", "small"), ("fast", "slow"), ("up", "down"), ("day", "night"), ("good", "bad"), ("happy", "sad"), ("old", "new"),
    ("young", "old"), ("light", "dark"), ("open", "closed"), ("full", "empty"), ("rich", "poor"), ("hard", "soft"), ("long", "short"),
    ("high", "low"), ("left", "right"), ("early", "late"), ("loud", "quiet"), ("wet", "dry"), ("strong", "weak"), ("clean", "dirty"),
    ("inside", "outside"), ("near", "far"), ("true", "false"), ("first", "last"), ("black", "white"), ("heavy", "light"), ("thick", "thin"),
    ("wide", "narrow"), ("easy", "hard"), ("begin", "end"), ("win", "lose"), ("push", "pull"), ("love", "hate"), ("yes", "no"),
]
OPPOSITE_PATTERNS = [
    "What is the opposite of {x}?", "opposite of {x}", "Tell me the opposite of {x}.", "Name the opposite of {x}.", "Which word is the opposite of {x}?",
    "What's the opposite of {x}?", "Give me the opposite of {x}.",
]
COLOURS = {
    "the sky": "blue", "grass": "green", "snow": "white", "blood": "red", "a banana": "yellow", "a lemon": "yellow", "coal": "black",
    "a tomato": "red", "an orange": "orange", "the sea": "blue", "milk": "white", "a carrot": "orange", "a leaf": "green", "chocolate": "brown",
    "the sun": "yellow", "a frog": "green", "a strawberry": "red", "the night sky": "black", "a polar bear": "white", "a cherry": "red",
}
COLOUR_PATTERNS = ["What colour is {x}?", "What color is {x}?", "Which colour does {x} have?", "Tell me the colour of {x}.", "What is the colour of {x}?", "Which color is {x}?"]

DAYS = ["Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday"]
MONTHS = ["January", "February", "March", "April", "May", "June", "July", "August", "September", "October", "November", "December"]
LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
NEXT_PATTERNS = ["What comes after {x}?", "Which {k} comes after {x}?", "What {k} is after {x}?", "Which {k} follows {x}?", "Tell me the {k} after {x}."]
PREVIOUS_PATTERNS = ["What comes before {x}?", "Which {k} comes before {x}?", "What {k} is before {x}?", "Which {k} is before {x}?", "Tell me the {k} before {x}."]

LEGS = {"a dog": 4, "a cat": 4, "a spider": 8, "a bird": 2, "a horse": 4, "an ant": 6, "a bee": 6, "a snake": 0, "a fish": 0, "a human": 2, "a cow": 4, "a hen": 2}
LEG_PATTERNS = ["How many legs does {x} have?", "How many legs has {x}?", "Tell me how many legs {x} has.", "What is the number of legs of {x}?", "Number of legs of {x}?"]

# Single facts: (phrasings, answer)
SINGLE: list[tuple[list[str], str]] = [
    (["Name the days of the week.", "What are the days of the week?", "List the days of the week.", "Tell me the days of the week.", "Which days are in a week?", "days of the week"],
     "The days of the week are Monday, Tuesday, Wednesday, Thursday, Friday, Saturday and Sunday."),
    (["Name the months.", "What are the months of the year?", "List the months of the year.", "Tell me the months of the year.", "Which months are in a year?", "months of the year"],
     "The months are January, February, March, April, May, June, July, August, September, October, November and December."),
    (["Say the alphabet.", "What is the alphabet?", "Tell me the alphabet.", "List the alphabet.", "Write the alphabet.", "Which letters are in the alphabet?"],
     "A B C D E F G H I J K L M N O P Q R S T U V W X Y Z"),
    (["Name the seasons.", "What are the four seasons?", "List the seasons.", "Which seasons are there?", "Tell me the seasons of the year."], "The four seasons are spring, summer, autumn and winter."),
    (["How many days are in a week?", "How many days does a week have?", "Days in a week?", "Tell me how many days a week has."], "A week has 7 days."),
    (["How many months are in a year?", "How many months does a year have?", "Months in a year?", "Tell me how many months a year has."], "A year has 12 months."),
    (["How many hours are in a day?", "How many hours does a day have?", "Hours in a day?", "Tell me how many hours a day has."], "A day has 24 hours."),
    (["How many minutes are in an hour?", "How many minutes does an hour have?", "Minutes in an hour?", "Tell me how many minutes an hour has."], "An hour has 60 minutes."),
    (["How many seconds are in a minute?", "How many seconds does a minute have?", "Seconds in a minute?", "Tell me how many seconds a minute has."], "A minute has 60 seconds."),
    (["How many letters are in the alphabet?", "How many letters does the alphabet have?", "Letters in the alphabet?", "Tell me how many letters the alphabet has."], "The English alphabet has 26 letters."),
    (["How many days are in a year?", "How many days does a year have?", "Days in a year?", "Tell me how many days a year has."], "A year has 365 days, and a leap year has 366."),
    (["What is the sun?", "Explain the sun.", "Tell me about the sun.", "Can you explain what the sun is?", "Is the sun a star?"], "The sun is a star. It gives light and warmth to the earth."),
    (["What is the moon?", "Explain the moon.", "Tell me about the moon.", "Can you explain what the moon is?", "What goes around the earth?"], "The moon goes around the earth. At night it shines with the light of the sun."),
    (["What is water?", "Explain water.", "Tell me about water.", "What is water made of?", "Can you explain what water is?"], "Water is a clear liquid that all living things need. Cold water turns to ice, and hot water to steam."),
    (["What is rain?", "Where does rain come from?", "Explain rain.", "Why does it rain?", "Tell me about rain."], "Rain is water that falls from the clouds in small drops."),
    (["What is the biggest animal?", "Which animal is the biggest?", "What is the largest animal?", "Name the biggest animal.", "Which is the largest animal on earth?"], "The biggest animal is the blue whale."),
    (["What is the fastest animal on land?", "Which animal runs fastest?", "What is the fastest land animal?", "Which land animal is the fastest?"], "The fastest animal on land is the cheetah."),
    (["What is the biggest planet?", "Which planet is the biggest?", "What is the largest planet?", "Name the biggest planet."], "The biggest planet of the sun is Jupiter."),
    (["On which planet do we live?", "What is our planet called?", "Which planet do we live on?", "What is the name of our planet?"], "We live on the planet Earth."),
    (["What do bees make?", "Who makes honey?", "What makes honey?", "Where does honey come from?", "Which animal makes honey?"], "Bees make honey."),
    (["What do cows give us?", "Where does milk come from?", "Which animal gives milk?", "What gives us milk?"], "Milk comes from cows."),
    (["What is a computer?", "Explain computers.", "Tell me what a computer is.", "What does a computer do?", "Can you explain what a computer is?"], "A computer is a machine that follows instructions very fast."),
    (["What is a GPU?", "Explain what a GPU is.", "What does GPU mean?", "Tell me what a GPU is.", "What is a GPU for?"], "A GPU is a device that does very many small sums at once. Language models run fast on it."),
    (["What is a CPU?", "Explain what a CPU is.", "What does CPU mean?", "Tell me what a CPU is.", "What is a CPU for?"], "A CPU is the part of a computer that carries out its instructions."),
    (["What is an API?", "Explain what an API is.", "What does API mean?", "Tell me what an API is."], "An API is the way in which one program talks to another."),
    (["What is an LLM?", "Explain what an LLM is.", "What does LLM mean?", "Tell me what an LLM is."], "An LLM is a large language model: a program that has learnt from much text to write text."),
    (["Why is the sky blue?", "Why is the sky blue during the day?", "Explain why the sky is blue.", "Tell me why the sky is blue.", "Do you know why the sky is blue?"], "The air spreads the blue part of the sun's light more than the rest, so the sky looks blue."),
    (["Tell me a fun fact.", "Tell me something interesting.", "Do you know a fun fact?", "Give me a fun fact.", "A fun fact, please.", "Tell me a fact.", "Say something interesting."], "A snail can sleep for a very long time, and an octopus has three hearts."),
    (["What is Rust?", "What is Python?", "What is JavaScript?", "What is C?", "What is Java?"], "It is a programming language. People write programs in it."),
    (["What is Linux?", "What is Windows?", "What is macOS?", "What is an operating system?"], "It is an operating system: the program that runs all other programs of a computer."),
    (["What is a cat?", "Tell me about cats.", "Explain what a cat is.", "What are cats?", "Tell me something about cats."], "A cat is a small animal with soft fur. It meows, and it likes to sleep and to hunt mice."),
    (["What is a dog?", "Tell me about dogs.", "Explain what a dog is.", "What are dogs?", "Tell me something about dogs."], "A dog is an animal that lives with people. It barks, and it likes to run and to play."),
    (["What is a fox?", "Tell me about foxes.", "Explain what a fox is.", "What are foxes?", "Tell me something about foxes."], "A fox is a wild animal with red fur and a long tail. It lives in the forest."),
    (["What colours does a rainbow have?", "Name the colours of the rainbow.", "What are the colours of the rainbow?", "Which colors are in a rainbow?", "Tell me the colors of a rainbow."], "The colours of the rainbow are red, orange, yellow, green, blue, indigo and violet."),
    (["Name the primary colours.", "What are the primary colours?", "Which colours are primary?", "What are the primary colors?"], "The primary colours are red, yellow and blue."),
    (["What is a dozen?", "How many is a dozen?", "How much is a dozen?"], "A dozen is 12."),
]


def capital(rng: random.Random, split: str) -> Exchange:
    country = rng.choice(list(CAPITALS))
    city = CAPITALS[country]
    if rng.random() < 0.8 or split != "train":
        user = rng.choice(phrasings(CAPITAL_PATTERNS, split)).format(c=country)
        return Exchange(user, f"The capital of {country} is {city}.", "capitals", key=city)
    user = rng.choice(phrasings(CITY_PATTERNS, split)).format(t=city)
    return Exchange(user, f"{city} is the capital of {country}.", "capitals", key=country.removeprefix("the "))


def number_words(rng: random.Random, split: str) -> Exchange:
    """Counting up or down."""
    first = rng.choice([1, 1, 1, rng.randint(2, 20)])
    last = first + rng.randint(2, 12)
    if rng.random() < 0.2:
        user = rng.choice(["Count down from {b} to {a}.", "Count backwards from {b} to {a}."]).format(a=first, b=last)
        numbers = range(last, first - 1, -1)
    else:
        user = rng.choice(["Count from {a} to {b}.", "Count from {a} up to {b}.", "Please count from {a} to {b}.", "Can you count from {a} to {b}?"] + (["Count to {b}.", "Can you count to {b}?"] if first == 1 else []))
        user = user.format(a=first, b=last)
        numbers = range(first, last + 1)
    return Exchange(user, ", ".join(map(str, numbers)), "counting", accepted=(", ".join(map(str, numbers)),))


def sequence(rng: random.Random, split: str) -> Exchange:
    """The day, month or letter after or before another."""
    items, kind = rng.choice([(DAYS, "day"), (MONTHS, "month"), (list(LETTERS), "letter")])
    step = rng.choice([1, 1, -1])
    i = rng.randrange(len(items))
    if kind == "letter" and not 0 <= i + step < len(items):
        i = 5
    found = items[(i + step) % len(items)]
    patterns = NEXT_PATTERNS if step == 1 else PREVIOUS_PATTERNS
    user = rng.choice(phrasings(patterns, split)).format(x=items[i], k=kind)
    return Exchange(user, f"{found} comes {'after' if step == 1 else 'before'} {items[i]}.", "sequence", key=found)


def looked_up(rng: random.Random, split: str) -> Exchange:
    """Animal sounds, opposites, colours and legs."""
    table = rng.choice(["sound", "opposite", "opposite", "colour", "legs"])
    if table == "sound":
        x = rng.choice(list(SOUNDS))
        article = "an" if x[0] in "aeiou" else "a"
        user = rng.choice(phrasings(SOUND_PATTERNS, split)).format(x=x).replace(f" a {x}", f" {article} {x}")
        return Exchange(user, f"{article.capitalize()} {x} {SOUNDS[x]}.", "sounds", key=SOUNDS[x])
    if table == "opposite":
        a, b = rng.choice(OPPOSITES)
        if rng.random() < 0.4 and sum(b in pair for pair in OPPOSITES) == 1:
            a, b = b, a
        user = rng.choice(phrasings(OPPOSITE_PATTERNS, split)).format(x=a)
        return Exchange(user, f"The opposite of {a} is {b}.", "opposites", key=b)
    if table == "colour":
        x = rng.choice(list(COLOURS))
        user = rng.choice(phrasings(COLOUR_PATTERNS, split)).format(x=x)
        return Exchange(user, f"{x[0].upper()}{x[1:]} is {COLOURS[x]}.", "colours", key=COLOURS[x])
    x = rng.choice(list(LEGS))
    user = rng.choice(phrasings(LEG_PATTERNS, split)).format(x=x)
    count = LEGS[x]
    return Exchange(user, f"{x[0].upper()}{x[1:]} has {count or 'no'} legs.", "legs", key=str(count or "no"))


def single(rng: random.Random, split: str) -> Exchange:
    patterns, answer = rng.choice(SINGLE)
    return Exchange(rng.choice(phrasings(patterns, split) or patterns[:1]), answer, "facts", accepted=(answer,))


def exchange(rng: random.Random, split: str) -> Exchange:
    maker = rng.choices([capital, number_words, sequence, looked_up, single], [5, 2, 2, 4, 4])[0]
    return maker(rng, split)
