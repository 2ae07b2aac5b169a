#!/usr/bin/env python3
"""Writes type_nouns.txt: what mentions may be said to be, for distillation (docs/training.md).

usage: type_nouns.py WORDNET_FOLDER TYPE_NAMES.json > type_nouns.txt

WORDNET_FOLDER holds data.noun and index.noun of WordNet 3.0 (Debian: wordnet-base). A noun stays
if it is one word of at least three letters and one of its two most frequent senses is a concrete
kind of thing with at least two kinds or instances below it; the nouns with the most come first.
Words of the benchmarks' type names are left out, so that no benchmark type is among the nouns.
"""
import collections
import json
import re
import sys

# Lexicographer files of nouns (WordNet's lexnames(5WN)) that entity types come from: animal,
# artifact, body, cognition, communication, event, food, group, location, object, person,
# phenomenon, plant, state, substance.
LEXICOGRAPHER_FILES = {5, 6, 8, 9, 10, 11, 13, 14, 15, 17, 18, 19, 20, 26, 27}
NOUNS = 2048

folder, names = sys.argv[1:]
kind, below = {}, collections.Counter()
for line in open(f"{folder}/data.noun"):
    if line.startswith("  "):
        continue
    fields = line.split("|")[0].split()
    kind[fields[0]] = int(fields[1])
    pointers = fields[5 + 2 * int(fields[3], 16):]
    for symbol, synset, part, _ in zip(*[iter(pointers)] * 4):
        if symbol in ("@", "@i") and part == "n":
            below[synset] += 1

benchmark = set(re.findall(r"\w+", " ".join(
    name or "" for corpus in json.load(open(names)).values() for name in corpus.values())))
scores = {}
for line in open(f"{folder}/index.noun"):
    if line.startswith("  "):
        continue
    noun, *fields = line.split()
    senses = fields[-int(fields[1]):][:2]
    counts = [below[s] for s in senses if below[s] >= 2 and kind[s] in LEXICOGRAPHER_FILES]
    if counts and noun.isalpha() and noun.isascii() and len(noun) >= 3 and noun not in benchmark:
        scores[noun] = sum(counts)
for noun in sorted(scores, key=lambda noun: (-scores[noun], noun))[:NOUNS]:
    print(noun)
