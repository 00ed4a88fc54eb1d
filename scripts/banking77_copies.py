#!/usr/bin/env python3
"""Adds copies with words left out to a train.jsonl, as docs/benchmarks/banking77.md used them.

    python scripts/banking77_copies.py sel/train.jsonl copies.jsonl

Each row is followed by three copies of it in which each word of the first message is left out with
probability 0.2 (never all of them). The same input gives the same output.
"""

import json
import random
import sys

COPIES = 3
LEFT_OUT = 0.2


def main(source, target):
    rng = random.Random(5)
    with open(source, encoding="utf-8") as rows, open(target, "w", encoding="utf-8") as out:
        for row in rows:
            question, answer = (m["content"] for m in json.loads(row)["messages"])
            texts = [question]
            for _ in range(COPIES):
                words = question.split()
                texts.append(" ".join([w for w in words if rng.random() >= LEFT_OUT] or words))
            for text in texts:
                turns = [{"role": "user", "content": text}, {"role": "assistant", "content": answer}]
                out.write(json.dumps({"messages": turns}) + "\n")


main(*sys.argv[1:])
