#!/usr/bin/env python3
"""Writes a tiny golden checkpoint of every model family to testdata/families/, with what Transformers
and PEFT compute on it.

    python scripts/make_golden_families.py             # rewrites testdata/families
    python scripts/make_golden_families.py granite     # only the named folders
    python scripts/make_golden_families.py --check     # compares what is there with a run in f64

A new family is a line in FAMILIES; the test crates/model/tests/families.rs walks the folders, and fails
when a family of the program has none. Each folder holds config.json and model.safetensors (bf16) as
Transformers saves them, adapter/ (PEFT LoRA r=2 on all linear layers, lora_B not zero), and
golden.safetensors, golden.json. Everything is computed in f32 on the CPU from the files as written,
one unpadded sequence at a time. Two sequences: one within every window and first context, one beyond.

Keys of golden.safetensors (i = 0, 1; T differs per sequence; V = 64):
    ids.i               i32 [T]     input ids
    targets.i           i32 [T]     target of position t, i.e. ids[t+1], or -100 where not supervised
    logits.i            f32 [T,V]   base model
    adapter_logits.i    f32 [T,V]   base + adapter
    adapter_grad.NAME   f32         gradient of the adapter's mean loss, NAME as in adapter_model.safetensors
"""

import sys
from pathlib import Path

import torch
import transformers
from make_golden_llama import (
    TESTDATA,
    adapter_golden,
    fresh,
    load_base,
    logits_of,
    make_sequences,
    mean_loss,
    save_adapter,
    save_base,
    write_golden,
)
from peft import PeftModel
from safetensors.torch import load_file

HERE = TESTDATA / "families"
LENGTHS = (7, 45)
VOCAB = 64
ATTENTION = ["q_proj", "k_proj", "v_proj", "o_proj"]

COMMON = dict(
    vocab_size=VOCAB,
    hidden_size=32,
    intermediate_size=48,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    max_position_embeddings=96,
    bos_token_id=1,
    eos_token_id=2,
    pad_token_id=None,
    initializer_range=0.2,
)
SMOOTH = dict(
    rope_type="llama3",
    rope_theta=10000.0,
    factor=8.0,
    low_freq_factor=1.0,
    high_freq_factor=4.0,
    original_max_position_embeddings=64,
)
# Factors for the 3 pairs of a head of 8 of which 0.75 is rotated.
LONG = dict(
    rope_type="longrope",
    rope_theta=10000.0,
    short_factor=[1.0, 1.1, 1.3],
    long_factor=[1.05, 2.5, 4.0],
    partial_rotary_factor=0.75,
)
DUAL = dict(
    full_attention=dict(rope_type="linear", rope_theta=1000000.0, factor=8.0),
    sliding_attention=dict(rope_type="default", rope_theta=10000.0),
)

# Folder: (Transformers' name for the classes, what differs from COMMON, modules of the adapter).
FAMILIES = {
    "llama": ("Llama", dict(rope_parameters=SMOOTH, tie_word_embeddings=True), "all-linear"),
    "llama_linear_bias": (
        "Llama",
        dict(
            rope_parameters=dict(rope_type="linear", rope_theta=10000.0, factor=4.0),
            attention_bias=True,
            mlp_bias=True,
        ),
        "all-linear",
    ),
    "mistral": ("Mistral", dict(head_dim=12, sliding_window=9), "all-linear"),
    "qwen2": (
        "Qwen2",
        dict(use_sliding_window=True, sliding_window=9, max_window_layers=1, tie_word_embeddings=True),
        "all-linear",
    ),
    "qwen3": ("Qwen3", dict(head_dim=12), "all-linear"),
    "gemma2": (
        "Gemma2",
        dict(
            head_dim=12,
            sliding_window=9,
            query_pre_attn_scalar=20,
            attn_logit_softcapping=3.0,
            final_logit_softcapping=4.0,
        ),
        "all-linear",
    ),
    "gemma3": (
        "Gemma3",
        dict(
            head_dim=12,
            sliding_window=9,
            query_pre_attn_scalar=20,
            layer_types=["sliding_attention", "full_attention"],
            rope_parameters=DUAL,
        ),
        "all-linear",
    ),
    "phi3": (
        "Phi3",
        dict(rope_parameters=LONG, original_max_position_embeddings=24, sliding_window=30),
        "all-linear",
    ),
    "granite": (
        "Granite",
        dict(
            embedding_multiplier=3.0,
            attention_multiplier=0.2,
            residual_multiplier=0.4,
            logits_scaling=2.0,
        ),
        "all-linear",
    ),
    "olmo2": ("Olmo2", {}, "all-linear"),
    "smollm3": ("SmolLM3", dict(no_rope_layers=[1, 0]), "all-linear"),
    "mixtral": ("Mixtral", dict(num_local_experts=4, sliding_window=20), ATTENTION),
    "qwen3_moe": (
        "Qwen3Moe",
        dict(
            num_experts=6,
            num_experts_per_tok=3,
            moe_intermediate_size=20,
            norm_topk_prob=True,
            mlp_only_layers=[1],
        ),
        ATTENTION,
    ),
    "qwen3_moe_plain": (
        "Qwen3Moe",
        dict(num_experts=5, num_experts_per_tok=2, moe_intermediate_size=20, decoder_sparse_step=2),
        ATTENTION,
    ),
}


def main(names: list[str]) -> None:
    torch.use_deterministic_algorithms(True)
    torch.set_num_threads(1)  # the order of sums, hence the last bits, depends on it
    sequences = make_sequences(seed=40, lengths=LENGTHS, vocab=VOCAB)
    for seed, (name, (classes, own, modules)) in enumerate(FAMILIES.items()):
        if names and name not in names:
            continue
        folder = HERE / name
        fresh(folder)
        save_base(tiny(classes, own, seed).to(torch.bfloat16), folder, shard="1GB")
        save_adapter(folder, folder / "adapter", seed=100 + seed, b_std=0.1, r=2, modules=modules)
        adapter = load_file(folder / "adapter" / "adapter_model.safetensors")
        golden, loss = adapter_golden(folder, folder / "adapter", sequences, len(adapter))
        model = load_base(folder)
        for i, (ids, targets) in enumerate(sequences):
            golden |= {f"ids.{i}": ids.int(), f"targets.{i}": targets.int(), f"logits.{i}": logits_of(model, ids)}
        write_golden(folder, golden, {"adapter_loss": loss}, "scripts/make_golden_families.py")
        size = sum(f.stat().st_size for f in folder.rglob("*") if f.is_file())
        print(f"{name}: {size} bytes, logits of deviation {golden['logits.1'].std():.2f}")
    total = sum(f.stat().st_size for f in HERE.rglob("*") if f.is_file())
    print(f"{total} bytes together")
    assert total < 2_500_000, "golden files should stay small enough to commit"


def tiny(classes: str, own: dict, seed: int) -> torch.nn.Module:
    """A random model with no weight at a value that would hide a mistake: norms differ from one, biases
    from zero, and a router's probabilities are far from even."""
    prefix = "Gemma3Text" if classes == "Gemma3" else classes
    config = getattr(transformers, f"{prefix}Config")(**(COMMON | own))
    torch.manual_seed(seed)
    model = getattr(transformers, f"{classes}ForCausalLM")(config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" in name and name.endswith("weight"):
                parameter.add_(0.2 * torch.randn_like(parameter))
            elif name.endswith("bias"):
                parameter.normal_(0.0, 0.3)
            elif name.endswith("mlp.gate.weight"):
                parameter.normal_(0.0, 0.5)
    return model.float().eval()


def check_in_f64() -> None:
    """How far rounding moves the golden values: the largest relative difference to a run with f64
    weights. Well below the tests' tolerance, or that would be luck."""
    sequences = make_sequences(seed=40, lengths=LENGTHS, vocab=VOCAB)
    for name in FAMILIES:
        golden = load_file(HERE / name / "golden.safetensors")
        base = load_base(HERE / name)
        base.set_experts_implementation("eager")  # the grouped product knows no f64
        model = PeftModel.from_pretrained(base, HERE / name / "adapter", is_trainable=True).double()
        mean_loss(model, sequences).backward()
        pairs = [(golden[f"adapter_logits.{i}"], logits_of(model, ids)) for i, (ids, _) in enumerate(sequences)]
        logits = max(((a - b).abs().max() / b.abs().max()).item() for a, b in pairs)
        trained = [(n.replace(".default.", "."), p.grad) for n, p in model.named_parameters() if p.requires_grad]
        pairs = [(golden["adapter_grad." + n], g) for n, g in trained]
        gradients = max(((a - b).abs().max() / b.abs().max()).item() for a, b in pairs)
        print(f"{name}: adapter logits {logits:.1e}, adapter gradients {gradients:.1e}")


if __name__ == "__main__":
    check_in_f64() if sys.argv[1:] == ["--check"] else main(sys.argv[1:])
