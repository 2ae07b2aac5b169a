SELECT clock_timestamp() AS started \gset
\set ECHO queries
\pset tuples_only off
\pset format aligned
\pset footer off
SELECT ner_index('demo.text', 'body');
-- It returns at once; workers embed the texts meanwhile, and the trigger tells them of changes.
SELECT state, rows_done, rows_total FROM ner_retriever.indexes WHERE "table" = 'demo.text'::regclass;
SELECT ner_wait('demo.text');
SELECT state, rows_done, rows_total FROM ner_retriever.indexes WHERE "table" = 'demo.text'::regclass;
\set ECHO none
\pset tuples_only on
\pset format unaligned
SELECT extract(epoch FROM clock_timestamp() - :'started'::timestamptz) AS seconds \gset
SELECT format(E'\n%s texts, %s mentions in %s s, index included: %s texts/s, %s mentions a text.',
              texts, mentions, round(:seconds, 2), round(texts / :seconds),
              round(mentions::numeric / texts, 1))
FROM (SELECT count(*) FROM demo.text) AS t (texts),
     (SELECT count(*) FROM demo.text_body_mentions) AS m (mentions);
ANALYZE demo.text_body_mentions;
