-- The demo's own tables only: anything else in a schema named demo stays.
SET client_min_messages = warning;
CREATE EXTENSION IF NOT EXISTS ner_retriever CASCADE;
CREATE SCHEMA IF NOT EXISTS demo;
-- demo.mention is of an earlier version of this demo.
DROP TABLE IF EXISTS demo.mention, demo.hit, demo.query, demo.text;

-- subject is what the text was written about; it checks the answers and is never searched.
CREATE TABLE demo.text (
    id      int GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    subject text,
    body    text NOT NULL
);
\copy demo.text (subject, body) FROM 'texts.tsv' WITH (NULL '')

CREATE TABLE demo.query (
    id   int GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    type text NOT NULL UNIQUE,
    ms   numeric
);
\copy demo.query (type) FROM 'queries.txt'

CREATE TABLE demo.hit (
    type       text NOT NULL REFERENCES demo.query (type),
    method     text NOT NULL CHECK (method IN ('entity', 'keyword')),
    text_id    int  NOT NULL REFERENCES demo.text,
    mention    text,
    start_char int,
    score      real NOT NULL,
    PRIMARY KEY (type, method, text_id)
);

-- At most width characters of body, with what starts at character start_char (0-based) in view.
CREATE OR REPLACE FUNCTION demo.excerpt(body text, start_char int, width int) RETURNS text
LANGUAGE sql IMMUTABLE
BEGIN ATOMIC
    SELECT CASE
        WHEN length(body) <= width THEN body
        WHEN start_char <= width / 2 THEN left(body, width - 1) || '…'
        WHEN skip + width - 1 >= length(body) THEN '…' || right(body, width - 1)
        ELSE '…' || substr(body, skip + 1, width - 2) || '…'
    END
    FROM (SELECT start_char - width / 3) AS s (skip);
END;

ANALYZE demo.text;

SELECT format(E'%s texts of one or two sentences in demo.text: %s are about one of %s subjects,\n'
              '%s about everyday things.',
              count(*), count(subject), count(DISTINCT subject), count(*) - count(subject))
FROM demo.text;
