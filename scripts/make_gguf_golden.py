#!/usr/bin/env python3
"""Writes testdata/gguf_tiny: a GGUF file made by gguf-py and what Transformers computes with it.

Usage: python scripts/make_gguf_golden.py
Needs: gguf, numpy, safetensors, torch, transformers (scripts/requirements.txt).

The weights are those of testdata/llama_tiny in many formats, with the rotary scaling of Llama 3.1.
The conversion follows llama.cpp's convert_hf_to_gguf.py: names by gguf-py's own table, query and
key rows interleaved, the rotary scaling as factors in rope_freqs.weight. The logits are those of
Transformers in f32 with the dequantised weights.
"""

import math
from pathlib import Path

import gguf
import numpy as np
import torch
from gguf import GGMLQuantizationType as T
from safetensors.numpy import save_file
from transformers import LlamaConfig, LlamaForCausalLM

DATA = Path(__file__).resolve().parent.parent / "testdata"
OUT = DATA / "gguf_tiny"
ROPE = {
    "rope_type": "llama3",
    "rope_theta": 10000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
# By the end of the name in the file; the down projection's rows are no whole blocks.
TYPES = {
    "token_embd.weight": T.F16,
    "output.weight": T.BF16,
    "attn_q.weight": T.Q8_0,
    "attn_k.weight": T.Q5_1,
    "attn_v.weight": T.Q5_0,
    "attn_output.weight": T.Q8_0,
    "ffn_gate.weight": T.Q4_1,
    "ffn_up.weight": T.Q4_0,
    "ffn_down.weight": T.F16,
}


def interleave(weights, heads):
    """convert_hf_to_gguf.py's `permute`."""
    shape = (heads, 2, weights.shape[0] // heads // 2, *weights.shape[1:])
    return weights.reshape(shape).swapaxes(1, 2).reshape(weights.shape)


def rope_factors(head_dim):
    factor, low, high = ROPE["factor"], ROPE["low_freq_factor"], ROPE["high_freq_factor"]
    original = ROPE["original_max_position_embeddings"]
    factors = []
    for i in range(0, head_dim, 2):
        wave = 2 * math.pi * ROPE["rope_theta"] ** (i / head_dim)
        if wave < original / high:
            factors.append(1.0)
        elif wave > original / low:
            factors.append(factor)
        else:
            smooth = (original / wave - low) / (high - low)
            factors.append(1 / ((1 - smooth) / factor + smooth))
    return np.array(factors, dtype=np.float32)


def main():
    OUT.mkdir(parents=True, exist_ok=True)
    config = LlamaConfig.from_pretrained(DATA / "llama_tiny")
    config.rope_parameters = ROPE
    model = LlamaForCausalLM.from_pretrained(
        DATA / "llama_tiny", config=config, dtype=torch.float32, attn_implementation="eager"
    )
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, config.num_hidden_layers)
    writer = gguf.GGUFWriter(OUT / "model.gguf", "llama")
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(ROPE["rope_theta"])
    writer.add_rope_dimension_count(config.head_dim)
    writer.add_vocab_size(config.vocab_size)
    writer.add_bos_token_id(config.bos_token_id)
    writer.add_eos_token_id(config.eos_token_id)
    writer.add_tensor("rope_freqs.weight", rope_factors(config.head_dim))
    state = {}
    for name, tensor in model.state_dict().items():
        values = tensor.numpy()
        own = names.get_name(name, try_suffixes=(".weight", ".bias"))
        kind = next((t for end, t in TYPES.items() if own.endswith(end)), T.F32)
        heads = None
        if name.endswith("q_proj.weight"):
            heads = config.num_attention_heads
        elif name.endswith("k_proj.weight"):
            heads = config.num_key_value_heads
        packed = gguf.quants.quantize(values, kind)
        stored = packed if heads is None else interleave(packed, heads)
        writer.add_tensor(own, np.ascontiguousarray(stored), raw_dtype=kind)
        state[name] = torch.from_numpy(gguf.quants.dequantize(packed, kind).astype(np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    model.load_state_dict(state)
    model.eval()
    generator = torch.Generator().manual_seed(7)
    # Longer than the original context, so that the scaling shows.
    ids = torch.randint(3, config.vocab_size, (1, 90), generator=generator)
    with torch.no_grad():
        logits = model(ids).logits[0, -24:]
    save_file(
        {"ids": ids[0].numpy().astype(np.int32), "logits": logits.numpy().astype(np.float32)},
        OUT / "golden.safetensors",
    )


if __name__ == "__main__":
    main()
