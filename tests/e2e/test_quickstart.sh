#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# tests/e2e/test_quickstart.sh - the newcomer's first command, in an empty environment. It builds
# build/release, so it runs in the release pass only.
# shellcheck source=tests/script.sh
source "$1/tests/script.sh"
[ "$build_dir" = "$source_dir/build/release" ] || { echo "only with build/release" && exit 77; }
"$source_dir/tools/dev/setup" --check >/dev/null || { echo "packages are missing" && exit 77; }

cd / || exit 1
run 0 env -i "$source_dir/tools/dev/quickstart" --once "What is the capital of France?"
says "$out" "Paris"
equal "$(wc -l <"$out")" 1 "lines of the answer"
run 0 env -i TMPDIR="$scratch" "$source_dir/tools/dev/quickstart"
says "$out" "> What is the capital of France?" "Paris"
run 2 "$source_dir/tools/dev/quickstart" --onec x
run 1 "$source_dir/tools/dev/quickstart" --once x --model "$scratch/none"
says "$err" "$scratch/none"
for left in "$scratch"/llring-quickstart-*; do
    [ ! -e "$left" ] || fail "$left is left behind"
done
finish
