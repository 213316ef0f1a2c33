"""Turns the document stream into training batches: short rows of whole documents, and long rows of joined conversations."""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from tokenizers import Tokenizer
from torch import Tensor

from corpus import mixture
from corpus.document import TRAIN
from tokenizer import encode_document

TOKENS_PER_STEP = 2048
SHORT, LONG = 256, 1024  # row lengths in tokens
LONG_EVERY = 8  # every 8th step takes long rows
LATER_FROM = 2500  # the step from which the later mixture is drawn
POOL = 48  # documents that wait to be packed; a larger pool wastes less padding
CONTEXT = 8192


@dataclass
class Batch:
    ids: Tensor  # [B, T] int64
    targets: Tensor  # [N] int64: the tokens to be predicted
    at: Tensor  # [N] int64: indices into the flattened [B * T] of the positions that predict them
    positions: Tensor  # [B, T] int64
    mask: Tensor | None  # [B, 1, T, T] additive bf16: causal within a document; None: causal over the row


Encoded = tuple[list[int], list[bool], list[int]]


class Batches:
    """Short rows hold whole documents that do not see each other. Long rows are joined documents that do see each other; in half of
    them the positions jump ahead at message borders, up to the full context, so that far distances are not new to the model."""

    def __init__(self, tokenizer: Tokenizer, seed: int, *, split: str = TRAIN, later: bool = False) -> None:
        self.tokenizer = tokenizer
        self.documents = mixture.documents(seed, split, later)
        self.rng = random.Random(f"{seed}/{split}/batches/later" if later else f"{seed}/{split}/batches")
        self.split = split
        self.pool: list[Encoded] = []
        self.too_long: list[Encoded] = []

    def refill(self) -> None:
        while len(self.pool) < POOL:
            encoded = encode_document(self.tokenizer, next(self.documents))
            if len(encoded[0]) <= SHORT:
                self.pool.append(encoded)
            elif len(self.too_long) < 64:
                self.too_long.append(encoded)

    def short_row(self) -> list[Encoded]:
        """The oldest document, then the largest of the pool that still fits, and so on."""
        self.refill()
        row, free = [], SHORT
        while True:
            fitting = [d for d in self.pool if len(d[0]) <= free]
            if not fitting:
                return row
            pick = self.pool[0] if not row else max(fitting, key=lambda d: len(d[0]))
            self.pool.remove(pick)
            row.append(pick)
            free -= len(pick[0])

    def long_row(self) -> list[Encoded]:
        row, used = [], 0
        while used < LONG:
            if self.too_long and self.rng.random() < 0.5:
                encoded = self.too_long.pop(0)
            else:
                encoded = encode_document(self.tokenizer, mixture.draw_long_conversation(self.rng, self.split))
            row.append(encoded)
            used += len(encoded[0])
        return row

    def short(self) -> Batch:
        count = TOKENS_PER_STEP // SHORT
        ids, flags, owner = np.zeros((count, SHORT), np.int64), np.zeros((count, SHORT), bool), np.full((count, SHORT), -1)
        positions = np.zeros((count, SHORT), np.int64)
        for r in range(count):
            at = 0
            for n, (tokens, targets, _) in enumerate(self.short_row()):
                end = at + len(tokens)
                ids[r, at:end], flags[r, at:end], owner[r, at:end] = tokens, targets, n
                flags[r, at] = False  # nothing in the row may predict a document's first token
                positions[r, at:end] = np.arange(end - at)
                at = end
        same = torch.from_numpy(owner[:, :, None] == owner[:, None, :]) & torch.ones(SHORT, SHORT, dtype=torch.bool).tril()
        mask = torch.zeros(count, 1, SHORT, SHORT, dtype=torch.bfloat16).masked_fill(~same[:, None], -30000.0)
        return finish(ids, flags, positions, mask)

    def long(self) -> Batch:
        count = TOKENS_PER_STEP // LONG
        ids, flags, positions = np.zeros((count, LONG), np.int64), np.zeros((count, LONG), bool), np.zeros((count, LONG), np.int64)
        for r in range(count):
            at, borders = 0, []
            for tokens, targets, starts in self.long_row():
                room = LONG - at
                ids[r, at : at + len(tokens)], flags[r, at : at + len(tokens)] = tokens[:room], targets[:room]
                borders += [at + s for s in starts if 0 < at + s < LONG]
                at += len(tokens)
                if at >= LONG:
                    break
            steps = np.ones(LONG, np.int64)
            if self.rng.random() < 0.5:
                spare = self.rng.randint(0, CONTEXT - LONG)
                for border in self.rng.sample(borders, min(len(borders), self.rng.randint(1, 4))):
                    jump = self.rng.randint(0, spare)
                    steps[border] += jump
                    spare -= jump
            positions[r] = steps.cumsum() - 1
        return finish(ids, flags, positions, None)

    def step(self, number: int) -> Batch:
        return self.long() if number % LONG_EVERY == LONG_EVERY - 1 else self.short()


def finish(ids: np.ndarray, flags: np.ndarray, positions: np.ndarray, mask: Tensor | None) -> Batch:
    flags = flags.copy()
    flags[:, 0] = False
    targets = torch.from_numpy(ids[flags])
    at = torch.from_numpy(np.flatnonzero(np.roll(flags, -1, axis=1)))
    return Batch(torch.from_numpy(ids), targets, at, torch.from_numpy(positions), mask)


def stream(tokenizer: Tokenizer, seed: int, start: int = 0) -> Iterator[Batch]:
    """The batches of a run from step `start`: the first mixture up to LATER_FROM, the later one after it."""
    later = start >= LATER_FROM
    batches = Batches(tokenizer, seed, later=later)
    for number in itertools.count(LATER_FROM if later else 0):
        if number == LATER_FROM and not later:
            batches = Batches(tokenizer, seed, later=True)
        batch = batches.step(number)
        if number >= start:
            yield batch
