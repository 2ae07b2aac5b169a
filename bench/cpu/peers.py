#!/usr/bin/env python3
"""Measures the engine's forward pass on a CPU beside transformers + torch and llama.cpp, on the same weights,
texts and number of blocks, and the matrix products that these libraries reach alone. Prints one table.

    python peers.py --engine ner-retriever-engine --model SmolLM2.gguf --head heads/smollm2-135m --texts FILE

Needs torch, transformers, gguf, accelerate; with --llama, llama.cpp is measured as well
(CMAKE_ARGS=-DGGML_NATIVE=ON pip install llama-cpp-python). Texts of other lengths: run it once more.
"""

import argparse
import json
import os
import subprocess
import time

import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

BATCH_TOKENS = 2048
# Most sequences of a batch that llama.cpp takes.
SEQUENCES = 256


def engine(arguments, dtype):
    command = [
        arguments.engine, "bench", "--model", arguments.model, "--head", arguments.head, "--texts", arguments.texts,
        "--seconds", str(arguments.seconds), "--threads", str(arguments.threads), "--dtype", dtype,
    ]
    result = subprocess.run(command, capture_output=True, text=True)
    if result.returncode:
        # A CPU without the instructions.
        print(f"engine, {dtype}: {result.stderr.strip()}")
        return None
    return json.loads(result.stdout)


def batches(sequences):
    """Sequences of like length together, so that little is padding."""
    batch, widest = [], 0
    for ids in sorted(sequences, key=len):
        if batch and (len(batch) + 1) * max(widest, len(ids)) > BATCH_TOKENS:
            yield batch
            batch, widest = [], 0
        batch.append(ids)
        widest = max(widest, len(ids))
    yield batch


def repeated(seconds, once):
    """How much of what `once` counts is done in a second."""
    once()
    done, started = 0, time.perf_counter()
    while time.perf_counter() - started < seconds:
        done += once()
    return done / (time.perf_counter() - started)


def torch_rate(arguments, sequences, blocks, dtype):
    folder, file = os.path.split(arguments.model)
    model = AutoModelForCausalLM.from_pretrained(folder, gguf_file=file, torch_dtype=dtype).model
    model.layers = model.layers[:blocks]
    padded = []
    for batch in batches(sequences):
        width = max(map(len, batch))
        ids = torch.tensor([ids + [0] * (width - len(ids)) for ids in batch])
        mask = torch.tensor([[1] * len(ids) + [0] * (width - len(ids)) for ids in batch])
        padded.append((ids, mask, sum(map(len, batch))))

    def once():
        with torch.inference_mode():
            for ids, mask, _ in padded:
                model(input_ids=ids, attention_mask=mask, use_cache=False)
        return sum(tokens for _, _, tokens in padded)

    return repeated(arguments.seconds, once)


def llama_rate(arguments, path, sequences, blocks):
    """llama.cpp's tokens/s for prompts, many sequences a batch, as if it ran so many of its blocks."""
    import llama_cpp

    weights = llama_cpp.llama_model_default_params()
    weights.use_extra_bufts = not arguments.no_repack
    model = llama_cpp.llama_model_load_from_file(path.encode(), weights)
    options = llama_cpp.llama_context_default_params()
    options.n_ctx, options.n_batch, options.n_ubatch = 4 * BATCH_TOKENS, BATCH_TOKENS, BATCH_TOKENS
    options.n_threads = options.n_threads_batch = arguments.threads
    options.n_seq_max, options.kv_unified = SEQUENCES, True
    context = llama_cpp.llama_init_from_model(model, options)
    all_blocks = llama_cpp.llama_model_n_layer(model)
    batch = llama_cpp.llama_batch_init(BATCH_TOKENS, 0, 1)

    def flush():
        llama_cpp.llama_memory_clear(llama_cpp.llama_get_memory(context), True)
        if llama_cpp.llama_decode(context, batch):
            raise SystemExit("llama_decode failed")
        batch.n_tokens = 0

    def once():
        batch.n_tokens = sequence = 0
        for ids in sequences:
            if batch.n_tokens + len(ids) > BATCH_TOKENS or sequence == SEQUENCES:
                flush()
                sequence = 0
            for position, token in enumerate(ids):
                at = batch.n_tokens
                batch.token[at], batch.pos[at] = token, position
                batch.n_seq_id[at], batch.seq_id[at][0] = 1, sequence
                batch.logits[at] = position + 1 == len(ids)
                batch.n_tokens += 1
            sequence += 1
        flush()
        return sum(map(len, sequences))

    return repeated(arguments.seconds, once) * all_blocks / blocks


def product_rate(config, seconds, dtype):
    """Operations/s of a block's widest product, that of gate and up, in torch."""
    inputs, outputs = config.hidden_size, 2 * config.intermediate_size
    x, weight = torch.randn(BATCH_TOKENS, inputs).to(dtype), torch.randn(inputs, outputs).to(dtype)
    return repeated(seconds, lambda: (torch.mm(x, weight), 2 * BATCH_TOKENS * inputs * outputs)[1])


def operations(config, blocks):
    """Of a token's matrix products."""
    q = config.num_attention_heads * config.head_dim
    kv = config.num_key_value_heads * config.head_dim
    return 2 * blocks * config.hidden_size * (2 * q + 2 * kv + 3 * config.intermediate_size)


def main():
    parser = argparse.ArgumentParser()
    for name in ("engine", "model", "head", "texts"):
        parser.add_argument(f"--{name}", required=True)
    parser.add_argument("--llama", nargs="*", default=[], help="GGUF files for llama.cpp, of the same weights")
    parser.add_argument(
        "--no-repack", action="store_true",
        help="llama.cpp without the layouts that it makes at load; those for AMX crash on some virtual machines",
    )
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--seconds", type=float, default=20)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    folder, file = os.path.split(arguments.model)
    tokenizer = AutoTokenizer.from_pretrained(folder, gguf_file=file)
    with open(arguments.texts) as lines:
        texts = [line.strip() for line in lines if line.strip()]
    # The engine's sequences begin with the model's first token.
    sequences = [[tokenizer.bos_token_id, *tokenizer(text)["input_ids"]] for text in texts]
    lengths = sorted(map(len, sequences))
    rates, ceilings = {}, {}
    for dtype in ("bf16", "int8", "f32"):
        if figures := engine(arguments, dtype):
            rates[f"engine, {dtype}"] = figures["pass"]["tokens_per_s"]
            ceilings[dtype] = figures["ceiling_gops"]
            blocks = figures["pass"]["blocks"]
    rates["transformers + torch, f32"] = torch_rate(arguments, sequences, blocks, torch.float32)
    rates["transformers + torch, bf16"] = torch_rate(arguments, sequences, blocks, torch.bfloat16)
    for path in arguments.llama:
        rates[f"llama.cpp, {os.path.basename(path)}"] = llama_rate(arguments, path, sequences, blocks)
    print(
        f"{len(texts)} texts of {lengths[0]} to {lengths[-1]} tokens (median {lengths[len(lengths) // 2]}), "
        f"{blocks} blocks, {arguments.threads} threads, batches of {BATCH_TOKENS} tokens"
    )
    # The engine's best is the first.
    best = next(iter(rates.values()))
    for name, rate in rates.items():
        print(f"{name:40} {rate:8.0f} tokens/s   {rate / best:5.2f}   {rate / rates['engine, f32']:5.2f}")
    print("(rates relative to the engine's best and to its f32)")
    config = AutoConfig.from_pretrained(folder, gguf_file=file)
    for name, dtype in (("bf16", torch.bfloat16), ("f32", torch.float32)):
        print(f"torch's product alone, {name}: {product_rate(config, arguments.seconds / 4, dtype) / 1e9:.0f} Gop/s")
    for dtype, ceiling in ceilings.items():
        ours = rates[f"engine, {dtype}"] * operations(config, blocks) / 1e9
        alone = f"; its library's product alone: {ceiling:.0f} ({ours / ceiling:.2f})" if ceiling else ""
        print(f"engine's products, {dtype}: {ours:.0f} Gop/s{alone}")


if __name__ == "__main__":
    main()
