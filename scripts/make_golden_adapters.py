#!/usr/bin/env python3
"""Writes adapters with every option of PEFT that Metier honours, and what PEFT computes with them.

    python scripts/make_golden_adapters.py

Each folder of testdata/adapters/ holds adapter_config.json and adapter_model.safetensors as PEFT
writes them, with B (and DoRA's magnitudes) moved away from their start, and golden.safetensors:
    ids.i          i32 [T]    input ids, i = 0, 1
    targets.i      i32 [T]    target of position t, or -100 where not supervised
    logits.i       f32 [T,V]  base and adapter
    grad.NAME      f32        gradient of the loss, NAME as in adapter_model.safetensors
golden.json holds the base's folder, the loss, and for some the losses of ten optimizer steps.

"""

import shutil

import torch
from make_golden_llama import (
    STEPS,
    TESTDATA,
    adamw_losses,
    fresh,
    load_base,
    logits_of,
    make_reproducible,
    make_sequences,
    mean_loss,
    write_golden,
)
from peft import LoraConfig, PeftModel, get_peft_model
from peft.optimizers import create_loraplus_optimizer

LLAMA = "llama_tiny"
LAYER = "model.layers.1.self_attn.q_proj"

# Name: (base, options of LoraConfig beside task_type).
ADAPTERS = {
    "rslora": (LLAMA, {"r": 6, "lora_alpha": 9, "use_rslora": True, "target_modules": "all-linear"}),
    "patterns": (
        LLAMA,
        {
            "r": 4,
            "lora_alpha": 8,
            "target_modules": ["q_proj", "v_proj", "down_proj"],
            # Order decides: both keys match layer 1's q_proj.
            "rank_pattern": {f"^{LAYER}": 7, "q_proj": 2, "layers.0.mlp.down_proj": 3},
            "alpha_pattern": {"v_proj": 3.5, r".*\.0\..*q_proj": 20},
        },
    ),
    "patterns_rslora": (
        LLAMA,
        {
            "r": 4,
            "lora_alpha": 8,
            "use_rslora": True,
            "target_modules": ["o_proj", "up_proj"],
            "rank_pattern": {"o_proj": 9},
            "alpha_pattern": {"up_proj": 2},
        },
    ),
    "regex": (LLAMA, {"r": 3, "target_modules": r".*\.(?!0\.)\d+\.(self_attn\.[qk]|mlp\.gate)_proj"}),
    "layers": (
        LLAMA,
        {"r": 3, "target_modules": ["k_proj", "gate_proj"], "layers_to_transform": [1], "layers_pattern": "layers"},
    ),
    "one_layer": (LLAMA, {"r": 2, "target_modules": ["v_proj"], "layers_to_transform": 0}),
    "full_names": (LLAMA, {"r": 2, "target_modules": [LAYER, "layers.0.mlp.up_proj"]}),
    "excluded": (LLAMA, {"r": 2, "target_modules": "all-linear", "exclude_modules": ["mlp.down_proj", LAYER]}),
    "defaults": (LLAMA, {}),
    "dora": (LLAMA, {"r": 4, "lora_alpha": 8, "use_dora": True, "target_modules": "all-linear"}),
    "dora_rslora": (LLAMA, {"r": 4, "use_dora": True, "use_rslora": True, "rank_pattern": {"q_proj": 2}}),
    "dora_bias": (
        "families/qwen2",
        {"r": 3, "lora_alpha": 5, "use_dora": True, "target_modules": ["q_proj", "o_proj", "down_proj"]},
    ),
    "dora_fused": (
        "families/phi3",
        {"r": 3, "lora_alpha": 5, "use_dora": True, "target_modules": ["qkv_proj", "o_proj", "gate_up_proj"]},
    ),
    "fused_patterns": (
        "families/phi3",
        {"r": 3, "target_modules": ["qkv_proj", "gate_up_proj"], "rank_pattern": {"gate_up_proj": 5}},
    ),
}
# Ten steps from PEFT's own start: what is trained, and how.
TRAINED = {"dora": {"lr": 1e-2}, "rslora": {"lr": 1e-2}, "patterns": {"lr": 1e-2, "loraplus_lr_ratio": 16.0}}


def main() -> None:
    torch.use_deterministic_algorithms(True)
    torch.set_num_threads(1)
    root = TESTDATA / "adapters"
    shutil.rmtree(root, ignore_errors=True)
    for seed, (name, (base, options)) in enumerate(ADAPTERS.items()):
        folder = root / name
        fresh(folder)
        model = load_base(TESTDATA / base)
        sequences = make_sequences(seed=40 + seed, lengths=(6, 19), vocab=model.config.vocab_size)
        torch.manual_seed(100 + seed)
        model = get_peft_model(model, LoraConfig(task_type="CAUSAL_LM", **options))
        facts = {"base": base}
        golden = {}
        if name in TRAINED:
            golden |= {f"start.{n}": p.detach().clone() for n, p in named(model)}
            facts["trained"] = TRAINED[name] | {"steps": STEPS}
        move(model)
        model.save_pretrained(folder)
        make_reproducible(folder, base, sort_keys=False)
        # As it is read back: that is what users have.
        model = PeftModel.from_pretrained(load_base(TESTDATA / base), folder, is_trainable=True)
        loss = mean_loss(model, sequences)
        loss.backward()
        facts["loss"] = loss.item()
        for n, p in named(model):
            assert p.grad.abs().max() > 0, f"{name}: the gradient of {n} is zero"
            golden[f"grad.{n}"] = p.grad.clone()
        for i, (ids, targets) in enumerate(sequences):
            golden |= {f"ids.{i}": ids.int(), f"targets.{i}": targets.int(), f"logits.{i}": logits_of(model, ids)}
        if name in TRAINED:
            facts["trained"]["losses"] = train(model, golden, sequences, **TRAINED[name])
        write_golden(folder, golden, facts, made_by="scripts/make_golden_adapters.py")
    size = sum(f.stat().st_size for f in root.rglob("*") if f.is_file())
    print(f"{len(ADAPTERS)} adapters, {size} bytes")
    assert size < 2_000_000, "golden files should stay small enough to commit"


def named(model):
    """What is trained, by its name in the adapter's file."""
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            name = name.replace(".default.", ".").removesuffix(".default")
            yield name.replace("lora_magnitude_vector.weight", "lora_magnitude_vector"), parameter


@torch.no_grad()
def move(model) -> None:
    for name, parameter in named(model):
        if ".lora_B." in name:
            parameter.normal_(0.0, 0.1)
        elif name.endswith("lora_magnitude_vector"):
            parameter.mul_(1.0 + 0.2 * torch.randn_like(parameter))


def train(model, golden, sequences, lr: float, loraplus_lr_ratio: float = 1.0) -> list[float]:
    with torch.no_grad():
        for name, parameter in named(model):
            parameter.copy_(golden[f"start.{name}"])
    if loraplus_lr_ratio == 1.0:
        return adamw_losses(model, sequences, lr)
    optimizer = create_loraplus_optimizer(
        model, torch.optim.AdamW, lr=lr, loraplus_lr_ratio=loraplus_lr_ratio, weight_decay=0.0
    )
    losses = []
    for _ in range(STEPS):
        optimizer.zero_grad()
        loss = mean_loss(model, sequences)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    losses.append(mean_loss(model, sequences).item())
    return losses


if __name__ == "__main__":
    main()
