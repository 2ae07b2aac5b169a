#!/usr/bin/env bash
# Measures managed indexes, in the database that PGHOST, PGPORT, PGUSER and PGDATABASE name:
#   1. what a single-row INSERT costs with a deferred index, against the same table without one,
#   2. the rate of a backfill, against one bulk call of ner_entity_embeddings over the same texts,
#   3. ner_search over 200,000 generated mentions: recall against the exact scan, latency, storage.
# usage: managed_index.sh [insert] [backfill] [search]     (default: all)
#   scripts/server.sh exec --instance bench -- bench/managed_index.sh
# It works in a schema of its own, bench, which it drops before and after. Nothing else should run.
set -euo pipefail

MENTIONS=${MENTIONS:-200000}
TEXTS=${TEXTS:-1000}
INSERTS=${INSERTS:-2000}
# How far apart the clusters of generated mentions are, against their own extent.
APART=${APART:-1}
# Parameters of the index over them, such as 'm = 32, ef_construction = 200'; empty: pgvector's.
INDEX_OPTIONS=${INDEX_OPTIONS:-}

sql() { psql -X -q -A -t -v ON_ERROR_STOP=1 "$@"; }

reset() {
  sql -c 'SET client_min_messages = warning; DROP SCHEMA IF EXISTS bench CASCADE' \
    -c 'CREATE EXTENSION IF NOT EXISTS ner_retriever CASCADE'
}

# The median, in ms, of what pgbench's per-transaction log in folder $1 says (third field, µs).
median() { cat "$1"/log.* | awk '{ print $3 }' | sort -n | awk '{ v[NR] = $1 } END { printf "%.3f", v[int((NR + 1) / 2)] / 1000 }'; }

insert_latency() {
  local folder script table round
  folder=$(mktemp -d)
  sql -c 'CREATE SCHEMA bench' \
    -c 'CREATE TABLE bench.plain (id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, body text)' \
    -c 'CREATE TABLE bench.indexed (LIKE bench.plain INCLUDING ALL)' \
    -c "SELECT ner_index('bench.indexed', 'body')" -c "SELECT ner_wait('bench.indexed')" >/dev/null
  # Alternating, so that the machine's moods are the same for both; an empty text costs the trigger
  # and the queue as much as any other, and the engine nothing.
  for round in 1 2 3 4; do
    for table in plain indexed; do
      script=$folder/$table.sql
      echo "INSERT INTO bench.$table (body) VALUES ('');" >"$script"
      mkdir -p "$folder/$table"
      pgbench -n -M prepared -c 1 -t $((INSERTS / 4)) -f "$script" -l \
        --log-prefix="$folder/$table/log.$round" >/dev/null 2>&1
    done
  done
  echo "single-row INSERT, median of $INSERTS: $(median "$folder/plain") ms plain, $(median "$folder/indexed") ms with a deferred index"
  rm -rf -- "$folder"
  reset
}

backfill() {
  sql <<SQL
CREATE SCHEMA bench;
CREATE TABLE bench.text (id int PRIMARY KEY, body text);
INSERT INTO bench.text
SELECT n, format('On day %s %s left %s for %s to look after the Triceratops skull number %s.', n,
                 (ARRAY['Amara Okafor', 'Lucía Fernández', 'Henrik Lindqvist', 'Mei Tanaka'])[1 + n % 4],
                 (ARRAY['Lisbon', 'Nairobi', 'Lake Baikal', 'Buenos Aires', 'Rotterdam'])[1 + n % 5],
                 (ARRAY['Hokkaido', 'Mount Etna', 'Oslo'])[1 + n % 3], n)
FROM generate_series(1, $TEXTS) AS n;
SELECT count(ner_type_embedding('warm-up'));
\timing on
\o /dev/null
\echo one bulk call of ner_entity_embeddings(text[]) over $TEXTS texts:
SELECT count(*) FROM ner_entity_embeddings((SELECT array_agg(body) FROM bench.text));
\timing off
SELECT ner_index('bench.text', 'body');
\timing on
\echo backfill of the same texts, its HNSW index included:
SELECT ner_wait('bench.text');
\timing off
SELECT ner_drop_index('bench.text');
\timing on
\echo the bulk call once more:
SELECT count(*) FROM ner_entity_embeddings((SELECT array_agg(body) FROM bench.text));
SQL
  reset
}

# Mentions in 1,000 clusters, as those of types are, around the embeddings of as many made-up types.
search() {
  sql <<SQL
CREATE SCHEMA bench;
CREATE TABLE bench.doc (id int PRIMARY KEY, body text);
INSERT INTO bench.doc SELECT n, '' FROM generate_series(1, $MENTIONS / 2) AS n;
SELECT count(ner_index('bench.doc', 'body', mode => 'manual'));
-- The generated mentions take the place of the backfill.
SELECT count(ner_wait('bench.doc'));
DROP INDEX bench.doc_body_mentions_embedding_idx;
SELECT setseed(0.5);
CREATE TEMP TABLE centre AS
SELECT c, (SELECT array_agg(random() - 0.5) FROM generate_series(1, 384) WHERE c > 0) AS v
FROM generate_series(1, 1000) AS c;
CREATE TEMP TABLE direction AS
SELECT d, (SELECT array_agg(random() - 0.5) FROM generate_series(1, 384) WHERE d > 0) AS v
FROM generate_series(1, 8) AS d;
INSERT INTO bench.doc_body_mentions
SELECT 1 + n / 2, 'x', n % 2, n % 2 + 1, 1,
       l2_normalize((c.v::real[]::vector * (array_fill($APART::real, ARRAY[384]))::vector + d.v::real[]::vector * (array_fill(random()::real, ARRAY[384]))::vector
                     + e.v::real[]::vector * (array_fill(random()::real, ARRAY[384]))::vector)::halfvec(384)),
       'generated'
FROM generate_series(0, $MENTIONS - 1) AS n
JOIN centre AS c ON c.c = 1 + (n * 7919) % 1000
JOIN direction AS d ON d.d = 1 + n % 8
JOIN direction AS e ON e.d = 1 + (n / 8) % 8;
\timing on
\echo HNSW index over $MENTIONS halfvec(384):
SET maintenance_work_mem = '2GB';
CREATE INDEX doc_body_mentions_embedding_idx ON bench.doc_body_mentions USING hnsw (embedding halfvec_cosine_ops)${INDEX_OPTIONS:+ WITH ($INDEX_OPTIONS)};
\timing off
ANALYZE bench.doc_body_mentions;
-- What ner_search runs, with a generated vector for the type's: the engine has no part in this.
CREATE FUNCTION bench.nearest(q halfvec, k int) RETURNS SETOF int LANGUAGE plpgsql STABLE
SET hnsw.ef_search = 200 SET hnsw.iterative_scan = 'relaxed_order' AS \$\$
BEGIN
  RETURN QUERY EXECUTE format(
    'WITH n AS MATERIALIZED (SELECT id, embedding <=> %L::halfvec(384) AS distance
       FROM bench.doc_body_mentions ORDER BY embedding <=> %L::halfvec(384) LIMIT %s),
     best AS (SELECT DISTINCT ON (id) * FROM n ORDER BY id, distance)
     SELECT id FROM best ORDER BY distance LIMIT %s', q, q, 4 * k, k);
END \$\$;
CREATE TEMP TABLE query AS
SELECT c.c, l2_normalize((c.v::real[]::vector * (array_fill($APART::real, ARRAY[384]))::vector + d.v::real[]::vector * (array_fill(random()::real, ARRAY[384]))::vector)::halfvec(384)) AS q
FROM centre AS c JOIN direction AS d ON d.d = 1 + c.c % 8 WHERE c.c <= 100;
CREATE TEMP TABLE answer (c int, recall real, ms real);
DO \$\$
DECLARE
  r record; started timestamptz; approximate int[]; exact int[]; took real;
BEGIN
  FOR r IN SELECT * FROM query LOOP
    PERFORM bench.nearest(r.q, 10);
    started := clock_timestamp();
    SELECT array_agg(n) INTO approximate FROM bench.nearest(r.q, 10) AS n;
    took := 1000 * extract(epoch FROM clock_timestamp() - started);
    SELECT array_agg(id) INTO exact FROM (
      SELECT id FROM bench.doc_body_mentions GROUP BY id ORDER BY min((embedding <=> r.q) + 0) LIMIT 10) AS e;
    -- By distance: rows that are equally near are equally right.
    INSERT INTO answer SELECT r.c, count(*) / 10.0, took FROM unnest(approximate) AS a
    WHERE (SELECT min((embedding <=> r.q) + 0) FROM bench.doc_body_mentions WHERE id = a)
       <= (SELECT max(e.d) FROM (SELECT min((embedding <=> r.q) + 0) AS d FROM bench.doc_body_mentions
                                 WHERE id = ANY (exact) GROUP BY id) AS e) + 1e-6;
  END LOOP;
END \$\$;
SELECT format('ner_search''s scan, k = 10, 100 queries: recall@10 %s, p50 %s ms, p99 %s ms', round(avg(recall)::numeric, 4),
              round(percentile_cont(0.5) WITHIN GROUP (ORDER BY ms)::numeric, 2),
              round(percentile_cont(0.99) WITHIN GROUP (ORDER BY ms)::numeric, 2)) FROM answer;
SELECT format('storage a mention, bytes: %s in the table, %s in its HNSW index (halfvec(384)); a row''s vector as vector(384) %s, as vector(4096) %s',
              pg_table_size('bench.doc_body_mentions') / $MENTIONS,
              pg_relation_size('bench.doc_body_mentions_embedding_idx') / $MENTIONS, 8 + 4 * 384, 8 + 4 * 4096);
SQL
  reset
}

reset
for part in ${*:-insert backfill search}; do
  case $part in
    insert) insert_latency ;;
    backfill) backfill ;;
    search) search ;;
    *) echo "usage: managed_index.sh [insert] [backfill] [search]" >&2; exit 2 ;;
  esac
done
