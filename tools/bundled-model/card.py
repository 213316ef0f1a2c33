"""Writes the model card (README.md of the model folder) from what was measured."""

from __future__ import annotations

from pathlib import Path

from batches import LATER_FROM
from corpus.knowledge import CAPITALS
from evaluate import FIRST, Results
from model import Llama, Shape


def megabytes(count: float) -> str:
    return f"{count / 1e6:.2f} MB"


def quoted(text: str) -> str:
    return "\n".join("> " + line for line in text.splitlines()) if text else "> (empty)"


def listed(results: Results, low: float, high: float) -> str:
    """The kinds of question whose share of right answers lies in [low, high)."""
    return "; ".join(kind for kind, (good, asked) in results.rates.items() if low <= good / asked < high) or "nothing"


def write(folder: Path, shape: Shape, model: Llama, record, results: Results) -> None:
    stop = f" --stop {record.taken()}" if record.taken() < record.steps else ""
    parameters = sum(p.numel() for p in model.parameters())
    size = sum(f.stat().st_size for f in folder.iterdir() if f.is_file() and f.name != "README.md")
    rates = "\n".join(f"| {kind} | {good} of {asked} | {100 * good / asked:.0f} % |" for kind, (good, asked) in results.rates.items())
    samples = "\n\n".join(f"**{prompt}**\n\n{quoted(text)}" for prompt, text in results.samples)
    text = f"""# The model bundled with Phalanx

A very small chat model, so that `phalanx up` answers at once with nothing to download. It shows that a fleet works; it is not
meant for real work. Licence: Apache-2.0.

## What it can and cannot do

It was trained to greet, say what it is, answer common questions about Phalanx, tell short stories from a small world, do sums and
differences of numbers of up to two digits and products of single digits, name capitals of {len(CAPITALS)} countries, days, months, colours, animal
sounds and opposites, repeat and spell words, make short lists, and remember a name within a conversation. It does not do all of that well; by the
measurements below:

- mostly right (80 % or more): {listed(results, 0.8, 1.01)}
- often wrong: {listed(results, 0.4, 0.8)}
- mostly wrong (under 40 %), so do not expect it: {listed(results, 0.0, 0.4)}

It knows nothing else. It was trained to say so, but it also answers wrongly and with confidence, above all when a question resembles one that
it knows. Stories keep their form but lose track of who is who. It speaks simple English only. It accepts {shape.context} tokens of context but **was trained on short texts**: rows of 256 tokens, and one
step in eight on joined conversations of 1024 tokens, in half of which positions jumped ahead up to {shape.context}. How badly it
fares far back in a conversation is measured below. It calls no tools and does not reason.

## Shape

| | |
|---|---|
| architecture | `LlamaForCausalLM`, tied embeddings, no biases |
| layers, hidden, feed-forward | {shape.layers}, {shape.hidden}, {shape.feed_forward} |
| heads, KV heads, head dimension | {shape.heads}, {shape.kv_heads}, {shape.head_dim} |
| vocabulary | {shape.vocabulary}, byte-level BPE, digits one by one; any UTF-8 text can be encoded |
| special tokens | `<|endoftext|>` 0, `<|im_start|>` 1, `<|im_end|>` 2; generation ends at 2 or 0; there is no token at the beginning |
| chat template | ChatML with system, user and assistant turns |
| position encoding | RoPE, theta {shape.rope_theta:.0f}, {shape.context} positions |
| parameters | {parameters:,} |
| weights | bf16 safetensors; folder without this card {megabytes(size)} |

## Training

Everything was made by `tools/bundled-model` from a seed; no text and no weights came from elsewhere. The corpus is written by a
generator: questions and answers about Phalanx, arithmetic, general knowledge, instructions, small talk, stories composed from a grammar, conversations that need
memory, and out-of-scope questions with the honest answer. From step {LATER_FROM} on, the mixture has more sums, copying and looking-up, and fewer stories.

| | |
|---|---|
| command | `python tools/bundled-model/train.py --seed {record.seed} --steps {record.steps}{stop} --out models/bundled` |
| seed, steps taken | {record.seed}, {record.taken()} |
| tokens seen | {record.tokens:,}, of which {record.targets:,} were prediction targets (answers and plain stories) |
| wall time | {record.wall_s / 60:.1f} minutes on one CPU thread of a machine busy with other work, bf16 autocast |
| optimiser | AdamW, peak rate 2e-3, warm-up, constant, linear decay from step {round(0.7 * record.steps)} to zero at step {record.steps} |
| last training loss | {record.loss:.4f} nats per target token (running mean) |

The published run was stopped and resumed twice, which by construction does not change it; its wall time leaves out a pause of five minutes. A
rerun has not yet been compared bit for bit. The change of the mixture was decided after looking at a few held-out questions of the kinds below.

## Measured on held-out material

Held out are whole instances: 15 % of the addition and subtraction pairs, six of the hundred products, every fifth phrasing of each question,
15 % of the names and words, of the out-of-scope questions, and of the (hero, plot, friend) combinations of the stories. All numbers are of the exported bf16 weights.

- loss: {results.loss_token:.4f} nats per target token, {results.loss_byte:.4f} nats per byte (documents without a story: {results.answer_loss_token:.4f} nats per token)
- answers that ended by themselves: {results.stopped[0]} of {results.stopped[1]}

| right answers, greedy decoding | | |
|---|---|---|
{rates}

For sums, capitals and names the number or name must be right; for questions about Phalanx, words to repeat and out-of-scope questions the whole answer must be.

The products are learnt by heart: the held-out ones (2 * 5, 3 * 6, 4 * 7, 5 * 8, 6 * 9, 9 * 2) come out wrong although each was trained the other way round.

## {len(results.samples)} answers

Greedy, unedited. The first {len(FIRST)} prompts are what a newcomer types, and are in the training data; the others are held out.

{samples}
"""
    (folder / "README.md").write_text(text)
