#!/usr/bin/env python3
"""Adds what a corpus of sentences about names lacks, for the mention probe: common nouns and bare names.

usage: noun_mentions.py WORDNET_FOLDER CORPUS.jsonl.gz OUT.jsonl.gz

Few-NERD labels names, and people also ask for dinosaurs, diseases and drinks, which texts mention by
common nouns. WORDNET_FOLDER is that of type_nouns.py. Words of up to four words count as mentions if
the most frequent sense of their noun is an animal, a plant, a food, a part of the body, a substance,
or a kind of one of ROOTS, and if they are nothing but a noun; those within labelled mentions do not. Titles and keywords are often
a name alone, so after one text in ten comes one of its mentions as a text of its own.
"""
import collections
import gzip
import json
import re
import sys

# Lexicographer files of nouns (WordNet's lexnames(5WN)).
ANIMAL, BODY, FOOD, PLANT, SUBSTANCE = 5, 8, 13, 20, 27
ROOTS = [
    "clothing", "vehicle", "weapon", "medicine", "drug", "medical_procedure", "ill_health", "symptom",
    "musical_instrument", "disease", "surgery", "beverage", "device", "diagnostic_procedure", "therapy",
]
# Endings of plurals and of what they are plurals of.
PLURALS = [("ses", "s"), ("xes", "x"), ("zes", "z"), ("ches", "ch"), ("shes", "sh"), ("men", "man"),
           ("ies", "y"), ("s", "")]
MAX_WORDS = 4
# One text in this many is followed by a mention alone.
BARE = 10


def lines(folder, name):
    return (line for line in open(f"{folder}/{name}") if not line.startswith("  "))


def concrete_nouns(folder):
    """Nouns, with underscores, that name a concrete thing and are no other part of speech."""
    kind, parents, first = {}, collections.defaultdict(list), {}
    for line in lines(folder, "data.noun"):
        fields = line.split("|")[0].split()
        kind[fields[0]] = int(fields[1])
        pointers = fields[5 + 2 * int(fields[3], 16):]
        for symbol, synset, part, _ in zip(*[iter(pointers)] * 4):
            if symbol in ("@", "@i") and part == "n":
                parents[fields[0]].append(synset)
    for line in lines(folder, "index.noun"):
        noun, *fields = line.split()
        first[noun] = fields[-int(fields[1]):][0]
    roots = {first[root] for root in ROOTS if root in first}
    below = {}

    def is_below(synset):
        if synset not in below:
            below[synset] = synset in roots or any(map(is_below, parents[synset]))
        return below[synset]

    others = other_parts_of_speech(folder)
    wanted = {ANIMAL, BODY, FOOD, PLANT, SUBSTANCE}
    nouns = {noun for noun, synset in first.items()
             if len(noun) > 2 and (kind[synset] in wanted or is_below(synset))}
    return nouns - others, others


def other_parts_of_speech(folder):
    words = set()
    for part in ("adj", "adv", "verb"):
        words.update(line.split()[0] for line in lines(folder, f"index.{part}"))
        for line in open(f"{folder}/{part}.exc"):
            words.update(line.split())
    return words


def singulars(word, irregular):
    word = word.lower()
    if word in irregular:
        return [irregular[word]]
    found = [word]
    found += [word[:-len(plural)] + single for plural, single in PLURALS
              if word.endswith(plural) and len(word) > len(plural) + 1]
    return found


def main(folder, corpus, out):
    nouns, others = concrete_nouns(folder)
    irregular = {line.split()[0]: line.split()[1] for line in open(f"{folder}/noun.exc")}

    def is_noun(text, at_start):
        *before, last = text.split()
        if not before and (text.lower() in others or (text[0].isupper() and not at_start)):
            return False
        return any("_".join([*map(str.lower, before), single]) in nouns
                   for single in singulars(last, irregular))

    added = 0
    # No time stamp, so that the same corpus gives the same file.
    with gzip.open(corpus, "rt") as documents, gzip.GzipFile(out, "wb", mtime=0) as result:
        for number, line in enumerate(documents):
            document = json.loads(line)
            text, labelled = document["text"], list(document["entities"])
            words = [match.span() for match in re.finditer(r"\w+(?:-\w+)*", text)]
            position = 0
            while position < len(words):
                for count in range(min(MAX_WORDS, len(words) - position), 0, -1):
                    start, end = words[position][0], words[position + count - 1][1]
                    free = all(end <= other or start >= until for other, until, _ in labelled)
                    if free and is_noun(text[start:end], start == 0):
                        document["entities"].append([start, end, "common noun"])
                        added += 1
                        position += count - 1
                        break
                position += 1
            written = [document]
            if number % BARE == 0 and document["entities"]:
                mentions = document["entities"]
                start, end, kind = mentions[number // BARE % len(mentions)]
                bare = text[start:end]
                written.append({"text": bare, "entities": [[0, len(bare), kind]]})
            for each in written:
                result.write((json.dumps(each, ensure_ascii=False) + "\n").encode())
    print(f"{added} common nouns added", file=sys.stderr)


main(*sys.argv[1:])
