#!/usr/bin/env python3
"""Writes testdata/quants/quants.safetensors: blocks of every weight format and what they mean.

Usage: python scripts/make_quants_golden.py
Needs: gguf, bitsandbytes, torch, numpy, safetensors (scripts/requirements.txt).

`NAME.bytes` [R, bytes] are blocks, `NAME.values` [R, K] their values by the reference's
dequantiser: gguf-py for the GGUF types, bitsandbytes for nf4 (whose blocks are stored here as
absmax f32 and then the 32 bytes of codes). The bytes are random, with scales made finite.
`NAME.packed` [R, bytes] is what the reference's quantiser makes of `source` [R, K], where it has
one.
"""

from pathlib import Path

import bitsandbytes.functional as bnb
import numpy as np
import torch
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType
from gguf.quants import dequantize, quantize
from safetensors.numpy import save_file

OUT = Path(__file__).resolve().parent.parent / "testdata" / "quants"
ROWS, K = 2, 512

# Where a block keeps its f16 scales.
HALVES = {
    "Q8_0": [0],
    "Q4_0": [0],
    "Q4_1": [0, 2],
    "Q5_0": [0],
    "Q5_1": [0, 2],
    "Q2_K": [80, 82],
    "Q3_K": [108],
    "Q4_K": [0, 2],
    "Q5_K": [0, 2],
    "Q6_K": [208],
    "IQ4_NL": [0],
    "IQ4_XS": [0],
}
QUANTISERS = ["BF16", "Q8_0", "Q4_0"]


def source(rng):
    """Ordinary weights, and the blocks that quantisers stumble over."""
    x = rng.standard_normal((ROWS, K)).astype(np.float32) * np.float32(0.05)
    x[1, 0:64] = 0.0
    x[1, 64:128] = 0.0
    x[1, 70] = -3.5
    # Exact steps and exact halves of steps.
    x[1, 128:192] = (np.arange(64, dtype=np.float32) - 32) / 8
    x[1, 192:256] = (np.arange(64, dtype=np.float32) - 31.5) / 16
    x[1, 256:320] = np.float32(1e-6) * x[0, 0:64]
    x[1, 320:384] = 7.25
    return x


def main():
    rng = np.random.default_rng(20261126)
    x = source(rng)
    tensors = {"source": x}
    for name, halves in HALVES.items():
        kind = GGMLQuantizationType[name]
        values, size = GGML_QUANT_SIZES[kind]
        blocks = rng.integers(0, 256, (ROWS * K // values, size), dtype=np.uint8)
        for at in halves:
            scales = (rng.standard_normal(len(blocks)) * 0.01).astype(np.float16)
            # One subnormal scale and one that is zero.
            scales[0], scales[-1] = np.float16(3e-7), np.float16(0.0)
            blocks[:, at : at + 2] = scales.reshape(-1, 1).view(np.uint8)
        data = blocks.reshape(ROWS, -1)
        tensors[f"{name.lower()}.bytes"] = data
        tensors[f"{name.lower()}.values"] = dequantize(data, kind)
    tensors["f16.bytes"] = x.astype(np.float16).view(np.uint8)
    tensors["f16.values"] = x.astype(np.float16).astype(np.float32)
    tensors["f16.packed"] = tensors["f16.bytes"]
    tensors["bf16.bytes"] = quantize(x, GGMLQuantizationType.BF16).view(np.uint8)
    tensors["bf16.values"] = dequantize(tensors["bf16.bytes"], GGMLQuantizationType.BF16)
    for name in QUANTISERS:
        packed = quantize(x, GGMLQuantizationType[name]).view(np.uint8)
        tensors[f"{name.lower()}.packed"] = packed.reshape(ROWS, -1)

    def nf4(values):
        codes, state = bnb.quantize_4bit(torch.from_numpy(values), blocksize=64, quant_type="nf4")
        back = bnb.dequantize_4bit(codes, state).numpy()
        absmax = state.absmax.numpy().astype(np.float32).reshape(-1, 1).view(np.uint8)
        blocks = np.concatenate([absmax, codes.numpy().reshape(-1, 32)], axis=1)
        return blocks.reshape(ROWS, -1), back.astype(np.float32)

    tensors["nf4.packed"], tensors["nf4.values"] = nf4(x)
    tensors["nf4.bytes"] = tensors["nf4.packed"]
    OUT.mkdir(parents=True, exist_ok=True)
    save_file({k: np.ascontiguousarray(v) for k, v in tensors.items()}, OUT / "quants.safetensors")
    for name, value in sorted(tensors.items()):
        print(name, value.dtype, value.shape)


if __name__ == "__main__":
    main()
