#!/usr/bin/env python3
"""The baseline to beat on BANKING77: TF-IDF features and logistic regression (scikit-learn).

    python scripts/banking77_baseline.py DATA_DIR [--out docs/benchmarks/banking77_baseline.json]

DATA_DIR holds train.csv and test.csv (columns text, category) as published by PolyAI
(task-specific-datasets, CC-BY-4.0). Two feature sets are reported: words 1-2 grams, and words 1-2
grams together with characters 2-5 grams within words. C is chosen by 3-fold cross-validation on
the training file only; the test file is used once per feature set, whole. Intervals are Wilson's
at 95 %.
"""

import argparse
import csv
import json
import math
import platform
import time
from pathlib import Path

import numpy as np
import sklearn
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV, StratifiedKFold
from sklearn.pipeline import Pipeline, make_union

SEED = 0
GRID = [3.0, 10.0, 30.0, 100.0]
FOLDS = 3


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--out", type=Path, default=Path("docs/benchmarks/banking77_baseline.json"))
    args = parser.parse_args()

    train_text, train_label = read(args.data / "train.csv")
    test_text, test_label = read(args.data / "test.csv")
    print(f"train {len(train_text)}, test {len(test_text)}, intents {len(set(train_label))}")

    report = {
        "made_by": "scripts/banking77_baseline.py",
        "data": {"train": len(train_text), "test": len(test_text), "intents": len(set(train_label))},
        "scikit_learn": sklearn.__version__,
        "machine": f"{platform.machine()}, {platform.system()}",
        "seed": SEED,
        "variants": [],
    }
    for name, features in feature_sets():
        started = time.monotonic()
        # The folds fit the vectoriser too: a vocabulary seen in the held-out fold would flatter C.
        search = GridSearchCV(
            Pipeline([
                ("features", features),
                ("classifier", LogisticRegression(max_iter=1000, tol=1e-3)),
            ]),
            {"classifier__C": GRID},
            cv=StratifiedKFold(FOLDS, shuffle=True, random_state=SEED),
        )
        search.fit(train_text, train_label)
        right = sum(p == t for p, t in zip(search.predict(test_text), test_label))
        low, high = wilson(right, len(test_label))
        row = {
            "features": name,
            "C": search.best_params_["classifier__C"],
            "cv_accuracy": round(float(search.best_score_), 4),
            "cv_accuracy_by_C": {
                str(c): round(float(a), 4) for c, a in zip(GRID, search.cv_results_["mean_test_score"])
            },
            "test_right": right,
            "test_accuracy": round(right / len(test_label), 4),
            "ci95": [round(low, 4), round(high, 4)],
            "seconds": round(time.monotonic() - started, 1),
        }
        report["variants"].append(row)
        print(f"{name:<34} C={row['C']:<6} cv {row['cv_accuracy']:.4f}  test {row['test_accuracy']:.4f} "
              f"[{low:.4f}, {high:.4f}]  {row['seconds']} s")

    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(json.dumps(report, indent=2) + "\n")
    print(f"wrote {args.out}")


def feature_sets():
    def words():
        return TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True, dtype=np.float32)

    def characters():
        return TfidfVectorizer(analyzer="char_wb", ngram_range=(2, 5), sublinear_tf=True, min_df=2, dtype=np.float32)

    yield "words 1-2", words()
    yield "words 1-2 + characters 2-5", make_union(words(), characters())


def read(path: Path) -> tuple[list[str], list[str]]:
    with open(path, encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    return [row["text"] for row in rows], [row["category"] for row in rows]


def wilson(right: int, n: int, z: float = 1.959963984540054) -> tuple[float, float]:
    """Wilson's score interval for a share (Wilson 1927)."""
    share = right / n
    centre = share + z * z / (2 * n)
    half = z * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    return (centre - half) / (1 + z * z / n), (centre + half) / (1 + z * z / n)


if __name__ == "__main__":
    main()
