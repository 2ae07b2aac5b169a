"""Writes minilm.json: all-MiniLM-L6-v2's sentence embeddings by torch and transformers.

usage: make_minilm.py FOLDER    (config.json, model.safetensors and vocab.txt of the model)
Written with torch 2.4.1 and transformers 4.57.1. The tokenizer is the slow one, made from vocab.txt,
so that tokenizer.json is checked as well.
"""
import json
import pathlib
import sys

import torch
from transformers import BertModel, BertTokenizer

TEXTS = [
    "dinosaur",
    "Tyrannosaurus rex lived in what is now western North America.",
    "The Danube (German: Donau) flows through Vienna, Bratislava, Budapest and Belgrade; its mouth is at the Black Sea.",
    "Café São João — naïve façade, 東京 and Ωmega!",
    # Longer than the 256 tokens that are read.
    "a word and another " * 80,
]

folder = sys.argv[1]
tokenizer = BertTokenizer(f"{folder}/vocab.txt", do_lower_case=True)
model = BertModel.from_pretrained(folder).eval()
cases = []
for text in TEXTS:
    tokens = tokenizer(text, truncation=True, max_length=256, return_tensors="pt")
    with torch.no_grad():
        states = model(**tokens).last_hidden_state
    mean = states.mean(1)[0]
    embedding = torch.nn.functional.normalize(mean, dim=0)
    cases.append({"text": text, "embedding": [round(x, 6) for x in embedding.tolist()]})
out = pathlib.Path(__file__).parent / "minilm.json"
lines = ",\n".join(json.dumps(case, ensure_ascii=False) for case in cases)
out.write_text(f"[\n{lines}\n]\n")
