#!/usr/bin/env bash
# Runs every test: the crates alone, then against a fresh server with the installed extension, then what
# must work on every supported server on PostgreSQL 15, where that is there (scripts/postgres15.sh).
# The last line is "N passed, N failed" with the counts that the test runners reported.
# usage: test.sh [15]
#   15           only the tests against a server, all of them, on PostgreSQL 15
#   PG15_CONFIG  the pg_config of a PostgreSQL 15 with pgvector (default: Debian's)
set -euo pipefail
# shellcheck source=scripts/common.sh
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

SCRIPTS=$REPO/scripts
INSTANCE='test'

# Runs a command whose output goes to the log as well; remembers whether any command failed.
FAILED=0
logged() { "$@" 2>&1 | tee -a "$LOG" || FAILED=1; }

# The sum of the counts named $1 over the summaries of all test programs in the log.
count() { awk -v word="$1" '/^test result: / { for (i = 2; i <= NF; i++) if ($i == word ";") sum += $(i - 1) } END { print sum + 0 }' "$LOG"; }

# What the tests of the crate tests/ find in their environment, beside the connection.
export_test_environment() {
  export NER_RETRIEVER_SERVER_SCRIPT=$SCRIPTS/server.sh
  export NER_RETRIEVER_MODEL=$MODEL_FILE
  export NER_RETRIEVER_HEAD=$HEAD_FOLDER
  export NER_RETRIEVER_ENGINE=$ENGINE_BINARY
  # The tests do not need it, and use it where it has been built.
  if [ -x "$ENGINE_CUDA_BINARY" ]; then export NER_RETRIEVER_ENGINE_CUDA=$ENGINE_CUDA_BINARY; fi
  if [ -d "$MINILM_FOLDER" ]; then export NER_RETRIEVER_MINILM=$MINILM_FOLDER; fi
  if [ -d "$REPO/../shared" ]; then
    NER_RETRIEVER_SHARED=$(cd "$REPO/../shared" && pwd)
    export NER_RETRIEVER_SHARED
  fi
}

# Runs tests of the crate tests/ against the instance $1 of the server that PG_CONFIG names; the arguments
# after it are cargo's.
test_server() {
  local instance=$1
  shift
  if "$SCRIPTS/server.sh" remove --instance "$instance" && "$SCRIPTS/server.sh" start --instance "$instance"; then
    logged "$SCRIPTS/server.sh" exec --instance "$instance" -- \
      cargo test --release --no-fail-fast -p ner-retriever-tests "$@"
    "$SCRIPTS/server.sh" stop --instance "$instance"
  else
    say "the tests against the server of instance '$instance' did not run"
    FAILED=1
  fi
}

# The same on PostgreSQL 15, in a copy of it: the server that others may use stays as it is, and whoever may
# not write to its folders can run the tests. False, and one line that says why, if there is none.
test_postgres15() {
  local config copy
  if ! config=$("$SCRIPTS/postgres15.sh" check 2>&1); then
    say "the tests on PostgreSQL 15 are skipped: $config"
    return 1
  fi
  # One that an interrupted run has left behind uses the copy.
  if "$SCRIPTS/server.sh" remove --instance test15 && copy=$("$SCRIPTS/postgres15.sh" copy) &&
    MODEL='' DESTDIR=$copy PG_CONFIG=$config "$SCRIPTS/install.sh" install; then
    PG_CONFIG=$copy$config test_server test15 "$@"
  else
    say "the tests on PostgreSQL 15 did not run"
    FAILED=1
  fi
}

case ${1:-} in
  '' | 15) ;;
  *) die "unknown argument '$1'" "usage: test.sh [15]" ;;
esac
cd "$REPO"
MODEL='' "$SCRIPTS/setup.sh"
claim_build_folder "$CARGO_TARGET_DIR"
LOG=$(mktemp "$CARGO_TARGET_DIR/test-log.XXXXXX")
trap 'rm -f "$LOG"' EXIT
export_test_environment

if [ "${1:-}" = 15 ]; then
  test_postgres15 || exit 1
else
  logged cargo test --release --no-fail-fast -p ner-retriever-protocol -p ner-retriever-feedback \
    -p ner-retriever-engine -p ner-retriever-report
  if MODEL='' "$SCRIPTS/install.sh" install; then test_server "$INSTANCE"; else FAILED=1; fi
  test_postgres15 --test supported_servers || true
fi

passed=$(count passed)
failed=$(count failed)
# What did not build, died or was not reached reports no count of its own.
if [ "$FAILED" = 1 ] && [ "$failed" = 0 ]; then
  say "not all tests could run (see above): counted as one failure"
  failed=1
fi
echo "$passed passed, $failed failed"
[ "$failed" = 0 ]
