#!/usr/bin/env python3
"""How ner_search should follow what it finds: macro R-Precision of relevance feedback by its constants, for
indexes of several sizes drawn from one corpus (feedback/src/lib.rs has the constants that were chosen).

usage: feedback.py --vectors FILE --types type_names.json --query TYPES_KEY... CORPUS...
  FILE          what `eval --embeddings` wrote for the corpora together, in this order (--corpus, then --beside)
  TYPES_KEY     whose types are asked for: those that nothing else is chosen or reported by
The database that PGHOST, PGPORT, PGUSER and PGDATABASE name embeds the types:
  scripts/server.sh exec --instance bench -- bench/feedback.py ...
Needs numpy.
"""

import argparse
import gzip
import json
import subprocess
from pathlib import Path

import numpy as np

CANDIDATES = 100
FEWEST_TEXTS = 5
SIZES = ((None, 1), (5000, 4), (1000, 8))


def unit(vectors):
    return vectors / np.maximum(np.linalg.norm(vectors, axis=-1, keepdims=True), 1e-9)


def read_vectors(path):
    rows = [line.rstrip("\n").split("\t") for line in open(path)]
    return np.array([int(text) - 1 for text, _ in rows]), unit(
        np.array([np.fromstring(vector[1:-1], sep=",", dtype=np.float32) for _, vector in rows])
    )


def embed(names):
    listed = ", ".join("'" + name.replace("'", "''") + "'" for name in names)
    sql = f"SELECT ner_type_embedding(name) FROM unnest(ARRAY[{listed}]) WITH ORDINALITY AS n (name, i) ORDER BY i"
    printed = subprocess.run(["psql", "-XqAtc", sql], check=True, capture_output=True, text=True).stdout
    return dict(zip(names, unit(np.array([json.loads(line) for line in printed.splitlines()], dtype=np.float32))))


def refine(query, mentions, temperature, weight, follows):
    if weight == 0:
        return query
    scores = mentions @ query
    nearest = np.argsort(-scores)[:CANDIDATES]
    weights = np.exp((scores[nearest] - scores[nearest].max()) / temperature)
    mean = unit(weights @ mentions[nearest])
    return query + weight * (max(0.0, float(query @ mean)) if follows else 1.0) * mean


def r_precision(scores, texts, count, gold):
    best = np.full(count, -np.inf, dtype=np.float32)
    np.maximum.at(best, texts, scores)
    found = np.argsort(-best, kind="stable")[: len(gold)]
    return len(gold.intersection(found.tolist())) / len(gold)


def indexes(texts, mentions, documents, names):
    """By size: indexes of random texts, with the gold texts of each type that enough of them mention."""
    random = np.random.default_rng(1)
    for size, draws in SIZES:
        for _ in range(draws):
            chosen = np.arange(len(documents)) if size is None else random.choice(len(documents), size, replace=False)
            number = np.full(len(documents), -1)
            number[chosen] = np.arange(len(chosen))
            gold = {}
            for text in chosen:
                for _, _, kind in documents[text]["entities"]:
                    if names.get(kind):
                        gold.setdefault(kind, set()).add(int(number[text]))
            gold = {kind: found for kind, found in gold.items() if len(found) >= FEWEST_TEXTS}
            inside = number[texts] >= 0
            yield len(chosen), number[texts[inside]], mentions[inside], gold


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--vectors", type=Path, required=True)
    parser.add_argument("--types", type=Path, required=True)
    parser.add_argument("--query", nargs="+", required=True)
    parser.add_argument("corpora", nargs="+", type=Path)
    arguments = parser.parse_args()
    documents = [json.loads(line) for path in arguments.corpora for line in gzip.open(path, "rt")]
    all_names = json.loads(arguments.types.read_text())
    names = {kind: name for key in arguments.query for kind, name in all_names[key].items() if name}
    texts, mentions = read_vectors(arguments.vectors)
    queries = embed(sorted(set(names.values())))
    drawn = list(indexes(texts, mentions, documents, names))
    sizes = sorted({size for size, *_ in drawn}, reverse=True)
    print("temperature, weight:", *(f"{size} texts" for size in sizes), sep="\t")
    options = [(0.04, 0, True)]
    options += [(temperature, 1, False) for temperature in (0.02, 0.04, 0.06, 0.1)]
    options += [(temperature, weight, True) for temperature in (0.02, 0.04, 0.06) for weight in (1, 1.5, 2)]
    for temperature, weight, follows in options:
        scores = {size: [] for size in sizes}
        for size, of_index, vectors, gold in drawn:
            found = [
                r_precision(vectors @ refine(queries[names[kind]], vectors, temperature, weight, follows),
                            of_index, size, relevant)
                for kind, relevant in gold.items()
            ]
            scores[size].append(np.mean(found))
        label = "none" if weight == 0 else f"{temperature}, {weight}" + (" x cosine" if follows else "")
        print(label, *(f"{np.mean(scores[size]):.4f}" for size in sizes), sep="\t", flush=True)


if __name__ == "__main__":
    main()
