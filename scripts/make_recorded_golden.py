"""Logs of inspect_ai and promptfoo as these programs write them today: testdata/recorded/.

    pip install inspect-ai==0.3.285
    python scripts/make_recorded_golden.py [OUT]

promptfoo and the Node that it asks for come from npm, at the versions below, into a folder that goes away
again. Neither program asks a model: inspect has one that says what it is given, promptfoo one that echoes.
"""

import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from inspect_ai import Task, eval as run
from inspect_ai.dataset import MemoryDataset, Sample
from inspect_ai.model import ModelOutput, ModelUsage, get_model
from inspect_ai.scorer import match

NPM = ["promptfoo@0.123.1", "node@22"]
# What is asked for, and what is answered; None: the model has nothing left to say, and fails.
ROWS = [("yes", "yes"), ("no", "maybe"), ("yes", None)]


def said(text):
    output = ModelOutput.from_content("mockllm/model", text)
    output.usage = ModelUsage(input_tokens=5, output_tokens=2, total_tokens=7)
    return output


def inspect(out, folder):
    samples = [
        Sample(id=f"t{i}", input=f"question {i}", target=target)
        for i, (target, _) in enumerate(ROWS)
    ]
    for form in ["eval", "json"]:
        model = get_model("mockllm/model", custom_outputs=[said(text) for _, text in ROWS if text])
        quiet = {"display": "none", "max_samples": 1, "fail_on_error": False}
        task = Task(dataset=MemoryDataset(samples), scorer=match())
        logs = run(task, model=model, log_dir=str(folder / form), log_format=form, **quiet)
        assert logs[0].status == "success", logs[0].status
        if form == "eval":
            shutil.copy(logs[0].location, out / "inspect.eval")
            continue
        log = json.loads(Path(logs[0].location).read_text())
        # Most of the file, which nobody reads.
        for sample in log["samples"]:
            sample.pop("events")
            for part in [name for name in sample.get("error") or {} if name.startswith("traceback")]:
                sample["error"].pop(part)
        (out / "inspect.json").write_text(json.dumps(log, indent=1) + "\n")


def promptfoo(out, folder):
    subprocess.run(["npm", "init", "-y"], cwd=folder, check=True, stdout=subprocess.DEVNULL)
    subprocess.run(["npm", "install", "--silent", *NPM], cwd=folder, check=True)
    tests = [
        {"vars": {"id": f"t{i}", "question": text, "expected": target}, "assert": [{"type": "equals", "value": target}]}
        for i, (target, text) in enumerate(ROWS)
        if text is not None
    ]
    config = {"prompts": ["{{question}}"], "providers": ["echo"], "tests": tests}
    (folder / "promptfooconfig.json").write_text(json.dumps(config))
    quiet = {"PROMPTFOO_DISABLE_TELEMETRY": "1", "PROMPTFOO_DISABLE_UPDATE": "1", "PROMPTFOO_CONFIG_DIR": str(folder / "state")}
    program = ["node_modules/.bin/node", "node_modules/promptfoo/dist/src/main.js"]
    arguments = ["eval", "-c", "promptfooconfig.json", "--no-cache", "-o", "promptfoo.json"]
    # Its exit code says that an assertion failed, as one shall.
    subprocess.run(program + arguments, cwd=folder, env=os.environ | quiet, stdout=subprocess.DEVNULL)
    shutil.copy(folder / "promptfoo.json", out / "promptfoo.json")


if __name__ == "__main__":
    out = Path(sys.argv[1] if len(sys.argv) > 1 else "testdata/recorded")
    out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        inspect(out, Path(folder))
        promptfoo(out, Path(folder))
