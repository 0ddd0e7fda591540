#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# tests/client/test_install.sh - what `cmake --install` leaves behind: exactly the public functions
# are exported; pkg-config, CMake and a C++ compiler build a program with it; the program talks to a
# runtime.
# shellcheck source=tests/script.sh
. "$(dirname "$0")/../script.sh"

prefix=$scratch/prefix
run 0 cmake --install "$build_dir" --prefix "$prefix"
library=$(find "$prefix" -name libllclient.so.0)
[ -n "$library" ] || fail "no libllclient.so.0 below $prefix"
for program in llringd llring; do
    [ -x "$prefix/bin/$program" ] || fail "$program is not installed"
done

# Every LL_API function of the headers, and nothing but those and the version node.
headers=$(cat "$prefix"/include/ll/*.h | tr '\n' ' ' | sed 's|/\*[^*]*\*\+\([^/*][^*]*\*\+\)*/||g' |
    grep -oE 'LL_API [^;(]*\(' | grep -oE 'll_[a-z0-9_]+\($' | tr -d '(' | sort)
exported=$(nm -D --defined-only "$library" | awk '$2 != "A" { print $3 }' | sed 's/@.*//' | sort)
[ "$(echo "$headers" | wc -l)" -ge 40 ] || fail "only $(echo "$headers" | wc -l) functions in the headers"
equal "$exported" "$headers" "exported symbols"

# pkg-config
PKG_CONFIG_PATH=$(dirname "$(find "$prefix" -name llclient.pc)")
export PKG_CONFIG_PATH
cp "$source_dir/client/example.c" "$scratch/example.c"
sanitize=$(grep -oE '^LL_SANITIZE:STRING=.+' "$build_dir/CMakeCache.txt" | cut -d= -f2)
flags=(${sanitize:+-fsanitize=$sanitize})
# shellcheck disable=SC2046
run 0 cc -std=c11 -Wall -Wextra -Werror "${flags[@]}" "$scratch/example.c" \
    $(pkg-config --cflags --libs llclient) -Wl,-rpath,"$(dirname "$library")" -o "$scratch/example"
equal "$(pkg-config --modversion llclient)" "0.1.0" "version in llclient.pc"
if command -v c++ >/dev/null; then # the headers are C++ as well
    printf '#include <ll/text.h>\nint main() { return ll_version() == 0; }\n' >"$scratch/a.cc"
    # shellcheck disable=SC2046
    run 0 c++ -Wall -Wextra -Werror "${flags[@]}" "$scratch/a.cc" \
        $(pkg-config --cflags --libs llclient) -o "$scratch/a"
fi

# find_package
mkdir "$scratch/app"
cat >"$scratch/app/CMakeLists.txt" <<END
cmake_minimum_required(VERSION 3.25)
project(app LANGUAGES C)
find_package(llclient 0.1 REQUIRED)
add_executable(app $scratch/example.c)
target_link_libraries(app llclient::llclient)
END
run 0 cmake -S "$scratch/app" -B "$scratch/app/build" -DCMAKE_PREFIX_PATH="$prefix" \
    -DCMAKE_C_FLAGS="${flags[*]}"
run 0 cmake --build "$scratch/app/build"

# Nobody there: one sentence that says what to do. Then somebody is.
export LLRING_SOCKET=$scratch/llring.sock
run 1 "$scratch/example"
says "$err" "no runtime listens at $scratch/llring.sock" "llring serve"
start_runtime "$model" --device cpu
run 0 "$scratch/example" "Hello"
says "$out" " tokens, first after "
cp "$out" "$scratch/first"
run 0 "$scratch/app/build/app" "Hello"
equal "$(head -n -1 "$out")" "$(head -n -1 "$scratch/first")" "text of the second program"
stop_runtime
finish
