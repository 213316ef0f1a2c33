"""Trains the byte-level BPE tokenizer on a corpus sample and writes it in Hugging Face layout with its chat template."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

from corpus.document import Conversation, Plain

VOCABULARY = 2048
END_OF_TEXT, START, END = "<|endoftext|>", "<|im_start|>", "<|im_end|>"
SPECIAL = [END_OF_TEXT, START, END]  # ids 0, 1, 2

# Words with their leading space, single digits (so that sums line up), punctuation, white space.
SPLIT = r"'(?:[sdmt]|ll|ve|re)| ?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"

CHAT_TEMPLATE = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' + '\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)


def texts(document: Conversation | Plain) -> list[str]:
    if isinstance(document, Plain):
        return [document.text]
    parts = [document.system] if document.system else []
    for exchange in document.exchanges:
        parts += [exchange.user, exchange.assistant]
    return parts


def train_tokenizer(documents: Iterable[Conversation | Plain]) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(Regex(SPLIT), behavior="isolated"), pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY, special_tokens=SPECIAL, initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()), show_progress=False
    )
    tokenizer.train_from_iterator((text for document in documents for text in ["system user assistant", *texts(document)]), trainer)
    assert tokenizer.get_vocab_size() == VOCABULARY, "the corpus sample is too small for the vocabulary"
    assert [tokenizer.token_to_id(token) for token in SPECIAL] == [0, 1, 2]
    return tokenizer


def write_tokenizer(tokenizer: Tokenizer, folder: Path, context: int) -> None:
    tokenizer.save(str(folder / "tokenizer.json"))
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": context,
        "eos_token": END,
        "pad_token": END_OF_TEXT,
        "clean_up_tokenization_spaces": False,
        "chat_template": CHAT_TEMPLATE,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(settings, indent=2) + "\n")


def chat_prompt(messages: list[tuple[str, str]]) -> str:
    """The chat template with add_generation_prompt, without Jinja."""
    return "".join(f"{START}{role}\n{content}{END}\n" for role, content in messages) + f"{START}assistant\n"


def encode_document(tokenizer: Tokenizer, document: Conversation | Plain) -> tuple[list[int], list[bool], list[int]]:
    """Returns (ids, loss flags, starts): a flag is true where the token is a prediction target; starts are where a new message begins."""
    end_of_text, end = 0, 2
    if isinstance(document, Plain):
        ids = tokenizer.encode(document.text).ids + [end_of_text]
        return ids, [True] * len(ids), [0]
    ids: list[int] = []
    flags: list[bool] = []
    starts: list[int] = []

    def add(text: str, target: bool) -> None:
        piece = tokenizer.encode(text).ids
        ids.extend(piece)
        flags.extend([target] * len(piece))

    messages = [("system", document.system)] if document.system else []
    for exchange in document.exchanges:
        messages += [("user", exchange.user), ("assistant", exchange.assistant)]
    for role, content in messages:
        starts.append(len(ids))
        answer = role == "assistant"
        add(f"{START}{role}\n", False)
        add(content, answer)
        ids.append(end)
        flags.append(answer)
        add("\n", False)
    ids.append(end_of_text)
    flags.append(False)
    return ids, flags, starts
