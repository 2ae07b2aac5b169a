#!/usr/bin/env bash
# Packs what bench/gpu/sql.sh needs on a machine that has neither Rust nor PostgreSQL: the PostgreSQL
# wheel, and the extension with its engines, built here. With CUDA=1 the CUDA engine goes along.
# usage: [CUDA=1] pack.sh FOLDER
set -euo pipefail
# shellcheck source=scripts/common.sh
source "$(dirname "${BASH_SOURCE[0]}")/../../scripts/common.sh"

[ $# = 1 ] || die "usage: [CUDA=1] pack.sh FOLDER"
mkdir -p "$1"
folder=$(cd "$1" && pwd)
tree=$(mktemp -d)
trap 'rm -rf -- "$tree"' EXIT
MODEL=none DESTDIR=$tree "$REPO/scripts/install.sh" install
# Debug information is nine tenths of the programs.
find "$tree" -type f \( -name '*.so' -o -name 'ner-retriever-engine*' \) -exec strip --strip-debug {} +
tar -C "$tree${PRIVATE_PG_CONFIG%/bin/pg_config}" -cJf "$folder/ner_retriever.tar.xz" .
cp -- "$DOWNLOADS/$POSTGRES_WHEEL" "$folder/"
say "packed: $(du -sm "$folder" | cut -f1) MB in $folder"
