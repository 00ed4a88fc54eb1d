#!/usr/bin/env python3
"""How long the answers to a test set take: `metier eval --tasks` beside EleutherAI's lm-evaluation-harness
through Transformers, the same task file, the bundled base, the same machine, one run each. The task
generates an intent for every row of BANKING77's test set. Loading the model is part of both times, the
import of Python's packages is not.

    V/bin/python scripts/bench_eval.py ../shared/data/banking77 --metier target/release/metier
    V/bin/python scripts/bench_eval.py ../shared/data/banking77 --limit 100      # a quick look

V: see scripts/check_lm_eval_tasks.py. Checks that both give the same answers, prints the ratio and writes
docs/benchmarks/eval.json (with --limit only where --out says so).
"""

import argparse
import csv
import json
import logging
import os
import platform
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
NANO = ROOT / "assets/nano"
TASK = """task: banking77_speed
dataset_path: json
dataset_kwargs:
  data_files:
    test: {data}
output_type: generate_until
test_split: test
doc_to_text: "Name the intent of this message to a bank.\\nMessage: {{{{text}}}}\\nIntent:"
doc_to_target: "{{{{category}}}}"
generation_kwargs:
  until: ["\\n"]
  max_gen_toks: 16
  do_sample: false
filter_list:
  - name: none
    filter:
      - function: remove_whitespace
      - function: take_first
metric_list:
  - metric: exact_match
"""


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("data", type=Path, help="folder with test.csv (text, category)")
    parser.add_argument("--metier", default=str(ROOT / "target/release/metier"), help="the program")
    parser.add_argument("--limit", type=int, help="only so many rows")
    parser.add_argument("--batch-size", type=int, default=32, help="of the harness")
    parser.add_argument("--out", type=Path, help="where the numbers go")
    arguments = parser.parse_args()
    out = arguments.out or (None if arguments.limit else ROOT / "docs/benchmarks/eval.json")
    with tempfile.TemporaryDirectory() as scratch:
        os.environ.update(HF_HUB_OFFLINE="1", HF_DATASETS_OFFLINE="1", HF_HOME=scratch)
        scratch = Path(scratch)
        rows = list(csv.DictReader(open(arguments.data / "test.csv", encoding="utf-8", newline="")))
        rows = rows[: arguments.limit]
        data = scratch / "test.jsonl"
        data.write_text("".join(json.dumps(row) + "\n" for row in rows))
        (scratch / "task.yaml").write_text(TASK.format(data=data))
        ours, our_answers = of_metier(arguments.metier, scratch)
        theirs, their_answers = of_harness(scratch, arguments.batch_size)
    same = sum(one == other for one, other in zip(our_answers, their_answers, strict=True))
    report = {
        "made_by": "scripts/bench_eval.py",
        "rows": len(rows),
        "machine": f"{platform.machine()}, {os.cpu_count()} cores",
        "metier_seconds": round(ours, 1),
        "lm_eval_seconds": round(theirs, 1),
        "ratio": round(theirs / ours, 2),
        "same_answers": same,
    }
    print(json.dumps(report, indent=1))
    if out:
        out.write_text(json.dumps(report, indent=1) + "\n")
    return 0 if same == len(rows) else 1


def of_metier(program, scratch):
    samples = scratch / "samples.jsonl"
    command = [program, "eval", "--model", "nano", "--tasks", str(scratch / "task.yaml"), "--json"]
    started = time.monotonic()
    subprocess.run([*command, "--answers", str(samples)], check=True, stdout=subprocess.DEVNULL)
    seconds = time.monotonic() - started
    lines = map(json.loads, samples.read_text().splitlines())
    return seconds, [line["filtered_resps"][0] for line in sorted(lines, key=lambda line: line["doc_id"])]


def of_harness(scratch, batch_size):
    from lm_eval import simple_evaluate
    from lm_eval.tasks import TaskManager

    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    manager = TaskManager(include_path=str(scratch), include_defaults=False)
    started = time.monotonic()
    results = simple_evaluate(
        model="hf",
        model_args={"pretrained": str(NANO), "dtype": "float32"},
        device="cpu",
        batch_size=batch_size,
        tasks=["banking77_speed"],
        task_manager=manager,
        log_samples=True,
        bootstrap_iters=0,
    )
    seconds = time.monotonic() - started
    samples = sorted(results["samples"]["banking77_speed"], key=lambda sample: sample["doc_id"])
    return seconds, [sample["filtered_resps"][0] for sample in samples]


if __name__ == "__main__":
    sys.exit(main())
