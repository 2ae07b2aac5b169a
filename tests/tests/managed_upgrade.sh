# Moves a cluster with managed indexes to another by pg_upgrade, and a database by a parallel restore; prints
# what is found after each. Runs as the server's user: sh managed_upgrade.sh BINARIES FOLDER
set -eu
PATH=$1:$PATH
cd "$2"
trap 'for cluster in old new; do pg_ctl -D $cluster -m immediate stop >/dev/null 2>&1 || true; done' EXIT
sql() { psql -h "$PWD" -U postgres -X -q -A -t -v ON_ERROR_STOP=1 "$@"; }
start() { pg_ctl -D "$1" -l "$1.log" -w start >/dev/null; }
# The best of two indexes, and what their triggers and workers do with new rows.
work_on() {
  sql "$@" -c "INSERT INTO note VALUES (3, 'Alan Turing ran to Cambridge.')" \
    -c "INSERT INTO shop VALUES (2, 'b', 'Grace Hopper came from New York.')"
  sql "$@" -c "SELECT 'waited: ' || ner_wait('note', '2 minutes')" >&2
  sql "$@" -c "SELECT mention, key->>'id' FROM ner_search('note', ARRAY['river', 'person'], 3) ORDER BY mention" \
    -c "SELECT mention, id FROM shop_body_mentions ORDER BY mention" \
    -c "SELECT \"table\", mode, state, rows_waiting, rows_failed, last_error FROM ner_retriever.indexes ORDER BY 1"
}

for cluster in old new; do
  initdb -D "$cluster" -U postgres -A trust --no-sync >/dev/null
  printf '%s\n' "listen_addresses = ''" "unix_socket_directories = '$PWD'" 'fsync = off' >>"$cluster/postgresql.conf"
done
start old
sql -c 'CREATE EXTENSION ner_retriever CASCADE' -c 'CREATE TABLE note (id int PRIMARY KEY, body text)' \
  -c "INSERT INTO note VALUES (1, 'Marie Curie worked in Paris.'), (2, 'The Danube flows through Vienna.')" \
  -c 'CREATE TABLE shop (id int, part text, body text, PRIMARY KEY (id, part)) PARTITION BY RANGE (id)' \
  -c 'CREATE TABLE shop_1 PARTITION OF shop FOR VALUES FROM (0) TO (100)' \
  -c "INSERT INTO shop VALUES (1, 'a', 'Ada Lovelace lived in London.')" 2>/dev/null
sql -c "SELECT ner_index('note', 'body'), ner_index('shop', 'body', mode => 'immediate')" \
  -c "SELECT ner_wait('note'), ner_wait('shop')" >/dev/null

pg_dump -h "$PWD" -U postgres --format=directory --file=dump postgres
sql -c 'CREATE DATABASE restored'
pg_restore -h "$PWD" -U postgres --jobs=3 --exit-on-error -d restored dump
work_on -d restored
sql -c 'DROP DATABASE restored WITH (FORCE)'

pg_ctl -D old -w stop >/dev/null
pg_upgrade -b "$1" -B "$1" -d "$PWD/old" -D "$PWD/new" -U postgres -s "$PWD" >upgrade.log 2>&1 || { cat upgrade.log; exit 1; }
start new
work_on -d postgres
# What pg_upgrade does not know of: the table goes with its mentions.
sql -c 'DROP TABLE note, shop' -c 'SELECT count(*) FROM ner_retriever.managed_index' \
  -c "SELECT count(*) FROM pg_class WHERE relname LIKE '%mentions'"
