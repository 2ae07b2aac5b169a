"""Makes what the GPU benchmark runs on: a checkpoint with random weights in the exact shape and file
layout of Llama 3.1 8B (or a small one of the same family), its tokenizer, the paper's head, and texts."""

import argparse
import json
import random
from pathlib import Path

import torch
from safetensors.torch import save_file
from tokenizers import AddedToken, Regex, Tokenizer, models, pre_tokenizers, processors, trainers

SEED = 1
# Llama 3's tokenizer.json.
PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
SPECIAL = ["<|begin_of_text|>", "<|end_of_text|>"]

SHAPES = {
    # config.json of Llama-3.1-8B; block 17 as in arXiv 2509.04011.
    "llama-3.1-8b": {
        "vocab_size": 128256, "hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32,
        "num_attention_heads": 32, "num_key_value_heads": 8, "head_dim": 128, "block": 17, "detector": 12,
    },
    "small": {
        "vocab_size": 8192, "hidden_size": 256, "intermediate_size": 896, "num_hidden_layers": 8,
        "num_attention_heads": 8, "num_key_value_heads": 2, "head_dim": 32, "block": 5, "detector": 3,
    },
}
SHARD_BYTES = 5 << 30
HEAD_UNITS, HEAD_DIMS = 500, 500
PROBE_UNITS = 64


def config(shape):
    of = {name: value for name, value in shape.items() if name not in ("block", "detector")}
    return of | {
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_act": "silu",
        "rms_norm_eps": 1e-5, "rope_theta": 500000.0, "max_position_embeddings": 131072,
        "rope_scaling": {
            "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
            "original_max_position_embeddings": 8192,
        },
        "tie_word_embeddings": False, "attention_bias": False, "mlp_bias": False, "dtype": "bfloat16",
        "bos_token_id": shape["vocab_size"] - 2, "eos_token_id": shape["vocab_size"] - 1,
    }


def tensors(shape):
    """Name and shape of every tensor, in the order of the files."""
    hidden, inner = shape["hidden_size"], shape["intermediate_size"]
    q = shape["num_attention_heads"] * shape["head_dim"]
    kv = shape["num_key_value_heads"] * shape["head_dim"]
    yield "model.embed_tokens.weight", (shape["vocab_size"], hidden)
    for block in range(shape["num_hidden_layers"]):
        for part, size in {
            "self_attn.q_proj": (q, hidden), "self_attn.k_proj": (kv, hidden),
            "self_attn.v_proj": (kv, hidden), "self_attn.o_proj": (hidden, q),
            "mlp.gate_proj": (inner, hidden), "mlp.up_proj": (inner, hidden),
            "mlp.down_proj": (hidden, inner), "input_layernorm": (hidden,),
            "post_attention_layernorm": (hidden,),
        }.items():
            yield f"model.layers.{block}.{part}.weight", size
    yield "model.norm.weight", (hidden,)
    yield "lm_head.weight", (shape["vocab_size"], hidden)


def random_tensor(name, size, device):
    """Sizes that keep the residual stream in range, and attention neither uniform nor so sharp that the
    rounding of bf16 decides where it looks: with queries and keys three times as large, transformers' own
    pass in bf16 is nowhere near its pass in float32."""
    noise = torch.randn(size, device=device)
    if "norm" in name:
        noise = 1 + 0.1 * noise
    elif "embed_tokens" in name:
        noise = 0.3 * noise
    else:
        noise = noise / size[1] ** 0.5
    return noise.to(torch.bfloat16).cpu()


def write_weights(folder, shape, device):
    torch.manual_seed(SEED)
    files, shard, size = {}, {}, 0

    def flush():
        file = f"model-{len(set(files.values())) + 1:05}.safetensors"
        save_file(shard, folder / file, metadata={"format": "pt"})
        files.update({name: file for name in shard})
        shard.clear()

    for name, dims in tensors(shape):
        shard[name] = random_tensor(name, dims, device)
        size += shard[name].nbytes
        if size > SHARD_BYTES:
            flush()
            size = 0
    flush()
    index = {"metadata": {}, "weight_map": files}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def words():
    """Made-up words, so that nothing has to be carried."""
    of = random.Random(SEED)
    syllables = [c + v for c in "bdfgklmnprstvz" for v in ("a", "e", "i", "o", "u", "an", "or", "el")]
    return ["".join(of.choices(syllables, k=of.choice((1, 2, 2, 3, 3, 4)))) for _ in range(20000)]


def write_tokenizer(folder, vocabulary, corpus):
    tokenizer = Tokenizer(models.BPE(ignore_merges=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([
        pre_tokenizers.Split(Regex(PATTERN), behavior="isolated"),
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
    ])
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    size = min(vocabulary - len(SPECIAL), 6000)
    trainer = trainers.BpeTrainer(vocab_size=size, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator([" ".join(corpus)], trainer)
    # Tokens that no text has, up to the size of the real vocabulary.
    model = json.loads(tokenizer.to_str())
    vocab = model["model"]["vocab"]
    for number in range(len(vocab), vocabulary - len(SPECIAL)):
        vocab[f"<filler {number}>"] = number
    tokenizer = Tokenizer.from_str(json.dumps(model))
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in SPECIAL])
    bos = tokenizer.token_to_id(SPECIAL[0])
    assert bos == vocabulary - 2, bos
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{SPECIAL[0]} $A", special_tokens=[(SPECIAL[0], bos)]
    )
    tokenizer.save(str(folder / "tokenizer.json"))
    return tokenizer


def write_texts(folder, tokenizer, corpus, scale):
    of = random.Random(SEED)
    sizes = {
        "check": [2 + 8 * n for n in range(1, 65)],
        "short": [of.randint(16, 64) for _ in range(5000 // scale)],
        "long": [512] * (400 // scale),
    }
    for name, lengths in sizes.items():
        lines = [lengthen(tokenizer, corpus, of, min(length, 512)) for length in lengths]
        (folder / f"{name}.txt").write_text("\n".join(lines) + "\n")


def lengthen(tokenizer, corpus, of, tokens):
    """A text of `tokens` tokens, the first token included, or a few less."""
    chosen, count = [], 1
    while True:
        word = of.choice(corpus)
        word = word.capitalize() if of.random() < 0.2 else word
        piece = word if not chosen else " " + word
        more = len(tokenizer.encode(piece, add_special_tokens=False).ids)
        if count + more > tokens and chosen:
            return " ".join(chosen)
        chosen.append(word)
        count += more


def random_probe(hidden):
    """One that finds a few mentions a text, at random places."""
    return {
        "mean": torch.zeros(hidden), "scale": torch.ones(hidden),
        "tokens": torch.randn(5 * PROBE_UNITS, hidden) / hidden**0.5,
        "width": torch.randn(16, PROBE_UNITS), "output": torch.randn(PROBE_UNITS, 1) / PROBE_UNITS**0.5,
        "bias": torch.full((1,), -4.0),
    }


def write_head(folder, shape):
    """The paper's: V of one block at the span's last token, MLP 1024-500-500; and a detector."""
    folder.mkdir(exist_ok=True)
    torch.manual_seed(SEED)
    kv = shape["num_key_value_heads"] * shape["head_dim"]
    linear = [torch.nn.Linear(kv, HEAD_UNITS), torch.nn.Linear(HEAD_UNITS, HEAD_DIMS)]
    state = {}
    for name, layer in zip(("net.0", "net.3"), linear):
        state[f"{name}.weight"], state[f"{name}.bias"] = layer.weight.data, layer.bias.data
    save_file(state, folder / "projection.safetensors")
    (folder / "head.json").write_text(json.dumps({
        "name": "random",
        "base_model": {"name": "random weights", "hash": None},
        "representations": [{"kind": "span_end", "block": shape["block"], "query_form": "{type}"}],
        "projection": {"kind": "mlp", "file": "projection.safetensors", "input_dims": kv, "dims": HEAD_DIMS},
        "detector": {"block": shape["detector"], "file": "mentions.safetensors", "threshold": 0.5},
    }, indent=1))
    save_file(random_probe(shape["hidden_size"]), folder / "mentions.safetensors")


def make(folder, name, device):
    """Everything, unless it is there."""
    shape = SHAPES[name]
    done = folder / "done"
    if done.exists() and done.read_text() == name:
        return shape
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config(shape), indent=1))
    corpus = words()
    tokenizer = write_tokenizer(folder, shape["vocab_size"], corpus)
    write_texts(folder, tokenizer, corpus, scale=1 if device == "cuda" else 20)
    write_head(folder / "head", shape)
    write_weights(folder, shape, device)
    done.write_text(name)
    return shape


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--shape", choices=SHAPES, default="llama-3.1-8b")
    parser.add_argument("--device", default="cuda")
    arguments = parser.parse_args()
    make(arguments.folder, arguments.shape, arguments.device)
