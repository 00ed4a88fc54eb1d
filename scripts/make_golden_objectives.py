#!/usr/bin/env python3
"""Writes what TRL's trainers compute for preference objectives on the tiny Llama: loss, rewards and
gradients.

    python scripts/make_golden_objectives.py       # rewrites testdata/objectives/

The policy is llama_tiny with llama_tiny_adapter, the reference llama_tiny alone. A step is one batch of
five examples. golden.json lists the examples as token ids (prompt, chosen, rejected; for KTO prompt,
completion, label) and, by objective, the settings, the loss and the metrics of TRL's own names.
golden.safetensors holds OBJECTIVE.NAME, f32: the gradient of each tensor of adapter_model.safetensors.

TRL is given text, so the tokenizer has one word per id: that of id 17 is <17>.
"""

import json
import os
import tempfile
import warnings
from pathlib import Path

os.environ["TRL_EXPERIMENTAL_SILENCE"] = "1"
warnings.filterwarnings("ignore")

import torch
import trl
from datasets import Dataset
from make_golden_llama import TESTDATA, VOCAB, fresh, load_base, write_golden
from peft import LoraConfig
from safetensors.torch import load_file
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast
from trl import DPOConfig, DPOTrainer, KTOConfig, KTOTrainer
from trl.experimental.cpo import CPOConfig, CPOTrainer
from trl.experimental.orpo import ORPOConfig, ORPOTrainer

BOS, EOS = 1, 2
DPO_LOSSES = {
    "sigmoid": {},
    "sigmoid_norm": {},
    "hinge": {},
    "ipo": {},
    "exo_pair": {"label_smoothing": 1e-3},
    "nca_pair": {},
    "robust": {"label_smoothing": 0.1},
    "bco_pair": {},
    "sppo_hard": {},
    "apo_zero": {},
    "apo_down": {},
    "sft": {},
}


def main() -> None:
    torch.use_deterministic_algorithms(True)
    torch.set_num_threads(1)
    folder = TESTDATA / "objectives"
    fresh(folder)
    pairs, singles = examples(torch.Generator().manual_seed(77))
    golden, facts = {}, {"pairs": pairs, "singles": singles, "objectives": {}}

    def add(name: str, objective: str, settings: dict, trainer) -> None:
        loss, metrics, grads = one_step(trainer)
        facts["objectives"][name] = {"objective": objective, "settings": settings, "loss": loss, "metrics": metrics}
        golden.update({f"{name}.{n}": g for n, g in grads.items()})

    for loss_type, more in DPO_LOSSES.items():
        settings = {"beta": 0.1, "loss_type": [loss_type]} | more
        add(f"dpo_{loss_type}", "dpo", settings, trainer_of(DPOTrainer, DPOConfig, text_of(pairs), settings))
    settings = {"beta": 0.3, "loss_type": ["sigmoid", "bco_pair", "sft"], "loss_weights": [0.8, 0.2, 1.5]}
    add("dpo_mixed", "dpo", settings, trainer_of(DPOTrainer, DPOConfig, text_of(pairs), settings))
    settings = {"beta": 0.1}
    add("orpo", "orpo", settings, trainer_of(ORPOTrainer, ORPOConfig, text_of(pairs), settings))
    settings = {"beta": 2.0, "simpo_gamma": 0.5}
    trl_only = {"loss_type": "simpo", "cpo_alpha": 0.0}
    add("simpo", "simpo", settings, trainer_of(CPOTrainer, CPOConfig, text_of(pairs), settings | trl_only))
    settings = settings | {"label_smoothing": 0.1}
    add("simpo_smoothed", "simpo", settings, trainer_of(CPOTrainer, CPOConfig, text_of(pairs), settings | trl_only))
    for loss_type in ("kto", "apo_zero_unpaired"):
        settings = {"beta": 0.1, "desirable_weight": 1.0, "undesirable_weight": 1.3}
        trainer = trainer_of(KTOTrainer, KTOConfig, text_of(singles), settings | {"loss_type": loss_type})
        add(f"kto_{loss_type}", "kto", settings | {"loss_type": [loss_type]}, trainer)
    facts["trl"] = trl.__version__
    write_golden(folder, golden, facts, made_by="scripts/make_golden_objectives.py")
    facts = json.loads((folder / "golden.json").read_text())
    facts["loss_is"] = "TRL's, for one batch of all examples"
    (folder / "golden.json").write_text(json.dumps(facts, indent=1) + "\n")
    for name, of in facts["objectives"].items():
        print(f"{name}: {of['loss']:.6f} {of['metrics']}")


def examples(generator) -> tuple[list[dict], list[dict]]:
    def ids(low: int, high: int) -> list[int]:
        length = int(torch.randint(low, high, (1,), generator=generator))
        return torch.randint(3, VOCAB, (length,), generator=generator).tolist()

    pairs = [
        {"prompt": [BOS, *ids(2, 9)], "chosen": [*ids(2, 8), EOS], "rejected": [*ids(2, 8), EOS]} for _ in range(5)
    ]
    singles = [
        {"prompt": [BOS, *ids(2, 9)], "completion": [*ids(2, 8), EOS], "label": i in (0, 2, 3)} for i in range(5)
    ]
    return pairs, singles


def text_of(rows: list[dict]) -> Dataset:
    # An answer begins with the space that parts it from the prompt.
    def words(key, value):
        if key == "label":
            return value
        return ("" if key == "prompt" else " ") + " ".join(f"<{i}>" for i in value)

    return Dataset.from_list([{key: words(key, value) for key, value in row.items()} for row in rows])


def tokenizer() -> PreTrainedTokenizerFast:
    inner = Tokenizer(models.WordLevel({f"<{i}>": i for i in range(VOCAB)}, unk_token="<0>"))
    inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=inner, bos_token="<1>", eos_token="<2>", pad_token="<0>", unk_token="<0>"
    )


def trainer_of(trainer_class, config_class, dataset: Dataset, settings: dict):
    folder = tempfile.mkdtemp()
    config = config_class(
        output_dir=folder,
        per_device_train_batch_size=len(dataset),
        gradient_checkpointing=False,
        report_to=[],
        use_cpu=True,
        bf16=False,
        max_length=128,
        remove_unused_columns=False,
        **settings,
    )
    lora = json.loads((TESTDATA / "llama_tiny_adapter" / "adapter_config.json").read_text())
    lora = LoraConfig(
        r=lora["r"], lora_alpha=lora["lora_alpha"], target_modules=lora["target_modules"], task_type="CAUSAL_LM"
    )
    trainer = trainer_class(
        model=load_base(TESTDATA / "llama_tiny"),
        args=config,
        train_dataset=dataset,
        processing_class=tokenizer(),
        peft_config=lora,
    )
    stored = load_file(TESTDATA / "llama_tiny_adapter" / "adapter_model.safetensors")
    with torch.no_grad():
        for name, parameter in named(trainer.model):
            parameter.copy_(stored.pop(name))
    assert not stored, sorted(stored)
    return trainer


def check_batch(batch) -> None:
    """The words must have arrived as the ids that they stand for: no 0 but as padding at an end."""
    for key, ids in batch.items():
        if key.endswith("input_ids"):
            for row in ids.tolist():
                text = "".join(chr(token) for token in row).strip(chr(0))
                assert chr(0) not in text and (text[0] == chr(BOS) or key != "input_ids"), (key, row)


def named(model):
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            yield name.replace(".default.", "."), parameter


def one_step(trainer):
    model = trainer.model
    # TRL takes means over what is in training mode; there is no dropout in this model.
    model.train()
    (batch,) = list(trainer.get_train_dataloader())
    check_batch(batch)
    loss = trainer.compute_loss(model, batch)
    loss.backward()
    grads = {name: p.grad.clone() for name, p in named(model)}
    stored = getattr(trainer, "_stored_metrics", None) or trainer._metrics
    metrics = {
        key: float(sum(values) / len(values))
        for key, values in stored["train"].items()
        if key.startswith(("rewards/", "logps/")) or key in ("kl", "nll_loss", "log_odds_chosen")
    }
    return loss.item(), metrics, grads


if __name__ == "__main__":
    main()
