#!/usr/bin/env python3
"""What R-Precision counts as wrong where not every text has every label: in the index of several corpora, how many of
the wrong texts come from those that do not label the queried types, and how many of those mention the type all
the same, by the random sample of them that was read (unlabelled.tsv: type, corpus, line, 1 or 0 of each of two readings; it
mentions the type if both say so).

usage: unlabelled.py --vectors FILE --types type_names.json [--draw N] LABELLED OTHER...
  FILE          what `eval --embeddings` wrote for the corpora together, in this order (--corpus, then --beside)
  --draw N      print a sample to read instead: N wrong texts of each type from the other corpora and, to see how the
                reader agrees with the labels, up to N / 4 right and N / 4 wrong ones of LABELLED, in random order
                (type, corpus, line, text)
The database that PGHOST, PGPORT, PGUSER and PGDATABASE name embeds the types. Needs numpy and snowballstemmer.
"""

import argparse
import gzip
import json
from pathlib import Path

import numpy as np

from feedback import embed, read_vectors


class Corpora:
    """The corpora's texts one after the other, as they are indexed."""

    def __init__(self, paths):
        self.names = [path.name.split(".")[0] for path in paths]
        lines = [list(gzip.open(path, "rt")) for path in paths]
        self.documents = [json.loads(line) for of_corpus in lines for line in of_corpus]
        self.starts = np.cumsum([0] + [len(of_corpus) for of_corpus in lines])
        self.labelled = self.documents[: self.starts[1]]

    def place(self, text):
        """Corpus and line, from 1."""
        corpus = int(np.searchsorted(self.starts, text, side="right")) - 1
        return self.names[corpus], int(text - self.starts[corpus]) + 1


class Found:
    """The first R texts of a type by its embedding: right ones, wrong ones of the labelled corpus, of the others."""

    def __init__(self, kind, query, corpora, texts, mentions):
        self.gold = {n for n, document in enumerate(corpora.labelled) if any(k == kind for *_, k in document["entities"])}
        best = np.full(len(corpora.documents), -np.inf, dtype=np.float32)
        np.maximum.at(best, texts, mentions @ query)
        first = np.argsort(-best, kind="stable")[: len(self.gold)].tolist()
        self.right = [text for text in first if text in self.gold]
        wrong = [text for text in first if text not in self.gold]
        self.wrong = [text for text in wrong if text < len(corpora.labelled)]
        self.unlabelled = [text for text in wrong if text >= len(corpora.labelled)]


def draw(found, corpora, count):
    random = np.random.default_rng(1)
    for name, of_type in found.items():
        drawn = []
        for texts, most in ((of_type.unlabelled, count), (of_type.right, count // 4), (of_type.wrong, count // 4)):
            drawn.extend(random.choice(texts, min(most, len(texts)), replace=False).tolist())
        random.shuffle(drawn)
        for text in drawn:
            print(name, *corpora.place(text), corpora.documents[text]["text"], sep="\t")


def judged():
    """Both readings' verdicts by type, corpus and line."""
    lines = Path(__file__).with_suffix(".tsv").read_text().splitlines()[1:]
    rows = [line.split("\t") for line in lines]
    return {(name, corpus, int(line)): (int(first), int(second)) for name, corpus, line, first, second in rows}


def estimate(found, corpora):
    verdicts = judged()

    def read(name, texts):
        places = [(name, *corpora.place(text)) for text in texts]
        return [min(verdicts[place]) for place in places if place in verdicts]

    rows, all_read = [], ([], [], [])
    print("type", "R", "R-Precision", "wrong", "of them unlabelled", "mention it, of those read", "precision at R", sep="\t")
    for name, of_type in found.items():
        count = len(of_type.gold)
        kinds = [read(name, texts) for texts in (of_type.unlabelled, of_type.right, of_type.wrong)]
        for kind, all_of_kind in zip(kinds, all_read):
            all_of_kind.extend(kind)
        unlabelled = kinds[0]
        if of_type.unlabelled and not unlabelled:
            raise SystemExit(f"none of the texts found for {name} was read: draw and read a new sample")
        counted, share = len(of_type.right) / count, len(of_type.unlabelled) / count
        mention = np.mean(unlabelled) if unlabelled else 0.0
        error = share * np.sqrt(mention * (1 - mention) / max(len(unlabelled), 1))
        wrong = count - len(of_type.right)
        rows.append((counted, counted + share * mention, error, wrong, len(of_type.unlabelled)))
        print(name, count, f"{counted:.3f}", wrong, len(of_type.unlabelled), f"{sum(unlabelled)} of {len(unlabelled)}",
              f"{rows[-1][1]:.3f}", sep="\t")
    counted, precision, errors, wrong, unlabelled = zip(*rows)
    print("macro", "", f"{np.mean(counted):.3f}", sum(wrong), sum(unlabelled), f"{sum(all_read[0])} of {len(all_read[0])}",
          f"{np.mean(precision):.3f}", sep="\t")
    print(f"standard error of the last: {np.linalg.norm(errors) / len(errors):.3f}")
    print(f"read in {corpora.names[0]}: {sum(all_read[1])} of {len(all_read[1])} that are labelled so mention it, "
          f"{sum(all_read[2])} of {len(all_read[2])} that are not")
    agreed = sum(first == second for first, second in verdicts.values())
    print(f"the two readings agree on {agreed} of {len(verdicts)}")


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--vectors", type=Path, required=True)
    parser.add_argument("--types", type=Path, required=True)
    parser.add_argument("--draw", type=int)
    parser.add_argument("corpora", nargs="+", type=Path)
    arguments = parser.parse_args()
    corpora = Corpora(arguments.corpora)
    names = {kind: name for kind, name in json.loads(arguments.types.read_text())[corpora.names[0]].items() if name}
    places, mentions = read_vectors(arguments.vectors)
    queries = embed(sorted(names.values()))
    found = {name: Found(kind, queries[name], corpora, places[:, 0], mentions)
             for kind, name in sorted(names.items(), key=lambda item: item[1])}
    if arguments.draw:
        draw(found, corpora, arguments.draw)
    else:
        estimate(found, corpora)


if __name__ == "__main__":
    main()
