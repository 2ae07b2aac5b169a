#!/usr/bin/env python3
"""Joins the texts of a corpus, so many to each new one, to score a head on long texts:

  bench/long_texts.py 6 fewnerd_test.jsonl.gz 1800 >fewnerd_test_long.jsonl
  make eval ARGS='--corpus fewnerd_test_long.jsonl --types type_names.json'

Takes the first texts of the corpus, JSON lines with gzip, as many as its third argument says.
"""

import gzip
import itertools
import json
import sys


def joined(lines):
    text, entities = "", []
    for line in lines:
        entities += [[start + len(text), end + len(text), kind] for start, end, kind in line["entities"]]
        text += line["text"] + " "
    return {"text": text.rstrip(), "entities": entities}


def main():
    count, path, most = int(sys.argv[1]), sys.argv[2], int(sys.argv[3])
    with gzip.open(path, "rt") as corpus:
        lines = map(json.loads, itertools.islice(corpus, most))
        while part := list(itertools.islice(lines, count)):
            print(json.dumps(joined(part), ensure_ascii=False))


if __name__ == "__main__":
    main()
