#!/usr/bin/env python3
"""Computes the golden files of the engine's tests with PyTorch and Hugging Face transformers.

Not needed to build or to test: the results are committed. README.md says which versions were used.
"""

import argparse
import json
import math
import shutil
from pathlib import Path

import gguf
import numpy
import regex
import torch
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
)

import texts

CONTRACTIONS = r"(?:'[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD])"
SPACES = r"\s*[\r\n]+|\s+(?!\S)|\s+"
GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
LLAMA3 = CONTRACTIONS + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|" + SPACES
QWEN2 = CONTRACTIONS + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|" + SPACES
# llama.cpp applies the patterns of a pre-tokenizer one after another, each to the pieces that the one
# before left; what no pattern matches stays a piece.
PATTERNS = {
    "llama-bpe": [LLAMA3],
    "qwen2": [QWEN2],
    "gpt-2": [GPT2],
    "smollm": [r"\p{N}", GPT2],
}

SMOLLM2_FIRST_TOKEN = 0  # <|endoftext|>; the model has no BOS of its own
SMOLLM2_BLOCKS = [0, 8, 13, 22, 29]
TINY_BLOCKS = [0, 1, 2, 3]
SEED = 1


def pre_tokenize(name, text):
    """The pieces of `text` that byte-pair merges never cross."""
    pieces = [text] if text else []
    for pattern in PATTERNS[name]:
        split = []
        for piece in pieces:
            end = 0
            for match in regex.finditer(pattern, piece):
                split += [piece[end : match.start()], match.group()]
                end = match.end()
            split.append(piece[end:])
        pieces = [piece for piece in split if piece]
    assert "".join(pieces) == text
    return pieces


def byte_alphabet():
    """GPT-2's printable character for each of the 256 bytes."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    alphabet = {byte: chr(byte) for byte in printable}
    for byte in range(256):
        if byte not in alphabet:
            alphabet[byte] = chr(256 + len(alphabet) - len(printable))
    return alphabet


class PlainBpe:
    """Byte-level BPE as llama.cpp defines it, from a GGUF's metadata, by the book and slow."""

    def __init__(self, path):
        fields = gguf.GGUFReader(path).fields
        self.pre = fields["tokenizer.ggml.pre"].contents()
        tokens = fields["tokenizer.ggml.tokens"].contents()
        merges = fields["tokenizer.ggml.merges"].contents()
        self.ids = {token: id for id, token in enumerate(tokens)}
        self.ranks = {tuple(merge.split(" ")): rank for rank, merge in enumerate(merges)}
        self.alphabet = byte_alphabet()

    def encode(self, text):
        return [id for piece in pre_tokenize(self.pre, text) for id in self.encode_piece(piece)]

    def encode_piece(self, piece):
        symbols = [self.alphabet[byte] for byte in piece.encode()]
        while len(symbols) > 1:
            pairs = list(zip(symbols, symbols[1:]))
            best = min(range(len(pairs)), key=lambda i: self.ranks.get(pairs[i], math.inf))
            if pairs[best] not in self.ranks:
                break
            symbols[best : best + 2] = ["".join(pairs[best])]
        return [self.ids[symbol] for symbol in symbols]


def rounded(vector):
    return [float(f"{value:.6g}") for value in vector.tolist()]


def record(model, ids, blocks):
    """Runs one sequence; returns {block: (v [tokens, kv width], hidden [tokens, width])}."""
    seen = {block: {} for block in blocks}
    hooks = []
    for block in blocks:
        layer = model.model.layers[block]

        def keep_hidden(_module, args, kwargs, block=block):
            hidden = args[0] if args else kwargs["hidden_states"]
            seen[block]["hidden"] = hidden[0].clone()

        def keep_v(_module, _args, output, block=block):
            seen[block]["v"] = output[0].clone()

        hooks.append(layer.register_forward_pre_hook(keep_hidden, with_kwargs=True))
        hooks.append(layer.self_attn.v_proj.register_forward_hook(keep_v))
    with torch.no_grad():
        logits = model(torch.tensor([ids])).logits[0]
    for hook in hooks:
        hook.remove()
    return {block: (kept["v"], kept["hidden"]) for block, kept in seen.items()}, logits


def points(recorded, wanted):
    return [
        {
            "block": block,
            "position": position,
            "v": rounded(recorded[block][0][position]),
            "hidden": rounded(recorded[block][1][position]),
        }
        for block, position in wanted
    ]


def largest_difference(one, other):
    """Largest difference of two recordings, relative to the norm of the vector it is in."""
    return max(
        ((a - b).norm(dim=-1) / b.norm(dim=-1)).max().item()
        for block in one
        for a, b in zip(one[block], other[block])
    )


def write(path, value):
    path.write_text(json.dumps(value, ensure_ascii=False, separators=(",", ":")) + "\n", encoding="utf-8")
    print(f"{path.name}: {path.stat().st_size / 1024:.0f} KiB")


def smollm2_tokenizer(path):
    """transformers' tokenizer of the GGUF, with the pre-tokenizer that the GGUF names."""
    tokenizer = AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)
    backend = tokenizer.backend_tokenizer
    # transformers ignores `tokenizer.ggml.pre` and leaves out the splitting of digits.
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    return tokenizer


def smollm2_points(ids, first_text):
    last = len(ids) - 1
    wanted = [(block, last) for block in SMOLLM2_BLOCKS]
    if last > 1:
        wanted.append((22, last // 2))
    if first_text:
        wanted += [(block, 0) for block in (0, 22)]
    return sorted(set(wanted))


def make_smollm2(path, out):
    model = AutoModelForCausalLM.from_pretrained(
        path.parent, gguf_file=path.name, dtype=torch.float32, attn_implementation="eager"
    ).eval()
    tokenizer, plain = smollm2_tokenizer(path), PlainBpe(path)
    golden = []
    for text in texts.SMOLLM2:
        ids = plain.encode(text)
        by_transformers = tokenizer(text, add_special_tokens=False)["input_ids"]
        assert ids == by_transformers, (text, ids, by_transformers)
        ids = [SMOLLM2_FIRST_TOKEN] + ids
        recorded, logits = record(model, ids, SMOLLM2_BLOCKS)
        if text == "The capital of France is":
            assert tokenizer.decode(logits[-1].argmax()) == " Paris"
        wanted = smollm2_points(ids, not golden)
        golden.append({"text": text, "ids": ids, "points": points(recorded, wanted)})
        exact, _ = record(model.double(), ids, SMOLLM2_BLOCKS)
        model.float()
        print(f"  {len(ids)} tokens, float32 against float64: {largest_difference(recorded, exact):.1e}")
    write(out / "smollm2.json", {"model": path.name, "texts": golden})


def train_tiny_tokenizer():
    """A byte-level BPE of 512 tokens in the form of Llama 3's tokenizer.json."""
    split = pre_tokenizers.Split(
        Regex(LLAMA3.replace(CONTRACTIONS, "(?i:'s|'t|'re|'ve|'m|'ll|'d)")), behavior="isolated"
    )
    tokenizer = Tokenizer(models.BPE(ignore_merges=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=510, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(texts.TINY_CORPUS, trainer)
    special = ["<|begin_of_text|>", "<|end_of_text|>"]
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in special])
    bos = tokenizer.token_to_id(special[0])
    tokenizer.post_processor = processors.Sequence(
        [
            processors.ByteLevel(trim_offsets=False),
            processors.TemplateProcessing(
                single=f"{special[0]} $A",
                pair=f"{special[0]} $A {special[0]}:1 $B:1",
                special_tokens=[(special[0], bos)],
            ),
        ]
    )
    assert tokenizer.get_vocab_size() == 512
    return tokenizer


def tiny_config(bos, eos):
    return LlamaConfig(
        vocab_size=512,
        hidden_size=64,
        intermediate_size=160,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=16,
        max_position_embeddings=512,
        rms_norm_eps=1e-5,
        rope_theta=500000.0,
        # A context of 64 tokens, so that the scaling already matters for the texts used here.
        rope_scaling={
            "rope_type": "llama3",
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 64,
        },
        tie_word_embeddings=True,
        bos_token_id=bos,
        eos_token_id=eos,
    )


def init_tiny(model):
    """Random weights that keep attention far from uniform, so that positions matter."""
    generator = torch.Generator().manual_seed(SEED)
    for name, parameter in model.named_parameters():
        noise = torch.randn(parameter.shape, generator=generator)
        if "norm" in name:
            parameter.data = 1 + 0.1 * noise
        elif "q_proj" in name or "k_proj" in name:
            parameter.data = 0.2 * noise
        elif "embed_tokens" in name:
            parameter.data = 0.3 * noise
        else:
            parameter.data = 0.1 * noise


def save_tiny(folder):
    shutil.rmtree(folder, ignore_errors=True)
    backend = train_tiny_tokenizer()
    bos, eos = (backend.token_to_id(token) for token in ("<|begin_of_text|>", "<|end_of_text|>"))
    model = LlamaForCausalLM(tiny_config(bos, eos))
    init_tiny(model)
    model.tie_weights()
    model.to(torch.bfloat16).save_pretrained(folder, max_shard_size="250KB")
    (folder / "generation_config.json").unlink()
    backend.save(str(folder / "tokenizer.json"))


def make_tiny_llama3(out):
    folder = out / "tiny_llama3"
    save_tiny(folder)
    load = {"dtype": torch.bfloat16, "attn_implementation": "eager"}
    model = AutoModelForCausalLM.from_pretrained(folder, **load).float().eval()
    unscaled = AutoModelForCausalLM.from_pretrained(folder, rope_scaling=None, **load).float().eval()
    tokenizer = PreTrainedTokenizerFast(tokenizer_file=str(folder / "tokenizer.json"))
    golden = []
    for text in texts.TINY_LLAMA3:
        ids = tokenizer(text)["input_ids"]
        assert tokenizer.decode(ids[1:]) == text and ids[0] == 510
        recorded, _ = record(model, ids, TINY_BLOCKS)
        last = len(ids) - 1
        positions = sorted({0, 1, last // 2, last - 1, last} & set(range(len(ids))))
        wanted = [(block, position) for block in TINY_BLOCKS for position in positions]
        golden.append({"text": text, "ids": ids, "points": points(recorded, wanted)})
        exact, _ = record(model.double(), ids, TINY_BLOCKS)
        model.float()
        without, _ = record(unscaled, ids, TINY_BLOCKS)
        print(
            f"  {len(ids)} tokens, float32 against float64: {largest_difference(recorded, exact):.1e}, "
            f"without rope scaling: {largest_difference(recorded, without):.1e}"
        )
    write(out / "tiny_llama3.json", {"model": folder.name, "texts": golden})


def make_tokenizers(out):
    golden = [
        {"pre": name, "patterns": PATTERNS[name], "texts": [
            {"text": text, "pieces": pre_tokenize(name, text)} for text in texts.PRE_TOKENIZERS
        ]}
        for name in PATTERNS
    ]
    write(out / "tokenizers.json", {"pre_tokenizers": golden})


def make_projection(path, out):
    state = torch.load(path, map_location="cpu", weights_only=True)
    net = torch.nn.Sequential(
        torch.nn.Linear(1024, 500), torch.nn.SiLU(), torch.nn.Dropout(), torch.nn.Linear(500, 500)
    ).eval()
    net.load_state_dict({name.removeprefix("net."): tensor for name, tensor in state.items()})
    cases = []
    for k in range(2):
        x = torch.from_numpy(numpy.sin(0.1 * numpy.arange(1024) + k)).float()
        with torch.no_grad():
            y = torch.nn.functional.normalize(net(x), dim=-1)
        cases.append({"k": k, "output": rounded(y)})
    write(out / "projection_pth.json", {"input": "x[i] = sin(0.1 * i + k), i = 0..1023", "cases": cases})


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--gguf", type=Path, required=True, help="SmolLM2-135M-Instruct.Q4_1.gguf")
    parser.add_argument("--projection", type=Path, required=True, help="contrastive_projection_head.pth")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent, help="where the files go")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    make_tiny_llama3(arguments.out)
    make_tokenizers(arguments.out)
    make_projection(arguments.projection, arguments.out)
    make_smollm2(arguments.gguf, arguments.out)


if __name__ == "__main__":
    main()
