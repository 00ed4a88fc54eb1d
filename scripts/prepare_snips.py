#!/usr/bin/env python3
"""Turns the SNIPS voice commands into rows that `metier train` and `metier eval` read.

    python scripts/prepare_snips.py ../shared/data/snips out/snips

Source: sonos/nlu-benchmark, 2017-06-custom-intent-engines (CC0): one folder per intent with
`train_INTENT_full.json` and `validate_INTENT.json`. The published division stays: the seven full
training files become train.jsonl, the seven validation files test.jsonl. Training rows whose text also
stands in the test, up to case, punctuation and spaces, are left out of training; the test is never
touched.

The answer is one flat JSON object: the intent, then the slots in the order of the command. A slot that
occurs more than once has a list. The same input gives the same output.
"""

import json
import sys
from pathlib import Path


def read(path):
    # One file has a sign beyond the 16-bit range as two halves (CESU-8), which strict UTF-8 refuses.
    text = path.read_bytes().decode("utf-8", "surrogatepass")
    text = text.encode("utf-16", "surrogatepass").decode("utf-16")
    ((intent, rows),) = json.loads(text).items()
    return intent, [row["data"] for row in rows]


def example(intent, pieces, name):
    answer = {"intent": intent}
    for piece in pieces:
        slot = piece.get("entity")
        if slot is None:
            continue
        value = piece["text"].strip()
        if slot not in answer:
            answer[slot] = value
        elif isinstance(answer[slot], list):
            answer[slot].append(value)
        else:
            answer[slot] = [answer[slot], value]
    prompt = " ".join("".join(piece["text"] for piece in pieces).split())
    completion = json.dumps(answer, ensure_ascii=False, separators=(",", ":"))
    return {"prompt": prompt, "completion": completion, "id": name}


def plain(text):
    return " ".join("".join(c if c.isalnum() else " " for c in text.lower()).split())


def main(source, target):
    source, target = Path(source), Path(target)
    target.mkdir(parents=True, exist_ok=True)
    sets = {}
    for part, pattern in [("test", "validate_*.json"), ("train", "train_*_full.json")]:
        rows = []
        for path in sorted(source.glob(f"*/{pattern}")):
            intent, commands = read(path)
            rows += [example(intent, c, f"{part}-{intent}-{i + 1}") for i, c in enumerate(commands)]
        if not rows:
            sys.exit(f"{source}: no file */{pattern}")
        sets[part] = rows
    known = {plain(row["prompt"]) for row in sets["test"]}
    kept = [row for row in sets["train"] if plain(row["prompt"]) not in known]
    print(f"test: {len(sets['test'])} rows", file=sys.stderr)
    print(
        f"train: {len(kept)} rows; {len(sets['train']) - len(kept)} left out, their text is in the test",
        file=sys.stderr,
    )
    for part, rows in [("train", kept), ("test", sets["test"])]:
        with open(target / f"{part}.jsonl", "w", encoding="utf-8") as out:
            for row in rows:
                out.write(json.dumps(row, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    main(*sys.argv[1:])
