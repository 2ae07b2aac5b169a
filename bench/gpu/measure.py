"""Measures the engine on a GPU beside transformers + torch on the same checkpoint and texts: first whether
the vectors are right, then throughput, latency, load time and memory. Prints one table.

    python measure.py --engine ner-retriever-engine-cuda --work /some/folder      (minutes; 17 GB of disk)
    python measure.py --engine ner-retriever-engine --work DIR --shape small --device cpu --dtype f16
        (a rehearsal: f16 takes the GPU's way through the model; int8 is no match for random weights)
"""

import argparse
import json
import os
import subprocess
import threading
import time
from pathlib import Path

import torch
from safetensors.torch import load_file
from tokenizers import Tokenizer
from transformers import AutoModelForCausalLM

import checkpoint

BATCH_TOKENS = 16384


class Engine:
    def __init__(self, arguments, work):
        self.command = [
            arguments.engine, "bench", "--model", str(work), "--head", str(work / "head"),
            "--device", arguments.device, "--dtype", arguments.dtype,
        ]
        self.environment = os.environ | library_paths()
        self.gpu = arguments.device != "cpu"

    def run(self, texts, *options):
        """The command's figures, if it prints any, and the most GPU memory that it had, in MiB."""
        command = [*self.command, "--texts", str(texts), *map(str, options)]
        before, most = gpu_memory() if self.gpu else 0, [0]
        process = subprocess.Popen(command, env=self.environment, stdout=subprocess.PIPE, text=True)
        watch = threading.Thread(target=watch_memory, args=(process, most), daemon=True)
        if self.gpu:
            watch.start()
        output, _ = process.communicate()
        if process.returncode:
            raise SystemExit(f"{' '.join(command)}: exit status {process.returncode}")
        return json.loads(output or "{}") | {"gpu_mib": most[0] - before}


def library_paths():
    """The CUDA libraries that PyTorch brings."""
    folders = Path(torch.__file__).parent.parent.glob("nvidia/**/lib")
    paths = [str(folder) for folder in folders] + [os.environ.get("LD_LIBRARY_PATH", "")]
    return {"LD_LIBRARY_PATH": ":".join(path for path in paths if path)}


def gpu_memory():
    """MiB that all processes have on the GPU: in a container the driver may know them by other numbers."""
    query = ["nvidia-smi", "--query-gpu=memory.used", "--format=csv,noheader,nounits"]
    return int(subprocess.run(query, capture_output=True, text=True).stdout.splitlines()[0])


def watch_memory(process, most):
    while process.poll() is None:
        most[0] = max(most[0], gpu_memory())
        time.sleep(0.2)


class Torch:
    """transformers up to the block whose V is read."""

    def __init__(self, work, block, dtype, device):
        model = AutoModelForCausalLM.from_pretrained(
            work, dtype=dtype, attn_implementation="sdpa", num_hidden_layers=block + 1
        )
        self.model = model.model
        self.block = self.model.layers[block]
        self.model.layers = self.model.layers[:block]
        self.model.norm = torch.nn.Identity()
        self.model.eval().to(device)
        self.block.to(device)
        self.device = device

    @torch.inference_mode()
    def values(self, texts):
        """V at all tokens, `[tokens, kv_dim]` for each text: right padding leaves what is before it alone."""
        longest = max(map(len, texts))
        ids = torch.zeros(len(texts), longest, dtype=torch.long)
        mask = torch.zeros(len(texts), longest, dtype=torch.long)
        for row, text in enumerate(texts):
            ids[row, : len(text)] = torch.tensor(text)
            mask[row, : len(text)] = 1
        ids, mask = ids.to(self.device), mask.to(self.device)
        hidden = self.model(input_ids=ids, attention_mask=mask, use_cache=False).last_hidden_state
        return self.block.self_attn.v_proj(self.block.input_layernorm(hidden))

    def bulk(self, texts, seconds):
        """Tokens a second; padded batches of texts of about one length."""
        batches, batch = [], []
        for text in sorted(texts, key=len, reverse=True):
            if batch and len(batch[0]) * (len(batch) + 1) > BATCH_TOKENS:
                batches.append(batch)
                batch = []
            batch.append(text)
        batches.append(batch)
        # Memory for batches of each shape is allocated at the first.
        for batch in batches:
            self.values(batch)
        self.finish()
        started, tokens = time.time(), 0
        while tokens == 0 or time.time() - started < seconds:
            for batch in batches:
                last = self.values(batch)[:, -1].float().cpu()
                tokens += sum(map(len, batch))
        assert last.isfinite().all()
        self.finish()
        return tokens / (time.time() - started)

    def finish(self):
        if self.device == "cuda":
            torch.cuda.synchronize()


def check(engine, arguments, work, block):
    """The largest differences of the engine's vectors to transformers in float32, and of texts in
    batches to texts alone."""
    files = work / "packed.safetensors", work / "alone.safetensors"
    for file, tokens in zip(files, (0, 1)):
        engine.run(work / "check.txt", "--given-spans", "--vectors", file, "--batch-tokens", tokens)
    packed, alone = map(load_file, files)
    exact = Torch(work, block, torch.float32, arguments.device)
    expected, start = [], 0
    for length in packed["lengths"].tolist():
        ids = packed["ids"][start : start + length].tolist()
        rows = [row - start for row in packed["rows"].tolist() if start <= row < start + length]
        expected.append(exact.values([ids])[0, rows].float().cpu())
        start += length
    state = load_file(work / "head" / "projection.safetensors")
    values = torch.cat(expected)
    inner = torch.nn.functional.silu(values @ state["net.0.weight"].T + state["net.0.bias"])
    embeddings = inner @ state["net.3.weight"].T + state["net.3.bias"]
    cosine = torch.nn.functional.cosine_similarity
    return {
        "V, least cosine to float32": cosine(packed["values"], values).min().item(),
        "embedding, least cosine to float32": cosine(packed["embeddings"], embeddings).min().item(),
        "embedding, least cosine packed to alone": cosine(packed["embeddings"], alone["embeddings"]).min().item(),
    }


def timed(work, seconds):
    """Seconds that `work` takes where it is done again and again for a time: a card that gets hot slows down."""
    work()
    torch.cuda.synchronize()
    started, rounds = time.time(), 0
    while rounds == 0 or time.time() - started < seconds:
        for _ in range(10):
            work()
        torch.cuda.synchronize()
        rounds += 10
    return (time.time() - started) / rounds


def ceilings(seconds):
    """bf16 products, FLOP/s, and copies, bytes read and written a second, of this card."""
    a, b = (torch.randn(8192, 8192, device="cuda", dtype=torch.bfloat16) for _ in range(2))
    product = 2 * 8192**3 / timed(lambda: a @ b, seconds)
    source = torch.empty(1 << 32, dtype=torch.uint8, device="cuda")
    target = torch.empty_like(source)
    copied = 2 * source.nbytes / timed(lambda: target.copy_(source), seconds / 4)
    return product, copied


def parameters_used(shape):
    """Weights that the pass multiplies by: the whole blocks before the last, and its V projection."""
    per_block = sum(
        size[0] * size[1] for name, size in checkpoint.tensors(shape)
        if name.startswith("model.layers.0.") and len(size) == 2
    )
    return shape["block"] * per_block + shape["num_key_value_heads"] * shape["head_dim"] * shape["hidden_size"]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--engine", required=True)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--shape", choices=checkpoint.SHAPES, default="llama-3.1-8b")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--seconds", type=float, default=10)
    arguments = parser.parse_args()
    gpu, work = arguments.device != "cpu", arguments.work
    shape = checkpoint.make(work, arguments.shape, arguments.device)
    engine = Engine(arguments, work)

    rows = list(check(engine, arguments, work, shape["block"]).items())
    failed = [name for name, cosine in rows if cosine < 0.999]
    flops = 2 * parameters_used(shape)
    product, copied = ceilings(arguments.seconds) if gpu else (None, None)
    if gpu:
        rows += [("matrix ceiling, bf16, TFLOP/s", product / 1e12), ("copy, GB/s", copied / 1e9)]
    tokenizer = Tokenizer.from_file(str(work / "tokenizer.json"))
    baseline = Torch(work, shape["block"], torch.bfloat16 if gpu else torch.float32, arguments.device)
    for name in ("short", "long"):
        texts = work / f"{name}.txt"
        ids = [tokenizer.encode(text).ids for text in texts.read_text().splitlines()]
        torch_rate = baseline.bulk(ids, arguments.seconds)
        figures = engine.run(texts, "--given-spans", "--seconds", arguments.seconds)
        rate = figures["bulk"]["tokens_per_s"]
        found = engine.run(texts, "--no-latencies", "--seconds", arguments.seconds)["bulk"]
        rows += [
            (f"{name} texts, tokens/s, engine", rate),
            (f"{name} texts, tokens/s, engine, mentions detected", found["tokens_per_s"]),
            (f"{name} texts, detected mentions a text", found["mentions"] / found["texts"]),
            (f"{name} texts, tokens/s, transformers", torch_rate),
            (f"{name} texts, engine / transformers", rate / torch_rate),
        ]
        if gpu:
            # Of the pass that takes all tokens through all blocks; the engine leaves out what nothing reads.
            share = figures["pass"]["tokens_per_s"] * flops / product
            rows.append((f"{name} texts, whole pass, share of the matrix ceiling", share))
    rows += [
        ("one type, ms, p50", figures["type"]["p50_ms"]),
        ("one type, ms, p99", figures["type"]["p99_ms"]),
        ("load, s", figures["load_s"]),
    ]
    if gpu:
        read = 2 * parameters_used(shape) / copied
        rows += [
            ("reading the used weights once, ms", 1000 * read),
            ("one type / reading the weights", figures["type"]["p50_ms"] / 1000 / read),
            ("GPU memory of the engine, MiB", figures["gpu_mib"]),
        ]
    print(f"{arguments.shape}, {figures['device']}, {figures['dtype']}, batches of {figures['batch_tokens']} tokens")
    for name, value in rows:
        print(f"| {name} | {value:.4g} |" if value < 1000 else f"| {name} | {value:.0f} |")
    if failed:
        raise SystemExit(f"not as near as they should be: {', '.join(failed)}")


if __name__ == "__main__":
    main()
