"""Models of random weights as GGUF files, for benchmarks: in BF16, or in Q4_0 where BF16 would not fit.
The same shape and format give the same file.
"""

import gguf
import numpy as np

# hidden, intermediate, layers, heads, KV heads, head size, vocabulary, base of the rotation, how text is cut
SHAPES = {
    # SmolLM2-135M, Llama-3.2-1B, Llama-3.1-8B
    "S": (576, 1536, 30, 9, 3, 64, 49152, 100_000.0, "smollm"),
    "M": (2048, 8192, 16, 32, 8, 64, 128256, 500_000.0, "llama-bpe"),
    "L": (4096, 14336, 32, 32, 8, 128, 128256, 500_000.0, "llama-bpe"),
}
# Their head has weights of its own; elsewhere it is the embedding.
UNTIED = {"L"}


def byte_characters():
    """GPT-2's characters for the 256 bytes, in its order of ids."""
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    other = [b for b in range(256) if b not in plain]
    return [chr(b) for b in plain] + [chr(256 + i) for i in range(len(other))]


def vocabulary(size):
    """Byte pairs of made-up words: every two and three letters, then four, as many as there is room for;
    each piece is its beginning and one letter more. The last token ends a text."""
    letters = [chr(ord("a") + i) for i in range(26)]
    tokens, merges = byte_characters(), []
    pieces = letters
    while len(tokens) < size - 1:
        pieces = [(piece, letter) for piece in pieces for letter in letters][: size - 1 - len(tokens)]
        merges += [f"{piece} {letter}" for piece, letter in pieces]
        pieces = [piece + letter for piece, letter in pieces]
        tokens += pieces
    types = [gguf.TokenType.NORMAL] * (size - 1) + [gguf.TokenType.CONTROL]
    return tokens + ["<|endoftext|>"], types, merges


def write(name, kind, path):
    """Writes the model of shape `name` in `kind`, BF16 or Q4_0; the file appears when it is whole."""
    partial = path.with_suffix(".partial")
    hidden, intermediate, layers, heads, kv_heads, head_dim, vocab, theta, pre = SHAPES[name]
    writer = gguf.GGUFWriter(partial, "llama")
    writer.add_name(f"random weights, shape {name}")
    writer.add_context_length(4096)
    writer.add_embedding_length(hidden)
    writer.add_block_count(layers)
    writer.add_feed_forward_length(intermediate)
    writer.add_head_count(heads)
    writer.add_head_count_kv(kv_heads)
    writer.add_key_length(head_dim)
    writer.add_value_length(head_dim)
    writer.add_rope_dimension_count(head_dim)
    writer.add_rope_freq_base(theta)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_vocab_size(vocab)
    writer.add_file_type(gguf.LlamaFileType[f"MOSTLY_{kind}"])
    tokens, types, merges = vocabulary(vocab)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(pre)
    writer.add_token_list(tokens)
    writer.add_token_types(types)
    writer.add_token_merges(merges)
    writer.add_bos_token_id(vocab - 1)
    writer.add_eos_token_id(vocab - 1)
    writer.add_add_bos_token(False)
    shapes = {"token_embd.weight": (vocab, hidden), "output_norm.weight": (hidden,)}
    if name in UNTIED:
        shapes["output.weight"] = (vocab, hidden)
    for layer in range(layers):
        for end, shape in {
            "attn_norm": (hidden,),
            "attn_q": (heads * head_dim, hidden),
            "attn_k": (kv_heads * head_dim, hidden),
            "attn_v": (kv_heads * head_dim, hidden),
            "attn_output": (hidden, heads * head_dim),
            "ffn_norm": (hidden,),
            "ffn_gate": (intermediate, hidden),
            "ffn_up": (intermediate, hidden),
            "ffn_down": (hidden, intermediate),
        }.items():
            shapes[f"blk.{layer}.{end}.weight"] = shape
    kinds = gguf.GGMLQuantizationType
    block, block_bytes = gguf.GGML_QUANT_SIZES[kinds[kind]]
    for tensor, shape in shapes.items():
        if len(shape) == 1:
            writer.add_tensor_info(tensor, shape, np.dtype(np.float32), 4 * shape[0], kinds.F32)
        else:
            row = shape[1] // block * block_bytes
            writer.add_tensor_info(tensor, (shape[0], row), np.dtype(np.uint8), shape[0] * row, kinds[kind])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    random = np.random.default_rng(7)
    for shape in shapes.values():
        if len(shape) == 1:
            writer.write_tensor_data(np.ones(shape, np.float32))
        else:
            writer.write_tensor_data(BLOCKS[kind](random, shape))
    writer.close()
    partial.rename(path)


def bf16(random, shape):
    """Normal values of the usual size; the upper half of an f32 is a bf16."""
    values = random.standard_normal(shape, np.float32) * np.float32(shape[1] ** -0.5)
    return (values.view(np.uint32) >> 16).astype(np.uint16).view(np.uint8)


def q4_0(random, shape):
    """Blocks of a scale in f16 that gives values of the usual size, and sixteen bytes of two values each: 1
    to 15 less 8, whose mean is 0 (a mean beside it would drown all else in a deep model) and deviation 4.3."""
    pairs = random.integers(1, 16, (2, shape[0], shape[1] // 32, 16), np.uint8)
    blocks = np.empty((shape[0], shape[1] // 32, 18), np.uint8)
    blocks[..., :2] = np.array([shape[1] ** -0.5 / 4.3], np.float16).view(np.uint8)
    blocks[..., 2:] = pairs[0] | pairs[1] << 4
    return blocks.reshape(shape[0], -1)


BLOCKS = {"BF16": bf16, "Q4_0": q4_0}
