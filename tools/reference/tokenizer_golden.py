"""Small tokenizers of the three kinds in use, and what the tokenizers library makes of odd texts with them."""

import json
import random
from pathlib import Path

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

from files import made_with, write_json

# Llama 3's and Qwen's pattern for words.
WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
WORD_LIST = (
    "the of and to in is that it was for on are with as they be at one have this from or had by hot word but what some we can "
    "out other were all there when up use your how said an each she which do their time if will way about many then them write "
    "would like so these her long make thing see him two has look more day could go come did number sound no most people my over "
    "know water than call first who may down side been now find any new work part take get place made live where after back little "
    "only round man year came show every good me give our under name Grüße straße naïve Привет мир 世界 こんにちは"
).split()


def corpus() -> list:
    rng = random.Random(7)
    return [" ".join(rng.choice(WORD_LIST) for _ in range(rng.randint(3, 12))) + rng.choice([".", "!", "?", "\n", ", 42"])
            for _ in range(1500)]


def byte_level(normalizer) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE(ignore_merges=False))
    tokenizer.normalizer = normalizer
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([
        pre_tokenizers.Split(Regex(WORDS), behavior="isolated"),
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
    ])
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(vocab_size=700, initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()), show_progress=False)
    tokenizer.train_from_iterator(corpus(), trainer)
    tokenizer.add_special_tokens([AddedToken(mark, special=True) for mark in ["<|begin|>", "<|end|>"]])
    tokenizer.add_tokens([AddedToken("<tool_call>", special=False, normalized=False)])
    return tokenizer


def llama3_style() -> Tokenizer:
    tokenizer = byte_level(None)
    begin = tokenizer.token_to_id("<|begin|>")
    tokenizer.post_processor = processors.Sequence([
        processors.ByteLevel(trim_offsets=False),
        processors.TemplateProcessing(single="<|begin|> $A", pair="<|begin|> $A <|begin|> $B", special_tokens=[("<|begin|>", begin)]),
    ])
    return tokenizer


def qwen_style() -> Tokenizer:
    tokenizer = byte_level(normalizers.NFC())
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
    return tokenizer


def llama2_style() -> Tokenizer:
    base = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    base.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    marks = ["<unk>", "<s>", "</s>"]
    trainer = trainers.BpeTrainer(vocab_size=600, special_tokens=marks + [f"<0x{byte:02X}>" for byte in range(256)], show_progress=False)
    # Words apart, so that merges stay inside them.
    base.pre_tokenizer = pre_tokenizers.Metaspace(replacement="▁", prepend_scheme="never")
    base.train_from_iterator(corpus(), trainer)
    data = json.loads(base.to_str())
    data["pre_tokenizer"] = None
    data["added_tokens"] = [token for token in data["added_tokens"] if token["content"] in marks]
    tokenizer = Tokenizer.from_str(json.dumps(data))
    tokenizer.decoder = decoders.Sequence([
        decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(content=" ", left=1, right=0)])
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A <s> $B", special_tokens=[("<s>", tokenizer.token_to_id("<s>"))])
    return tokenizer


TEXTS = [
    "", " ", "  ", "\n", "Hello", " hello world", "The word was there, and it was GOOD.", "don't WON'T you'll", "12345 1,000.5 ٣٤",
    "line one\nline two\r\n\n\n  indented\ttab", "trailing   ", "naïve Grüße straße", "e\u0301 vs \u00e9", "Привет, мир! こんにちは世界",
    "🙂👩‍👩‍👧‍👦🏳️‍🌈 flags 🇦🇹", "a\u0000b\u200bc\ufeffd", "<|begin|>inside<|end|> and <tool_call>{}", "</s> <s> <unk> <0x0A>",
    "\u2028\u2029 \u00a0nbsp", "اَلْعَرَبِيَّةُ हिन्दी ไทย", "𝕳𝖊𝖑𝖑𝖔 ﬁ Ǆ", "x" * 300, " " * 50, "word " * 40, "ÿþ\u0080\u07ff\u0800\uffff\U0010ffff", "▁ meta ▁▁",
]


def make(folder: Path) -> None:
    for name, tokenizer in [("llama3-style", llama3_style()), ("qwen-style", qwen_style()), ("llama2-style", llama2_style())]:
        (folder / f"{name}.json").write_text(tokenizer.to_str(), encoding="utf-8")
        encoded = [
            {"text": text, "tokens": tokenizer.encode(text, add_special_tokens=False).ids,
             "with_special": tokenizer.encode(text, add_special_tokens=True).ids}
            for text in TEXTS
        ]
        for case in encoded:
            case["decoded"] = tokenizer.decode(case["with_special"], skip_special_tokens=False)
            case["decoded_plain"] = tokenizer.decode(case["with_special"], skip_special_tokens=True)
        write_json(folder / f"{name}.golden.json", {"made_with": made_with(), "vocabulary": tokenizer.get_vocab_size(), "cases": encoded})
        print(f"{name}: {tokenizer.get_vocab_size()} tokens, {len(encoded)} texts")
