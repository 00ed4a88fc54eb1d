#!/usr/bin/env python3
"""Runs the task files in testdata/lm_eval on the bundled base twice: with EleutherAI's
lm-evaluation-harness through Transformers, and with `metier eval --tasks`. Choices must be counted exactly
alike, log-likelihoods agree within 0.001, texts that were generated be the same, prompts too (few-shot
examples included), and values with their standard errors follow.

    python -m venv V && V/bin/pip install 'lm-eval[hf]==0.4.13' transformers==5.23.0 sacrebleu==2.6.0
    cargo build --release
    V/bin/python scripts/check_lm_eval_tasks.py

--metier names the program; --write keeps what the harness says in testdata/lm_eval/tasks_expected.json, which
the tests of `metier` compare with. Prints one PASS or FAIL line for each task; exit code 1 when one fails.
"""

import argparse
import json
import logging
import math
import os
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
TASKS = ROOT / "testdata/lm_eval"
EXPECTED = TASKS / "tasks_expected.json"
NANO = ROOT / "assets/nano"
TOLERANCE = 1e-3
NAMES = {
    "choice": "metier_choice",
    "continue": "metier_continue",
    "describe": "metier_describe",
    "first_choice": "metier_first_choice",
    "fit": "metier_fit",
    "last_word": "metier_last_word",
    "pages": "metier_pages",
    "shots_choice": "metier_shots_choice",
    "sums": "metier_sums",
}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--metier", default=str(ROOT / "target/release/metier"), help="the program")
    parser.add_argument("--write", action="store_true", help="keep what the harness says for the tests")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        # Nothing is fetched, and nothing stays behind. One process, so that bootstraps are in order.
        os.environ.update(HF_HUB_OFFLINE="1", HF_DATASETS_OFFLINE="1", HF_HOME=scratch, DISABLE_MULTIPROC="1")
        os.chdir(ROOT)
        expected = of_harness()
        if arguments.write:
            EXPECTED.write_text(json.dumps(expected, ensure_ascii=False, indent=1) + "\n")
        return compare(expected, of_metier(arguments.metier, Path(scratch)))


def of_harness():
    from lm_eval import simple_evaluate
    from lm_eval.tasks import TaskManager

    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    manager = TaskManager(include_path=str(TASKS), include_defaults=False)
    results = simple_evaluate(
        model="hf",
        model_args={"pretrained": str(NANO), "dtype": "float32"},
        device="cpu",
        batch_size=4,
        tasks=sorted(NAMES.values()),
        task_manager=manager,
        log_samples=True,
    )
    tasks = {}
    for name in sorted(NAMES.values()):
        values = {
            key: value if isinstance(value, (int, float)) else None
            for key, value in results["results"][name].items()
            if "," in key
        }
        samples = {}
        for sample in results["samples"][name]:
            arguments = sample["arguments"]
            # Requests as lists of texts; what a generation is told beside its prompt is left out.
            if isinstance(arguments, dict):
                arguments = [list(request.values()) for request in arguments.values()]
            arguments = [[part for part in request if isinstance(part, str)] for request in arguments]
            samples[f"{sample['doc_id']},{sample['filter']}"] = {
                "arguments": arguments,
                "responses": responses(sample["resps"]),
                "filtered": sample["filtered_resps"] if isinstance(sample["filtered_resps"][0], str) else None,
            }
        tasks[name] = {"values": values, "samples": samples}
    return tasks


def responses(resps):
    """[[log-likelihood, greedy]] of each request, or [text]."""
    found = []
    for response in resps:
        response = response[0] if isinstance(response, list) and len(response) == 1 else response
        if isinstance(response, (tuple, list)):
            found.append([float(response[0]), str(response[1]) == "True"])
        elif isinstance(response, str):
            found.append(response)
        else:
            # Rolling log-likelihoods come as bare numbers.
            found.append([float(response), None])
    return found


def of_metier(program, scratch):
    samples = scratch / "samples.jsonl"
    command = [program, "eval", "--model", "nano", "--json", "--answers", str(samples)]
    for file in sorted(NAMES):
        command += ["--tasks", str(TASKS / f"{file}.yaml")]
    said = subprocess.run(command, capture_output=True, text=True)
    if said.returncode != 0:
        sys.exit(f"{' '.join(command)}\n{said.stderr}")
    results = json.loads(said.stdout)["results"]
    tasks = {name: {"values": values, "samples": {}} for name, values in results.items()}
    for line in samples.read_text().splitlines():
        sample = json.loads(line)
        text = isinstance(sample["filtered_resps"][0], str)
        tasks[sample["task"]]["samples"][f"{sample['doc_id']},{sample['filter']}"] = {
            "arguments": sample["arguments"],
            "responses": sample["resps"],
            "filtered": sample["filtered_resps"] if text else None,
        }
    return tasks


def compare(expected, found):
    failed = 0
    for name, task in expected.items():
        try:
            said = compare_task(task, found[name])
            print(f"PASS {name}: {said}")
        except AssertionError as problem:
            failed += 1
            print(f"FAIL {name}: {problem}")
    print(f"{failed} failed" if failed else "all passed")
    return 1 if failed else 0


def compare_task(expected, found):
    assert expected["samples"].keys() == found["samples"].keys(), "other documents"
    worst, texts = 0.0, 0
    for key, sample in expected["samples"].items():
        other = found["samples"][key]
        assert sample["arguments"] == other["arguments"], f"{key}: prompts {other['arguments']}, expected {sample['arguments']}"
        assert sample["filtered"] == other["filtered"], f"{key}: {other['filtered']}, expected {sample['filtered']}"
        for one, two in zip(sample["responses"], other["responses"], strict=True):
            if isinstance(one, str):
                assert one == two, f"{key}: {two!r}, expected {one!r}"
                texts += 1
                continue
            worst = max(worst, abs(one[0] - two[0]))
            assert one[1] in (None, two[1]), f"{key}: greedy {two[1]}, expected {one[1]}"
    assert worst <= TOLERANCE, f"a log-likelihood is {worst} off"
    shown = []
    for key, value in expected["values"].items():
        other = found["values"][key]
        if value is None:
            assert other is None, f"{key}: {other}, expected none"
            continue
        counted = key.split(",")[0] in ("acc", "acc_norm", "acc_bytes", "exact_match")
        tolerance = 1e-9 if counted else 1e-3 * max(1.0, abs(value))
        assert other is not None and math.isclose(other, value, abs_tol=tolerance), f"{key}: {other}, expected {value}"
        if "_stderr" not in key:
            shown.append(f"{key} {value:.4f}")
    told = f"{texts} texts the same" if texts else f"log-likelihoods within {worst:.1e}"
    return f"{', '.join(shown)}; {len(expected['samples'])} samples, {told}"


if __name__ == "__main__":
    sys.exit(main())
