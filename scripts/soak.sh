#!/usr/bin/env bash
# Runs made-up histories of managed indexes against a private server, the last line counts them.
# usage: soak.sh [ARGUMENT...]     (those of the program: soak.sh --help lists them)
# Stops at the first difference, which it prints with its history, shrunk.
set -euo pipefail
# shellcheck source=scripts/common.sh
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

cd "$REPO"
MODEL='' "$REPO/scripts/install.sh" install
cargo build --release -p ner-retriever-tests --bins
export NER_RETRIEVER_SERVER_SCRIPT=$REPO/scripts/server.sh
exec "$CARGO_TARGET_DIR/release/histories" "$@"
