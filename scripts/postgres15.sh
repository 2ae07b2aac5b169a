#!/usr/bin/env bash
# Makes PostgreSQL 15 with pgvector available for the tests, as root on Debian 12: Debian's packages of the
# server, and pgvector, which Debian 12 does not have, built from a newer Debian's source package.
# usage: postgres15.sh [install|check|copy]
#   install  installs what is missing (default); cheap when everything is there
#   check    prints the pg_config, or what is missing; exit status 1 then
#   copy     makes a private copy of the server for the tests, and prints the copy's root folder
#   PG15_CONFIG  the pg_config of another PostgreSQL 15, whose server packages are yours to install
set -euo pipefail
# shellcheck source=scripts/common.sh
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

CONFIG=${PG15_CONFIG:-/usr/lib/postgresql/15/bin/pg_config}
# Suites whose pgvector is tried, the best first: trixie's is older than PGVECTOR_MINIMUM.
SUITES="sid trixie"
KEYRING=/usr/share/keyrings/debian-archive-keyring.gpg
COPY=$CACHE/postgresql-15
WORK=$CACHE/postgresql-15-work

# --- what is there ---------------------------------------------------------------------------------

has_server() { [ -x "$CONFIG" ] && [ -x "$("$CONFIG" --bindir)/postgres" ]; }

has_headers() { [ -f "$("$CONFIG" --includedir-server)/postgres.h" ]; }

# The version of the server's pgvector, or nothing.
pgvector_version() {
  sed -n "s/^default_version *= *'\(.*\)'.*/\1/p" "$("$CONFIG" --sharedir)/extension/vector.control" 2>/dev/null || true
}

# What the server lacks, in words; nothing if it lacks nothing.
missing() {
  if ! has_server; then
    echo "there is no PostgreSQL 15 server of $CONFIG"
  elif [ "$(pg_major "$CONFIG")" != 15 ]; then
    echo "$CONFIG is not of PostgreSQL 15 but of $("$CONFIG" --version)"
  elif ! has_headers; then
    echo "the headers of the server of $CONFIG are missing"
  elif [ -z "$(pgvector_version)" ]; then
    echo "the server of $CONFIG has no pgvector"
  fi
}

# --- server ----------------------------------------------------------------------------------------

# Installs Debian's packages, and neither creates nor starts a server: the tests have clusters of their own.
install_server() {
  local settings=/etc/postgresql-common/createcluster.d/ner_retriever.conf policy=/usr/sbin/policy-rc.d
  say "installing postgresql-15 and postgresql-server-dev-15"
  apt-get update -q >&2
  apt-cache show postgresql-15 >/dev/null 2>&1 || die "this machine's package sources have no postgresql-15" \
    "Name another PostgreSQL 15 with its headers: PG15_CONFIG=/path/to/pg_config scripts/postgres15.sh"
  # Both are there for this installation only. A file of the machine's own stays.
  TEMPORARY=("$settings")
  mkdir -p "$(dirname "$settings")"
  echo 'create_main_cluster = false' >"$settings"
  if [ ! -e "$policy" ]; then
    TEMPORARY+=("$policy")
    printf '%s\n' '#!/bin/sh' 'exit 101' >"$policy"
    chmod 755 "$policy"
  fi
  DEBIAN_FRONTEND=noninteractive apt-get install -q -y --no-install-recommends \
    postgresql-15 postgresql-server-dev-15 >&2
  remove_temporary
}

TEMPORARY=()
remove_temporary() {
  if [ "${#TEMPORARY[@]}" -gt 0 ]; then rm -f -- "${TEMPORARY[@]}"; fi
  TEMPORARY=()
  rmdir --ignore-fail-on-non-empty /etc/postgresql-common/createcluster.d 2>/dev/null || true
}

# --- pgvector --------------------------------------------------------------------------------------

# apt-get with the suite's sources alone, in folders of its own: the machine's configuration stays.
private_apt() {
  apt-get -q -o Dir::Etc::SourceList="$WORK/sources.list" -o Dir::Etc::SourceParts=/dev/null \
    -o Dir::State::Lists="$WORK/lists" -o Dir::Cache="$WORK/cache" -o Acquire::Languages=none \
    -o APT::Sandbox::User=root "$@" >&2
}

# The mirror that this machine has Debian's packages from. Its lists must be there: they say what is Debian's.
mirror() {
  # shellcheck disable=SC2016 # apt-get replaces the name.
  apt-get indextargets --format '$(REPO_URI)' 'Created-By: Packages' 'Origin: Debian' 'Label: Debian' | head -n 1
}

# Leaves pgvector's source of the suite $1 in WORK, as its authors published it: Debian's changes are to
# the packaging. True if that worked.
download_pgvector() {
  local uri
  uri=$(mirror)
  if [ -z "$uri" ] && apt-get update -q >&2; then uri=$(mirror); fi
  [ -n "$uri" ] || die "this machine's package sources name no Debian mirror" \
    "Install pgvector $PGVECTOR_MINIMUM or newer for the server of $CONFIG yourself."
  rm -rf "$WORK"
  mkdir -p "$WORK/lists/partial" "$WORK/cache/archives/partial" "$WORK/source"
  echo "deb-src [signed-by=$KEYRING] $uri $1 main" >"$WORK/sources.list"
  private_apt update && (cd "$WORK/source" && private_apt source --download-only --only-source pgvector) &&
    tar -xf "$WORK"/source/pgvector_*.orig.tar.* --strip-components=1 -C "$WORK/source"
}

install_pgvector() {
  local suite found
  for suite in $SUITES; do
    say "downloading pgvector's source package from $suite"
    download_pgvector "$suite" || continue
    found=$(sed -n "s/^default_version *= *'\(.*\)'.*/\1/p" "$WORK/source/vector.control")
    say "building pgvector $found for $("$CONFIG" --version)"
    # Not for this machine's processor alone. Without the code for just-in-time compilation, which takes clang.
    make -s -C "$WORK/source" OPTFLAGS="" with_llvm=no PG_CONFIG="$CONFIG" install >&2
    rm -rf "$WORK"
    version_at_least "$found" "$PGVECTOR_MINIMUM" ||
      say "warning: pgvector $found is older than $PGVECTOR_MINIMUM; it is enough for the tests"
    return
  done
  die "pgvector's source package could not be downloaded (see above)" \
    "Install pgvector $PGVECTOR_MINIMUM or newer for the server of $CONFIG yourself."
}

# --- commands --------------------------------------------------------------------------------------

install() {
  local problem
  problem=$(missing)
  [ -n "$problem" ] || return 0
  is_root || die "$problem" "Run this as root: sudo scripts/postgres15.sh"
  take_lock postgres15
  trap remove_temporary EXIT
  if ! has_server || ! has_headers; then
    [ -z "${PG15_CONFIG:-}" ] || die "$problem" "Install the server and its headers, or unset PG15_CONFIG."
    command -v apt-get >/dev/null || die "$problem" "Only Debian's package manager is known here: set PG15_CONFIG."
    install_server 9>&-
  fi
  if [ -z "$(pgvector_version)" ]; then install_pgvector 9>&-; fi
  problem=$(missing)
  [ -z "$problem" ] || die "$problem"
}

check() {
  local problem
  problem=$(missing)
  if [ -n "$problem" ]; then
    say "$problem (scripts/postgres15.sh installs it)"
    exit 1
  fi
  printf '%s\n' "$CONFIG"
}

# A server finds its files from where its own program is, so that a copy with the same folders below another
# root is complete. The tests install the extension into it and leave alone the server that others may use.
copy() {
  local folder
  rm -rf "$COPY"
  for folder in --bindir --pkglibdir --sharedir; do
    folder=$("$CONFIG" "$folder")
    mkdir -p "$COPY$folder"
    cp -a "$folder/." "$COPY$folder"
  done
  # What people have installed into the server is not what is tested.
  rm -rf "$COPY$("$CONFIG" --sharedir)"/{extension/ner_retriever*,ner_retriever}
  printf '%s\n' "$COPY"
}

case ${1:-install} in
  install) install ;;
  check) check ;;
  copy)
    check >/dev/null
    copy
    ;;
  *) die "unknown command '$1'" "usage: postgres15.sh [install|check|copy]" ;;
esac
