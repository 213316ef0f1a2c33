"""Addition and subtraction of numbers of up to two digits, products of two digits, and honest refusals beyond that."""

from __future__ import annotations

import random

from .document import Exchange, HELD_OUT, in_split

PATTERNS = {
    "add": [
        "What is {a} + {b}?", "{a} + {b}", "{a} + {b} =", "What is {a} plus {b}?", "Add {a} and {b}.",
        "How much is {a} plus {b}?", "Calculate {a} + {b}.", "What do you get if you add {a} and {b}?",
        "What is the sum of {a} and {b}?", "{a} plus {b}", "Compute {a}+{b}.", "{a}+{b}", "{a}+{b}=?", "What's {a}+{b}?", "How much is {a}+{b}?",
        "I have {a} apples and get {b} more. How many apples do I have?",
    ],
    "sub": [
        "What is {a} - {b}?", "{a} - {b}", "{a} - {b} =", "What is {a} minus {b}?", "Subtract {b} from {a}.",
        "How much is {a} minus {b}?", "Calculate {a} - {b}.", "What is the difference between {a} and {b}?",
        "{a} minus {b}", "Compute {a}-{b}.", "Take {b} away from {a}.", "{a}-{b}", "{a}-{b}=?", "What's {a}-{b}?", "How much is {a}-{b}?",
        "I have {a} apples and give away {b}. How many apples are left?",
    ],
    "mul": [
        "What is {a} * {b}?", "{a} x {b}", "{a} * {b} =", "What is {a} times {b}?", "Multiply {a} by {b}.",
        "How much is {a} times {b}?", "Calculate {a} * {b}.", "What is {a} multiplied by {b}?", "{a} times {b}",
        "What is the product of {a} and {b}?", "{a}*{b}", "What is {a} x {b}?", "What's {a}*{b}?", "{a}x{b}",
    ],
}
SIGN = {"add": "+", "sub": "-", "mul": "*"}

BEYOND = (
    "I am a very small model. I can only add and subtract numbers of up to two digits, and multiply single digits."
)


def apply(operation: str, a: int, b: int) -> int:
    return a + b if operation == "add" else a - b if operation == "sub" else a * b


def draw_pair(rng: random.Random, operation: str, split: str) -> tuple[int, int]:
    """Draws a pair of the split. The 100 products are too few to generalise from: six of them are held out."""
    while True:
        if operation == "mul":
            a, b = rng.randint(0, 9), rng.randint(0, 9)
            held_out = (a * 7 + b * 3) % 10 == 9 and a > 1 and b > 1
            if held_out != (split == HELD_OUT):
                continue
            return a, b
        # A tenth of the draws have one digit each, so that the easy sums are never rare.
        high = 9 if rng.random() < 0.1 else 99
        a, b = rng.randint(0, high), rng.randint(0, high)
        if operation == "sub" and a < b and rng.random() < 0.8:
            a, b = b, a
        if in_split(split, operation, a, b):
            return a, b


def exchange(rng: random.Random, split: str, operation: str | None = None) -> Exchange:
    operation = operation or rng.choices(["add", "sub", "mul"], [5, 5, 2])[0]
    a, b = draw_pair(rng, operation, split)
    patterns = PATTERNS[operation]
    if operation == "sub" and a < b:
        patterns = patterns[:-1]
    weights = [3 if i < 5 else 1 for i in range(len(patterns))]
    user = rng.choices(patterns, weights)[0].format(a=a, b=b)
    result = apply(operation, a, b)
    if "apples" in user:
        answer = f"{a} {SIGN[operation]} {b} = {result}. {'There are' if operation == 'sub' else 'You have'} {result} apples."
        if result == 1:
            answer = answer.replace("There are 1 apples", "There is 1 apple").replace("1 apples", "1 apple")
        if a == 1:
            user = user.replace("1 apples and", "1 apple and", 1)
    else:
        answer = f"{a} {SIGN[operation]} {b} = {result}."
    return Exchange(user, answer, f"arithmetic-{operation}", key=str(result))


def beyond(rng: random.Random) -> Exchange:
    """A sum outside the trained range: the honest answer is that it is out of range."""
    a, b = rng.randint(100, 99999), rng.randint(10, 99999)
    if rng.random() < 0.5:
        a, b = b, a
    draw = rng.random()
    if draw < 0.6:
        user = rng.choice(PATTERNS[rng.choice(["add", "sub", "mul"])][:9]).format(a=a, b=b)
    elif draw < 0.8:
        user = rng.choice(["What is {a} divided by {b}?", "{a} / {b}", "Divide {a} by {b}."]).format(a=a % 100, b=1 + b % 99)
    else:
        user = rng.choice(PATTERNS["mul"]).format(a=rng.randint(11, 99), b=rng.randint(2, 99))
    return Exchange(user, BEYOND, "beyond", accepted=(BEYOND,))
