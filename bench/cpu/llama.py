"""llama.cpp as a contender of peers.py. As a program, it writes a model's other formats with llama.cpp's own
quantizer:

    python llama.py MODEL.gguf FOLDER      (prints the paths of the F32, Q8_0 and Q4_0 files)
"""

import ctypes
import os
import sys

import llama_cpp

from rates import BATCH_TOKENS, repeated

# Most sequences of a batch that llama.cpp takes.
SEQUENCES = 256
# llama.cpp's enum llama_ftype.
FORMATS = {"F32": 0, "Q8_0": 7, "Q4_0": 2}


class LlamaCpp:
    """Tokens/s for prompts, many sequences a batch, as if it ran so many of its blocks."""

    def __init__(self, path, blocks, seconds, repack):
        weights = llama_cpp.llama_model_default_params()
        weights.use_extra_bufts = repack
        self.model = llama_cpp.llama_model_load_from_file(path.encode(), weights)
        self.share = llama_cpp.llama_model_n_layer(self.model) / blocks
        options = llama_cpp.llama_context_default_params()
        options.n_ctx, options.n_batch, options.n_ubatch = 4 * BATCH_TOKENS, BATCH_TOKENS, BATCH_TOKENS
        options.n_seq_max, options.kv_unified = SEQUENCES, True
        self.context = llama_cpp.llama_init_from_model(self.model, options)
        self.batch = llama_cpp.llama_batch_init(BATCH_TOKENS, 0, 1)
        self.seconds = seconds

    def rate(self, sequences, threads):
        llama_cpp.llama_set_n_threads(self.context, threads, threads)
        return self.share * repeated(self.seconds, list(packed(sequences)), self.decode)

    def decode(self, sequences):
        batch, at = self.batch, 0
        for sequence, ids in enumerate(sequences):
            for position, token in enumerate(ids):
                batch.token[at], batch.pos[at] = token, position
                batch.n_seq_id[at], batch.seq_id[at][0] = 1, sequence
                batch.logits[at] = position + 1 == len(ids)
                at += 1
        batch.n_tokens = at
        llama_cpp.llama_memory_clear(llama_cpp.llama_get_memory(self.context), True)
        if llama_cpp.llama_decode(self.context, batch):
            raise SystemExit("llama_decode failed")
        return at


def packed(sequences):
    """Batches without padding."""
    batch, tokens = [], 0
    for ids in sequences:
        if batch and (tokens + len(ids) > BATCH_TOKENS or len(batch) == SEQUENCES):
            yield batch
            batch, tokens = [], 0
        batch.append(ids)
        tokens += len(ids)
    yield batch


def write_formats(model, folder):
    name = os.path.basename(model).split(".")[0]
    source = model
    for kind, number in FORMATS.items():
        path = os.path.join(folder, f"{name}.{kind}.gguf")
        if not os.path.exists(path):
            options = llama_cpp.llama_model_quantize_default_params()
            options.ftype, options.allow_requantize = number, True
            unfinished = path + ".unfinished"
            if llama_cpp.llama_model_quantize(source.encode(), unfinished.encode(), ctypes.byref(options)):
                raise SystemExit(f"llama.cpp cannot write {path}")
            os.rename(unfinished, path)
        if kind == "F32":
            source = path
        print(path)


if __name__ == "__main__":
    write_formats(*sys.argv[1:])
