#!/usr/bin/env python3
"""Measures the engine's forward pass on a CPU beside transformers + torch and llama.cpp, on the same weights,
texts and number of blocks, and the matrix products that the libraries reach alone: with texts of 16 to 64
tokens and of 512, on all threads and on one. In each round all take their turn, so that a machine that is
busy for a while is so for all; figures are medians of the rounds. Prints tables in Markdown.

    python peers.py --engine ner-retriever-engine --model SmolLM2.gguf --head heads/smollm2-135m --texts FILE

Needs requirements.txt; run.sh runs it with everything that it needs.
"""

import argparse
import json
import os
import subprocess
import tempfile
from statistics import median

import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from llama import LlamaCpp
from rates import BATCH_TOKENS, batches, repeated

SHORT = (16, 64)
LONG = 512
# Of the texts that are measured: two batches.
TOKENS = 2 * BATCH_TOKENS
ENGINE, TORCH, LLAMA = "ours", "transformers + torch", "llama.cpp"


def short_and_long(lines, tokens_of):
    """The texts of 16 to 64 tokens among the lines, and texts of 512 or a few less made of all lines together."""
    short, long, words = [], [], []
    room = TOKENS
    for line in lines:
        count = len(tokens_of(line))
        if SHORT[0] <= count <= SHORT[1] and count <= room:
            short.append(line)
            room -= count
    words = " ".join(lines).split()
    while len(words) > LONG and len(long) < TOKENS // LONG:
        # A word has one token at least.
        fits, too_many = 1, LONG
        while too_many - fits > 1:
            middle = (fits + too_many) // 2
            if len(tokens_of(" ".join(words[:middle]))) <= LONG:
                fits = middle
            else:
                too_many = middle
        long.append(" ".join(words[:fits]))
        words = words[fits:]
    return {"short": short, "long": long}


class Engine:
    def __init__(self, arguments, dtype):
        self.command = [
            arguments.engine, "bench", "--model", arguments.model, "--head", arguments.head,
            "--device", "cpu", "--dtype", dtype,
        ]

    def figures(self, texts, threads, seconds, latencies=False):
        """Of `engine bench`, which fails on a CPU without the instructions."""
        with tempfile.NamedTemporaryFile("w", suffix=".txt") as file:
            file.write("\n".join(texts))
            file.flush()
            command = [*self.command, "--texts", file.name, "--threads", str(threads), "--seconds", str(seconds)]
            if not latencies:
                command.append("--no-latencies")
            result = subprocess.run(command, capture_output=True, text=True)
        if result.returncode:
            raise subprocess.SubprocessError(result.stderr.strip())
        return json.loads(result.stdout)


class Torch:
    """The model up to the last block that the engine runs, over padded batches of sequences of like length."""

    def __init__(self, arguments, blocks, dtype):
        folder, file = os.path.split(arguments.model)
        self.model = AutoModelForCausalLM.from_pretrained(folder, gguf_file=file, torch_dtype=dtype).model
        self.model.layers = self.model.layers[:blocks]
        self.seconds = arguments.seconds

    def rate(self, sequences, threads):
        torch.set_num_threads(threads)
        padded = []
        for batch in batches(sequences):
            width = max(map(len, batch))
            ids = torch.tensor([ids + [0] * (width - len(ids)) for ids in batch])
            mask = torch.tensor([[1] * len(ids) + [0] * (width - len(ids)) for ids in batch])
            padded.append((ids, mask, sum(map(len, batch))))

        def once(part):
            ids, mask, tokens = part
            with torch.inference_mode():
                self.model(input_ids=ids, attention_mask=mask, use_cache=False)
            return tokens

        return repeated(self.seconds, padded, once)


def product_rate(config, seconds, dtype, threads):
    """10^9 operations/s of a block's widest product, that of gate and up, in torch."""
    torch.set_num_threads(threads)
    inputs, outputs = config.hidden_size, 2 * config.intermediate_size
    x, weight = torch.randn(BATCH_TOKENS, inputs).to(dtype), torch.randn(inputs, outputs).to(dtype)

    def once(_):
        torch.mm(x, weight)
        return 2 * BATCH_TOKENS * inputs * outputs / 1e9

    return repeated(seconds, [None], once)


def operations(config, blocks):
    """Of a token's matrix products, 10^9."""
    q = config.num_attention_heads * config.head_dim
    kv = config.num_key_value_heads * config.head_dim
    return 2 * blocks * config.hidden_size * (2 * q + 2 * kv + 3 * config.intermediate_size) / 1e9


def note(values, name, value):
    values.setdefault(name, []).append(value)


def situation(texts, sequences, threads, contenders, config, arguments):
    """All rounds with these texts and threads: tokens/s of each contender, Gop/s of products, and the engine's texts/s
    with their mentions."""
    rates, products, bulk = {}, {}, {}
    engines, torches, llamas = contenders
    for _ in range(arguments.rounds):
        for dtype, engine in engines.items():
            one = engine.figures(texts, threads, arguments.seconds)
            name = f"{ENGINE}, {dtype}"
            note(rates, name, one["pass"]["tokens_per_s"])
            note(bulk, name, one["bulk"]["texts_per_s"])
            note(products, name, one["pass"]["tokens_per_s"] * operations(config, one["pass"]["blocks"]))
            if one["ceiling_gops"]:
                note(products, f"{dtype}, its library's product alone", one["ceiling_gops"])
        for dtype, model in torches.items():
            note(rates, f"{TORCH}, {dtype}", model.rate(sequences, threads))
            alone = product_rate(config, arguments.seconds / 4, getattr(torch, dtype), threads)
            note(products, f"{dtype}, torch's product alone", alone)
        for name, model in llamas.items():
            note(rates, f"{LLAMA}, {name}", model.rate(sequences, threads))
    return rates, products, bulk


def table(title, columns, precision):
    """Medians; a row for each name in any column."""
    print(f"| {title} | " + " | ".join(columns) + " |")
    print("| --- |" + " --- |" * len(columns))
    for name in dict.fromkeys(name for column in columns.values() for name in column):
        cells = [f"{median(column[name]):,.{precision}f}" if name in column else "" for column in columns.values()]
        print(f"| {name} | " + " | ".join(cells) + " |")
    print()


def ratios(ours, theirs):
    """By round; the best of theirs in each."""
    return [one / max(others) for one, others in zip(ours, zip(*theirs))] if theirs else None


def compared(rates, products):
    """Our fastest dtype against each kind of peer, and our products against their library's alone."""
    fastest = max((name for name in rates if name.startswith(ENGINE)), key=lambda name: median(rates[name]))
    peers = {
        "llama.cpp in its best format": [rate for name, rate in rates.items() if name.startswith(LLAMA)],
        "torch, float32": [rates[f"{TORCH}, float32"]],
        "torch, bfloat16": [rates[f"{TORCH}, bfloat16"]],
    }
    rows = {f"{fastest}, against {name}": ratios(rates[fastest], theirs) for name, theirs in peers.items()}
    for dtype in ("int8", "f32"):
        alone = products.get(f"{dtype}, its library's product alone")
        if alone:
            rows[f"{ENGINE}, {dtype}, against its library's product alone"] = ratios(products[f"{ENGINE}, {dtype}"], [alone])
    return {name: values for name, values in rows.items() if values}


def latencies(engines, texts, threads, arguments):
    by_dtype = {dtype: [] for dtype in engines}
    for _ in range(arguments.rounds):
        for dtype, engine in engines.items():
            by_dtype[dtype].append(engine.figures(texts, threads, arguments.seconds, latencies=True))
    print(f"| engine, texts of 16 to 64 tokens, {threads} threads | " + " | ".join(by_dtype) + " |")
    print("| --- |" + " --- |" * len(by_dtype))
    rows = {
        "one type, p50, ms": lambda one: one["type"]["p50_ms"],
        "one type, p99, ms": lambda one: one["type"]["p99_ms"],
        "one text, p50, ms": lambda one: one["text"]["p50_ms"],
        "one text, p99, ms": lambda one: one["text"]["p99_ms"],
        "load, s": lambda one: one["load_s"],
        "resident, MB": lambda one: one["resident_bytes"] / 1e6,
    }
    for name, value in rows.items():
        print(f"| {name} | " + " | ".join(f"{median(map(value, all)):.1f}" for all in by_dtype.values()) + " |")
    print()


def main():
    parser = argparse.ArgumentParser()
    for name in ("engine", "model", "head", "texts"):
        parser.add_argument(f"--{name}", required=True)
    parser.add_argument("--llama", nargs="*", default=[], help="GGUF files for llama.cpp, of the same weights")
    parser.add_argument(
        "--no-repack", action="store_true",
        help="llama.cpp without the layouts that it makes at load; those for AMX crash on some virtual machines",
    )
    parser.add_argument("--threads", type=int, nargs="*", default=[len(os.sched_getaffinity(0)), 1])
    parser.add_argument("--seconds", type=float, default=4)
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    folder, file = os.path.split(arguments.model)
    tokenizer = AutoTokenizer.from_pretrained(folder, gguf_file=file)
    config = AutoConfig.from_pretrained(folder, gguf_file=file)

    def tokens_of(text):
        # The engine's sequences begin with the model's first token.
        return [tokenizer.bos_token_id, *tokenizer(text)["input_ids"]]

    with open(arguments.texts) as lines:
        by_length = short_and_long([line.strip() for line in lines if line.strip()], tokens_of)
    if not all(by_length.values()):
        raise SystemExit(f"{arguments.texts} has no text of {SHORT[0]} to {SHORT[1]} tokens, or fewer than {LONG} words in all")
    engines = {}
    for dtype in ("bf16", "int8", "f32"):
        engine = Engine(arguments, dtype)
        try:
            blocks = engine.figures(by_length["short"][:1], 1, 0)["pass"]["blocks"]
        except subprocess.SubprocessError as error:
            print(f"left out: {error}\n")
        else:
            engines[dtype] = engine
    if not engines:
        raise SystemExit("the engine does not run")
    torches = {dtype: Torch(arguments, blocks, getattr(torch, dtype)) for dtype in ("float32", "bfloat16")}
    llamas = {
        os.path.basename(path): LlamaCpp(path, blocks, arguments.seconds, not arguments.no_repack)
        for path in arguments.llama
    }
    latencies(engines, by_length["short"], arguments.threads[0], arguments)
    rates, products, bulk, ratio_columns = {}, {}, {}, {}
    for threads in arguments.threads:
        for name, texts in by_length.items():
            sequences = [tokens_of(text) for text in texts]
            lengths = sorted(map(len, sequences))
            column = f"{name}, {threads} thread{'s' if threads > 1 else ''}"
            print(f"{column}: {len(texts)} texts of {lengths[0]} to {lengths[-1]} tokens, median {median(lengths):g}\n", flush=True)
            contenders = (engines, torches, llamas)
            rates[column], products[column], bulk[column] = situation(texts, sequences, threads, contenders, config, arguments)
            ratio_columns[column] = compared(rates[column], products[column])
    print(f"{blocks} blocks, batches of {BATCH_TOKENS} tokens, medians of {arguments.rounds} rounds\n")
    table("tokens/s", rates, 0)
    table("texts/s, mentions found and embedded", bulk, 1)
    table("products, Gop/s", products, 0)
    table("times as fast", ratio_columns, 2)


if __name__ == "__main__":
    main()
