#!/usr/bin/env python3
"""Writes testdata/perplexity.json: perplexities by Transformers, counted as llama.cpp counts.

Usage: python scripts/make_perplexity_golden.py
Needs: tokenizers, torch, transformers (scripts/requirements.txt).

Two cases: a text through the bundled model's tokenizer, windows of 64, and token ids for
testdata/llama_tiny, windows of 33 (an odd number, so that the halves differ). The first token of each
window of the text becomes the beginning-of-sequence token; of each window of n tokens those from
n // 2 + 1 on count. The bytes are those of the counted tokens' text.
"""

import json
import math
from pathlib import Path

import torch
from tokenizers import Tokenizer
from transformers import AutoModelForCausalLM

ROOT = Path(__file__).resolve().parent.parent
TEXT = (
    "The boiler in flat 12 has been making a knocking noise since Tuesday, and there is no hot water "
    "in the kitchen. Could somebody come before Friday? The key is with the neighbour in flat 14.\n"
    "La chaudière fait un bruit de cognement depuis mardi, et il n'y a plus d'eau chaude dans la "
    "cuisine. Quelqu'un peut-il passer avant vendredi ? La clé est chez la voisine.\n"
    "Der Heizkörper im Flur bleibt kalt, während der im Schlafzimmer viel zu heiß ist. "
    "Bitte rufen Sie vorher an: 030 1234567.\n"
    "On Monday the engineer replaced the pump, bled the radiators and left a note under the door. "
    "The bill is £184.50, to be paid within thirty days; please say which of the two tenants pays it."
)


def losses(model, ids):
    """Losses in nats of the counted tokens of one window."""
    with torch.no_grad():
        logits = model(torch.tensor([ids])).logits[0].double()
    logs = torch.log_softmax(logits, -1)
    return [-logs[i, ids[i + 1]].item() for i in range(len(ids) // 2, len(ids) - 1)]


def summary(found, n_tokens, context):
    mean = sum(found) / len(found)
    variance = sum(x * x for x in found) / len(found) - mean * mean
    return {
        "perplexity": math.exp(mean),
        "standard_error": math.exp(mean) * math.sqrt(variance / (len(found) - 1)),
        "nats_per_token": mean,
        "counted_tokens": len(found),
        "context": context,
        "windows": n_tokens // context,
        "tokens": n_tokens,
        "left_out_tokens": n_tokens % context,
    }


def windows(ids, context):
    return [ids[i : i + context] for i in range(0, len(ids) - context + 1, context)]


def load(folder):
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


def text_case():
    folder, context = ROOT / "assets/nano", 64
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    bos = json.loads((folder / "config.json").read_text())["bos_token_id"]
    encoded = tokenizer.encode(TEXT, add_special_tokens=False)
    ids = [bos] + encoded.ids
    # Characters of the text that each token ends.
    ends = [0] + [end for _, end in encoded.offsets]
    assert ends == sorted(ends) and ends[-1] == len(TEXT)
    model, found, counted = load(folder), [], 0
    for i, window in enumerate(windows(ids, context)):
        found += losses(model, [bos] + window[1:])
        at = i * context
        counted += len(TEXT[ends[at + context // 2] : ends[at + context - 1]].encode())
    result = summary(found, len(ids), context)
    result["bits_per_byte"] = sum(found) / math.log(2) / counted
    result["counted_bytes"] = counted
    return {"text": TEXT, "expected": result}


def ids_case():
    model, context = load(ROOT / "testdata/llama_tiny"), 33
    ids = [(i * 37 + i // 5) % model.config.vocab_size for i in range(120)]
    found = [loss for window in windows(ids, context) for loss in losses(model, window)]
    return {"ids": ids, "expected": summary(found, len(ids), context)}


def main():
    out = {"nano_text": text_case(), "llama_tiny_ids": ids_case()}
    path = ROOT / "testdata/perplexity.json"
    path.write_text(json.dumps(out, indent=1, ensure_ascii=False) + "\n")
    for name, case in out.items():
        print(name, case["expected"])


if __name__ == "__main__":
    main()
