#!/usr/bin/env python3
"""Does gguf-py read our GGUF file, and are its values those of the published model?

    python scripts/check_gguf.py MODEL_FOLDER FILE.gguf

MODEL_FOLDER holds the same model as safetensors (Llama's names). Every tensor of the file is
dequantised by gguf-py and compared with the published one: names by gguf-py's own table, query and
key rows interleaved as llama.cpp's conversion does. Prints, for each type, the tensors and the root
mean square error relative to the values, and what the file says about its tokenizer. Exit code 1
when a tensor is missing, is one too many, or is further off than its type allows.
"""

import argparse
import json
import sys
from collections import defaultdict
from pathlib import Path

import gguf
import numpy as np
import torch
from safetensors.torch import load_file

# Relative error of nearly normal values, with room.
BOUNDS = {"F32": 1e-7, "F16": 1e-3, "Q8_0": 0.01, "Q6_K": 0.03, "Q4_K": 0.12, "Q4_0": 0.14}


def interleave(weights, heads):
    """convert_hf_to_gguf.py's `permute`."""
    shape = (heads, 2, weights.shape[0] // heads // 2, *weights.shape[1:])
    return weights.reshape(shape).swapaxes(1, 2).reshape(weights.shape)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("file", type=Path)
    args = parser.parse_args()
    config = json.loads((args.model / "config.json").read_text())
    published = {}
    for path in sorted(args.model.glob("*.safetensors")):
        published |= {k: v.to(torch.float32).numpy() for k, v in load_file(path).items()}
    reader = gguf.GGUFReader(args.file)
    text = lambda key: reader.fields[key].contents() if key in reader.fields else None
    architecture = text("general.architecture")
    arch = next(a for a, name in gguf.MODEL_ARCH_NAMES.items() if name == architecture)
    names = gguf.get_tensor_name_map(arch, config["num_hidden_layers"])
    heads = config["num_attention_heads"]
    kv_heads = config.get("num_key_value_heads", heads)
    expected = {}
    for name, values in published.items():
        if architecture == "llama" and name.endswith("q_proj.weight"):
            values = interleave(values, heads)
        elif architecture == "llama" and name.endswith("k_proj.weight"):
            values = interleave(values, kv_heads)
        expected[names.get_name(name, try_suffixes=(".weight", ".bias"))] = values
    wrong = []
    errors = defaultdict(list)
    for tensor in reader.tensors:
        if tensor.name == "rope_freqs.weight":
            continue
        values = expected.pop(tensor.name, None)
        if values is None:
            wrong.append(f"{tensor.name}: not in the published model")
            continue
        found = gguf.quants.dequantize(tensor.data, tensor.tensor_type).astype(np.float32)
        found = found.reshape(values.shape)
        error = float(np.sqrt(np.mean((found - values) ** 2) / max(np.mean(values**2), 1e-30)))
        kind = tensor.tensor_type.name
        errors[kind].append(error)
        if error > BOUNDS[kind]:
            wrong.append(f"{tensor.name} ({kind}): error {error:.2e}, allowed {BOUNDS[kind]:.0e}")
    wrong += [f"{name}: missing" for name in expected]
    print(f"{args.file.name}: architecture {architecture}, {len(reader.tensors)} tensors")
    for kind, list_ in sorted(errors.items()):
        print(f"  {kind:5} {len(list_):3} tensors, largest relative error {max(list_):.2e}")
    tokens = text("tokenizer.ggml.tokens")
    print(
        f"  tokenizer {text('tokenizer.ggml.model')}, pre {text('tokenizer.ggml.pre')}, "
        f"{len(tokens or [])} tokens, {len(text('tokenizer.ggml.merges') or [])} merges, "
        f"template of {len(text('tokenizer.chat_template') or '')} characters"
    )
    for line in wrong:
        print(line, file=sys.stderr)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
