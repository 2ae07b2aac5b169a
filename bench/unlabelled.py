#!/usr/bin/env python3
"""What R-Precision counts as wrong where not every text has every label: in the index of several corpora, how many of
the wrong texts come from those that do not label the queried types, and how many of those mention the type all
the same, by the random sample of them that was read (unlabelled.tsv: type, corpus, line, 1 or 0).

usage: unlabelled.py --vectors FILE --types type_names.json LABELLED OTHER...
  FILE          what `eval --embeddings` wrote for the corpora together, in this order (--corpus, then --beside)
The database that PGHOST, PGPORT, PGUSER and PGDATABASE name embeds the types. Needs numpy.
"""

import argparse
import gzip
import json
from pathlib import Path

import numpy as np

from feedback import embed, read_vectors


def judged():
    """By type: the share of the sampled texts that mention it."""
    verdicts = {}
    for line in Path(__file__).with_suffix(".tsv").read_text().splitlines()[1:]:
        kind, _, _, mentions = line.split("\t")
        verdicts.setdefault(kind, []).append(int(mentions))
    return verdicts


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--vectors", type=Path, required=True)
    parser.add_argument("--types", type=Path, required=True)
    parser.add_argument("labelled", type=Path)
    parser.add_argument("others", nargs="+", type=Path)
    arguments = parser.parse_args()
    documents = [json.loads(line) for line in gzip.open(arguments.labelled, "rt")]
    names = {kind: name for kind, name in
             json.loads(arguments.types.read_text())[arguments.labelled.name.split(".")[0]].items() if name}
    texts, mentions = read_vectors(arguments.vectors)
    queries = embed(sorted(names.values()))
    verdicts = judged()
    rows = []
    print("type", "R", "R-Precision", "wrong", "of them unlabelled", "mention it, of those read", "precision at R", sep="\t")
    for kind, name in sorted(names.items(), key=lambda item: item[1]):
        gold = {n for n, document in enumerate(documents) if any(k == kind for *_, k in document["entities"])}
        best = np.full(texts.max() + 1, -np.inf, dtype=np.float32)
        np.maximum.at(best, texts, mentions @ queries[name])
        found = np.argsort(-best, kind="stable")[: len(gold)].tolist()
        wrong = [text for text in found if text not in gold]
        unlabelled = sum(text >= len(documents) for text in wrong)
        read = verdicts[name]
        counted = 1 - len(wrong) / len(gold)
        rows.append((counted, counted + unlabelled / len(gold) * sum(read) / len(read), len(wrong), unlabelled))
        print(name, len(gold), f"{counted:.3f}", len(wrong), unlabelled, f"{sum(read)} of {len(read)}", f"{rows[-1][1]:.3f}", sep="\t")
    read = [verdict for of_type in verdicts.values() for verdict in of_type]
    print("macro", "", f"{np.mean([row[0] for row in rows]):.3f}", sum(row[2] for row in rows), sum(row[3] for row in rows),
          f"{sum(read)} of {len(read)}", f"{np.mean([row[1] for row in rows]):.3f}", sep="\t")


if __name__ == "__main__":
    main()
