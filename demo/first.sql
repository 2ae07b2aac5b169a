\set query `cat query.sql`
\set ECHO queries
\pset tuples_only off
\pset format aligned
\pset footer off
:query;
\set ECHO none
\echo The same in plain SQL over the mentions, and its plan:
SELECT format(E'SELECT id, mention FROM demo.text_body_mentions'
              '\nORDER BY embedding <=> ner_type_embedding(%L)::halfvec(%s) LIMIT %s',
              :'type', dims, :'k') AS plain
FROM ner_retriever.indexes WHERE "table" = 'demo.text'::regclass \gset
\set ECHO queries
:plain;
\set ECHO none
\pset tuples_only on
\pset format unaligned
EXPLAIN (COSTS OFF) :plain;
