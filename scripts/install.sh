#!/usr/bin/env bash
# Builds the extension and the engine and puts them where a PostgreSQL server finds them.
# usage: install.sh install|build|copy|uninstall
#   install    build, then copy
#   build      only build; needs no right to write to the server's folders
#   copy       only copy what build made
#   uninstall  removes exactly what copy put there
#   PG_CONFIG   the server's pg_config (default: the private PostgreSQL)
#   DESTDIR     a prefix of all installed paths, for packagers
#   MODEL=none  leaves the default model (94 MB) out
#   CUDA=1      with the engine for NVIDIA GPUs (scripts/engine_cuda.sh); without it one that an earlier
#               run has put there is removed
set -euo pipefail
# shellcheck source=scripts/common.sh
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

SCRIPTS=$REPO/scripts
DESTDIR=${DESTDIR:-}

case ${CUDA:-} in
  '' | 0 | 1) ;;
  *) die "CUDA is '$CUDA': it may be 1 or 0" "For a toolkit of your own set CUDA_HOME as well." ;;
esac
with_cuda() { [ "${CUDA:-0}" = 1 ]; }

find_server() {
  local version
  PG_CONFIG_PATH=$(pg_config_path)
  version=$("$PG_CONFIG_PATH" --version | head -n 1) || die "'$PG_CONFIG_PATH --version' failed" \
    "PG_CONFIG must name the server's pg_config."
  MAJOR=$(pg_major "$PG_CONFIG_PATH")
  [[ " $SUPPORTED_MAJORS " == *" $MAJOR "* ]] ||
    die "$PG_CONFIG_PATH belongs to ${version:-nothing known}" "Supported are PostgreSQL $SUPPORTED_MAJORS."
  PACKAGE_LIBRARIES=$("$PG_CONFIG_PATH" --pkglibdir)
  SHARE=$("$PG_CONFIG_PATH" --sharedir)
  # The list of installed files, without DESTDIR: what uninstall removes, one path a line.
  MANIFEST=$SHARE/ner_retriever/installed-files
  # The bindings differ between majors: builds for others never share a folder with the default one.
  EXTENSION_TARGET=$CARGO_TARGET_DIR
  [ "$MAJOR" = "${POSTGRES_VERSION%%.*}" ] || EXTENSION_TARGET=$CARGO_TARGET_DIR/pg$MAJOR
}

# --- build -----------------------------------------------------------------------------------------

set_up() {
  "$SCRIPTS/setup.sh" tools postgresql
  if ! "$SCRIPTS/setup.sh" model; then
    own_postgres || exit 1
    say "warning: the default model could not be had (see above): it is left out"
  fi
}

check_headers() {
  local headers
  headers=$("$PG_CONFIG_PATH" --includedir-server)
  [ -f "$headers/postgres.h" ] || die "the server's headers are missing: there is no $headers/postgres.h" \
    "Install them: on Debian the package postgresql-server-dev-$MAJOR."
}

build() {
  say "building for $("$PG_CONFIG_PATH" --version)"
  cd "$REPO"
  claim_build_folder "$CARGO_TARGET_DIR"
  claim_build_folder "$EXTENSION_TARGET"
  cargo build --release -p ner-retriever-engine 9>&-
  if with_cuda; then "$SCRIPTS/engine_cuda.sh" build 9>&-; fi
  PGRX_PG_CONFIG_PATH=$PG_CONFIG_PATH CARGO_TARGET_DIR=$EXTENSION_TARGET \
    cargo build --release -p ner_retriever --no-default-features --features "pg$MAJOR" 9>&-
  build_sql
}

# Makes the scripts of CREATE EXTENSION and ALTER EXTENSION UPDATE: a release after the first has a folder
# named after its version, whose parts are put together in the order of their names.
build_sql() {
  local folder version previous=0.1.0
  folder=$(sql_folder)
  rm -rf -- "$folder"
  mkdir -p "$folder"
  script_for_server "$REPO/sql/ner_retriever--$previous.sql" >"$folder/ner_retriever--$previous.sql"
  for version in $(find "$REPO"/sql/* -maxdepth 0 -type d -printf '%f\n' | sort -V); do
    script_for_server "$REPO/sql/$version"/*.sql >"$folder/ner_retriever--$previous--$version.sql"
    previous=$version
  done
}

# Puts the files of a script together. A server before 16 leaves @extschema:vector@, the schema of pgvector,
# as it is: there the paragraphs with this name go into strings, in which a block replaces it when the
# script runs. The script's search_path stays as it is, so that no other type can be meant. A paragraph
# ends at an empty line outside of a function's body.
script_for_server() {
  if [ "$MAJOR" -ge 16 ]; then
    cat -- "$@"
  else
    cat -- "$@" | BEFORE=$(before_vector) AFTER=$(after_vector) awk -v RS= -v ORS='\n\n' '
      function put() {
        print index(part, "@extschema:vector@") ? ENVIRON["BEFORE"] "\n" part "\n" ENVIRON["AFTER"] : part
        part = ""
      }
      { part = part (part == "" ? "" : "\n\n") $0 }
      # As many quotes open a body as close one.
      split(part, pieces, /[$][$]/) % 2 == 1 { put() }
      END { if (part != "") put() }'
  fi
}

before_vector() {
  cat <<'SQL'
DO $vector$
DECLARE
    home name := (
        SELECT n.nspname FROM pg_catalog.pg_extension AS e
        JOIN pg_catalog.pg_namespace AS n ON n.oid OPERATOR(pg_catalog.=) e.extnamespace
        WHERE e.extname OPERATOR(pg_catalog.=) 'vector');
BEGIN
    -- Servers from 16 on refuse them as well: they could end the string that the name stands in.
    IF home OPERATOR(pg_catalog.~) E'["$\'\\\\]' THEN
        RAISE EXCEPTION 'invalid character in extension "vector" schema: must not contain any of %', E'"$\'\\'
            USING ERRCODE = 'invalid_object_definition';
    END IF;
    EXECUTE pg_catalog.replace($statements$
SQL
}

after_vector() {
  cat <<'SQL'
$statements$, '@extschema:vector@', pg_catalog.quote_ident(home));
END
$vector$;
SQL
}

# Where the SQL files for this server are.
sql_folder() { echo "$EXTENSION_TARGET/sql"; }

# --- copy ------------------------------------------------------------------------------------------

# True for a server of the caller's: the private one is looked after by server.sh, a package by its maker.
advises() { own_postgres && [ -z "$DESTDIR" ]; }

# Lists what belongs into the server, one "MODE<tab>SOURCE<tab>FOLDER" a line.
plan() {
  local file
  printf '755\t%s\t%s\n' "$EXTENSION_TARGET/release/libner_retriever.so" "$PACKAGE_LIBRARIES"
  printf '755\t%s\t%s\n' "$ENGINE_BINARY" "$PACKAGE_LIBRARIES"
  if with_cuda; then printf '755\t%s\t%s\n' "$ENGINE_CUDA_BINARY" "$PACKAGE_LIBRARIES"; fi
  printf '644\t%s\t%s\n' "$REPO/ner_retriever.control" "$SHARE/extension"
  for file in "$(sql_folder)"/ner_retriever--*.sql; do
    printf '644\t%s\t%s\n' "$file" "$SHARE/extension"
  done
  for file in "$REPO"/heads/*/*; do
    printf '644\t%s\t%s\n' "$file" "$SHARE/ner_retriever/heads/$(basename "$(dirname "$file")")"
  done
  if [ "${MODEL:-}" != none ] && [ -f "$MODEL_FILE" ]; then
    printf '644\t%s\t%s\n' "$MODEL_FILE" "$SHARE/ner_retriever/models"
  fi
}

installed_name() {
  case $1 in
    */libner_retriever.so) echo ner_retriever.so ;;
    "$ENGINE_CUDA_BINARY") echo ner-retriever-engine-cuda ;;
    *) basename "$1" ;;
  esac
}

# Copies the file $2 to $3 with the mode $1. Renamed into place: a running server keeps the library
# that it has mapped.
put() {
  local mode=$1 source=$2 target=$DESTDIR$3
  if cmp -s "$source" "$target"; then
    say "  up to date  $target"
    return
  fi
  if [ -e "$target" ]; then REPLACED=1; fi
  mkdir -p "$(dirname "$target")"
  if ! cp -- "$source" "$target.new" || ! chmod "$mode" "$target.new" || ! mv -f -- "$target.new" "$target"; then
    rm -f -- "$target.new"
    die "could not copy $source to $target" \
      "When that is solved, install again; 'uninstall' with the same settings removes what is there."
  fi
  say "  installed   $target"
}

# Fails before anything is changed if a folder cannot be written to; $1 is the command for root and $2
# what to say of it.
check_writable() {
  local folder command
  command=(sudo env "PG_CONFIG=$PG_CONFIG_PATH" "NER_RETRIEVER_CACHE=$CACHE")
  if [ -n "${MODEL:-}" ]; then command+=("MODEL=$MODEL"); fi
  if with_cuda; then command+=("CUDA=1"); fi
  if [ -n "$DESTDIR" ]; then command+=("DESTDIR=$DESTDIR"); fi
  for folder in "$PACKAGE_LIBRARIES" "$SHARE/extension" "$SHARE/ner_retriever"; do
    folder=$DESTDIR$folder
    while [ ! -e "$folder" ]; do folder=$(dirname "$folder"); done
    [ -w "$folder" ] || die "cannot write to $folder" "$2" \
      " $(printf ' %q' "${command[@]}" "$SCRIPTS/install.sh" "$1")"
  done
}

check_pgvector() {
  local control=$SHARE/extension/vector.control version
  if [ ! -f "$control" ]; then
    say "warning: this server has no pgvector: install $PGVECTOR_MINIMUM or newer before 'create extension ner_retriever'"
    return
  fi
  version=$(sed -n "s/^default_version *= *'\(.*\)'.*/\1/p" "$control")
  version_at_least "$version" "$PGVECTOR_MINIMUM" ||
    say "warning: this server's pgvector is $version; use $PGVECTOR_MINIMUM or newer (security and index fixes)"
}

# True if the server has what MODES, SOURCES and TARGETS list, and nothing from an earlier version.
is_installed() {
  local i
  [ "$(cat "$DESTDIR$MANIFEST" 2>/dev/null)" = "$(printf '%s\n' "${TARGETS[@]}")" ] || return 1
  for i in "${!TARGETS[@]}"; do
    cmp -s "${SOURCES[i]}" "$DESTDIR${TARGETS[i]}" || return 1
  done
}

copy() {
  local mode source folder i
  MODES=() SOURCES=() TARGETS=() REPLACED=0
  while IFS=$'\t' read -r mode source folder; do
    [ -f "$source" ] || die "there is no $source" "Run 'make install', which builds first, in a complete checkout."
    MODES+=("$mode") SOURCES+=("$source") TARGETS+=("$folder/$(installed_name "$source")")
  done < <(plan)
  # Not only faster: whoever may not write to the server's folders can go on after root has installed.
  if is_installed; then
    say "ner_retriever is installed in $("$PG_CONFIG_PATH" --version) and up to date"
  else
    check_writable copy "Everything is built; finish as root:"
    say "installing into $("$PG_CONFIG_PATH" --version):"
    copy_files
  fi
  check_pgvector
}

copy_files() {
  local i old
  old=$(cat "$DESTDIR$MANIFEST" 2>/dev/null || true)
  mkdir -p "$(dirname "$DESTDIR$MANIFEST")"
  # Listed before they are there: uninstall finds what an interrupted run has left.
  printf '%s\n' "${TARGETS[@]}" ${old:+"$old"} | sort -u >"$DESTDIR$MANIFEST"
  for i in "${!TARGETS[@]}"; do put "${MODES[i]}" "${SOURCES[i]}" "${TARGETS[i]}"; done
  printf '%s\n' "${TARGETS[@]}" >"$DESTDIR$MANIFEST"
  # What an earlier version put there and this one does not.
  { grep -vxF -f "$DESTDIR$MANIFEST" <<<"$old" || true; } | remove_files
  advises || return 0
  if [ "$REPLACED" = 1 ]; then
    say "A server that has used the old files must be restarted to use all of the new ones."
  else
    say "Next, in each database that is to have it: CREATE EXTENSION ner_retriever CASCADE;"
  fi
}

# --- uninstall -------------------------------------------------------------------------------------

# Removes the files named on stdin, and the folders of our own that are empty then.
remove_files() {
  local file
  while read -r file; do
    case $file in
      "$PACKAGE_LIBRARIES"/* | "$SHARE"/*) ;;
      *) continue ;;
    esac
    if [ -e "$DESTDIR$file" ]; then
      rm -f -- "$DESTDIR$file"
      say "  removed     $DESTDIR$file"
    fi
    # Half a file, if a copy was killed.
    rm -f -- "$DESTDIR$file.new"
  done
  if [ -d "$DESTDIR$SHARE/ner_retriever" ]; then
    find "$DESTDIR$SHARE/ner_retriever" -depth -type d -empty -delete
  fi
}

uninstall() {
  if [ ! -f "$DESTDIR$MANIFEST" ]; then
    say "ner_retriever is not installed in $("$PG_CONFIG_PATH" --version) (there is no $DESTDIR$MANIFEST)"
    return
  fi
  check_writable uninstall "Do it as root:"
  say "uninstalling from $("$PG_CONFIG_PATH" --version):"
  { cat "$DESTDIR$MANIFEST" && echo "$MANIFEST"; } | remove_files
  advises || return 0
  say "Next: DROP EXTENSION ner_retriever in the databases that still have it. If shared_preload_libraries" \
    "names it, take it out there: the server cannot start without a library that it preloads."
}

# --- main ------------------------------------------------------------------------------------------

case ${1:-} in
  install | build | copy | uninstall) ;;
  *) die "unknown command '${1:-}'" "usage: install.sh install|build|copy|uninstall" ;;
esac
# A server of the caller's is looked at before minutes of downloading and building, which the private
# one comes out of.
if own_postgres; then find_server; fi
case $1 in
  install | build)
    if own_postgres; then check_headers; fi
    set_up
    ;;
esac
if ! own_postgres; then
  [ -x "$PRIVATE_PG_CONFIG" ] || die "there is no private PostgreSQL in $POSTGRES_HOME" \
    "For a server of your own give PG_CONFIG=/path/to/pg_config."
  find_server
fi
take_lock install
case $1 in
  install)
    build
    copy
    ;;
  build) build ;;
  copy) copy ;;
  uninstall) uninstall ;;
esac
