#!/usr/bin/env python3
"""Checks a running server of the bundled base with EleutherAI's lm-evaluation-harness, on the tasks in
testdata/lm_eval: multiple choice and greedy continuations over /v1/completions, the prompts as token ids
and as text, and continuations over /v1/chat/completions. Every log-likelihood must be that of Transformers
(testdata/lm_eval/expected.json, made by make_lm_eval_golden.py) within 0.001, every continuation the same.

    python -m venv V && V/bin/pip install 'lm-eval[api]==0.4.13' transformers==5.23.0   # about 900 MB
    metier serve --model nano
    V/bin/python scripts/check_lm_eval.py --url http://127.0.0.1:8000

Prints one PASS or FAIL line for each check; exit code 1 when one fails.
"""

import argparse
import json
import logging
import os
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
TASKS = ROOT / "testdata/lm_eval"
NANO = ROOT / "assets/nano"
TOLERANCE = 1e-3


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--url", default="http://127.0.0.1:8000", help="the server's address, without /v1")
    parser.add_argument("--model", default="nano", help="the bundled base's name there")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as cache:
        # Nothing is fetched, and nothing stays behind.
        os.environ.update(HF_HUB_OFFLINE="1", HF_DATASETS_OFFLINE="1", HF_HOME=cache)
        os.chdir(ROOT)
        return run(arguments)


def run(arguments):
    from client_checks import FAILED, check, expect
    from lm_eval import simple_evaluate
    from lm_eval.tasks import TaskManager

    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    expected = json.loads((TASKS / "expected.json").read_text())
    manager = TaskManager(include_path=str(TASKS), include_defaults=False)

    def evaluate(kind, path, tasks, **more):
        model_args = {
            "model": arguments.model,
            "base_url": f"{arguments.url}/v1/{path}",
            "max_retries": 1,
            **more,
        }
        chat = kind == "local-chat-completions"
        return simple_evaluate(
            model=kind,
            model_args=model_args,
            tasks=tasks,
            task_manager=manager,
            apply_chat_template=chat,
            bootstrap_iters=0,
            log_samples=True,
        )

    def exact(results, task):
        found = results["results"][task]["exact_match,none"]
        said = [(sample["target"], sample["filtered_resps"]) for sample in results["samples"][task]]
        expect(found == 1.0, f"{found} of the continuations are those of Transformers: {said}")

    # The harness counts a beginning token only where it is told of one; text gets it from the server.
    ways = (("token ids", True, False), ("token ids with a beginning", True, True), ("text", False, True))
    for name, ids, bos in ways:

        @check(f"local-completions, prompts as {name}")
        def _():
            tasks = ["metier_choice"] if bos else ["metier_choice", "metier_continue"]
            results = evaluate(
                "local-completions",
                "completions",
                tasks,
                tokenizer_backend="huggingface",
                tokenizer=str(NANO),
                tokenized_requests=ids,
                add_bos_token=bos,
                max_length=512,
            )
            wanted = expected["with_bos" if bos else "without_bos"]
            samples = sorted(results["samples"]["metier_choice"], key=lambda sample: sample["doc_id"])
            worst = 0.0
            for sample, likelihoods in zip(samples, wanted, strict=True):
                found = [float(choice[0][0]) for choice in sample["resps"]]
                for one, other in zip(found, likelihoods, strict=True):
                    worst = max(worst, abs(one - other))
            expect(worst <= TOLERANCE, f"a log-likelihood is {worst} off")
            right = sum(max(likely) == likely[0] for likely in wanted) / len(wanted)
            accuracy = results["results"]["metier_choice"]["acc,none"]
            expect(accuracy == right, f"accuracy {accuracy}, expected {right}")
            if not bos:
                exact(results, "metier_continue")
            return f"largest difference {worst:.1e}, accuracy {accuracy}"

    @check("local-chat-completions")
    def _():
        exact(evaluate("local-chat-completions", "chat/completions", ["metier_chat"]), "metier_chat")

    print(f"{len(FAILED)} failed" if FAILED else "all passed")
    return 1 if FAILED else 0


if __name__ == "__main__":
    sys.exit(main())
