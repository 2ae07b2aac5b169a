#!/usr/bin/env python3
"""Makes the tiny Qwen checkpoints and their golden files; see make_golden.py and README.md."""

import argparse
import json
import shutil
from pathlib import Path

import torch
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import (
    AutoModelForCausalLM,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

import texts
from make_golden import CONTRACTIONS, QWEN2, SEED, largest_difference, points, record, write

BLOCKS = [0, 1, 2]
SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]


def train_tokenizer():
    """A byte-level BPE of 320 tokens in the form of Qwen's tokenizer.json."""
    split = pre_tokenizers.Split(
        Regex(QWEN2.replace(CONTRACTIONS, "(?i:'s|'t|'re|'ve|'m|'ll|'d)")), behavior="isolated"
    )
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.ByteLevel(add_prefix_space=False, trim_offsets=False, use_regex=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=316, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(texts.TINY_CORPUS, trainer)
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in SPECIAL])
    tokenizer.add_tokens([AddedToken("<tool_call>", special=False, normalized=False)])
    assert tokenizer.get_vocab_size() == 320
    return tokenizer


def sizes(tokenizer):
    first, end = (tokenizer.token_to_id(SPECIAL[index]) for index in (0, 2))
    return {
        "vocab_size": 320,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": len(BLOCKS),
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 512,
        "rms_norm_eps": 1e-6,
        "rope_theta": 1000000.0,
        "bos_token_id": first,
        "eos_token_id": end,
    }


def init(model):
    """Random weights with which positions, biases and the norms of Q and K matter."""
    generator = torch.Generator().manual_seed(SEED)
    for name, parameter in model.named_parameters():
        noise = torch.randn(parameter.shape, generator=generator)
        if "norm" in name:
            parameter.data = 1 + 0.3 * noise
        elif "bias" in name:
            parameter.data = 0.5 * noise
        elif "q_proj" in name or "k_proj" in name or "embed_tokens" in name:
            parameter.data = 0.3 * noise
        else:
            parameter.data = 0.15 * noise


def save(folder, model, tokenizer, published):
    """Writes a checkpoint; `published` is what config.json says in published checkpoints."""
    shutil.rmtree(folder, ignore_errors=True)
    init(model)
    model.tie_weights()
    model.to(torch.bfloat16).save_pretrained(folder)
    (folder / "generation_config.json").unlink()
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | published, indent=2) + "\n")
    tokenizer.save(str(folder / "tokenizer.json"))


def without(model, suffixes, value):
    """Sets the parameters whose names end so, and returns the model."""
    found = [p for name, p in model.named_parameters() if name.endswith(suffixes)]
    assert found
    for parameter in found:
        parameter.data.fill_(value)
    return model


def make(folder, leave_out):
    load = {"dtype": torch.bfloat16, "attn_implementation": "eager"}
    model = AutoModelForCausalLM.from_pretrained(folder, **load).float().eval()
    other = without(AutoModelForCausalLM.from_pretrained(folder, **load).float().eval(), *leave_out)
    tokenizer = PreTrainedTokenizerFast(tokenizer_file=str(folder / "tokenizer.json"))
    first = tokenizer.convert_tokens_to_ids(SPECIAL[0])
    golden = []
    for text in texts.TINY_QWEN:
        ids = [first] + tokenizer(text)["input_ids"]
        recorded, _ = record(model, ids, BLOCKS)
        last = len(ids) - 1
        positions = sorted({0, 1, last // 2, last})
        wanted = [(block, position) for block in BLOCKS for position in positions]
        golden.append({"text": text, "ids": ids, "points": points(recorded, wanted)})
        exact, _ = record(model.double(), ids, BLOCKS)
        model.float()
        changed, _ = record(other, ids, BLOCKS)
        print(
            f"  {len(ids)} tokens, float32 against float64: {largest_difference(recorded, exact):.1e}, "
            f"without {leave_out[0][0]} etc.: {largest_difference(recorded, changed):.1e}"
        )
    write(folder.with_suffix(".json"), {"model": folder.name, "texts": golden})


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent, help="where the files go")
    out = parser.parse_args().out
    torch.set_num_threads(1)
    tokenizer = train_tokenizer()
    # A window shorter than the texts that is not to be used.
    no_window = {"use_sliding_window": False, "sliding_window": 8, "max_window_layers": 2}
    qwen2 = Qwen2ForCausalLM(Qwen2Config(**sizes(tokenizer), tie_word_embeddings=True))
    save(out / "tiny_qwen2", qwen2, tokenizer, no_window)
    make(out / "tiny_qwen2", (("q_proj.bias", "k_proj.bias", "v_proj.bias"), 0))
    # Heads wider than their share of the residual stream, as in every published Qwen 3.
    config = Qwen3Config(**sizes(tokenizer), head_dim=16, tie_word_embeddings=False)
    save(out / "tiny_qwen3", Qwen3ForCausalLM(config), tokenizer, {})
    make(out / "tiny_qwen3", (("q_norm.weight", "k_norm.weight"), 1))


if __name__ == "__main__":
    main()
