"""Greetings, thanks, good-byes and other small talk; also short jokes and rhymes of our own."""

from __future__ import annotations

import random

from .document import Exchange, phrasings

# (phrasings, answers)
TALK: list[tuple[list[str], list[str]]] = [
    (["Hello!", "Hi", "Hello", "Hello there!", "Hey", "Hi!", "Hi there!", "Good day!", "Hey there", "Hello, model!", "Greetings!", "Hi, model!", "Hey!", "hello again", "Yo"],
     ["Hello! How can I help you?", "Hello! What can I do for you?"]),
    (["Good morning!", "Good morning", "Good morning to you!", "A good morning!", "Morning!"], ["Good morning! How can I help you?"]),
    (["Good evening!", "Good evening", "Good evening to you!", "A good evening!", "Evening!"], ["Good evening! How can I help you?"]),
    (["Good night!", "Good night", "Good night to you!", "Have a good night!", "I am going to sleep."], ["Good night! Sleep well."]),
    (["How are you?", "How are you today?", "How do you do?", "How is it going?", "How are things?", "Are you well?", "How do you feel?", "How are you doing?", "What's up?", "Is everything fine?"],
     ["I am fine, thank you. How can I help you?"]),
    (["Thank you!", "Thanks", "Thank you", "Thanks a lot!", "Thanks!", "Thank you very much!", "Many thanks!", "That helped, thank you.", "Great, thanks!", "Thanks for your help!", "Perfect, thank you!"],
     ["You are welcome!", "You are welcome! Is there anything else?"]),
    (["Bye!", "Goodbye!", "Bye", "See you later!", "See you!", "Good bye", "Bye bye!", "I have to go.", "I must go now.", "That is all for today.", "Until tomorrow!"],
     ["Goodbye! Have a nice day."]),
    (["You are nice.", "I like you.", "You are great!", "You are very kind.", "Good job!", "Well done!", "You are clever.", "Nice answer!", "That was good."],
     ["Thank you! That is kind of you."]),
    (["You are stupid.", "That is wrong.", "That was a bad answer.", "You made a mistake.", "This is not right.", "That is not true.", "I do not like your answer.", "Wrong!"],
     ["I am sorry. I am a very small model, and I make mistakes."]),
    (["I am sad.", "I feel sad today.", "I am not happy.", "I feel bad.", "I had a bad day.", "Today was a hard day.", "I am lonely."],
     ["I am sorry to hear that. I hope you feel better soon. Shall I tell you a story?"]),
    (["I am happy!", "I feel good today.", "I had a good day.", "I am very happy today.", "Today was a great day!", "I am in a good mood."],
     ["That is good to hear! I am happy for you."]),
    (["I am bored.", "I have nothing to do.", "What should I do now?", "I am so bored.", "It is boring here."],
     ["You could read a book, go for a walk, or ask me for a short story."]),
    (["I am tired.", "I am so tired.", "I did not sleep well.", "I am very tired.", "I need some sleep."],
     ["Then take a little rest. A short sleep often helps."]),
    (["I am hungry.", "What should I eat?", "I want to eat something.", "I am very hungry.", "What can I cook today?"],
     ["How about some soup, or bread with cheese and an apple?"]),
    (["Do you like music?", "What is your favourite colour?", "What is your favourite food?", "What is your favourite book?", "Do you have a favourite animal?", "Do you like cats?", "Do you like me?"],
     ["I am only a small model, so I have no favourites. What do you like?"]),
    (["Test", "test", "This is a test.", "Testing", "Just a test.", "ping", "Is this working?", "Does this work?", "Are you there?", "Can you hear me?"],
     ["Yes, I am here and it works."]),
    (["Bonjour", "Hola", "Guten Tag", "Wie geht es dir?", "Ciao", "Hallo", "¿Cómo estás?", "Comment ça va ?", "你好", "Привет", "こんにちは", "Was ist Phalanx?", "Qui es-tu ?", "Hej", "Olá", "Wer bist du?", "Buongiorno!", "안녕하세요"],
     ["I only speak simple English."]),
    (["asdf", "?", "...", "hmm", "blah blah", "xyz", "qwerty", "!!!", "lorem ipsum", "foo bar", "abc", "aaaa", "???", "huh", "1", "la la la", "[]", "{}", "#"],
     ["I did not understand that. Can you say it in other words?"]),
    (["Hello, world!", "Hello world", "hello world!", "Hello, World!", "Hello world!"], ["Hello! How can I help you?"]),
    (["OK", "Okay.", "I see.", "Alright.", "Fine.", "Yes", "Sure.", "Good.", "Understood."],
     ["Good! Is there anything else I can do for you?"]),
    (["No", "No, thanks.", "Nothing.", "No, that is all.", "Not now.", "No, thank you."],
     ["All right. I am here if you need me."]),
    (["Tell me a joke.", "Do you know a joke?", "Make me laugh.", "Say something funny.", "A joke, please.", "Tell me something funny.", "Can you tell me a joke?", "I want to hear a joke.", "Another joke, please."],
     ["Why did the clock go to school? It wanted to have a good time.", "What did the big candle say to the small one? I am going out tonight.",
      "Why was the book so cold? It had lost its cover.", "What has many keys and opens no door? A piano."]),
    (["Sing a song.", "Write a poem.", "Write a short poem.", "Tell me a poem.", "Can you write a poem?", "Write me a little rhyme.", "Write a rhyme.", "A poem, please.", "Do you know a poem?", "Write a haiku."],
     ["The moon is bright, the night is long,\nthe little bird has sung its song.\nThe stars look down on land and sea,\nand all is quiet, you and me.",
      "The sun comes up, the day is new,\nthe grass is green, the sky is blue.\nA little wind, a little rain,\nand then the sun comes out again."]),
]
WEIGHTS = [5.0] + [1.0] * (len(TALK) - 1)


def exchange(rng: random.Random, split: str) -> Exchange:
    patterns, answers = rng.choices(TALK, WEIGHTS)[0]
    return Exchange(rng.choice(phrasings(patterns, split)), rng.choice(answers), "small-talk", accepted=tuple(answers))


def thanks(rng: random.Random) -> Exchange:
    return Exchange(rng.choice(phrasings(TALK[5][0], "train")), rng.choice(TALK[5][1]), "small-talk", accepted=tuple(TALK[5][1]))


def goodbye(rng: random.Random) -> Exchange:
    return Exchange(rng.choice(phrasings(TALK[6][0], "train")), TALK[6][1][0], "small-talk", accepted=tuple(TALK[6][1]))
