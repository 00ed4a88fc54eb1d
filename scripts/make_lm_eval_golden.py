#!/usr/bin/env python3
"""Writes what Transformers says to the tasks in testdata/lm_eval with the bundled base: the log-likelihood
of each choice, with and without the beginning token, and greedy continuations, which become the expected
answers of continue.jsonl and chat.jsonl. Versions: scripts/requirements.txt.

    python scripts/make_lm_eval_golden.py
"""

import json
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

ROOT = Path(__file__).parent.parent
FOLDER = ROOT / "testdata/lm_eval"
NANO = ROOT / "assets/nano"
TEXTS = ["My washing machine leaks", "Once upon a time", "The answer to the question is"]
# As in the tasks.
NEW_TOKENS = 12


def main():
    tokenizer = AutoTokenizer.from_pretrained(NANO)
    model = AutoModelForCausalLM.from_pretrained(NANO, dtype=torch.float32).eval()

    def log_likelihood(context, continuation, special):
        # The harness splits the tokens of both together where those of the context end.
        head = tokenizer.encode(context, add_special_tokens=special)
        whole = tokenizer.encode(context + continuation, add_special_tokens=special)
        with torch.no_grad():
            scores = torch.log_softmax(model(torch.tensor([whole])).logits[0].double(), dim=-1)
        return sum(scores[i - 1, whole[i]].item() for i in range(len(head), len(whole)))

    def greedy(ids):
        with torch.no_grad():
            out = model.generate(torch.tensor([ids]), max_new_tokens=NEW_TOKENS, do_sample=False)
        return tokenizer.decode(out[0][len(ids) :], skip_special_tokens=True)

    items = [json.loads(line) for line in (FOLDER / "choice.jsonl").read_text().splitlines()]
    expected = {
        # The harness parts question and choice by a space.
        name: [[log_likelihood(i["question"], f" {c}", special) for c in i["choices"]] for i in items]
        for name, special in (("with_bos", True), ("without_bos", False))
    }
    (FOLDER / "expected.json").write_text(json.dumps(expected, indent=1) + "\n")

    def write(name, prompt):
        rows = [{"text": text, "expected": greedy(prompt(text))} for text in TEXTS]
        (FOLDER / name).write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))

    def chat(text):
        message = {"role": "user", "content": text}
        rendered = tokenizer.apply_chat_template([message], add_generation_prompt=True, tokenize=False)
        return tokenizer.encode(rendered, add_special_tokens=False)

    write("continue.jsonl", lambda text: tokenizer.encode(text, add_special_tokens=False))
    write("chat.jsonl", chat)


if __name__ == "__main__":
    main()
