#!/usr/bin/env bash
# The engine's program, built if needed, with the default model and head.
# usage: engine.sh path
#        engine.sh eval|train|bench [ARGUMENT...]
# Only the program's own output goes to stdout. Relative paths among the arguments are the caller's.
set -euo pipefail
# shellcheck source=scripts/common.sh
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

build_engine() {
  "$REPO/scripts/setup.sh" tools
  claim_build_folder "$CARGO_TARGET_DIR"
  cargo build --release --manifest-path "$REPO/Cargo.toml" -p ner-retriever-engine >&2
}

# Runs the engine's command $1 with the default model (for companions, too), head and feature cache where the
# caller names no others.
run_with_defaults() {
  local command=$1 defaults=()
  shift
  given --model "$@" || {
    MODEL='' "$REPO/scripts/setup.sh" model
    defaults+=(--model "$MODEL_FILE")
  }
  case $command in
    eval | bench)
      given --head "$@" || defaults+=(--head "$HEAD_FOLDER")
      given --companion-model "$@" || [ ! -f "$MODEL_FILE" ] || defaults+=(--companion-model "$MODEL_FILE")
      ;;
    train) given --cache "$@" || defaults+=(--cache "$CACHE/features") ;;
  esac
  exec "$ENGINE_BINARY" "$command" "${defaults[@]}" "$@"
}

case ${1:-} in
  path)
    build_engine
    printf '%s\n' "$ENGINE_BINARY"
    ;;
  eval | train | bench)
    build_engine
    run_with_defaults "$@"
    ;;
  *) die "unknown command '${1:-}'" "usage: engine.sh path | eval|train|bench [ARGUMENT...]" ;;
esac
