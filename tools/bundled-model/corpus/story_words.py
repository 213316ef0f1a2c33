"""Word lists for stories and for word instructions. Data only."""

from __future__ import annotations

ANIMALS = [
    "fox", "bear", "rabbit", "mouse", "owl", "cat", "dog", "frog", "duck", "hedgehog", "squirrel", "turtle", "horse", "cow", "lion", "elephant", "wolf", "deer",
    "goat", "sheep", "pig", "hen", "crow", "swan", "bee", "snail", "beaver", "otter", "badger", "penguin", "monkey", "tiger", "donkey", "goose", "mole", "whale",
    "kitten", "puppy", "fish", "bird", "butterfly", "ant", "spider", "seal", "crab", "camel", "parrot", "dragon", "unicorn", "dinosaur",
]
PEOPLE_HE = ["boy", "farmer", "king", "baker", "fisherman", "old man", "wizard", "prince", "sailor", "gardener", "knight", "giant", "shepherd", "pirate"]
PEOPLE_SHE = ["girl", "queen", "princess", "old woman", "witch", "teacher", "doctor", "painter", "fairy", "captain"]
PEOPLE_IT = ["robot", "snowman", "cloud", "star", "little boat", "teddy bear", "tree", "train", "machine"]

# Drawn now and then, so that the model learns to take the hero's kind from the request.
RARE = [
    "kangaroo", "zebra", "giraffe", "koala", "panda", "hippo", "rhino", "leopard", "gorilla", "bat", "rat", "hamster", "lizard", "crocodile", "octopus", "jellyfish", "dolphin", "shark", "eagle", "falcon",
    "raven", "sparrow", "stork", "pelican", "flamingo", "peacock", "turkey", "ox", "buffalo", "moose", "reindeer", "lynx", "weasel", "raccoon", "skunk", "beetle", "ladybird", "worm", "toad", "salamander",
    "astronaut", "vampire", "elf", "dwarf", "troll", "ghost", "monster", "mermaid", "detective", "ninja", "clown", "chef", "nurse", "pilot", "student", "soldier", "hunter", "singer", "writer", "scientist",
    "dancer", "thief", "postman", "carpenter", "tailor", "miller", "blacksmith", "poet", "magician", "explorer", "alien", "computer", "car", "cup", "shoe", "lamp", "clock", "stone", "leaf", "river",
    "mountain", "house", "moon", "rocket", "pumpkin", "apple", "potato", "candle", "kite", "book", "pencil", "chair", "hat", "drum", "bus", "bridge", "lighthouse", "coordinator", "provider", "token",
]
NAMES_HE = [
    "Tom", "Ben", "Max", "Sam", "Leo", "Finn", "Tim", "Jack", "Oscar", "Paul", "Hugo", "Theo", "Noah", "Luke", "Felix", "Milo", "Otto", "Emil", "Ivan", "Karl",
    "Rusty", "Bruno", "Pip", "Bobo", "Rocky", "Teddy", "Barney", "Rufus", "Sunny", "Ziggy",
]
NAMES_SHE = [
    "Mia", "Lily", "Anna", "Emma", "Sue", "Lucy", "Ella", "Nora", "Zoe", "Rosa", "Clara", "Ida", "Jane", "Kate", "Maya", "Nina", "Olga", "Pia", "Ruby", "Tina",
    "Daisy", "Hazel", "Ginger", "Honey", "Poppy", "Bella", "Luna", "Molly", "Penny", "Willow",
]
TRAITS = ["little", "small", "young", "brave", "shy", "curious", "kind", "clever", "happy", "lonely", "proud", "lazy", "quiet", "funny", "gentle", "careful", "hungry", "sleepy", "old", "busy"]

PLACES = [
    "in a green forest", "near a quiet river", "on a small farm", "in a little village", "by the sea", "in the mountains", "in a big city", "on a small island", "in an old castle",
    "at the edge of a wood", "in a warm valley", "near a deep lake", "in a small house on a hill", "in a garden full of flowers", "under an old oak tree", "in a cold land of snow",
    "on a wide meadow", "in a town with red roofs", "near a windmill", "in a cave behind a waterfall",
]
OBJECTS = [
    "a red ball", "a golden key", "a small drum", "a blue hat", "a shiny stone", "a wooden boat", "a silver bell", "a warm scarf", "an old map", "a little lamp", "a kite", "a green umbrella",
    "a music box", "a toy train", "a red balloon", "a glass marble", "a big book", "a paper star", "a pair of boots", "a small mirror", "a feather", "a brass whistle", "a yellow coat", "a seashell",
]
FOODS = ["apples", "bread", "berries", "soup", "cake", "honey", "cookies", "nuts", "cheese", "pears", "cherries", "pancakes", "carrots", "plums"]
WEATHER = ["sunny", "windy", "cold", "warm", "rainy", "foggy", "bright", "cloudy"]
SKILLS = ["swim", "fly a kite", "dance", "sing", "climb", "read", "cook", "paint", "play the drum", "ride a bicycle", "skate", "whistle", "build a boat", "tell stories", "jump very high", "bake bread"]
PLANTS = ["a sunflower", "an apple tree", "a rose", "a pumpkin", "a bean", "a tall tree", "a strawberry plant", "a tulip"]
FEARS = ["the dark", "thunder", "deep water", "high places", "loud noises", "strangers", "the big dog next door", "the old house"]
WORDS = sorted(set(
    ANIMALS[:45]
    + "apple banana house tree river stone table chair window door garden flower water bread milk sugar morning evening winter summer yellow orange purple green blue red friend happy "
      "little moon star cloud rain snow wind fire earth book paper pencil music song dance school teacher doctor king queen castle bridge road train boat ship car wheel hammer clock "
      "lamp candle mirror button pocket finger shoulder kitchen butter honey pepper lemon cherry peach carrot potato onion tomato rocket planet computer machine provider shard journal "
      "group link token model phalanx hello goodbye thanks please yes no maybe today tomorrow never always big small fast slow warm cold hard soft light heavy open quiet brave clever "
      "silver golden copper iron wood glass cotton silk village city island mountain valley forest meadow ocean beach desert market shop bakery farm field fence gate tower bell drum "
      "flute violin piano trumpet guitar ball kite toy doll puzzle game race prize story letter word number answer question idea dream secret smile laugh tear voice whisper shadow "
      "sun sky hill lake sand wave shell crab ant".split()
))
