#!/usr/bin/env bash
# Measures the engine through SQL, in the database that PGHOST, PGPORT, PGUSER and PGDATABASE name:
#   1. from a stopped engine to the first vector, STARTS times,
#   2. calls of one session: a new type, a type asked for before, a text, and a text without words, which
#      goes all the way to the engine but not through the model: what SQL and the socket add to a call,
#   3. texts/s of 1, 4, 16 and 64 sessions with a text a call, beside bulk calls over the same texts.
# usage: sessions.sh TEXTS       (a text a line)
#   scripts/server.sh exec --instance bench -- bench/cpu/sessions.sh FILE
# It works in a schema of its own, bench, which it drops before and after. Nothing else should run.
set -euo pipefail

SECONDS_EACH=${SECONDS_EACH:-20}
STARTS=${STARTS:-3}
texts=$(realpath "${1:?usage: sessions.sh TEXTS}")
folder=$(mktemp -d)
trap 'rm -rf -- "$folder"' EXIT

sql() { psql -X -q -A -t -v ON_ERROR_STOP=1 "$@"; }

# Runs script $1 in $2 sessions; prints throughput and, of one call, p50 and p99.
calls() {
  rm -f "$folder"/log.*
  pgbench -n -M prepared -c "$2" -j 2 -T "$SECONDS_EACH" -f "$folder/$1.sql" -l --log-prefix="$folder/log" >/dev/null
  # Third field: µs of a transaction.
  cat "$folder"/log.* | sort -n -k3,3 | awk -v name="$1" -v clients="$2" -v seconds="$SECONDS_EACH" '
    { took[NR] = $3 / 1000 }
    END { printf "%-12s %2d session(s): %8.1f calls/s, p50 %.2f ms, p99 %.2f ms\n", name, clients, NR / seconds,
          took[int((NR + 1) / 2)], took[int(NR * 0.99 + 0.5)] }'
}

sql -c 'SET client_min_messages = warning; DROP SCHEMA IF EXISTS bench CASCADE' \
  -c 'CREATE EXTENSION IF NOT EXISTS ner_retriever CASCADE' -c 'CREATE SCHEMA bench' \
  -c 'CREATE TABLE bench.text (id int GENERATED ALWAYS AS IDENTITY PRIMARY KEY, body text)' \
  -c "\\copy bench.text (body) FROM PROGRAM 'tr -d \"\\\\\\\\\" < $texts'"
count=$(sql -c 'SELECT count(*) FROM bench.text')
echo "SELECT count(ner_type_embedding('kind of thing number ' || :client_id || ' ' || random()));" >"$folder/new type.sql"
echo "SELECT count(ner_type_embedding('dinosaur'));" >"$folder/same type.sql"
echo "SELECT count(*) FROM ner_entity_embeddings('   ');" >"$folder/no words.sql"
cat >"$folder/text.sql" <<SQL
\\set id random(1, $count)
SELECT count(*) FROM bench.text, ner_entity_embeddings(body) WHERE id = :id;
SQL

timed() {
  sql -c "DO \$\$ BEGIN PERFORM $1;
    RAISE NOTICE '%', round(1000 * extract(epoch FROM clock_timestamp() - statement_timestamp())); END \$\$" 2>&1 |
    sed 's/^NOTICE: *//'
}

stop_engine() {
  local pid
  pid=$(sql -c 'SELECT pid FROM ner_engine_status()')
  [ -n "$pid" ] || return 0
  kill "$pid"
  for _ in $(seq 100); do
    [ "$(sql -c 'SELECT state FROM ner_engine_status()')" != stopped ] || return 0
    sleep 0.1
  done
  echo 'the engine does not stop' >&2
  return 1
}

bulk() {
  timed "count(*) FROM ner_entity_embeddings((SELECT array_agg(body) FROM bench.text))" |
    awk -v count="$count" '{ printf "bulk call: %.1f texts/s\n", 1000 * count / $1 }'
}

for _ in $(seq "$STARTS"); do
  stop_engine
  # So long the supervisor waits after a few ends in quick succession.
  sleep 2
  echo "first vector after $(timed "ner_type_embedding('dinosaur')") ms"
done
for name in 'new type' 'same type' 'no words' text; do calls "$name" 1; done
for clients in 4 16; do calls text "$clients"; done
bulk
calls text 64
bulk
memory="SELECT format('%s requests in %s batches; resident memory of the engine %s MB', requests, batches, resident_bytes / 1000000) FROM ner_engine_status()"
sql -c "$memory" -c 'SELECT pg_sleep(2)' -c "$memory" -c 'SET client_min_messages = warning; DROP SCHEMA bench CASCADE'
