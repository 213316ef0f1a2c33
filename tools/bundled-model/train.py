"""Makes the bundled model from nothing but a seed: corpus, tokenizer, training, export, evaluation, card.

    python tools/bundled-model/train.py --seed 1 --out models/bundled [--steps N] [--smoke]

The same seed and step count on the same machine and library versions give the same run: one thread, no data from outside.
"""

from __future__ import annotations

import argparse
import itertools
import os
import time
from dataclasses import dataclass
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch
from tokenizers import Tokenizer
from torch.nn import functional as F

import card
import evaluate
from batches import TOKENS_PER_STEP, stream
from corpus import mixture
from model import Llama, Shape, export, rounded
from tokenizer import train_tokenizer, write_tokenizer

STEPS = 5600  # what one thread of a busy machine does in a little over an hour
PEAK_RATE = 2e-3
WARM_UP = 200  # steps
DECAY_SHARE = 0.30  # the last share of the steps, in which the rate falls linearly to zero
WEIGHT_DECAY = 0.05
TOKENIZER_SAMPLE = 30_000  # documents
SAVE_EVERY = 250  # steps


@dataclass
class Record:
    """What the card says about the run."""

    seed: int
    steps: int
    tokens: int = 0
    targets: int = 0
    wall_s: float = 0.0
    loss: float = 0.0

    def taken(self) -> int:
        """The steps taken so far; fewer than `steps` where the run was stopped before the end of its schedule."""
        return self.tokens // TOKENS_PER_STEP


def rate(step: int, steps: int) -> float:
    """Warm-up, constant, linear decay (WSD)."""
    warm = (step + 1) / min(WARM_UP, max(1, steps // 10))
    left = (steps - step) / max(1.0, DECAY_SHARE * steps)  # above one before the decay
    return PEAK_RATE * min(warm, 1.0, left)


def optimizer_for(model: Llama) -> torch.optim.Optimizer:
    matrices = [p for n, p in model.named_parameters() if p.dim() == 2 and "embed" not in n]
    others = [p for n, p in model.named_parameters() if p.dim() != 2 or "embed" in n]
    groups = [{"params": matrices, "weight_decay": WEIGHT_DECAY}, {"params": others, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=PEAK_RATE, betas=(0.9, 0.95), fused=True)


def loss_of(model: Llama, batch) -> torch.Tensor:
    with torch.autocast("cpu", torch.bfloat16):
        hidden = model(batch.ids, batch.positions, batch.mask)
        logits = model.logits(hidden.flatten(0, 1)[batch.at])
    return F.cross_entropy(logits.float(), batch.targets)


def train(model: Llama, tokenizer: Tokenizer, record: Record, stop: int, checkpoint: Path | None, resume: bool) -> None:
    """Trains up to step `stop` of a schedule of `record.steps`. A resumed run equals an undisturbed one: the data stream is wound forward, and before its decay the
    schedule does not depend on the number of steps, so that number may still be changed until then."""
    optimizer, done, mean = optimizer_for(model), 0, None
    if resume and checkpoint and checkpoint.exists():
        saved = torch.load(checkpoint, weights_only=False)
        model.load_state_dict(saved["model"])
        optimizer.load_state_dict(saved["optimizer"])
        before: Record = saved["record"]
        assert before.seed == record.seed, "a run is resumed with its own seed"
        done, mean = before.taken(), before.loss
        assert (1 - DECAY_SHARE) * min(before.steps, record.steps) >= done or before.steps == record.steps, "too late to change the steps"
        record.tokens, record.targets, record.wall_s = before.tokens, before.targets, before.wall_s
    began = time.monotonic() - record.wall_s
    for step, batch in zip(range(done, stop), stream(tokenizer, record.seed, done)):
        for group in optimizer.param_groups:
            group["lr"] = rate(step, record.steps)
        loss = loss_of(model, batch)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        record.tokens += TOKENS_PER_STEP
        record.targets += len(batch.targets)
        mean = loss.item() if mean is None else 0.98 * mean + 0.02 * loss.item()
        record.wall_s, record.loss = time.monotonic() - began, mean
        if step % 25 == 0:
            print(f"step {step} loss {mean:.4f} rate {rate(step, record.steps):.2e} {record.tokens / record.wall_s:.0f} tokens/s {record.wall_s:.0f} s", flush=True)
        if checkpoint and (step % SAVE_EVERY == SAVE_EVERY - 1 or step + 1 == stop):
            torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict(), "record": record}, checkpoint.with_suffix(".new"))
            checkpoint.with_suffix(".new").replace(checkpoint)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--out", type=Path, required=True, help="folder for the model")
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--stop", type=int, help="stop at this step, before the end of the schedule")
    parser.add_argument("--smoke", action="store_true", help="a tiny run of under a minute, to test this tool")
    parser.add_argument("--checkpoint", type=Path, help="file to save the weights to while training")
    parser.add_argument("--resume", action="store_true", help="go on from --checkpoint where it exists")
    parser.add_argument("--export-checkpoint", type=Path, help="do not train: export and evaluate these weights")
    arguments = parser.parse_args()

    torch.set_num_threads(1)
    torch.manual_seed(arguments.seed)
    arguments.out.mkdir(parents=True, exist_ok=True)
    shape = Shape(layers=4, feed_forward=256) if arguments.smoke else Shape()
    steps = 12 if arguments.smoke else arguments.steps
    sample = itertools.islice(mixture.documents(arguments.seed), 6_000 if arguments.smoke else TOKENIZER_SAMPLE)
    tokenizer = train_tokenizer(sample)
    write_tokenizer(tokenizer, arguments.out, shape.context)

    model, record = Llama(shape), Record(arguments.seed, steps)
    if arguments.export_checkpoint:
        saved = torch.load(arguments.export_checkpoint, weights_only=False)
        model.load_state_dict(saved["model"])
        record = saved["record"]
    else:
        train(model, tokenizer, record, min(steps, arguments.stop or steps), arguments.checkpoint, arguments.resume)
    export(model, arguments.out)
    model = rounded(model)
    results = evaluate.evaluate(model, tokenizer, arguments.seed, per_kind=4 if arguments.smoke else 60)
    evaluate.verify_layout(model, arguments.out)
    card.write(arguments.out, shape, model, record, results)
    print(f"written to {arguments.out}")


if __name__ == "__main__":
    main()
