#!/usr/bin/env bash
# The evaluation that people can look at: one HTML page with figures (report/).
# usage: report.sh write [ARGUMENT...]    the page; --help lists the arguments
#        report.sh minilm                 fetches the dense baseline and prints its folder
# The model, the head, the texts with ambiguous words, the cache of features and, if it was fetched,
# the dense baseline are those of this project where the caller names no others. Relative paths among
# the arguments are the caller's.
set -euo pipefail
# shellcheck source=scripts/common.sh
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

write_report() {
  local defaults=()
  "$REPO/scripts/setup.sh" tools
  claim_build_folder "$CARGO_TARGET_DIR"
  cargo build --release --manifest-path "$REPO/Cargo.toml" -p ner-retriever-report >&2
  given --model "$@" || given --help "$@" || {
    MODEL='' "$REPO/scripts/setup.sh" model
    defaults+=(--model "$MODEL_FILE")
  }
  given --head "$@" || defaults+=(--head "$HEAD_FOLDER")
  given --companion-model "$@" || [ ! -f "$MODEL_FILE" ] || defaults+=(--companion-model "$MODEL_FILE")
  given --ambiguous "$@" || defaults+=(--ambiguous "$REPO/report/ambiguous.jsonl")
  given --cache "$@" || defaults+=(--cache "$CACHE/features")
  if [ -d "$MINILM_FOLDER" ]; then given --minilm "$@" || defaults+=(--minilm "$MINILM_FOLDER"); fi
  exec "$CARGO_TARGET_DIR/release/ner-retriever-report" "${defaults[@]}" "$@"
}

case ${1:-} in
  write)
    shift
    write_report "$@"
    ;;
  minilm)
    "$REPO/scripts/setup.sh" minilm
    printf '%s\n' "$MINILM_FOLDER"
    ;;
  *) die "unknown command '${1:-}'" "usage: report.sh write [ARGUMENT...] | minilm" ;;
esac
