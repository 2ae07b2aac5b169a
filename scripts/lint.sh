#!/usr/bin/env bash
# Formatting and clippy over the whole workspace; any finding fails.
set -euo pipefail
# shellcheck source=scripts/common.sh
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

cd "$REPO"
MODEL=none "$REPO/scripts/setup.sh" tools postgresql
PGRX_PG_CONFIG_PATH=$(pg_config_path)
export PGRX_PG_CONFIG_PATH
claim_build_folder "$CARGO_TARGET_DIR"
# All three run, so that one call shows all findings.
status=0
cargo fmt --all --check || status=1
cargo clippy --release --workspace --exclude ner_retriever --all-targets -- -D warnings || status=1
cargo clippy --release -p ner_retriever --all-targets --no-default-features \
  --features "pg$(pg_major "$PGRX_PG_CONFIG_PATH")" -- -D warnings || status=1
exit "$status"
