#!/usr/bin/env bash
# A private PostgreSQL server per instance, under <cache>/instances/NAME.
# usage: server.sh start|restart [--instance NAME] [--set SETTING=VALUE]...
#        server.sh stop|status|env|pid|remove [--instance NAME]
#        server.sh psql [--instance NAME] [-- PSQL-ARGUMENT...]
#        server.sh exec [--instance NAME] -- COMMAND [ARGUMENT...]
#   start    initdb at first use, start, create the database with its extensions; restarts a running
#            server when the installed extension, engine, model or head changed since its start
#   restart  the same, with a stop first
#   --set    server settings of the instance, kept until the next --set; a change restarts it
#   status   prints state, process id and socket; exit status 3 if it does not run
#   env      prints the connection as NAME=VALUE lines
#   pid      prints the postmaster's process id
#   remove   stops the instance and deletes its data
#   psql     in the instance's database, as the caller
#   exec     runs a command with the connection in its environment and psql on PATH
# The server listens on a unix socket only: trust authentication is safe there, because only the
# server's user (and root) can reach the socket.
set -euo pipefail
# shellcheck source=scripts/common.sh
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

# What the caller's environment says about another server must not leak into this one.
unset PGHOST PGHOSTADDR PGPORT PGUSER PGDATABASE PGDATA PGSERVICE

PORT=5432
DATABASE=demo
SUPERUSER=postgres
START_TIMEOUT=60

# --- arguments -------------------------------------------------------------------------------------

usage() { die "$1" "$(sed -n '3,6s/^# //p' "${BASH_SOURCE[0]}")"; }

parse_arguments() {
  COMMAND=${1:-}
  NAME=demo
  SETTINGS=()
  REST=()
  [ -n "$COMMAND" ] || usage "no command given"
  shift
  while [ $# -gt 0 ]; do
    case $1 in
      --instance | --set) [ $# -ge 2 ] || usage "$1 needs a value" ;;&
      --instance) NAME=$2 && shift 2 ;;
      --set) SETTINGS+=("$2") && shift 2 ;;
      --) shift && REST=("$@") && break ;;
      *) usage "unknown argument '$1'" ;;
    esac
  done
  [[ $NAME =~ ^[a-z0-9_-]+$ ]] || die "instance name '$NAME': use lower-case letters, digits, _ and -"
  DIR=$INSTANCES/$NAME
  DATA=$DIR/data
}

# --- the server's user and places ------------------------------------------------------------------

# Runs a program of the server as the server's user, from a folder and with a home that user can read.
as_server_user() {
  local drop=()
  if is_root; then drop=(setpriv --reuid="$SERVER_USER" --regid="$SERVER_USER" --init-groups); fi
  (cd / && exec env HOME="$DIR" "${drop[@]}" "$@" 9>&-)
}

create_server_user() {
  is_root || return 0
  id -u "$SERVER_USER" >/dev/null 2>&1 && return 0
  say "creating the system user $SERVER_USER: PostgreSQL does not run as root"
  useradd --system --user-group --no-create-home --home-dir "$INSTANCES" --shell /usr/sbin/nologin \
    "$SERVER_USER" 2>/dev/null || id -u "$SERVER_USER" >/dev/null ||
    die "could not create the system user $SERVER_USER"
}

# The program that the instance's server was last started with, or nothing. The file's first line is
# /path/to/postgres "-D" "/path/to/data".
last_program() { sed -n '1s/ "-D" .*//p' "$DATA/postmaster.opts" 2>/dev/null || true; }

# Sets PG_CONFIG_PATH and BIN of the server that the instance was last started with: whoever stops or
# removes it need not name that server again. False if it has never been started.
find_last_server() {
  local program
  program=$(last_program)
  [ -n "$program" ] || return 1
  BIN=$(dirname "$program")
  PG_CONFIG_PATH=$BIN/pg_config
}

# Sets PG_CONFIG_PATH, BIN, MAJOR and SHARE of the server that instances are started with.
find_server() {
  PG_CONFIG_PATH=$(pg_config_path)
  [ -x "$PG_CONFIG_PATH" ] || die "PostgreSQL is not there yet" "Run 'make start' (or scripts/setup.sh)."
  BIN=$("$PG_CONFIG_PATH" --bindir)
  MAJOR=$(pg_major "$PG_CONFIG_PATH")
  SHARE=$("$PG_CONFIG_PATH" --sharedir)
  [ -x "$BIN/postgres" ] || die "there is no server in $BIN" \
    "PG_CONFIG names a PostgreSQL without its server: install the server package too."
}

# A unix socket's path, its final NUL included, has room for 108 bytes: below a deep cache folder the
# socket goes to a short path that is derived from the instance's.
socket_folder() {
  local LC_ALL=C path=$DIR/.s.PGSQL.$PORT
  if [ "${#path}" -le 107 ]; then
    printf '%s\n' "$DIR"
  else
    echo "/tmp/ner_retriever-$(id -u)-$(printf '%s' "$DIR" | sha256sum | cut -c 1-12)"
  fi
}

# A folder of the server's user that nobody else can read; refuses one that another user prepared.
own_folder() {
  if mkdir -m 700 "$1" 2>/dev/null; then
    if is_root; then chown "$SERVER_USER:" "$1"; fi
  elif [ ! -d "$1" ] || [ -L "$1" ]; then
    die "cannot create the folder $1"
  fi
  local owner
  owner=$(stat -c %U "$1")
  [ "$owner" = "$(if is_root; then echo "$SERVER_USER"; else id -un; fi)" ] ||
    die "the folder $1 belongs to the user $owner" "Remove it, or set NER_RETRIEVER_CACHE to another folder."
}

# --- instance --------------------------------------------------------------------------------------

is_running() { [ -f "$DATA/postmaster.pid" ] && [ -n "${BIN:-}" ] && as_server_user "$BIN/pg_ctl" status -D "$DATA" >/dev/null 2>&1; }

postmaster_pid() { head -n 1 "$DATA/postmaster.pid"; }

create_instance() {
  mkdir -p "$INSTANCES"
  own_folder "$DIR"
  if is_root && ! as_server_user test -r "$BIN/postgres" -a -w "$DIR"; then
    die "the user $SERVER_USER cannot reach $BIN or $DIR" \
      "As root, the cache folder must be readable for everyone on its whole path: set NER_RETRIEVER_CACHE."
  fi
  if [ -d "$DATA" ]; then
    local made_by
    made_by=$(cat "$DATA/PG_VERSION")
    [ "$made_by" = "$MAJOR" ] || die "instance '$NAME' was made by PostgreSQL $made_by, this server is $MAJOR" \
      "Remove it with its data (scripts/server.sh remove --instance $NAME), or choose another --instance."
    return
  fi
  say "creating instance '$NAME' in $DIR"
  local provider=()
  if [ "$MAJOR" -ge 17 ]; then provider=(--locale-provider=builtin --builtin-locale=C.UTF-8); fi
  # Made aside and renamed: an interrupted initdb leaves nothing that looks like a server.
  as_server_user rm -rf "$DATA.new"
  as_server_user "$BIN/initdb" -D "$DATA.new" -U "$SUPERUSER" --auth-local=trust --auth-host=reject \
    --encoding=UTF8 --locale=C.UTF-8 "${provider[@]}" >"$DIR/initdb.log" 2>&1 ||
    die "initdb failed" "$(tail -n 5 "$DIR/initdb.log")"
  as_server_user tee -a "$DATA.new/postgresql.conf" >/dev/null <<<"
include = '../instance.conf'
include_if_exists = '../settings.conf'"
  as_server_user mv -T "$DATA.new" "$DATA"
}

# A value as a string of postgresql.conf.
quoted() { printf "'%s'" "${1//\'/\'\'}"; }

settings_lines() {
  local setting
  for setting in "${SETTINGS[@]}"; do
    [[ $setting =~ ^[A-Za-z_][A-Za-z0-9_.]*=.*$ ]] || die "--set $setting: write it as SETTING=VALUE"
    echo "${setting%%=*} = $(quoted "${setting#*=}")"
  done
}

# Why a running server must be restarted, or nothing. DIR/started is as old as the server's start.
restart_reason() {
  local file lines
  if ! [ "$(last_program)" -ef "$BIN/postgres" ]; then
    echo "it runs another PostgreSQL than that in $BIN"
    return
  fi
  lines=$(settings_lines)
  if [ "${#SETTINGS[@]}" -gt 0 ] && [ "$lines" != "$(cat "$DIR/settings.conf" 2>/dev/null)" ]; then
    echo "its settings changed"
    return
  fi
  while read -r file; do
    if [ "$file" -nt "$DIR/started" ]; then
      echo "$file is newer"
      return
    fi
  done < <(cat "$SHARE/ner_retriever/installed-files" 2>/dev/null)
}

write_settings() {
  local socket
  socket=$(socket_folder)
  [ "$socket" = "$DIR" ] || own_folder "$socket"
  as_server_user tee "$DIR/instance.conf" >/dev/null <<<"listen_addresses = ''
port = $PORT
unix_socket_directories = $(quoted "$socket")
unix_socket_permissions = 0700"
  if [ "${#SETTINGS[@]}" -gt 0 ]; then settings_lines | as_server_user tee "$DIR/settings.conf" >/dev/null; fi
}

start_postgres() {
  local attempt
  write_settings
  as_server_user touch "$DIR/started"
  for attempt in 1 2 3 4 5; do
    as_server_user "$BIN/pg_ctl" start -D "$DATA" -l "$DIR/server.log" -w -t "$START_TIMEOUT" >/dev/null 2>&1 && return
    # After kill -9 of a postmaster its sessions end a moment later.
    tail -n 3 "$DIR/server.log" | grep -q 'is still in use' || break
    sleep "$attempt"
  done
  die "the server did not start; the end of $DIR/server.log:" "$(tail -n 10 "$DIR/server.log")"
}

stop_postgres() {
  as_server_user "$BIN/pg_ctl" stop -D "$DATA" -m fast -w -t 30 >/dev/null 2>&1 ||
    as_server_user "$BIN/pg_ctl" stop -D "$DATA" -m immediate -w >/dev/null 2>&1 ||
    die "the server of instance '$NAME' (process $(postmaster_pid)) does not stop"
}

# --- database --------------------------------------------------------------------------------------

# One SQL statement as the superuser in the database $1; prints bare values.
sql() { "$BIN/psql" -X -A -t -q -v ON_ERROR_STOP=1 -h "$(socket_folder)" -p "$PORT" -U "$SUPERUSER" -d "$1" -c "$2"; }

has_extension() { [ "$(sql "$DATABASE" "select count(*) from pg_extension where extname = '$1'")" = 1 ]; }

check_installed() {
  [ -f "$SHARE/extension/vector.control" ] || die "pgvector is not installed in this server ($SHARE/extension)" \
    "Install pgvector $PGVECTOR_MINIMUM or newer, for example the package postgresql-$MAJOR-pgvector."
  [ -f "$SHARE/extension/ner_retriever.control" ] || die "ner_retriever is not installed in this server yet" \
    "Run 'make start', or 'make install' first."
}

create_database() {
  [ "$(sql postgres "select count(*) from pg_database where datname = '$DATABASE'")" = 1 ] ||
    sql postgres "create database $DATABASE"
  has_extension vector || sql "$DATABASE" "create extension vector"
  create_extension
}

# Creates the extension, or creates it anew if the SQL it was created from is not the installed one.
create_extension() {
  local sum recorded
  sum=$(cat "$SHARE"/extension/ner_retriever{.control,--*.sql} | sha256sum)
  recorded=$(cat "$DIR/extension-sql.sha256" 2>/dev/null || true)
  if has_extension ner_retriever; then
    [ "$sum" != "$recorded" ] || return 0
    say "the extension's SQL changed: creating it anew in instance '$NAME'"
    # The demo's managed index depends on it; the demo makes its tables anew each time.
    sql "$DATABASE" "set client_min_messages = warning; drop table if exists demo.hit, demo.text"
    sql "$DATABASE" "drop extension ner_retriever" >&2 ||
      die "objects of yours depend on the old one (listed above)" \
        "Drop them, or remove the instance with its data: scripts/server.sh remove --instance $NAME"
  fi
  sql "$DATABASE" "create extension ner_retriever"
  as_server_user tee "$DIR/extension-sql.sha256" >/dev/null <<<"$sum"
}

# --- commands --------------------------------------------------------------------------------------

# Waits until a server that is just starting or just dying (kill -9 of its postmaster) is one or the other.
settle() {
  local deadline=$((SECONDS + START_TIMEOUT))
  while is_running && ! "$BIN/pg_isready" -q -h "$(socket_folder)" -p "$PORT"; do
    [ "$SECONDS" -lt "$deadline" ] || die "process $(postmaster_pid) of instance '$NAME' does not answer"
    sleep 0.1
  done
}

start() {
  check_installed
  create_server_user
  create_instance
  settle
  if is_running; then
    local reason
    reason=$(restart_reason)
    if [ -z "$reason" ]; then
      create_database
      say "instance '$NAME' runs (process $(postmaster_pid))"
      return
    fi
    say "restarting instance '$NAME': $reason"
    stop_postgres
  fi
  start_postgres
  create_database
  say "instance '$NAME' started (process $(postmaster_pid), log $DIR/server.log)"
}

stop() {
  if ! is_running; then
    say "instance '$NAME' does not run"
    return
  fi
  stop_postgres
  say "instance '$NAME' stopped"
}

status() {
  if ! is_running; then
    echo "instance '$NAME' does not run"
    exit 3
  fi
  echo "instance '$NAME' runs: process $(postmaster_pid), socket $(socket_folder)/.s.PGSQL.$PORT"
}

connection() {
  printf '%s=%q\n' PGHOST "$(socket_folder)" PGPORT "$PORT" PGUSER "$SUPERUSER" PGDATABASE "$DATABASE" \
    PGDATA "$DATA" PG_CONFIG "$PG_CONFIG_PATH"
}

run_connected() {
  is_running || die "instance '$NAME' does not run" "Start it: make start (or scripts/server.sh start --instance $NAME)"
  set -a
  eval "$(connection)"
  set +a
  PATH=$BIN:$PATH exec "$@"
}

remove() {
  if is_running; then stop; fi
  if [ "$(socket_folder)" != "$DIR" ]; then rm -rf "$(socket_folder)"; fi
  rm -rf "$DIR"
}

parse_arguments "$@"
case $COMMAND in
  start | restart) find_server ;;
  env) find_last_server || find_server ;;
  *) find_last_server || true ;;
esac
case $COMMAND in
  start)
    take_lock "instance-$NAME"
    start
    ;;
  restart)
    check_installed
    take_lock "instance-$NAME"
    stop
    start
    ;;
  stop)
    take_lock "instance-$NAME"
    stop
    ;;
  remove)
    take_lock "instance-$NAME"
    remove
    ;;
  status) status ;;
  pid) if is_running; then postmaster_pid; else status; fi ;;
  env) connection ;;
  psql) run_connected psql "${REST[@]}" ;;
  exec) run_connected "${REST[@]}" ;;
  *) usage "unknown command '$COMMAND'" ;;
esac
