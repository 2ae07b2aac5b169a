#!/usr/bin/env bash
# The engine on a CPU, in one run: the forward pass beside transformers + torch and llama.cpp (peers.py), then
# the engine through SQL (sessions.sh), over the demo's texts or those of a file. Prints Markdown for
# docs/performance.md. Nothing else should run. It takes about 25 minutes, and the first time longer for the
# peers, which it builds and keeps in the cache folder; PEERS_PYTHON=, the python of an environment with
# requirements.txt, saves that.
# usage: run.sh [--texts FILE] [ARGUMENT of peers.py...]       (a text a line)
set -euo pipefail
# shellcheck source=scripts/common.sh
source "$(dirname "${BASH_SOURCE[0]}")/../../scripts/common.sh"

here=$REPO/bench/cpu
work=$BENCH_FOLDER
texts=$work/texts.txt
peers=$work/peers

mkdir -p "$work"
cut -f 2 "$REPO/demo/texts.tsv" >"$texts"
if [ "${1:-}" = --texts ]; then
  cat -- "${2:?--texts needs a file}" >"$texts"
  shift 2
fi
if [ -z "${PEERS_PYTHON:-}" ]; then
  PEERS_PYTHON=$peers/bin/python
  if ! cmp -s "$here/requirements.txt" "$peers/requirements.txt"; then
    say "building the peers in $peers"
    rm -rf -- "$peers"
    python3 -m venv "$peers"
    # llama.cpp with all that this CPU has.
    CMAKE_ARGS=-DGGML_NATIVE=ON "$PEERS_PYTHON" -m pip install --quiet --no-binary llama-cpp-python -r "$here/requirements.txt" >&2
    cp "$here/requirements.txt" "$peers/"
  fi
fi
"$REPO/scripts/install.sh" install >&2
trap '"$REPO/scripts/server.sh" stop --instance bench >&2' EXIT
"$REPO/scripts/server.sh" start --instance bench >&2
"$PEERS_PYTHON" "$here/llama.py" "$MODEL_FILE" "$work" >"$work/formats" 2>"$work/llama.log"
mapfile -t formats <"$work/formats"

printf '%s, %s\n\n' "$(lscpu | sed -n 's/^Model name: *//p')" "$(git -C "$REPO" describe --always --dirty)"
"$PEERS_PYTHON" "$here/peers.py" --engine "$ENGINE_BINARY" --model "$MODEL_FILE" --head "$HEAD_FOLDER" --texts "$texts" \
  --llama "${formats[@]}" "$@" 2>"$work/peers.log" || {
  tail -n 20 "$work/peers.log" >&2
  exit 1
}
"$REPO/scripts/server.sh" exec --instance bench -- "$here/sessions.sh" "$texts"
