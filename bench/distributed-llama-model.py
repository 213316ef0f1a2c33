#!/usr/bin/env python3
"""Writes a model of shape S1 with random Q40 weights, and a tokenizer whose letters are one token each, for distributed-llama.

usage: distributed-llama-model.py MODEL TOKENIZER
"""

import math
import os
import random
import struct
import sys

DIM, LAYERS, HEADS, KV_HEADS, FEED_FORWARD, VOCABULARY, CONTEXT = 2048, 16, 32, 8, 8192, 32000, 4096
Q40, LLAMA, SILU = 2, 0xABCD00, 1
HEADER = [  # (key, value), keys as in converter/writer.py of distributed-llama
    (0, 1), (1, LLAMA), (2, DIM), (3, FEED_FORWARD), (4, LAYERS), (5, HEADS), (6, KV_HEADS), (7, 0), (8, 0),
    (9, VOCABULARY), (10, CONTEXT), (11, SILU), (12, 10000), (13, Q40),
]


def header(magic, pairs):
    data = b"".join(struct.pack("<ii", *pair) for pair in pairs)
    return struct.pack("<ii", magic, 8 + len(data)) + data


def blocks(rows, columns):
    """Blocks of 32 codes behind one scale: random codes, scales that keep activations near one."""
    scale = struct.pack("<e", 1 / (4.6 * math.sqrt(columns)))
    data = bytearray(random.randbytes(rows * columns // 32 * 18))
    count = len(data) // 18
    data[0::18] = scale[:1] * count
    data[1::18] = scale[1:] * count
    return data


def floats(values):
    return struct.pack(f"<{len(values)}f", *values)


def main(model, tokenizer):
    random.seed(1)
    kv = DIM // HEADS * KV_HEADS
    with open(model, "wb") as out:
        out.write(header(0xA00ABCD, HEADER))
        for _ in range(VOCABULARY):
            out.write(floats([random.uniform(-1.7, 1.7) for _ in range(DIM)]))
        for _ in range(LAYERS):
            for rows, columns in [(DIM, DIM), (kv, DIM), (kv, DIM), (DIM, DIM), (FEED_FORWARD, DIM), (DIM, FEED_FORWARD), (FEED_FORWARD, DIM)]:
                out.write(blocks(rows, columns))
            out.write(floats([1.0] * DIM) * 2)
        out.write(floats([1.0] * DIM))
        out.write(blocks(VOCABULARY, DIM))
    tokens = [bytes([at]) if 32 <= at < 127 else f"<{at}>".encode() for at in range(VOCABULARY - 2)]
    tokens += [b"<bos>", b"<eos>"]
    pairs = [(3, VOCABULARY - 2), (0, 1), (1, VOCABULARY), (2, max(map(len, tokens))), (9, 1), (10, 1)]
    with open(tokenizer, "wb") as out:
        out.write(header(0x567124, pairs) + struct.pack("<i", VOCABULARY - 1))
        for token in tokens:
            out.write(struct.pack("<fI", 0.0, len(token)) + token)


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    main(*sys.argv[1:])
    print(os.path.getsize(sys.argv[1]), "bytes")
