#!/usr/bin/env bash
# Stops and removes all instances and the build output; downloads stay.
# usage: clean.sh [all]
#   all  removes the downloads, the private PostgreSQL, the models, the features of training and the peers of
#        make bench as well
set -euo pipefail
# shellcheck source=scripts/common.sh
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

for instance in "$INSTANCES"/*/; do
  [ -d "$instance" ] || continue
  say "removing instance '$(basename "$instance")'"
  "$REPO/scripts/server.sh" remove --instance "$(basename "$instance")"
done
say "removing the build output in $CARGO_TARGET_DIR"
rm -rf "$CARGO_TARGET_DIR" "$INSTANCES" "$CACHE/scratch" "$CACHE"/postgresql-15{,-work}

if [ "${1:-}" = all ]; then
  say "removing downloads, private PostgreSQL, compilers, models, features and peers in $CACHE"
  # By name, not the whole folder: NER_RETRIEVER_CACHE may hold something else too.
  rm -rf "$DOWNLOADS" "$POSTGRES_HOME" "$CACHE/models" "$MINILM_FOLDER" "$CUDA_FOLDER" "$CACHE/features" \
    "$BENCH_FOLDER" "$CACHE/locks"
  if [ -d "$CACHE" ]; then rmdir --ignore-fail-on-non-empty "$CACHE"; fi
fi
