#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# tests/shm/test_clang.sh SOURCE BUILD: shm/ compiles without a warning under clang, and the structures
# of shm/wire.h have the same bytes as under the compiler that built the rest (T1).
set -euo pipefail
source=$1
cc=$(command -v clang || true)
[ -n "$cc" ] || {
    echo "no clang here: skipped"
    exit 77
}
directory=$(mktemp -d)
trap 'rm -rf "$directory"' EXIT
cd "$source"
"$cc" -std=c11 -O1 -D_GNU_SOURCE -DLL_SOURCE_DIR="\"$source\"" -DLL_BUILD_DIR="\"$2\"" \
    -Wall -Wextra -Werror -Wshadow -Wstrict-prototypes -Wmissing-prototypes -Wvla -Wpointer-arith \
    -Wwrite-strings -Wundef -Iinclude -I. tests/shm/test_wire.c tests/harness.c shm/*.c \
    include/base/*.c -lcmocka -lpthread -o "$directory/test_wire"
"$directory/test_wire"
