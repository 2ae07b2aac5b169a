SELECT clock_timestamp() AS started \gset
\set ECHO queries
INSERT INTO demo.mention
SELECT t.ids[e.doc], e.entity, e.start_char, e.end_char, e.score, e.embedding
FROM (SELECT array_agg(id ORDER BY id) AS ids, array_agg(body ORDER BY id) AS bodies
      FROM demo.text) AS t,
     LATERAL ner_entity_embeddings(t.bodies) AS e;
\set ECHO none
SELECT extract(epoch FROM clock_timestamp() - :'started'::timestamptz) AS seconds \gset
SELECT format(E'\n%s texts, %s mentions in %s s: %s texts/s, %s mentions a text.\n',
              texts, mentions, round(:seconds, 2), round(texts / :seconds),
              round(mentions::numeric / texts, 1))
FROM (SELECT count(*) FROM demo.text) AS t (texts),
     (SELECT count(*) FROM demo.mention) AS m (mentions);

SELECT clock_timestamp() AS started \gset
\set ECHO queries
CREATE INDEX mention_embedding ON demo.mention USING hnsw (embedding vector_cosine_ops);
\set ECHO none
SELECT format(E'\nIndex built in %s s.',
              round(extract(epoch FROM clock_timestamp() - :'started'::timestamptz), 2));
ANALYZE demo.mention;
