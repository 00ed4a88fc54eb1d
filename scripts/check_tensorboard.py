#!/usr/bin/env python3
"""Does TensorBoard read what `metier train --report-to tensorboard` writes?

    python scripts/check_tensorboard.py --metier target/release/metier

Trains the bundled base for a few steps, stops it by a step limit, resumes it to the end, and reads the
event file with TensorBoard's own reader: every tag has each of its steps once, and its numbers are those
of the log. Needs tensorboard (requirements.txt). Exit code 1 when anything differs.
"""

import argparse
import json
import math
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

ROOT = Path(__file__).resolve().parent.parent
TAGS = {
    "train/loss": "loss",
    "train/grad_norm": "grad_norm",
    "train/learning_rate": "learning_rate",
    "train/epoch": "epoch",
}
CONFIG = """
[base]
model = "nano"
[data]
train = ["train.jsonl"]
valid_fraction = 0.1
[train]
r = 4
max_steps = 14
max_length = 128
step_size = { rows = 4 }
save_steps = 3
eval_steps = 5
report_to = ["tensorboard"]
"""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--metier", type=Path, default=ROOT / "target/release/metier")
    args = parser.parse_args()
    wrong = []
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        rows = [{"prompt": f"pump {i} is loud", "completion": f"pump {i}"} for i in range(40)]
        (folder / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        (folder / "metier.toml").write_text(CONFIG)
        out = folder / "out"
        command = [str(args.metier), "train", "--config", str(folder / "metier.toml"), "--out", str(out), "--resume"]
        # Killed at some step after the fourth, so that steps are done twice.
        started = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        log = out / "train_log.jsonl"
        while started.poll() is None and (not log.exists() or log.read_text().count('"step"') < 5):
            time.sleep(0.005)
        started.send_signal(signal.SIGKILL)
        started.wait()
        before = log.read_text().count('"event":"step"')
        subprocess.run(command, check=True, capture_output=True)
        events = [json.loads(line) for line in log.read_text().splitlines()]
        accumulator = EventAccumulator(str(out), size_guidance={"scalars": 0})
        accumulator.Reload()
        found = sorted(accumulator.Tags()["scalars"])
        print(f"killed after {before} logged steps; tags: {', '.join(found)}")
        steps = [e for e in events if e["event"] == "step"]
        expected = {tag: {e["step"]: e[key] for e in steps} for tag, key in TAGS.items()}
        expected["eval/loss"] = {e["step"]: e["loss"] for e in events if e["event"] == "evaluation"}
        for tag, numbers in expected.items():
            read = accumulator.Scalars(tag) if tag in found else []
            same = len(read) == len(numbers) and all(
                math.isclose(numbers.get(s.step, math.nan), s.value, rel_tol=1e-6) for s in read
            )
            print(f"{tag}: {len(read)} points, steps {[s.step for s in read]}")
            if not same:
                wrong.append(f"{tag}: {[(s.step, s.value) for s in read]} read, {numbers} in the log")
        for kind, count in [("step", 14), ("evaluation", 4)]:
            logged = [e["step"] for e in events if e["event"] == kind]
            if len(logged) != count or logged != sorted(set(logged)):
                wrong.append(f"{kind}: {logged} in the log, expected {count} different ones")
    for problem in wrong:
        print(f"WRONG: {problem}", file=sys.stderr)
    print("DIFFERS" if wrong else "AGREES")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
