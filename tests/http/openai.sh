# shellcheck shell=bash
# tests/http/openai.sh - sourced after proxy.sh: the official openai package, from PyPI, in a virtual
# environment kept in the build folder. Sets $venv; skips the test where it cannot be had.
venv=$build_dir/openai-venv
exec 8>"$build_dir/openai-venv.lock"
flock 8 # two tests use it
if ! "$venv/bin/python" -c "import openai" 2>/dev/null; then
    rm -rf "$venv"
    if ! python3 -m venv "$venv" >"$out" 2>&1 ||
        ! timeout 120 "$venv/bin/pip" install -q --timeout 10 --retries 1 openai >"$out" 2>&1; then
        rm -rf "$venv"
        echo "the openai package cannot be had here (PyPI out of reach, or no venv): skipped"
        exit 77
    fi
fi
exec 8>&-
