#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# tests/mutants/test_mutants.sh - every mutant can still be applied, and names tests that there are;
# whether these notice it is asked by tools/dev/mutants, which takes a quarter of an hour.
command -v patch >/dev/null || { echo "no patch(1)" && exit 77; }
exec bash "$1/tools/dev/mutants" --check
