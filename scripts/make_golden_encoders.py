#!/usr/bin/env python3
"""Writes tiny golden encoders to testdata/encoders/, with what Transformers computes on them.

    python scripts/make_golden_encoders.py             # rewrites testdata/encoders
    python scripts/make_golden_encoders.py --check     # compares what is there with a run in f64

The test crates/model/tests/encoders.rs walks the folders. Each holds config.json and model.safetensors
(f32) as Transformers saves them, a tokenizer.json where the family's kind is tried, the files that
sentence-transformers writes where a line says so, and golden.safetensors, golden.json. One unpadded text
at a time, f32 on the CPU, from the files as written.

Keys of golden.safetensors (i counts texts; T differs by text; H = 32):
    ids.i         i32 [T]    input ids
    hidden.i      f32 [T,H]  last_hidden_state
    embedding.i   f32 [H]    pooled as the folder says, and brought to length one
"""

import json
import shutil
import sys
from pathlib import Path

import torch
import transformers
from make_golden_llama import TESTDATA, fresh
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

HERE = TESTDATA / "encoders"
VOCAB = 64
LENGTHS = (1, 7, 37)
COMMON = dict(
    vocab_size=VOCAB,
    hidden_size=32,
    intermediate_size=48,
    num_hidden_layers=2,
    num_attention_heads=4,
    initializer_range=0.2,
)
MODULES = ["Transformer", "Pooling", "Normalize"]

# Folder, model class, its configuration, pooling, and how it is saved: with a masked-word head on top
# (tensors have a prefix then), and with names of norms as the first releases had them.
FAMILIES = [
    ("bert", transformers.BertModel, transformers.BertConfig(**COMMON, max_position_embeddings=40), "mean", {}),
    (
        "bert_head",
        transformers.BertForMaskedLM,
        transformers.BertConfig(**COMMON, max_position_embeddings=40, hidden_act="gelu_new", layer_norm_eps=1e-6),
        "cls",
        {"old_norms": True},
    ),
    (
        "roberta",
        transformers.RobertaForMaskedLM,
        transformers.RobertaConfig(**COMMON, max_position_embeddings=42, type_vocab_size=1, pad_token_id=1),
        "mean",
        {},
    ),
    (
        "xlm_roberta",
        transformers.XLMRobertaModel,
        transformers.XLMRobertaConfig(
            **COMMON, max_position_embeddings=42, type_vocab_size=1, pad_token_id=1, layer_norm_eps=1e-5
        ),
        "cls",
        {},
    ),
]


def texts(config):
    """Ids of texts, the last of the full length; one has the padding token in its middle."""
    generator = torch.Generator().manual_seed(7)
    most = config.max_position_embeddings - (0 if config.model_type == "bert" else config.pad_token_id + 1)
    lengths = [*LENGTHS, most]
    ids = [torch.randint(2, VOCAB, (n,), generator=generator) for n in lengths]
    ids[1][3] = config.pad_token_id
    return ids


def save(folder, model, pooling, options):
    model.save_pretrained(folder, safe_serialization=True)
    weights = folder / "model.safetensors"
    if options.get("old_norms"):
        old = lambda name: name.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta")
        save_file({old(name): tensor for name, tensor in load_file(weights).items()}, weights, {"format": "pt"})
    modules = [
        {"idx": i, "name": str(i), "path": "" if i == 0 else f"{i}_{name}", "type": f"sentence_transformers.models.{name}"}
        for i, name in enumerate(MODULES)
    ]
    (folder / "modules.json").write_text(json.dumps(modules, indent=1) + "\n")
    modes = {f"pooling_mode_{mode}": mode.startswith(pooling) for mode in ("cls_token", "mean_tokens", "max_tokens")}
    (folder / "1_Pooling").mkdir()
    text = json.dumps({"word_embedding_dimension": COMMON["hidden_size"], **modes}, indent=1)
    (folder / "1_Pooling/config.json").write_text(text + "\n")


def word_piece(folder):
    """A tokenizer of BERT's kind for the folder, and what it makes of two texts."""
    pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "[", "]", "sep", "##s", "##k"]
    pieces += [c for c in "abcdefghijklmnopqrstuvwxyz"] + [f"##{c}" for c in "abcdefgilmnoprtu"] + ["boiler", "lea", "my"]
    tokenizer = Tokenizer(models.WordPiece({piece: i for i, piece in enumerate(pieces)}, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.add_special_tokens(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"])
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    tokenizer.save(str(folder / "tokenizer.json"))
    wrapped = transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer)
    cases = ["My boiler leaks", "ÉTÉ  ok"]
    return {text: wrapped(text)["input_ids"] for text in cases}


def compute(folder, name, pooling, dtype):
    """What the model in the folder gives for its texts."""
    base = {"bert": transformers.BertModel, "roberta": transformers.RobertaModel, "xlm-roberta": transformers.XLMRobertaModel}
    config = transformers.AutoConfig.from_pretrained(folder)
    model = base[config.model_type].from_pretrained(folder, dtype=dtype, attn_implementation="eager").eval()
    tensors = {}
    for i, ids in enumerate(texts(config)):
        with torch.no_grad():
            hidden = model(input_ids=ids[None], attention_mask=torch.ones_like(ids[None])).last_hidden_state[0]
        pooled = hidden.mean(0) if pooling == "mean" else hidden[0]
        tensors[f"ids.{i}"] = ids.to(torch.int32)
        tensors[f"hidden.{i}"] = hidden
        tensors[f"embedding.{i}"] = pooled / pooled.norm()
    return tensors, config.model_type


def main():
    check = "--check" in sys.argv[1:]
    for name, kind, config, pooling, options in FAMILIES:
        folder = HERE / name
        if check:
            exact, _ = compute(folder, name, pooling, torch.float64)
            golden = load_file(folder / "golden.safetensors")
            worst = max((golden[k].double() - exact[k].double()).abs().max().item() for k in exact)
            print(f"{name}: {worst:.2e} from f64")
            assert worst < 1e-4, name
            continue
        shutil.rmtree(folder, ignore_errors=True)
        fresh(folder)
        torch.manual_seed(11)
        model = kind(config).eval()
        with torch.no_grad():
            for tensor_name, tensor in model.named_parameters():
                # Biases begin at zero and norms at one, which would hide that they are left out.
                if tensor.dim() == 1:
                    tensor.add_(torch.randn_like(tensor) * 0.1)
        save(folder, model, pooling, options)
        tensors, model_type = compute(folder, name, pooling, torch.float32)
        save_file({k: v.contiguous() for k, v in tensors.items()}, folder / "golden.safetensors")
        golden = {"model_type": model_type, "transformers": transformers.__version__}
        if name == "bert":
            golden["tokens"] = word_piece(folder)
        (folder / "golden.json").write_text(json.dumps(golden, indent=1, ensure_ascii=False) + "\n")
        print(name, sum(f.stat().st_size for f in folder.rglob("*") if f.is_file()), "bytes")


if __name__ == "__main__":
    main()
