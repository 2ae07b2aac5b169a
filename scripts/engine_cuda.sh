#!/usr/bin/env bash
# The engine for NVIDIA GPUs, built if needed: a program of its own, which the CPU's engine does not
# depend on. Needs no GPU and no driver, but about 10 minutes the first time, most of them nvcc's.
# usage: engine_cuda.sh build|path|tests|lint
#   tests     builds the engine's unit tests with CUDA as well, and prints the program's path: run on a machine
#             with a GPU, they compare our kernels with the CPU's (where the driver finds none, they say that they skip)
#   lint      clippy of what is compiled for CUDA alone, which scripts/lint.sh does not see
#   CUDA_HOME  the CUDA toolkit (default: the one of nvcc on PATH; without one a pinned toolkit is
#              downloaded into the cache)
#   CUDA_ARCH  the oldest compute capability that the program must run on (default 80: Ampere)
set -euo pipefail
# shellcheck source=scripts/common.sh
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

# bf16 needs Ampere; candle leaves its bf16 kernels out below that.
OLDEST_ARCH=80
# The libraries that the program is linked with, all found at its start: the driver's, and the toolkit's
# with the major version in their names.
LIBRARIES="cuda cublas cublasLt curand nvrtc"

CUDA_ARCH=${CUDA_ARCH:-$OLDEST_ARCH}
if ! [[ $CUDA_ARCH =~ ^[0-9]{2,3}$ ]] || [ "$CUDA_ARCH" -lt "$OLDEST_ARCH" ]; then
  die "CUDA_ARCH is '$CUDA_ARCH': it must be a compute capability without its point, $OLDEST_ARCH or newer" \
    "80 is Ampere (A100), 86 its smaller cards, 89 Ada, 90 Hopper. Newer cards run what is built for older ones."
fi

# Sets NVCC and VERSION (such as 13.0) of the toolkit to build with.
find_toolkit() {
  if [ -n "${CUDA_HOME:-}" ]; then
    NVCC=$CUDA_HOME/bin/nvcc
    [ -x "$NVCC" ] || die "CUDA_HOME is '$CUDA_HOME', but there is no $NVCC" \
      "Name the folder of a CUDA toolkit, or unset CUDA_HOME to have one downloaded."
  elif NVCC=$(command -v nvcc); then
    NVCC=$(realpath "$NVCC")
  else
    "$REPO/scripts/setup.sh" cuda
    NVCC=$CUDA_TOOLKIT/bin/nvcc
  fi
  VERSION=$("$NVCC" --version | sed -n 's/.*release \([0-9.]*\),.*/\1/p')
  [ -n "$VERSION" ] || die "'$NVCC --version' does not say which release it is"
  version_at_least "$VERSION" 12.0 || die "$NVCC is of CUDA $VERSION: 12.0 or newer is needed" \
    "Name a newer toolkit with CUDA_HOME, or take nvcc from PATH to have one downloaded."
}

find_static_runtime() {
  local toolkit folder
  toolkit=$(dirname "$(dirname "$NVCC")")
  for folder in lib64 lib targets/x86_64-linux/lib; do
    if [ -f "$toolkit/$folder/libcudart_static.a" ]; then
      echo "$toolkit/$folder/libcudart_static.a"
      return
    fi
  done
  die "there is no libcudart_static.a in the CUDA toolkit $toolkit" \
    "Install the toolkit's static runtime library (Debian's package cuda-cudart-dev)."
}

# The file name that the dynamic loader looks for at the program's start.
soname() {
  case $1 in
    cuda) echo libcuda.so.1 ;;
    curand) echo libcurand.so.10 ;;
    *) echo "lib$1.so.${VERSION%%.*}" ;;
  esac
}

# The folder of the sources of cudarc, the binding that candle uses.
find_cudarc() {
  cargo metadata --format-version 1 --features ner-retriever-engine/cuda 9>&- |
    grep -oE '"manifest_path":"[^"]*/cudarc-[^"]*"' | sed -E 's/^"manifest_path":"(.*)\/Cargo.toml"$/\1/' ||
    die "cargo could not say where the sources of cudarc are"
}

# The functions that cudarc declares for the library $1.
declared_functions() {
  local name=${1/cublasLt/cublaslt}
  name=${name/#cuda/driver}
  sed -nE 's/^ *(pub )?(unsafe )?fn ((cu|nvrtc)[A-Za-z0-9_]*)\(.*/\3/p' "$CUDARC/src/$name/sys/mod.rs" | sort -u
}

# Makes a toolkit in the folder $1 that the build takes for the real one. Its libraries are empty but
# for names: the real ones come with the driver and with CUDA's runtime packages on the machine that
# runs the program, and downloading a gigabyte to link with them would change nothing in it. The static
# runtime is real.
make_toolkit() {
  local home=$1 library
  rm -rf "$home"
  mkdir -p "$home/bin" "$home/lib"
  for library in $LIBRARIES; do
    declared_functions "$library" | sed 's/.*/void &(void) {}/' >"$home/lib/$library.c"
    [ -s "$home/lib/$library.c" ] || die "found no functions of $library in $CUDARC"
    cc -shared -fPIC -w -fno-builtin -Wl,-soname,"$(soname "$library")" -o "$home/lib/lib$library.so" \
      "$home/lib/$library.c"
  done
  echo "INPUT($(find_static_runtime))" >"$home/lib/libcudart.so"
  write_nvcc "$home/bin/nvcc"
}

# candle's build compiles for exactly one architecture and, from Hopper on, for its variant that no
# other runs ("sm_90a"). Instead the intermediate code for the oldest one goes in, which the driver
# compiles for the card it finds and keeps: candle's own kernels are loaded that way in any case, and
# those that it links (products of quantised weights) are not used. It also saves nvcc half its time.
write_nvcc() {
  cat >"$1" <<SCRIPT
#!/usr/bin/env bash
arguments=()
for argument in "\$@"; do
  case \$argument in
    -gencode=*) argument=-gencode=arch=compute_$CUDA_ARCH,code=compute_$CUDA_ARCH ;;
  esac
  arguments+=("\$argument")
done
exec '$NVCC' "\${arguments[@]}"
SCRIPT
  chmod +x "$1"
}

# The cargo command $1 with the arguments that follow it, for CUDA.
cargo_cuda() {
  env -u CUDA_PATH -u CUDA_ROOT -u CUDA_TOOLKIT_ROOT_DIR -u CUDNN_LIB \
    CUDA_HOME="$HOME_OF_BUILD" NVCC="$HOME_OF_BUILD/bin/nvcc" PATH="$HOME_OF_BUILD/bin:$PATH" \
    CUDA_COMPUTE_CAP="$CUDA_ARCH" CUDARC_CUDA_VERSION="${VERSION%%.*}0${VERSION##*.}0" \
    CARGO_TARGET_DIR="$CUDA_TARGET" cargo "$1" --release -p ner-retriever-engine --features cuda "${@:2}" 9>&-
}

# One folder a toolkit and architecture: cargo builds the kernels anew when its name changes, and only
# then.
prepare() {
  cd "$REPO"
  "$REPO/scripts/setup.sh" tools
  find_toolkit
  take_lock engine-cuda
  claim_build_folder "$CUDA_TARGET"
  HOME_OF_BUILD=$CUDA_TARGET/toolkit-$VERSION-$CUDA_ARCH
  CUDARC=$(find_cudarc)
  make_toolkit "$HOME_OF_BUILD.new"
  # Unchanged files keep their time, or cargo would link again.
  if ! diff -rq "$HOME_OF_BUILD" "$HOME_OF_BUILD.new" >/dev/null 2>&1; then
    rm -rf "$HOME_OF_BUILD"
    mv -T "$HOME_OF_BUILD.new" "$HOME_OF_BUILD"
  fi
  rm -rf "$HOME_OF_BUILD.new"
}

build() {
  prepare
  say "building the engine for CUDA $VERSION, compute capability $CUDA_ARCH and newer"
  cargo_cuda build >&2
}

case ${1:-} in
  build) build ;;
  path)
    build
    printf '%s\n' "$ENGINE_CUDA_BINARY"
    ;;
  tests)
    build
    cargo_cuda test --lib --no-run --message-format=json | sed -n 's/.*"executable":"\([^"]*\)".*/\1/p'
    ;;
  lint)
    prepare
    cargo_cuda clippy --all-targets -- -D warnings
    ;;
  *) die "unknown command '${1:-}'" "usage: engine_cuda.sh build|path|tests|lint" ;;
esac
