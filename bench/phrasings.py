#!/usr/bin/env python3
"""How much it matters how a type is named: macro R-Precision of its name, of the name with an article, of its plural
and of a description (phrasings.json), by the type alone and as ner_search ranks for R rows, and of the latter for ten
rows the precision among them. One index of all corpora.

usage: phrasings.py --vectors FILE --types type_names.json --query TYPES_KEY... -- CORPUS...
As feedback.py, which has the ranking.
"""

import json
from pathlib import Path

import numpy as np

import feedback

PHRASINGS = json.loads((Path(__file__).parent / "phrasings.json").read_text())
FIRST = 10


def phrasings(name):
    of_name = PHRASINGS[name]
    article = "an" if name[0] in "aeiou" else "a"
    return {
        "the name": name,
        "with an article": f"{article} {name}",
        "plural": of_name["plural"],
        "description": of_name["description"],
    }


def ranked(query, name, mentions, near, wanted):
    """As ner_search ranks for so many rows."""
    refined = feedback.refine(query, mentions, *feedback.CHOSEN)
    by_type = mentions @ (refined / np.linalg.norm(refined))
    smoothed = feedback.smooth(by_type, mentions, wanted, *feedback.CHOSEN_SMOOTHING)
    return smoothed + feedback.CHOSEN_WORDS[1] * feedback.shares(name, near)


def main():
    arguments = feedback.parser(__doc__).parse_args()
    documents, names, places, mentions = feedback.read(arguments)
    texts = places[:, 0]
    near = feedback.stems_near(documents, places, feedback.CHOSEN_WORDS[0])
    gold = {kind: found for kind, found in feedback.gold(documents, names).items() if len(found) >= FIRST}
    asked = {kind: phrasings(names[kind]) for kind in gold}
    queries = feedback.embed(sorted({phrase for of_type in asked.values() for phrase in of_type.values()}))
    print(f"{len(gold)} types, {len(documents)} texts", "type alone", "as ner_search", "first ten", sep="\t")
    for phrasing in next(iter(asked.values())):
        scores = []
        for kind, relevant in gold.items():
            phrase = asked[kind][phrasing]
            query, count = queries[phrase], len(relevant)
            by_rank = [ranked(query, phrase, mentions, near, wanted) for wanted in (count, FIRST)]
            scores.append([
                feedback.precision(mentions @ query, texts, len(documents), relevant, count),
                feedback.precision(by_rank[0], texts, len(documents), relevant, count),
                feedback.precision(by_rank[1], texts, len(documents), relevant, FIRST),
            ])
        print(phrasing, *(f"{score:.4f}" for score in np.mean(scores, axis=0)), sep="\t", flush=True)


if __name__ == "__main__":
    main()
