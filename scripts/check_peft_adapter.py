#!/usr/bin/env python3
"""Does Hugging Face PEFT load our adapter and compute our logits?

    python scripts/check_peft_adapter.py BASE ADAPTER LOGITS.json

LOGITS.json is written by Metier: {"ids": [[...], ...], "logits": [[[V floats], ...], ...]}, one
entry per sequence. An entry holds either a row for every position or only the last rows; rows are
compared with the last ones of PEFT's. The base is computed in f32, without padding.

Prints the largest absolute and relative difference, and how far the adapter moves the base (an
adapter without effect would agree trivially). Relative means: divided by the largest absolute
logit of the sequence. Exit code 0 when it agrees, 1 above 1e-4 or when the adapter has no effect.
"""

import argparse
import json
import sys

import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM

TOLERANCE = 1e-4


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("base")
    parser.add_argument("adapter")
    parser.add_argument("logits")
    args = parser.parse_args()

    with open(args.logits, encoding="utf-8") as file:
        ours = json.load(file)
    if len(ours["ids"]) != len(ours["logits"]) or not ours["ids"]:
        sys.exit(f"{args.logits}: expected as many logits as ids and at least one, "
                 f"found {len(ours['logits'])} and {len(ours['ids'])}")

    base = AutoModelForCausalLM.from_pretrained(args.base, dtype=torch.float32, attn_implementation="eager").eval()
    before = [logits_of(base, ids) for ids in ours["ids"]]
    model = PeftModel.from_pretrained(base, args.adapter).eval()

    worst_absolute = worst_relative = effect = 0.0
    for ids, rows, plain in zip(ours["ids"], ours["logits"], before):
        theirs = logits_of(model, ids)
        rows = torch.tensor(rows, dtype=torch.float32)
        if rows.ndim != 2 or rows.shape[0] > theirs.shape[0] or rows.shape[1] != theirs.shape[1]:
            sys.exit(f"{args.logits}: found logits of shape {list(rows.shape)}, "
                     f"expected at most {list(theirs.shape)}")
        if not torch.isfinite(rows).all():
            sys.exit(f"{args.logits}: a logit is not finite")
        theirs, plain = theirs[-rows.shape[0]:], plain[-rows.shape[0]:]
        scale = theirs.abs().max().item()
        absolute = (rows - theirs).abs().max().item()
        worst_absolute = max(worst_absolute, absolute)
        worst_relative = max(worst_relative, absolute / scale)
        effect = max(effect, (theirs - plain).abs().max().item() / scale)

    print(f"sequences {len(ours['ids'])}, rows {sum(len(r) for r in ours['logits'])}")
    print(f"largest difference to PEFT: absolute {worst_absolute:.3e}, relative {worst_relative:.3e} "
          f"(allowed {TOLERANCE:.0e})")
    print(f"largest effect of the adapter on the base: relative {effect:.3e}")
    if worst_relative > TOLERANCE:
        print("DIFFERS: PEFT does not compute our logits")
        return 1
    if effect <= TOLERANCE:
        print("NO EFFECT: the adapter does not change the base, so agreement proves nothing")
        return 1
    print("AGREES")
    return 0


@torch.no_grad()
def logits_of(model, ids: list[int]) -> torch.Tensor:
    return model(torch.tensor([ids])).logits[0].float()


if __name__ == "__main__":
    sys.exit(main())
