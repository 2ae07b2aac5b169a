#!/usr/bin/env bash
# Runs every test: the crates alone, then against a fresh server with the installed extension.
# The last line is "N passed, N failed" with the counts that the test runners reported.
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

cd "$REPO"
MODEL='' "$SCRIPTS/setup.sh"
claim_build_folder "$CARGO_TARGET_DIR"
LOG=$(mktemp "$CARGO_TARGET_DIR/test-log.XXXXXX")
trap 'rm -f "$LOG"' EXIT
export_test_environment

logged cargo test --release --no-fail-fast -p ner-retriever-protocol -p ner-retriever-feedback -p ner-retriever-engine \
  -p ner-retriever-report
if MODEL='' "$SCRIPTS/install.sh" install && "$SCRIPTS/server.sh" remove --instance "$INSTANCE" &&
  "$SCRIPTS/server.sh" start --instance "$INSTANCE"; then
  logged "$SCRIPTS/server.sh" exec --instance "$INSTANCE" -- \
    cargo test --release --no-fail-fast -p ner-retriever-tests
  "$SCRIPTS/server.sh" stop --instance "$INSTANCE"
else
  say "the tests against a server did not run"
  FAILED=1
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
