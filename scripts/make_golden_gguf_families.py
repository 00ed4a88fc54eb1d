#!/usr/bin/env python3
"""Writes testdata/gguf_families: the tiny checkpoint of every family as llama.cpp's own converter puts
it into GGUF, and Transformers' logits.

    python scripts/make_golden_gguf_families.py --llama-cpp DIR            # all
    python scripts/make_golden_gguf_families.py --llama-cpp DIR granite    # only the named ones

DIR is a source folder of llama.cpp with convert_hf_to_gguf.py, conversion/ and gguf-py/ (the committed
files were made with the one in the source package of llama-cpp-python 0.3.36). Needs torch,
transformers, safetensors (scripts/requirements.txt).

The weights are those of testdata/families where that checkpoint is one that GGUF can say. What GGUF has
no word for is changed in config.json before the conversion, and the logits are computed anew: an
architecture has no sliding window there, or scales scores by the width of a head whatever the
checkpoint says. Where a rule only shows with more layers (a window in all but every sixth, a rotation
in all but every fourth), the checkpoint is made here. Only the converter's vocabulary step is replaced:
these models have 64 tokens and no text.

NAME.gguf holds matrices in bf16, as the checkpoint does, so no value is rounded. NAME.safetensors,
where the logits of testdata/families do not hold, has ids.i and logits.i as described in
make_golden_families.py.
"""

import argparse
import json
import shutil
import sys
import tempfile
from pathlib import Path

import torch
from make_golden_families import DUAL, FAMILIES, LENGTHS, VOCAB, tiny
from make_golden_families import HERE as FOLDERS
from make_golden_llama import TESTDATA, load_base, logits_of, make_sequences, save_base
from safetensors.torch import save_file

OUT = TESTDATA / "gguf_families"

# Name: (folder of testdata/families, what is changed in its config.json).
CHANGED = {
    "llama": ("llama", {}),
    "llama_linear_bias": ("llama_linear_bias", {}),
    "mistral": ("mistral", {"sliding_window": None}),
    "qwen2": ("qwen2", {"use_sliding_window": False, "layer_types": ["full_attention"] * 2}),
    "qwen3": ("qwen3", {}),
    "gemma2": ("gemma2", {"query_pre_attn_scalar": 12}),
    "phi3": ("phi3", {}),
    "granite": ("granite", {}),
    "olmo2": ("olmo2", {}),
    "mixtral": ("mixtral", {"sliding_window": None}),
}
# Name: (folder of testdata/families that it is like, what differs from that one's making).
MADE = {
    "gemma3": (
        "gemma3",
        dict(
            num_hidden_layers=7,
            hidden_size=16,
            query_pre_attn_scalar=12,
            layer_types=["sliding_attention"] * 5 + ["full_attention", "sliding_attention"],
            rope_parameters=DUAL,
        ),
    ),
    "smollm3": ("smollm3", dict(num_hidden_layers=5, no_rope_layers=[1, 1, 1, 0, 1])),
    "qwen3_moe": ("qwen3_moe", dict(mlp_only_layers=[])),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--llama-cpp", type=Path, required=True)
    parser.add_argument("names", nargs="*")
    arguments = parser.parse_args()
    sys.path[:0] = [str(arguments.llama_cpp), str(arguments.llama_cpp / "gguf-py")]
    torch.use_deterministic_algorithms(True)
    torch.set_num_threads(1)
    OUT.mkdir(exist_ok=True)
    sequences = make_sequences(seed=40, lengths=LENGTHS, vocab=VOCAB)
    for seed, name in enumerate(CHANGED | MADE):
        if arguments.names and name not in arguments.names:
            continue
        with tempfile.TemporaryDirectory() as scratch:
            folder = Path(scratch) / name
            folder.mkdir()
            published = checkpoint(name, folder, seed)
            target = OUT / f"{name}.gguf"
            convert(folder, target)
            golden = OUT / f"{name}.safetensors"
            golden.unlink(missing_ok=True)
            if not published:
                model = load_base(folder)
                tensors = {}
                for i, (ids, _) in enumerate(sequences):
                    tensors |= {f"ids.{i}": ids.int(), f"logits.{i}": logits_of(model, ids)}
                save_file(tensors, golden)
                print(f"{name}: logits of deviation {tensors['logits.1'].std():.2f}")
        print(f"{name}: {target.stat().st_size} bytes")
    total = sum(file.stat().st_size for file in OUT.iterdir())
    print(f"{total} bytes together")
    assert total < 1_200_000, "golden files should stay small enough to commit"


def checkpoint(name: str, folder: Path, seed: int) -> bool:
    """Fills `folder`; whether it is the checkpoint of testdata/families as it stands."""
    if name in MADE:
        like, own = MADE[name]
        classes, base, _ = FAMILIES[like]
        save_base(tiny(classes, base | own, 200 + seed).to(torch.bfloat16), folder, shard="1GB")
        return False
    source, changes = CHANGED[name]
    shutil.copy(FOLDERS / source / "model.safetensors", folder)
    config = json.loads((FOLDERS / source / "config.json").read_text())
    config |= changes
    (folder / "config.json").write_text(json.dumps(config))
    return not changes


def convert(folder: Path, target: Path) -> None:
    import gguf
    from conversion import ModelBase, ModelType, get_model_architecture, get_model_class

    # One converter counts the tokens that are there.
    vocabulary = {"model": {"vocab": {f"t{i}": i for i in range(VOCAB)}}, "added_tokens": []}
    (folder / "tokenizer.json").write_text(json.dumps(vocabulary))
    hparams = ModelBase.load_hparams(folder, False)
    kind = get_model_class(get_model_architecture(hparams, ModelType.TEXT))

    class WithoutText(kind):
        model_arch = kind.model_arch

        def set_vocab(self) -> None:
            self.gguf_writer.add_tokenizer_model("none")
            self.gguf_writer.add_bos_token_id(self.hparams["bos_token_id"])
            self.gguf_writer.add_eos_token_id(self.hparams["eos_token_id"])

    with torch.inference_mode():
        WithoutText(folder, gguf.LlamaFileType.MOSTLY_BF16, target).write()


if __name__ == "__main__":
    main()
