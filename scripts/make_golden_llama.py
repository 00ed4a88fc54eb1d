#!/usr/bin/env python3
"""Writes the tiny golden Llama checkpoints of testdata/ and what Transformers and PEFT compute on them.

    python scripts/make_golden_llama.py            # rewrites testdata/llama_tiny*
    python scripts/make_golden_llama.py --check    # compares what is there with a run in f64

Folders written:
    llama_tiny/               untied head, f32, one safetensors file; golden.safetensors, golden.json
    llama_tiny_tied_bf16/     tied head, bf16, sharded with an index; golden.safetensors, golden.json
    llama_tiny_adapter/       PEFT LoRA r=4 alpha=8 on all linear modules, lora_B random and non-zero
    llama_tiny_adapter_init/  the same shape as PEFT initialises it (lora_B = 0): start of the ten AdamW steps

Everything is computed in f32 on the CPU, one unpadded sequence at a time, so that no padding or
masking rule of the reference is part of the golden values. A loss is always the mean cross-entropy
over the supervised targets of all three sequences together (not a mean of means).

Keys of golden.safetensors (i = 0, 1, 2; T differs per sequence; V = 320):
    ids.i               i32 [T]     input ids
    targets.i           i32 [T]     target of position t, i.e. ids[t+1], or -100 where not supervised
    logits.i            f32 [T,V]   base model
    full_grad.NAME      f32         gradient of the loss for every weight of the base (HF names)
  and only in llama_tiny:
    adapter_logits.i    f32 [T,V]   base + llama_tiny_adapter
    adapter_grad.NAME   f32         gradient of the adapter's loss, NAME as in adapter_model.safetensors
golden.json holds the losses and the exact settings of each run.
"""

import json
import math
import shutil
import sys
from pathlib import Path

import peft
import torch
import transformers
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

transformers.logging.set_verbosity_error()
transformers.logging.disable_progress_bar()

TESTDATA = Path(__file__).resolve().parent.parent / "testdata"
LENGTHS = (5, 17, 38)  # within one KV page of 16, one past a page, two pages and a part
VOCAB = 320
MODULES = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
STEPS = 10


def main() -> None:
    torch.use_deterministic_algorithms(True)
    torch.set_num_threads(1)  # the order of sums, hence the last bits, depends on it
    sequences = make_sequences(seed=20)

    untied = TESTDATA / "llama_tiny"
    fresh(untied)
    save_base(tiny_llama(seed=10, tied=False), untied, shard="1GB")
    golden, facts = base_golden(untied, sequences)
    facts["full_adamw"] = {"lr": 1e-3, "losses": adamw_losses(load_base(untied), sequences, lr=1e-3)}

    adapter, init = TESTDATA / "llama_tiny_adapter", TESTDATA / "llama_tiny_adapter_init"
    save_adapter(untied, init, seed=30, b_std=0.0)
    save_adapter(untied, adapter, seed=31, b_std=0.1)
    adapter_tensors, facts["adapter_loss"] = adapter_golden(untied, adapter, sequences)
    golden |= adapter_tensors
    tuned = PeftModel.from_pretrained(load_base(untied), init, is_trainable=True)
    facts["lora_adamw"] = {"lr": 1e-2, "losses": adamw_losses(tuned, sequences, lr=1e-2)}
    write_golden(untied, golden, facts)

    tied = TESTDATA / "llama_tiny_tied_bf16"
    fresh(tied)
    save_base(tiny_llama(seed=11, tied=True).to(torch.bfloat16), tied, shard="100KB")
    assert (tied / "model.safetensors.index.json").exists(), "expected a sharded checkpoint"
    golden, facts = base_golden(tied, sequences)
    write_golden(tied, golden, facts)

    report_sizes([untied, tied, adapter, init])


def tiny_llama(seed: int, tied: bool) -> LlamaForCausalLM:
    """A random Llama whose logits are far from flat (std 0.2) and whose norm weights are not all one."""
    torch.manual_seed(seed)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=VOCAB,
            hidden_size=64,
            intermediate_size=176,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            head_dim=16,
            max_position_embeddings=256,
            rope_parameters={"rope_type": "default", "rope_theta": 10000.0},
            rms_norm_eps=1e-5,
            tie_word_embeddings=tied,
            bos_token_id=1,
            eos_token_id=2,
            initializer_range=0.2,
        )
    )
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("norm.weight"):
                parameter.add_(0.2 * torch.randn_like(parameter))
    return model.float().eval()


def make_sequences(
    seed: int, lengths: tuple[int, ...] = LENGTHS, vocab: int = VOCAB
) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """(ids [T], targets [T]) of unequal length; about half of the targets are supervised."""
    generator = torch.Generator().manual_seed(seed)
    sequences = []
    for length in lengths:
        ids = torch.randint(3, vocab, (length,), generator=generator)
        ids[0] = 1
        targets = torch.full((length,), -100)
        keep = torch.rand(length - 1, generator=generator) < 0.5
        keep[-1] = True  # a sequence without any target would test nothing
        targets[:-1][keep] = ids[1:][keep]
        sequences.append((ids, targets))
    return sequences


def base_golden(folder: Path, sequences) -> tuple[dict, dict]:
    """Logits, loss and all gradients of the checkpoint as written to disk, computed in f32."""
    model = load_base(folder)
    loss = mean_loss(model, sequences)
    loss.backward()
    golden = {f"full_grad.{name}": p.grad for name, p in model.named_parameters()}
    for i, (ids, targets) in enumerate(sequences):
        golden |= {f"ids.{i}": ids.int(), f"targets.{i}": targets.int(), f"logits.{i}": logits_of(model, ids)}
    return golden, {"loss": loss.item()}


def adapter_golden(base: Path, adapter: Path, sequences, tensors: int = 28) -> tuple[dict, float]:
    """Logits, loss and adapter gradients; `tensors` is how many lora_A and lora_B there must be."""
    model = PeftModel.from_pretrained(load_base(base), adapter, is_trainable=True)
    loss = mean_loss(model, sequences)
    loss.backward()
    golden = {
        "adapter_grad." + name.replace(".default.", "."): p.grad
        for name, p in model.named_parameters()
        if p.requires_grad
    }
    assert len(golden) == tensors, sorted(golden)
    assert all(g.abs().max() > 0 for g in golden.values()), "a gradient is zero: the golden would prove nothing"
    for i, (ids, _) in enumerate(sequences):
        golden[f"adapter_logits.{i}"] = logits_of(model, ids)
    return golden, loss.item()


def adamw_losses(model, sequences, lr: float) -> list[float]:
    """Loss before each of ten AdamW steps and after the last: eleven numbers."""
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=lr, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.0)
    losses = []
    for _ in range(STEPS):
        optimizer.zero_grad()
        loss = mean_loss(model, sequences)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    with torch.no_grad():
        losses.append(mean_loss(model, sequences).item())
    assert losses[-1] < losses[0] and math.isfinite(losses[-1])
    return losses


def mean_loss(model, sequences) -> torch.Tensor:
    total = sum(
        torch.nn.functional.cross_entropy(
            model(ids[None]).logits[0], targets, ignore_index=-100, reduction="sum"
        )
        for ids, targets in sequences
    )
    return total / sum(int((targets != -100).sum()) for _, targets in sequences)


@torch.no_grad()
def logits_of(model, ids: torch.Tensor) -> torch.Tensor:
    return model(ids[None]).logits[0].contiguous()


def load_base(folder: Path) -> torch.nn.Module:
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager")
    return model.eval()


def save_base(model: torch.nn.Module, folder: Path, shard: str) -> None:
    model.save_pretrained(folder, max_shard_size=shard)
    (folder / "generation_config.json").unlink(missing_ok=True)


def save_adapter(
    base: Path, folder: Path, seed: int, b_std: float, r: int = 4, modules: list[str] | str = MODULES
) -> None:
    """PEFT's own initialisation; lora_B is then drawn with deviation b_std where that is not zero."""
    fresh(folder)
    torch.manual_seed(seed)
    config = LoraConfig(
        r=r, lora_alpha=8, target_modules=modules, lora_dropout=0.0, bias="none", task_type="CAUSAL_LM"
    )
    model = get_peft_model(load_base(base), config)
    if b_std:
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if ".lora_B." in name:
                    parameter.normal_(0.0, b_std)
    model.save_pretrained(folder)
    make_reproducible(folder, base.name, sort_keys=True)


def make_reproducible(folder: Path, base_name: str, sort_keys: bool) -> None:
    """PEFT stores the path it was given and sets in arbitrary order. (Keys stay as they are where the
    order within a pattern decides.)"""
    (folder / "README.md").unlink(missing_ok=True)
    path = folder / "adapter_config.json"
    stored = json.loads(path.read_text())
    stored["base_model_name_or_path"] = base_name
    for key in ("target_modules", "exclude_modules"):
        if isinstance(stored[key], list):
            stored[key].sort()
    path.write_text(json.dumps(stored, indent=2, sort_keys=sort_keys) + "\n")


def write_golden(
    folder: Path, tensors: dict, facts: dict, made_by: str = "scripts/make_golden_llama.py"
) -> None:
    save_file({name: t.detach().contiguous() for name, t in tensors.items()}, folder / "golden.safetensors")
    facts |= {
        "made_by": made_by,
        "versions": {m.__name__: m.__version__.split("+")[0] for m in (torch, transformers, peft)},
        "loss_is": "mean cross-entropy over the supervised targets of all sequences together",
    }
    if "full_adamw" in facts:
        facts |= {
            "adamw": {"betas": [0.9, 0.999], "eps": 1e-8, "weight_decay": 0.0, "clipping": None, "steps": STEPS},
            "losses_are": "before each step, then once after the last",
        }
    (folder / "golden.json").write_text(json.dumps(facts, indent=2) + "\n")


def check_in_f64() -> None:
    """How far rounding moves the golden values: the largest relative difference to a run with f64
    weights (Transformers keeps its softmax and norms in f32). Well below the tests' 1e-4, or their
    tolerance would be luck."""
    sequences = make_sequences(seed=20)
    base, adapter, init = (TESTDATA / f"llama_tiny{s}" for s in ("", "_adapter", "_adapter_init"))
    golden, facts = load_file(base / "golden.safetensors"), json.loads((base / "golden.json").read_text())

    def worst(pairs) -> float:
        return max(((a - b).abs().max() / b.abs().max()).item() for a, b in pairs)

    def tuned(folder: Path):
        return PeftModel.from_pretrained(load_base(base), folder, is_trainable=True).double()

    for name, model in (("full_adamw", load_base(base).double()), ("lora_adamw", tuned(init))):
        lr, losses = facts[name]["lr"], facts[name]["losses"]
        ours = torch.tensor(adamw_losses(model, sequences, lr), dtype=torch.float64)
        theirs = torch.tensor(losses, dtype=torch.float64)
        print(f"{name} losses: {((theirs - ours) / ours).abs().max().item():.1e}")
    model = tuned(adapter)
    mean_loss(model, sequences).backward()
    trained = {n.replace(".default.", "."): p.grad for n, p in model.named_parameters() if p.requires_grad}
    print(f"adapter gradients: {worst((golden['adapter_grad.' + n], g) for n, g in trained.items()):.1e}")
    logits = [(golden[f"adapter_logits.{i}"], logits_of(model, ids)) for i, (ids, _) in enumerate(sequences)]
    print(f"adapter logits: {worst(logits):.1e}")


def fresh(folder: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)


def report_sizes(folders: list[Path]) -> None:
    total = 0
    for folder in folders:
        for file in sorted(folder.iterdir()):
            total += file.stat().st_size
            print(f"{file.stat().st_size:>9}  {file.relative_to(TESTDATA)}")
    print(f"{total:>9}  together")
    assert total < 3_000_000, "golden files should stay small enough to commit"


if __name__ == "__main__":
    check_in_f64() if sys.argv[1:] == ["--check"] else main()
