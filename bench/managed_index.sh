#!/usr/bin/env bash
# Measures managed indexes, in the database that PGHOST, PGPORT, PGUSER and PGDATABASE name:
#   1. what a single-row INSERT costs with a deferred index, against the same table without one,
#   2. the rate of a backfill, against the engine's `bench` and one bulk call of ner_entity_embeddings over the
#      same texts, both before and after it,
#   3. ner_search over many mentions: its scan's recall against the exact one and latency, storage. The mentions
#      are those of VECTORS, files that `make eval ARGS='... --embeddings FILE'` wrote, asked for common nouns
#      as types, where ner_search as a whole is timed as well, or MENTIONS generated ones.
#   4. comparing a table of ROWS rows with the memory of its index, when nothing differs.
# usage: managed_index.sh [insert] [backfill] [search] [reconcile]     (default: all)
#   scripts/server.sh exec --instance bench -- bench/managed_index.sh
# It works in a schema of its own, bench, which it drops before and after. Nothing else should run.
set -euo pipefail

VECTORS=${VECTORS:-}
MENTIONS=${MENTIONS:-200000}
TEXTS=${TEXTS:-1000}
INSERTS=${INSERTS:-2000}
# How far apart the clusters of generated mentions are, against their own extent.
APART=${APART:-1}
# Characters of a row's text before all of its mentions, at most 15000.
BEFORE=${BEFORE:-0}
# Candidates of a scan, hnsw.ef_search; ner_search's own.
EF_SEARCH=${EF_SEARCH:-200}
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

# The engine's own command over the texts of file $1.
engine_rate() {
  echo "engine bench: $("$(dirname "${BASH_SOURCE[0]}")/../scripts/engine.sh" bench --texts "$1" --seconds 1 |
    grep -E '"(texts|seconds)"' | tr -d ' \n')"
}

backfill() {
  local texts
  texts=$(mktemp)
  sql <<SQL
CREATE SCHEMA bench;
CREATE TABLE bench.text (id int PRIMARY KEY, body text);
INSERT INTO bench.text
SELECT n, format('On day %s %s left %s for %s to look after the Triceratops skull number %s.', n,
                 (ARRAY['Amara Okafor', 'Lucía Fernández', 'Henrik Lindqvist', 'Mei Tanaka'])[1 + n % 4],
                 (ARRAY['Lisbon', 'Nairobi', 'Lake Baikal', 'Buenos Aires', 'Rotterdam'])[1 + n % 5],
                 (ARRAY['Hokkaido', 'Mount Etna', 'Oslo'])[1 + n % 3], n)
FROM generate_series(1, $TEXTS) AS n;
\\copy (SELECT body FROM bench.text ORDER BY id) TO '$texts'
SQL
  engine_rate "$texts"
  sql <<SQL
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
\echo such an index alone:
CREATE INDEX ON bench.text_body_mentions USING hnsw (embedding halfvec_cosine_ops);
\timing off
SELECT ner_drop_index('bench.text');
\timing on
\echo the bulk call once more:
SELECT count(*) FROM ner_entity_embeddings((SELECT array_agg(body) FROM bench.text));
SQL
  engine_rate "$texts"
  rm -f -- "$texts"
  reset
}

# Psql commands that fill bench.mention (doc int, start_char int, end_char int, embedding halfvec(384)) and
# bench.query (q halfvec(384), name text).
# Mentions in 1,000 clusters, as those of types are, around the embeddings of as many made-up types.
generated() {
  cat <<SQL
SELECT setseed(0.5);
CREATE TEMP TABLE centre AS
SELECT c, (SELECT array_agg(random() - 0.5) FROM generate_series(1, 384) WHERE c > 0) AS v
FROM generate_series(1, 1000) AS c;
CREATE TEMP TABLE direction AS
SELECT d, (SELECT array_agg(random() - 0.5) FROM generate_series(1, 384) WHERE d > 0) AS v
FROM generate_series(1, 8) AS d;
INSERT INTO bench.mention
SELECT 1 + n / 2, n % 2, 1 + n % 2,
       l2_normalize((c.v::real[]::vector * (array_fill($APART::real, ARRAY[384]))::vector + d.v::real[]::vector * (array_fill(random()::real, ARRAY[384]))::vector
                     + e.v::real[]::vector * (array_fill(random()::real, ARRAY[384]))::vector)::halfvec(384))
FROM generate_series(0, $MENTIONS - 1) AS n
JOIN centre AS c ON c.c = 1 + (n * 7919) % 1000
JOIN direction AS d ON d.d = 1 + n % 8
JOIN direction AS e ON e.d = 1 + (n / 8) % 8;
INSERT INTO bench.query (q)
SELECT l2_normalize((c.v::real[]::vector * (array_fill($APART::real, ARRAY[384]))::vector + d.v::real[]::vector * (array_fill(random()::real, ARRAY[384]))::vector)::halfvec(384))
FROM centre AS c JOIN direction AS d ON d.d = 1 + c.c % 8 WHERE c.c <= 100;
SQL
}

# The same of real mentions and real types.
real() {
  local file
  echo 'CREATE TEMP TABLE loaded (LIKE bench.mention);'
  for file in $VECTORS; do
    echo "\\copy loaded FROM '$file'"
    echo 'INSERT INTO bench.mention SELECT l.doc + b.docs, l.start_char, l.end_char, l.embedding FROM loaded AS l'
    echo '  CROSS JOIN (SELECT coalesce(max(doc), 0) AS docs FROM bench.mention) AS b;'
    echo 'TRUNCATE loaded;'
  done
  echo 'INSERT INTO bench.query SELECT ner_type_embedding(name)::halfvec(384), name'
  echo '  FROM (SELECT name FROM noun ORDER BY md5(name) LIMIT 200) AS n;'
}

search() {
  local source=generated
  [ -z "$VECTORS" ] || source=real
  sql <<SQL
CREATE SCHEMA bench;
CREATE TABLE bench.mention (doc int, start_char int, end_char int, embedding halfvec(384));
CREATE TABLE bench.query (q halfvec(384), name text);
CREATE TEMP TABLE noun (name text);
\\copy noun FROM '$(dirname "${BASH_SOURCE[0]}")/../heads/type_nouns.txt'
$($source)
CREATE TABLE bench.doc (id int PRIMARY KEY, body text);
SELECT count(ner_index('bench.doc', 'body', mode => 'manual'));
SELECT count(ner_wait('bench.doc'));
-- Texts of words, as long as the mentions need; in this mode nothing embeds them.
INSERT INTO bench.doc
WITH shuffled AS (SELECT n, (SELECT string_agg(name, ' ' ORDER BY md5(name || n)) FROM noun) AS words
                  FROM generate_series(0, 99) AS n)
SELECT m.doc, left(s.words, $BEFORE + m.length + 20)
FROM (SELECT doc, max(end_char) AS length FROM bench.mention GROUP BY doc) AS m JOIN shuffled AS s ON s.n = m.doc % 100;
DROP INDEX bench.doc_body_mentions_embedding_idx;
INSERT INTO bench.doc_body_mentions
SELECT doc, 'x', $BEFORE + start_char, $BEFORE + end_char, 1, embedding, 'measured' FROM bench.mention;
\timing on
\echo HNSW index over the $source mentions (${INDEX_OPTIONS:-as ner_index makes it}):
SET maintenance_work_mem = '2GB';
CREATE INDEX doc_body_mentions_embedding_idx ON bench.doc_body_mentions USING hnsw (embedding halfvec_cosine_ops)${INDEX_OPTIONS:+ WITH ($INDEX_OPTIONS)};
\timing off
ANALYZE bench.doc, bench.doc_body_mentions;
-- What ner_search runs, without the type's embedding.
CREATE FUNCTION bench.nearest(q halfvec, k int) RETURNS SETOF int LANGUAGE plpgsql STABLE
SET hnsw.ef_search = $EF_SEARCH SET hnsw.iterative_scan = 'relaxed_order' AS \$\$
BEGIN
  RETURN QUERY EXECUTE format(
    'WITH n AS MATERIALIZED (SELECT id, embedding <=> %L::halfvec(384) AS distance
       FROM bench.doc_body_mentions ORDER BY embedding <=> %L::halfvec(384) LIMIT %s),
     best AS (SELECT DISTINCT ON (id) * FROM n ORDER BY id, distance)
     SELECT id FROM best ORDER BY distance LIMIT %s', q, q, greatest(200, 4 * k), k);
END \$\$;
CREATE TEMP TABLE answer (recall real, ms real);
DO \$\$
DECLARE
  r record; started timestamptz; approximate int[]; exact int[]; took real; farthest float;
BEGIN
  FOR r IN SELECT * FROM bench.query LOOP
    PERFORM bench.nearest(r.q, 10);
    started := clock_timestamp();
    SELECT array_agg(n) INTO approximate FROM bench.nearest(r.q, 10) AS n;
    took := 1000 * extract(epoch FROM clock_timestamp() - started);
    -- By distance: rows that are equally near are equally right.
    SELECT max(d) INTO farthest FROM (
      SELECT min((embedding <=> r.q) + 0) AS d FROM bench.doc_body_mentions GROUP BY id ORDER BY 1 LIMIT 10) AS e;
    INSERT INTO answer SELECT count(*) / 10.0, took FROM unnest(approximate) AS a
    WHERE (SELECT min((embedding <=> r.q) + 0) FROM bench.doc_body_mentions WHERE id = a) <= farthest + 1e-6;
  END LOOP;
END \$\$;
SELECT format('ner_search''s scan of %s mentions, k = 10, %s queries: recall@10 %s, p50 %s ms, p99 %s ms',
              (SELECT count(*) FROM bench.doc_body_mentions), count(*), round(avg(recall)::numeric, 4),
              round(percentile_cont(0.5) WITHIN GROUP (ORDER BY ms)::numeric, 2),
              round(percentile_cont(0.99) WITHIN GROUP (ORDER BY ms)::numeric, 2)) FROM answer;
-- As sessions call it, which keep the embeddings of the last types; against the same search of all mentions.
BEGIN;
ALTER FUNCTION ner_retriever.search SET hnsw.ef_search = $EF_SEARCH;
TRUNCATE answer;
DO \$\$
DECLARE
  r record; started timestamptz; found int[]; exact int[]; took real;
BEGIN
  FOR r IN SELECT name FROM bench.query WHERE name IS NOT NULL LOOP
    PERFORM ner_search('bench.doc', r.name);
    started := clock_timestamp();
    SELECT array_agg((key->>'id')::int) INTO found FROM ner_search('bench.doc', r.name);
    took := 1000 * extract(epoch FROM clock_timestamp() - started);
    EXECUTE format('SELECT array_agg(((q.hit).key->>''id'')::int) FROM (%s) AS q',
                   ner_retriever.search_statement('bench.doc', ARRAY[r.name], NULL, NULL, true))
    INTO exact USING 10, 200, -1.0;
    INSERT INTO answer SELECT count(*) / 10.0, took FROM unnest(found) AS f WHERE f = ANY (exact);
  END LOOP;
END \$\$;
SELECT format('ner_search as a whole, with feedback, the type embedded before: recall@10 %s, p50 %s ms, p99 %s ms',
              round(avg(recall)::numeric, 4), round(percentile_cont(0.5) WITHIN GROUP (ORDER BY ms)::numeric, 2),
              round(percentile_cont(0.99) WITHIN GROUP (ORDER BY ms)::numeric, 2)) FROM answer HAVING count(*) > 0;
ROLLBACK;
SELECT format('storage a mention, bytes: %s in the table, %s in its HNSW index (halfvec(384)); a row''s vector as vector(384) %s, as vector(4096) %s',
              pg_table_size('bench.doc_body_mentions') / n, pg_relation_size('bench.doc_body_mentions_embedding_idx') / n,
              8 + 4 * 384, 8 + 4 * 4096) FROM (SELECT count(*) AS n FROM bench.doc_body_mentions) AS m;
SQL
  reset
}

# The memory is filled as a worker would leave it: nothing is embedded.
reconcile() {
  sql <<SQL
SET client_min_messages = warning;
CREATE SCHEMA bench;
CREATE TABLE bench.big (id int PRIMARY KEY, body text);
INSERT INTO bench.big
SELECT n, 'Text number ' || n || ' of a table that is large, ' || md5(n::text) FROM generate_series(1, ${ROWS:-1000000}) AS n;
SELECT count(ner_index('bench.big', 'body', mode => 'manual'));
SELECT count(ner_wait('bench.big', '0 s'));
DELETE FROM ner_retriever.pending;
SELECT memory FROM ner_retriever.managed_index WHERE base = 'bench.big'::regclass \gset
TRUNCATE :memory;
INSERT INTO :memory SELECT id, substr(sha256(convert_to(body, getdatabaseencoding())), 1, 16) FROM bench.big;
UPDATE ner_retriever.managed_index SET state = 'ready', pass = 'requested', pass_cursor = NULL WHERE base = 'bench.big'::regclass;
VACUUM ANALYZE bench.big, :memory;
\timing on
\echo ner_check:
SELECT * FROM ner_check('bench.big');
\echo the comparison in slices, by a worker:
DO \$\$ BEGIN
  WHILE (SELECT pass IS NOT NULL FROM ner_retriever.managed_index WHERE base = 'bench.big'::regclass) LOOP
    PERFORM ner_retriever.start_worker();
    PERFORM pg_sleep(0.02);
    COMMIT;
  END LOOP;
END \$\$;
SQL
  reset
}

reset
for part in ${*:-insert backfill search reconcile}; do
  case $part in
    insert) insert_latency ;;
    backfill) backfill ;;
    search) search ;;
    reconcile) reconcile ;;
    *) echo "usage: managed_index.sh [insert] [backfill] [search] [reconcile]" >&2; exit 2 ;;
  esac
done
