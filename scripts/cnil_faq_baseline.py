#!/usr/bin/env python3
"""What something simple reaches on the CNIL's questions, for docs/benchmarks/cnil-faq.md.

    python scripts/cnil_faq_baseline.py out/cnil-faq [answers.jsonl]

token_f1 on test.jsonl of two ways to answer without a model: always with the one training answer that is best
on valid.jsonl, and with the answer of the training question that is nearest by TF-IDF. Words are counted as
Metier's token_f1 does; with answers that `metier eval --answers` wrote, its mean score is printed beside the
one counted here, which shows that they agree.
"""

import json
import math
import re
import sys
from collections import Counter

WORD = re.compile(r"[^\W_]+")


def words(text):
    return WORD.findall(text.lower())


def token_f1(a, b):
    shared = sum((Counter(a) & Counter(b)).values())
    return 2 * shared / (len(a) + len(b)) if shared else 0.0


def rows(path):
    with open(path, encoding="utf-8") as lines:
        turns = [[m["content"] for m in json.loads(line)["messages"]] for line in lines]
    return [words(t[0]) for t in turns], [words(t[-1]) for t in turns]


def main(folder, answers=None):
    questions, known = rows(f"{folder}/train.jsonl")
    _, valid = rows(f"{folder}/valid.jsonl")
    asked, expected = rows(f"{folder}/test.jsonl")
    constant = max(known, key=lambda a: sum(token_f1(a, b) for b in valid))
    in_rows = Counter(w for q in questions for w in set(q))

    def vector(text):
        counts = Counter(text)
        weights = {w: n * math.log((len(questions) + 1) / (in_rows[w] + 1)) for w, n in counts.items()}
        length = math.sqrt(sum(x * x for x in weights.values())) or 1.0
        return {w: x / length for w, x in weights.items()}

    vectors = [vector(q) for q in questions]

    def nearest(question):
        v = vector(question)
        like = [sum(x * other.get(w, 0.0) for w, x in v.items()) for other in vectors]
        return known[like.index(max(like))]

    mean = lambda scores: sum(scores) / len(expected)
    print(f"one answer for all: {mean(token_f1(constant, b) for b in expected):.4f}")
    print(f"nearest question: {mean(token_f1(nearest(q), b) for q, b in zip(asked, expected)):.4f}")
    if answers:
        with open(answers, encoding="utf-8") as lines:
            given = [json.loads(line) for line in lines]
        counted = mean(token_f1(words(r["answer"]), words(r["reference"])) for r in given)
        print(f"{answers}: {counted:.4f}, Metier says {mean(r['scores']['token_f1'] for r in given):.4f}")


if __name__ == "__main__":
    if len(sys.argv) not in (2, 3):
        sys.exit(__doc__)
    main(*sys.argv[1:])
