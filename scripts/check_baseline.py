#!/usr/bin/env python3
"""Metier's baseline `linear` beside scikit-learn on BANKING77.

    python scripts/check_baseline.py METIER DATA_DIR [--most-behind 0.005]

METIER is the binary, DATA_DIR holds train.csv and test.csv (columns text, category) as published by PolyAI.
scikit-learn gets the same features (TF-IDF of words and pairs of words, logarithmic counts): logistic
regression with the same C, and a linear SVM. Fails when ours is further behind the better of the two than
allowed.
"""

import argparse
import csv
import json
import subprocess
import sys
import tempfile
from pathlib import Path

from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.svm import LinearSVC

CONFIG = """
[data]
train = ["{data}/train.csv"]
test = "test.csv"
prompt_column = "text"
completion_column = "category"
[prove]
metric = "exact_match"
[[prove.candidate]]
name = "majority"
baseline = "majority"
[[prove.candidate]]
name = "linear"
baseline = "linear"
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("metier", type=Path)
    parser.add_argument("data", type=Path)
    parser.add_argument("--most-behind", type=float, default=0.005)
    args = parser.parse_args()
    (train_text, train_label), (test_text, test_label) = (read(args.data / f"{part}.csv") for part in ["train", "test"])
    features = TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True)
    train, test = features.fit_transform(train_text), features.transform(test_text)
    found = {"metier": ours(args.metier.resolve(), args.data.resolve())}
    for name, model in [("logistic regression", LogisticRegression(C=10, max_iter=1000)), ("linear SVM", LinearSVC())]:
        model.fit(train, train_label)
        right = sum(p == t for p, t in zip(model.predict(test), test_label))
        found[name] = right / len(test_label)
    for name, share in found.items():
        print(f"{name:<20} {100 * share:.2f} %")
    behind = max(found.values()) - found["metier"]
    if behind > args.most_behind:
        sys.exit(f"behind by {100 * behind:.2f} points; allowed are {100 * args.most_behind:.2f}")


def ours(metier: Path, data: Path) -> float:
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        # The test set's openings are counted beside it, and these are none of the user's.
        (folder / "test.csv").write_bytes((data / "test.csv").read_bytes())
        (folder / "metier.toml").write_text(CONFIG.format(data=data))
        # The exit code is the verdict; a failed run leaves no report.
        subprocess.run([metier, "prove"], cwd=folder, stdout=subprocess.DEVNULL)
        report = json.loads((folder / "proof/report.json").read_text())
    linear = next(c for c in report["candidates"] if c["name"] == "linear")
    return linear["metrics"]["exact_match"]["value"]


def read(path: Path) -> tuple[list[str], list[str]]:
    with open(path, encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    return [row["text"] for row in rows], [row["category"] for row in rows]


if __name__ == "__main__":
    main()
