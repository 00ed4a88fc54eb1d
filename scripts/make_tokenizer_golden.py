#!/usr/bin/env python3
"""Writes testdata/tokenizers: small SentencePiece models and the ids that the field's own libraries
give with them, and with the large files of ../shared/tokenizers.

Usage: python scripts/make_tokenizer_golden.py [--shared ../shared] [--keep-models]
With --keep-models the small models stay as they are, instead of being trained anew.
Needs: sentencepiece and tiktoken as pinned in requirements.txt.

The large files stay where they are; the golden files hold texts and ids only.
"""

import argparse
import base64
import json
import random
import tempfile
import unicodedata
from pathlib import Path

import sentencepiece
import tiktoken

HERE = Path(__file__).resolve().parent.parent
OUT = HERE / "testdata/tokenizers"

# Each model exercises what the others do not: how text is spelt before it is cut, pieces that are
# found before anything else (as Gemma has them), bytes for unknown characters or one token for all
# of them. Pieces of that kind are in the model without a prefix only: where there is a prefix,
# Transformers puts it behind each such piece as well and SentencePiece does not; Metier does as
# Transformers does, with which the models were made.
MODELS = {
    "bpe": dict(model_type="bpe", byte_fallback=True, normalization_rule_name="identity",
                remove_extra_whitespaces=False, control_symbols=["<turn>"], split_digits=True),
    "bpe_collapsing": dict(model_type="bpe", byte_fallback=False, normalization_rule_name="identity",
                           remove_extra_whitespaces=True),
    "bpe_no_prefix": dict(model_type="bpe", byte_fallback=True, normalization_rule_name="identity",
                          add_dummy_prefix=False, remove_extra_whitespaces=False,
                          user_defined_symbols=["<tool>", "[x]", "\n\n", "\u2581" * 2, "\u2581" * 3, "\u2581" * 4]),
    "unigram": dict(model_type="unigram", byte_fallback=True, remove_extra_whitespaces=True,
                    normalization_rule_tsv=True),
    "unigram_unknown": dict(model_type="unigram", byte_fallback=False,
                            normalization_rule_name="identity", remove_extra_whitespaces=False),
}

# A few rules in the form of SentencePiece's own table (code points in hexadecimal).
RULES = "FB01\t66 69\nA0\t20\nC5\t41 30A\n2460\t31\n"

FIXED = [
    "", " ", "  ", "   ", "    ", "     ", "\n", "\t", " \n \t ", "Hello world", " Hello world", "Hello  world ",
    "aaaaaaaaaaaaa", "abababababab", "0123456789 12 345", "é è ê ë", "日本語 текст", "😀👩🏽‍🔧", "a\u0301", "ﬁn\u00a0x ①",
    "<tool>call[x]</tool>", "x<tool> y [x]z", "<s>", "</s>", "<unk>", "<0x41>", "\u2581x\u2581\u2581y", "The end.\n\nThe end.",
]

def texts(count):
    """Fixed texts, and random ones with many repeats, in which ties between merges show."""
    rng = random.Random(7)
    alphabets = ["ab ", "a  ", "the in er on", "01 .,", "é日😀a ", " \n\t", "esto ainrl"]
    made = ["".join(rng.choice(rng.choice(alphabets)) for _ in range(rng.randint(1, 40))) for _ in range(40)]
    runs = ["".join(rng.choice(alphabet) for _ in range(rng.randint(1, 40)))
            for alphabet in alphabets for _ in range(8)]
    return (FIXED + made + runs)[:count]


def write(name, cases):
    path = OUT / f"{name}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = [json.dumps({"text": text, "ids": ids}, ensure_ascii=False) for text, ids in cases]
    path.write_text("[\n" + ",\n".join(lines) + "\n]\n", encoding="utf-8")
    print(f"{path}: {len(cases)} texts")


def small_models(keep):
    for name, options in MODELS.items():
        path = OUT / name / "tokenizer.model"
        path.parent.mkdir(parents=True, exist_ok=True)
        if not keep:
            train(dict(options), path)
        model = sentencepiece.SentencePieceProcessor(model_file=str(path))
        # Among the texts are names of pieces that are no text, which SentencePiece spells out.
        write(f"{name}/golden", [(text, model.encode(text)) for text in texts(200)])


def train(options, path):
    corpus = [line.strip() for name in ("README.md", "ARCHITECTURE.md")
              for line in (HERE / name).read_text(encoding="utf-8").splitlines() if line.strip()]
    with tempfile.TemporaryDirectory() as scratch:
        if options.pop("normalization_rule_tsv", False):
            rules = Path(scratch) / "rules.tsv"
            rules.write_text(RULES)
            options["normalization_rule_tsv"] = str(rules)
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(corpus), model_prefix=f"{scratch}/m", vocab_size=420, num_threads=1,
            character_coverage=0.995, self_test_sample_size=0, minloglevel=2, **options)
        path.write_bytes(Path(f"{scratch}/m.model").read_bytes())


def mistral(shared):
    path = shared / "tokenizers/mistral-v3/mistral_instruct_tokenizer_240323.model.v3"
    model = sentencepiece.SentencePieceProcessor(model_file=str(path))
    given = (shared / "tokenizers/gpt-2/ggml-vocab-gpt-2.gguf.inp").read_text(encoding="utf-8")
    # llama.cpp's 47 texts by their place only; the file stays where it is.
    cases = [(text, model.encode(text)) for text in texts(200)]
    write("mistral-v3", cases)
    path = OUT / "mistral-v3.out"
    lines = [" ".join(map(str, model.encode(text))) for text in given.split("\n__ggml_vocab_test__\n")]
    path.write_text("\n".join(lines) + "\n")
    print(f"{path}: {len(lines)} texts")


def ranks_of(shared):
    ranks = {}
    for line in (shared / "tokenizers/qwen2/qwen.tiktoken").read_bytes().splitlines():
        token, rank = line.split()
        ranks[base64.b64decode(token)] = int(rank)
    return ranks


def qwen2(shared):
    # The expression is that of Qwen's own tokenization_qwen.py, which composes accents first.
    pattern = (r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
               r"|\s*[\r\n]+|\s+(?!\S)|\s+")
    model = tiktoken.Encoding("qwen", pat_str=pattern, mergeable_ranks=ranks_of(shared), special_tokens={})
    write("qwen2", [(text, model.encode_ordinary(unicodedata.normalize("NFC", text))) for text in texts(200)])


def llama3(shared):
    """Llama 3's way to cut words, which is cl100k's, with as many ranks as it has. Its own are not here;
    the first of Qwen's take their place."""
    pattern = (r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
               r"|\s*[\r\n]+|\s+(?!\S)|\s+")
    ranks = {token: rank for token, rank in ranks_of(shared).items() if rank < 128_000}
    model = tiktoken.Encoding("llama3", pat_str=pattern, mergeable_ranks=ranks, special_tokens={})
    write("llama3_ranks", [(text, model.encode_ordinary(text)) for text in texts(200)])


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shared", type=Path, default=HERE.parent / "shared")
    parser.add_argument("--keep-models", action="store_true")
    arguments = parser.parse_args()
    small_models(arguments.keep_models)
    mistral(arguments.shared)
    qwen2(arguments.shared)
    llama3(arguments.shared)


if __name__ == "__main__":
    main()
