#!/usr/bin/env python3
"""Metier and llama.cpp on the same files: perplexity, greedy text, LoRA adapters.

    python scripts/check_llama_cpp.py --metier target/release/metier --llama-cpp BUILD
        [--binding FOLDER] [--shared ../shared] [--text FILE] [--out docs/benchmarks/llama_cpp.md]

BUILD is a build folder of llama.cpp with bin/llama-quantize, bin/llama-perplexity and
bin/libllama.so; FOLDER holds the Python package llama_cpp of the same sources (left out, the installed
one is taken). Needs gguf, numpy, safetensors, sentencepiece, torch, diskcache (requirements.txt).

1. Perplexity of the same token ids in both programs, for files that gguf-py wrote in F32 and
   llama-quantize quantised: the relative difference must stay within 0.5 % for every format. For the
   model whose tokenizer llama.cpp knows also with llama-perplexity itself, from the text.
2. GGUF files that `metier export` wrote: llama.cpp loads them and its greedy tokens are ours. Where
   they part, rounding may have turned a near-tie: the two logits are shown, as both programs have them,
   and the gap between them must be below 1 % of the span of the logits in both.
3. A LoRA adapter that `metier train` trained and `metier export` wrote as GGUF: the same, on the base
   that Metier exported, and the text must differ from the base's.

Prints a report in Markdown and writes it to --out. Exit code 1 when anything is out of bounds.
"""

import argparse
import collections
import json
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

import gguf
import numpy as np
import sentencepiece
from safetensors.torch import load_file

ROOT = Path(__file__).resolve().parent.parent
BOUND = 0.005
TIE = 0.01
CONTEXT = 512
# What llama-quantize is asked for; all tensors in this format where their rows are whole blocks.
PURE = ["F32", "F16", "BF16", "Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "IQ4_NL", "IQ4_XS"]
K_QUANTS = ["Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K"]
# A mixture, as files are published.
MIXED = ["Q4_K_M"]
PROMPTS = ["", "Once upon a time", "Tim had a big dog", "The little bird", "Lily and Ben"]


class Run:
    """The two programs, a folder for files, and what was found."""

    def __init__(self, args, folder):
        self.args = args
        self.folder = folder
        self.lines = []
        self.wrong = []

    def say(self, line=""):
        print(line, flush=True)
        self.lines.append(line)

    def require(self, good, problem):
        if not good:
            self.wrong.append(problem)
            print(f"WRONG: {problem}", file=sys.stderr)

    def call(self, program, *arguments):
        done = subprocess.run(
            [str(program), *map(str, arguments)], capture_output=True, text=True, errors="replace"
        )
        if done.returncode != 0:
            tail = done.stderr[-2000:]
            sys.exit(f"{program} {' '.join(map(str, arguments))}: exit {done.returncode}\n{tail}")
        return done

    def metier(self, *arguments):
        return self.call(self.args.metier, *arguments, "--threads", self.args.threads)

    def llama(self, name, *arguments):
        return self.call(self.args.llama_cpp / "bin" / name, *arguments)

    def load(self, path, context=CONTEXT, lora=None):
        """The file in llama.cpp, keys and values kept in f32 as ours are."""
        return self.binding.Llama(
            str(path),
            n_ctx=context,
            n_batch=context,
            n_threads=self.args.threads,
            n_threads_batch=self.args.threads,
            logits_all=True,
            lora_path=str(lora) if lora else None,
            type_k=self.binding.GGML_TYPE_F32,
            type_v=self.binding.GGML_TYPE_F32,
            verbose=False,
        )

    @property
    def binding(self):
        import llama_cpp

        return llama_cpp


def interleave(weights, heads):
    """convert_hf_to_gguf.py's `permute`."""
    shape = (heads, 2, weights.shape[0] // heads // 2, *weights.shape[1:])
    return weights.reshape(shape).swapaxes(1, 2).reshape(weights.shape)


def add_sentencepiece(writer, path):
    model = sentencepiece.SentencePieceProcessor(model_file=str(path))
    kinds = gguf.TokenType
    tokens, scores, types = [], [], []
    for i in range(model.vocab_size()):
        tokens.append(model.id_to_piece(i).encode())
        scores.append(model.get_score(i))
        kind = kinds.NORMAL
        if model.is_unknown(i):
            kind = kinds.UNKNOWN
        elif model.is_control(i):
            kind = kinds.CONTROL
        elif model.is_byte(i):
            kind = kinds.BYTE
        types.append(kind)
    writer.add_tokenizer_model("llama")
    writer.add_tokenizer_pre("default")
    writer.add_token_list(tokens)
    writer.add_token_scores(scores)
    writer.add_token_types(types)
    writer.add_add_bos_token(True)


def add_byte_pairs(writer, path, rows):
    """The pieces of tokenizer.json. How text is cut is not llama.cpp's: only ids may be fed."""
    data = json.loads(path.read_text())
    tokens = [f"<unused_{i}>".encode() for i in range(rows)]
    types = [gguf.TokenType.UNUSED] * rows
    for token, i in data["model"]["vocab"].items():
        tokens[i], types[i] = token.encode(), gguf.TokenType.NORMAL
    for added in data["added_tokens"]:
        tokens[added["id"]], types[added["id"]] = added["content"].encode(), gguf.TokenType.CONTROL
    merges = [m if isinstance(m, str) else " ".join(m) for m in data["model"]["merges"]]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(tokens)
    writer.add_token_types(types)
    writer.add_token_merges(merges)


def write_f32(model, path, pieces=None):
    """A Llama in Hugging Face's form as a GGUF file in F32, by gguf-py's names."""
    config = json.loads((model / "config.json").read_text())
    heads = config["num_attention_heads"]
    kv_heads = config["num_key_value_heads"]
    layers = config["num_hidden_layers"]
    head_dim = config.get("head_dim", config["hidden_size"] // heads)
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_block_count(layers)
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(heads)
    writer.add_head_count_kv(kv_heads)
    writer.add_key_length(head_dim)
    writer.add_value_length(head_dim)
    writer.add_rope_dimension_count(head_dim)
    writer.add_rope_freq_base(config["rope_theta"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_vocab_size(config["vocab_size"])
    writer.add_file_type(gguf.LlamaFileType.ALL_F32)
    if pieces:
        add_sentencepiece(writer, pieces)
    else:
        add_byte_pairs(writer, model / "tokenizer.json", config["vocab_size"])
    writer.add_bos_token_id(config["bos_token_id"])
    eos = config["eos_token_id"]
    writer.add_eos_token_id(eos[0] if isinstance(eos, list) else eos)
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, layers)
    for name, values in load_file(model / "model.safetensors").items():
        values = values.float().numpy()
        if name.endswith("q_proj.weight"):
            values = interleave(values, heads)
        elif name.endswith("k_proj.weight"):
            values = interleave(values, kv_heads)
        writer.add_tensor(names.get_name(name, try_suffixes=(".weight",)), np.ascontiguousarray(values))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def quantised(run, source, name):
    path = source.with_name(source.name.replace("F32", name))
    if name != "F32":
        pure = [] if name in MIXED else ["--pure"]
        run.llama("llama-quantize", *pure, source, path, name, run.args.threads)
    return path


def kinds_in(path):
    """Values of the matrices by format, in %, largest first."""
    counts = collections.Counter()
    for tensor in gguf.GGUFReader(path).tensors:
        if len(tensor.shape) > 1:
            counts[tensor.tensor_type.name] += int(np.prod(tensor.shape))
    total = sum(counts.values())
    return ", ".join(f"{name} {100 * n / total:.0f} %" for name, n in counts.most_common())


def log_softmax(logits):
    logits = logits.astype(np.float64)
    logits = logits - logits.max(-1, keepdims=True)
    return logits - np.log(np.exp(logits).sum(-1, keepdims=True))


def llama_perplexity(run, path, ids):
    llm = run.load(path)
    total, count = 0.0, 0
    for at in range(0, len(ids) - CONTEXT + 1, CONTEXT):
        window = ids[at : at + CONTEXT]
        llm.reset()
        llm.eval(window)
        rows = np.arange(CONTEXT // 2, CONTEXT - 1)
        logs = log_softmax(llm.scores[rows])
        total -= logs[np.arange(len(rows)), np.array(window)[rows + 1]].sum()
        count += len(rows)
    llm.close()
    return float(np.exp(total / count)), count


def check_perplexity(run):
    args = run.args
    run.say("## Perplexity\n")
    run.say(
        f"The same token ids of `{args.text.name}` in windows of {CONTEXT}, of which the second half counts, "
        "in both programs. Files: written in F32 by gguf-py, quantised by `llama-quantize --pure` (Q4_K_M: "
        "without). *In the file* says what the matrices became: a row that is no whole blocks falls back. "
        f"llama.cpp keeps keys and values in f32 here, as Metier does. Bar: {100 * BOUND} %.\n"
    )
    for model, pieces in run.models:
        name = "nano" if pieces is None else "stories260K"
        base = run.folder / f"{name}-F32.gguf"
        write_f32(model, base, pieces)
        ids = json.loads(run.metier("tokenize", "--model", model, "--file", args.text, "--json").stdout)["ids"]
        ids = ids[: args.windows * CONTEXT]
        file = run.folder / f"{name}.json"
        file.write_text(json.dumps(ids))
        run.say(f"### {name}\n")
        run.say("| format | in the file | Metier | llama.cpp | difference |\n|---|---|---|---|---|")
        for kind in PURE + K_QUANTS + MIXED:
            path = quantised(run, base, kind)
            theirs, counted = llama_perplexity(run, path, ids)
            ours = json.loads(run.metier("perplexity", "--model", path, "--ids", file, "--json").stdout)
            run.require(counted == ours["counted_tokens"], f"{name} {kind}: other tokens counted")
            difference = ours["perplexity"] / theirs - 1
            run.say(
                f"| {kind} | {kinds_in(path)} | {ours['perplexity']:.4f} | {theirs:.4f} "
                f"| {100 * difference:+.3f} % |"
            )
            run.require(abs(difference) <= BOUND, f"{name} {kind}: perplexity {100 * difference:+.3f} %")
        run.say(f"\n{counted} tokens counted.\n")
    base = run.folder / "stories260K-F32.gguf"
    run.say("### From the text, by `metier perplexity --text` and `llama-perplexity`\n")
    run.say("stories260K; llama-perplexity with its own settings (keys and values in f16).\n")
    run.say("| format | Metier | llama-perplexity | difference |\n|---|---|---|---|")
    short = run.folder / "text.txt"
    short.write_text(args.text.read_text()[: args.windows * 1000])
    for kind in ["F32", "F16", "Q8_0", "Q4_0"]:
        path = base.with_name(base.name.replace("F32", kind))
        said = run.llama("llama-perplexity", "-m", path, "-f", short, "-c", CONTEXT, "-t", args.threads)
        theirs = float(re.search(r"Final estimate: PPL = ([0-9.]+)", said.stdout + said.stderr).group(1))
        ours = json.loads(
            run.metier("perplexity", "--model", path, "--text", short, "--context", CONTEXT, "--json").stdout
        )["perplexity"]
        difference = ours / theirs - 1
        run.say(f"| {kind} | {ours:.4f} | {theirs:.4f} | {100 * difference:+.3f} % |")
        run.require(abs(difference) <= BOUND, f"llama-perplexity {kind}: {100 * difference:+.3f} %")
    run.say()


def our_gap(run, model, before, a, b, adapter=()):
    """By how much our logit of token `a` after `before` is larger than that of `b`: their losses differ
    by as much, and everything before is the same."""
    losses = []
    for token in (a, b):
        ids = [*before, token]
        file = run.folder / "gap.json"
        file.write_text(json.dumps(ids))
        found = run.metier(
            "perplexity", "--model", model, "--ids", file, "--context", len(ids), "--json", *adapter
        )
        found = json.loads(found.stdout)
        losses.append(found["nats_per_token"] * found["counted_tokens"])
    return losses[1] - losses[0]


def compare_greedy(run, what, file, lora=None, adapter=None, readable=True):
    """Greedy tokens, and where they are readable their text, of both programs after each prompt; the parting
    of ways, where there is one."""
    llm = run.load(file, lora=lora)
    ends = lambda token: run.binding.llama_vocab_is_eog(llm._model.vocab, token)
    texts, same = [], 0
    for prompt in PROMPTS:
        flags = ["--adapter", adapter] if adapter else []
        ours = json.loads(
            run.metier(
                "generate", "--model", file, "--prompt", prompt, "--temperature", 0,
                "--max-tokens", run.args.tokens, "--json", *flags,
            ).stdout
        )
        texts.append(ours["text"])
        ids = llm.tokenize(prompt.encode(), add_bos=True, special=True)
        run.require(
            len(ids) == ours["usage"]["prompt_tokens"],
            f"{what}, {prompt!r}: {len(ids)} prompt tokens in llama.cpp, {ours['usage']['prompt_tokens']} in ours",
        )
        llm.reset()
        llm.eval(ids)
        theirs = []
        parted = None
        while len(theirs) < run.args.tokens:
            logits = llm.scores[llm.n_tokens - 1]
            token = int(logits.argmax())
            at = len(theirs)
            # Ours does not name the token that ended the text.
            ended = at == len(ours["token_ids"]) and ours["finish_reason"] == "stop"
            if ended and ends(token):
                break
            our_token = llm.token_eos() if ended else ours["token_ids"][at]
            if token != our_token:
                parted = (at, token, our_token, logits.copy())
                break
            theirs.append(token)
            llm.eval([token])
        if parted is None:
            same += 1
            if readable:
                text = llm.detokenize(theirs, prev_tokens=ids).decode("utf-8", "replace")
                # A text's very first word has no space in front in Hugging Face's tokenizers.
                text = text if prompt else text.removeprefix(" ")
                problem = f"{what}, {prompt!r}: {text!r} in llama.cpp, {ours['text']!r} in ours"
                run.require(text == ours["text"], problem)
            continue
        at, token, our_token, logits = parted
        span = float(logits.max() - logits.min())
        gap = float(logits[token] - logits[our_token])
        ours_gap = our_gap(run, file, [*ids, *theirs], our_token, token, flags)
        run.say(
            f"- {what}, prompt {prompt!r}: apart after {at} tokens. llama.cpp has token {token} "
            f"{gap:.2g} above {our_token}, Metier {ours_gap:.2g} below it; the logits span {span:.1f}, so the gaps are "
            f"{100 * gap / span:.2f} % and {100 * ours_gap / span:.2f} % of it."
        )
        near = max(gap, ours_gap) <= TIE * span
        run.require(near, f"{what}, {prompt!r}: apart after {at} tokens, and no near-tie")
    llm.close()
    run.say(f"- {what}: {same} of {len(PROMPTS)} prompts give the same {run.args.tokens} tokens in both.")
    return texts


def mixture_folder(run):
    """The bundled model's weights (rows of whole blocks of 256) with a tokenizer that llama.cpp knows:
    the text is nonsense, the tokens can be compared."""
    folder = run.folder / "nano-with-known-tokenizer"
    folder.mkdir()
    nano, known = run.models[0][0], run.models[1][0]
    for source, name in [
        (nano, "config.json"), (nano, "model.safetensors"),
        (known, "tokenizer.json"), (known, "tokenizer_config.json"),
    ]:
        (folder / name).write_bytes((source / name).read_bytes())
    return folder


def check_export(run):
    run.say("## GGUF files that Metier writes\n")
    run.say(
        f"`metier export --format gguf`; greedy, {run.args.tokens} tokens, prompts "
        f"{', '.join(repr(p) for p in PROMPTS)}, the same file in both programs. *nano* here is the bundled model "
        "with the tokenizer of stories260K, whose rows are whole blocks of 256 (its text is nonsense).\n"
    )
    stories = run.models[1][0]
    for name, model, dtypes in [
        ("stories260K", stories, ["f32", "f16", "q8_0", "q4_0"]),
        ("nano", mixture_folder(run), ["q8_0", "q6_k", "q4_k", "q4_0"]),
    ]:
        for dtype in dtypes:
            out = run.folder / f"export-{name}-{dtype}"
            run.metier("export", "--base", model, "--format", "gguf", "--dtype", dtype, "--out", out)
            file = out / f"model-{dtype}.gguf"
            what = f"{name} {dtype} ({kinds_in(file)})"
            compare_greedy(run, what, file, readable=model is stories)
    run.say()


def check_lora(run):
    run.say("## A LoRA adapter that Metier writes\n")
    base = run.folder / "export-stories260K-f32" / "model-f32.gguf"
    data = {}
    for name, animals in [("train", ["cat", "dog", "bird", "frog", "fish", "bear"]), ("valid", ["fox", "duck"])]:
        data[name] = run.folder / f"lora-{name}.jsonl"
        lines = [
            {"prompt": f"Tell of a {animal}.", "completion": f"The {animal} sat on the red box and sang."}
            for animal in animals
        ]
        data[name].write_text("".join(json.dumps(line) + "\n" for line in lines))
    trained = run.folder / "lora-trained"
    run.metier(
        "train", "--base", base, "--data", data["train"], "--valid", data["valid"], "--out", trained, "--max-steps", 60,
        "--learning-rate", 0.001, "--r", 8, "--seed", 1, "--json",
    )
    out = run.folder / "lora-exported"
    run.metier("export", "--base", base, "--adapter", trained, "--format", "gguf-lora", "--out", out)
    adapter = out / "adapter.gguf"
    tensors = len(gguf.GGUFReader(adapter).tensors)
    run.say(
        f"Trained by `metier train` (60 steps, rank 8) on stories260K, written by `metier export --format "
        f"gguf-lora` ({tensors} tensors), on the base that Metier exported in F32.\n"
    )
    plain = compare_greedy(run, "base alone", base)
    adapted = compare_greedy(run, "with the adapter", base, lora=adapter, adapter=trained)
    changed = sum(a != b for a, b in zip(plain, adapted))
    run.require(changed == len(PROMPTS), f"the adapter changes only {changed} of {len(PROMPTS)} texts")
    run.say(f"- The adapter changes {changed} of {len(PROMPTS)} texts: {plain[1][:60]!r} becomes {adapted[1][:60]!r}.\n")


def cpu_name():
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.split(":", 1)[1].strip()
    return "unknown processor"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--metier", type=Path, default=ROOT / "target/release/metier")
    parser.add_argument("--llama-cpp", type=Path, required=True, metavar="BUILD")
    parser.add_argument("--binding", type=Path, metavar="FOLDER")
    parser.add_argument("--shared", type=Path, default=ROOT.parent / "shared")
    parser.add_argument("--text", type=Path)
    parser.add_argument("--windows", type=int, default=40, help="windows of 512 tokens [40]")
    parser.add_argument("--tokens", type=int, default=100, help="tokens of greedy text [100]")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--only", choices=["perplexity", "export"], help="only this part (export: with the adapter)")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    # The binding looks for the library when it is imported.
    os.environ["LLAMA_CPP_LIB_PATH"] = str((args.llama_cpp / "bin").resolve())
    if args.binding:
        sys.path.insert(0, str(args.binding))
    args.text = args.text or args.shared / "corpus/text/book_en_alice-s-adventures-in-wonderland-11.txt"
    stories = args.shared / "models/stories260K"
    for path in (args.metier, args.llama_cpp / "bin/llama-quantize", args.text, stories / "hf"):
        if not path.exists():
            sys.exit(f"{path}: not there (see --help)")
    with tempfile.TemporaryDirectory() as folder:
        run = Run(args, Path(folder))
        run.models = [(ROOT / "assets/nano", None), (stories / "hf", stories / "tok512.model")]
        version = run.metier("--version").stdout.strip()
        features = run.binding.llama_print_system_info().decode().strip()
        run.say("# The same files in Metier and llama.cpp\n")
        run.say(
            f"{cpu_name()}, {args.threads} threads. {version}; llama.cpp as llama-cpp-python "
            f"{run.binding.__version__} brings it, built for this machine ({features}).\n"
        )
        run.say(
            "```\npython scripts/check_llama_cpp.py --metier METIER --llama-cpp BUILD --binding FOLDER "
            f"--windows {args.windows}\n```\n"
        )
        if args.only != "export":
            check_perplexity(run)
        if args.only != "perplexity":
            check_export(run)
            check_lora(run)
        run.say("Everything is within bounds." if not run.wrong else "Out of bounds:\n")
        for problem in run.wrong:
            run.say(f"- {problem}")
    if args.out:
        args.out.write_text("\n".join(run.lines) + "\n")
    return 1 if run.wrong else 0


if __name__ == "__main__":
    sys.exit(main())
