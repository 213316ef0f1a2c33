"""Quantised rows beside what their own implementations make of them: gguf's dequantisers, MLX's."""

from pathlib import Path

import numpy as np

ROWS, COLUMNS = 3, 512
# Where GGML's blocks keep their halves (scale, minimum): random bytes there would be infinities.
HALVES = {
    "Q4_0": [0], "Q4_1": [0, 2], "Q5_0": [0], "Q5_1": [0, 2], "Q8_0": [0],
    "Q2_K": [80, 82], "Q3_K": [108], "Q4_K": [0, 2], "Q5_K": [0, 2], "Q6_K": [208], "MXFP4": [],
}


def ggml(folder: Path) -> None:
    from gguf import GGML_QUANT_SIZES, GGMLQuantizationType
    from gguf.quants import dequantize

    for name, halves in HALVES.items():
        kind = GGMLQuantizationType[name]
        elements, size = GGML_QUANT_SIZES[kind]
        rng = np.random.default_rng(len(name) * 1000 + size)
        blocks = rng.integers(0, 256, (ROWS * COLUMNS // elements, size), dtype=np.uint8)
        for at in halves:
            blocks[:, at:at + 2] = rng.normal(0, 0.02, len(blocks)).astype(np.float16)[:, None].view(np.uint8)
        if name == "MXFP4":
            blocks[:, 0] = rng.integers(96, 140, len(blocks))
            blocks[0, 0] = 1
        rows = blocks.reshape(ROWS, -1)
        (folder / f"{name}.codes").write_bytes(rows.tobytes())
        (folder / f"{name}.f32").write_bytes(dequantize(rows, kind).astype("<f4").tobytes())


def mlx(folder: Path) -> None:
    import mlx.core as mx

    # Reproducible whatever the device.
    mx.set_default_device(mx.cpu)
    rng = np.random.default_rng(7)
    weights = mx.array(rng.normal(0, 0.05, (ROWS, COLUMNS)).astype(np.float32))
    for bits, group, dtype in [(4, 32, "float16"), (4, 64, "bfloat16"), (4, 128, "float32"), (8, 64, "float16"),
                               (8, 32, "bfloat16"), (2, 64, "float16"), (3, 64, "float16"), (5, 32, "float16"),
                               (6, 64, "bfloat16")]:
        codes, scales, biases = mx.quantize(weights.astype(getattr(mx, dtype)), group_size=group, bits=bits)
        wide = mx.dequantize(codes, scales.astype(mx.float32), biases.astype(mx.float32), group_size=group, bits=bits)
        name = f"mlx{bits}-{group}-{dtype}"
        (folder / f"{name}.codes").write_bytes(np.array(codes).tobytes())
        for what, part in [("scales", scales), ("biases", biases)]:
            raw = np.array(part.view(mx.uint8))
            (folder / f"{name}.{what}").write_bytes(raw.tobytes())
        (folder / f"{name}.f32").write_bytes(np.array(wide).astype("<f4").tobytes())
    codes, scales = mx.quantize(weights, group_size=32, bits=4, mode="mxfp4")
    wide = mx.dequantize(codes, scales, group_size=32, bits=4, mode="mxfp4").astype(mx.float32)
    (folder / "mlx-mxfp4.codes").write_bytes(np.array(codes).tobytes())
    (folder / "mlx-mxfp4.scales").write_bytes(np.array(scales).tobytes())
    (folder / "mlx-mxfp4.f32").write_bytes(np.array(wide).astype("<f4").tobytes())


def make(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    ggml(folder)
    mlx(folder)
