#!/usr/bin/env python3
"""How ner_search should follow what it finds: macro R-Precision of relevance feedback by its constants, and with
the chosen ones of smoothing by its own and then of the type's words by theirs, for indexes of several sizes drawn
from one corpus (feedback/src has the constants that were chosen). Of the last two also the precision among the
first ten texts.

usage: feedback.py --vectors FILE --types type_names.json --query TYPES_KEY... CORPUS...
  FILE          what `eval --embeddings` wrote for the corpora together, in this order (--corpus, then --beside)
  TYPES_KEY     whose types are asked for: those that nothing else is chosen or reported by
The database that PGHOST, PGPORT, PGUSER and PGDATABASE name embeds the types:
  scripts/server.sh exec --instance bench -- bench/feedback.py ...
Needs numpy and snowballstemmer.
"""

import argparse
import functools
import gzip
import json
import re
import subprocess
from pathlib import Path

import numpy as np
import snowballstemmer

CANDIDATES = 100
CHOSEN = (0.04, 1.5, True)
FOR_EACH, MOST, ANCHORS = 4, 10_000, 500
CHOSEN_SMOOTHING = (0.1, 200)
CHOSEN_WORDS = (50, 0.08)
FUNCTION_WORDS = "a an and any as at by for from in into is of on or that the to which who with".split()
FEWEST_TEXTS = 5
SIZES = ((None, 1), (5000, 4), (1000, 8))


def unit(vectors):
    return vectors / np.maximum(np.linalg.norm(vectors, axis=-1, keepdims=True), 1e-9)


def read_vectors(path):
    rows = [line.rstrip("\n").split("\t") for line in open(path)]
    places = np.array([[int(number) for number in row[:3]] for row in rows])
    mentions = np.array([np.fromstring(row[3][1:-1], sep=",", dtype=np.float32) for row in rows])
    return places - (1, 0, 0), unit(mentions)


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


def smooth(scores, mentions, wanted, bandwidth, fewest):
    """As feedback/src/smoothing.rs, for a search of so many texts; what it does not look at stays behind."""
    near = np.argsort(-scores, kind="stable")[: min(max(fewest, FOR_EACH * wanted), MOST)]
    own, embeddings = scores[near], mentions[near]
    stride = -(-len(near) // ANCHORS)
    weights = np.exp((embeddings @ embeddings[::stride].T - 1) / bandwidth)
    itself = (np.arange(len(near)) % stride != 0).astype(np.float32)
    smoothed = scores - 2
    smoothed[near] = (weights @ own[::stride] + itself * own) / (weights.sum(1) + itself)
    return smoothed


@functools.cache
def stem(word, stemmer=snowballstemmer.stemmer("english")):
    return stemmer.stemWord(word)


def stems(text):
    return {stem(word) for word in re.findall(r"\w+", text.lower())}


def shares(name, near):
    """Of a name's words, how many are near each mention; as feedback/src/words.rs."""
    words = stems(" ".join(word for word in name.lower().split() if word not in FUNCTION_WORDS))
    return np.array([len(words & of_mention) for of_mention in near], dtype=np.float32) / max(len(words), 1)


def precision(scores, texts, count, gold, wanted):
    best = np.full(count, -np.inf, dtype=np.float32)
    np.maximum.at(best, texts, scores)
    found = np.argsort(-best, kind="stable")[:wanted]
    return len(gold.intersection(found.tolist())) / wanted


def gold(documents, names):
    """The texts that mention each type."""
    found = {}
    for text, document in enumerate(documents):
        for _, _, kind in document["entities"]:
            if names.get(kind):
                found.setdefault(kind, set()).add(text)
    return found


def stems_near(documents, places, reach):
    """Of the words of each mention and within so many characters of it."""
    return [stems(documents[text]["text"][max(start - reach, 0) : end + reach]) for text, start, end in places]


def indexes(texts, mentions, documents, names):
    """By size: indexes of random texts, with their mentions' numbers among all and the gold texts of each type that
    enough of them mention."""
    random = np.random.default_rng(1)
    for size, draws in SIZES:
        for _ in range(draws):
            chosen = np.arange(len(documents)) if size is None else random.choice(len(documents), size, replace=False)
            number = np.full(len(documents), -1)
            number[chosen] = np.arange(len(chosen))
            of_types = gold([documents[text] for text in chosen], names)
            of_types = {kind: found for kind, found in of_types.items() if len(found) >= FEWEST_TEXTS}
            inside = np.flatnonzero(number[texts] >= 0)
            yield len(chosen), number[texts[inside]], mentions[inside], inside, of_types


def parser(description):
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--vectors", type=Path, required=True)
    parser.add_argument("--types", type=Path, required=True)
    parser.add_argument("--query", nargs="+", required=True)
    parser.add_argument("corpora", nargs="+", type=Path)
    return parser


def read(arguments):
    """The texts, the names of the types that are asked for, and the mentions' places and vectors."""
    documents = [json.loads(line) for path in arguments.corpora for line in gzip.open(path, "rt")]
    all_names = json.loads(arguments.types.read_text())
    names = {kind: name for key in arguments.query for kind, name in all_names[key].items() if name}
    return documents, names, *read_vectors(arguments.vectors)


def main():
    documents, names, places, mentions = read(parser(__doc__).parse_args())
    queries = embed(sorted(set(names.values())))
    drawn = list(indexes(places[:, 0], mentions, documents, names))
    sizes = sorted({size for size, *_ in drawn}, reverse=True)
    print("temperature, weight:", *(f"{size} texts" for size in sizes), sep="\t")
    options = [(0.04, 0, True)]
    options += [(temperature, 1, False) for temperature in (0.02, 0.04, 0.06, 0.1)]
    options += [(temperature, weight, True) for temperature in (0.02, 0.04, 0.06) for weight in (1, 1.5, 2)]
    for temperature, weight, follows in options:
        scores = {size: [] for size in sizes}
        for size, of_index, vectors, _, gold in drawn:
            found = [
                precision(vectors @ refine(queries[names[kind]], vectors, temperature, weight, follows),
                          of_index, size, relevant, len(relevant))
                for kind, relevant in gold.items()
            ]
            scores[size].append(np.mean(found))
        label = "none" if weight == 0 else f"{temperature}, {weight}" + (" x cosine" if follows else "")
        print(label, *(f"{np.mean(scores[size]):.4f}" for size in sizes), sep="\t", flush=True)
    smoothing = [(bandwidth, 200) for bandwidth in (0.05, 0.07, 0.1, 0.12, 0.15, 0.2)] + [(0.1, 100), (0.1, 500)]

    def by_like(setting, kind, scores, vectors, inside, wanted):
        return smooth(scores, vectors, wanted, *setting)

    print_both("bandwidth, fewest candidates", smoothing, by_like, drawn, queries, names)
    near = {reach: stems_near(documents, places, reach) for reach in (0, 25, 50, 100)}
    words = [(reach, weight) for reach in near for weight in (0.04, 0.08, 0.12)]
    of_type = functools.cache(lambda kind, reach: shares(names[kind], near[reach]))

    def by_words(setting, kind, scores, vectors, inside, wanted):
        reach, weight = setting
        return smooth(scores, vectors, wanted, *CHOSEN_SMOOTHING) + weight * of_type(kind, reach)[inside]

    print_both("characters before and after, weight", words, by_words, drawn, queries, names)


def print_both(title, settings, rescored, drawn, queries, names):
    """R-Precision and the precision among the first ten by each setting, and by the refined type alone."""
    sizes = sorted({size for size, *_ in drawn}, reverse=True)
    scores = {setting: {size: ([], []) for size in sizes} for setting in [None, *settings]}
    for size, of_index, vectors, inside, gold in drawn:
        for kind, relevant in gold.items():
            refined = refine(queries[names[kind]], vectors, *CHOSEN)
            by_type = vectors @ (refined / np.linalg.norm(refined))
            for setting, of_setting in scores.items():
                for wanted, kept in zip((len(relevant), 10), of_setting[size]):
                    if wanted <= len(relevant):
                        ranked_by = rescored(setting, kind, by_type, vectors, inside, wanted) if setting else by_type
                        kept.append(precision(ranked_by, of_index, size, relevant, wanted))
    print(f"{title}:", *(f"{size} texts, first ten" for size in sizes), sep="\t")
    for setting, of_setting in scores.items():
        label = ", ".join(map(str, setting)) if setting else "none"
        both = (f"{np.mean(whole):.4f}, {np.mean(ten):.4f}" for whole, ten in (of_setting[size] for size in sizes))
        print(label, *both, sep="\t", flush=True)


if __name__ == "__main__":
    main()
