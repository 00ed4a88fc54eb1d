#!/usr/bin/env python3
"""Writes testdata/metrics/golden.json: scores of BLEU, chrF and TER by sacrebleu, ROUGE by rouge-score,
Brier score by scikit-learn and calibration by numpy, of pairs of sentences and of all pairs together.

    pip install sacrebleu==2.6.0 rouge-score==0.1.2 scikit-learn==1.9.1 numpy==2.4.6
    python scripts/make_metrics_golden.py
"""

import json
import random
from pathlib import Path

import numpy as np
import sacrebleu
from rouge_score import rouge_scorer
from sklearn.metrics import brier_score_loss

OUT = Path(__file__).resolve().parent.parent / "testdata/metrics/golden.json"

WRITTEN = [
    ("The drum does not turn.", "The drum does not turn."),
    ("the drum turns, but water stays", "The drum does not turn and the water stays in."),
    ("Water leaks from the door; customer wants a call-back at 3-4 pm", "Customer wants a call-back between 3 and 4 pm: water leaks from the door."),
    ("L'eau reste dans la cuve – 37,5 °C, d'après le client.", "D'après le client, l'eau (37,5 °C) reste dans la cuve."),
    ("a b c d e f g h", "e f g h a b c d"),
    ("x", "a long reference that shares nothing with its answer at all"),
    ("one &amp; two &lt;three&gt; \"four\"", "one & two <three> \"four\""),
    ("It costs $1,234.50 (net), i.e. 20% off!", "It costs 1,234.50 net; that is 20 % off."),
    ("洗衣机不转了", "洗衣机 不转 水 还在"),
    ("line one-\nline two\nline three", "line oneline two line three"),
    ("the the the the the", "the cat is on the mat"),
    ("Größe und Höhe", "größe und Breite"),
    ("short", "short"),
    ("two words", "two words more"),
]


def pairs():
    yield from WRITTEN
    # Shuffled, cut and doubled sentences: many moves for TER to find.
    rng = random.Random(7)
    words = "the a drum pump door water leaks turns stays in of and customer wants call today . ,".split()
    for length in [3, 5, 8, 13, 21, 34, 55, 89]:
        for _ in range(4):
            reference = [rng.choice(words) for _ in range(length)]
            answer = list(reference)
            for _ in range(rng.randrange(1, 5)):
                start = rng.randrange(len(answer))
                run = answer[start : start + rng.randrange(1, 6)]
                del answer[start : start + len(run)]
                at = rng.randrange(len(answer) + 1)
                answer[at:at] = run
            for _ in range(rng.randrange(0, 3)):
                answer[rng.randrange(len(answer))] = rng.choice(words)
            if rng.random() < 0.3:
                answer = answer[: max(1, len(answer) * 2 // 3)]
            if rng.random() < 0.2:
                answer = answer + answer
            yield " ".join(answer), " ".join(reference)


def calibration(probabilities, gold):
    """ECE over ten bins of equal width, each with its upper edge."""
    sure, chosen = probabilities.max(axis=1), probabilities.argmax(axis=1)
    edges = np.linspace(0, 1, 11)
    error = 0.0
    for low, high in zip(edges[:-1], edges[1:]):
        inside = (sure > low) & (sure <= high)
        if inside.any():
            error += inside.mean() * abs((chosen == gold)[inside].mean() - sure[inside].mean())
    return error


def main():
    texts = list(pairs())
    answers, references = [a for a, _ in texts], [r for _, r in texts]
    rouge = rouge_scorer.RougeScorer(["rouge1", "rouge2", "rougeL"], use_stemmer=False)
    rows = []
    for answer, reference in texts:
        scores = {name: s.fmeasure for name, s in rouge.score(reference, answer).items()}
        scores["bleu"] = sacrebleu.sentence_bleu(answer, [reference]).score / 100
        scores["chrf"] = sacrebleu.sentence_chrf(answer, [reference]).score / 100
        scores["ter"] = sacrebleu.sentence_ter(answer, [reference]).score / 100
        rows.append({"answer": answer, "reference": reference, "scores": scores})
    corpus = {
        "bleu": sacrebleu.corpus_bleu(answers, [references]).score / 100,
        "chrf": sacrebleu.corpus_chrf(answers, [references]).score / 100,
        "ter": sacrebleu.corpus_ter(answers, [references]).score / 100,
    }
    rng = np.random.default_rng(7)
    likelihoods = rng.normal(-6, 2, size=(60, 4))
    gold = rng.integers(0, 4, size=60)
    likelihoods[np.arange(60), gold] += 1.0
    probabilities = np.exp(likelihoods) / np.exp(likelihoods).sum(axis=1, keepdims=True)
    choices = {
        "likelihoods": likelihoods.tolist(),
        "gold": gold.tolist(),
        "brier_score": brier_score_loss(gold, probabilities, scale_by_half=False),
        "ece": calibration(probabilities, gold),
        "acc": float((likelihoods.argmax(axis=1) == gold).mean()),
    }
    OUT.parent.mkdir(exist_ok=True)
    OUT.write_text(json.dumps({"pairs": rows, "corpus": corpus, "choices": choices}, ensure_ascii=False, indent=1) + "\n")


if __name__ == "__main__":
    main()
