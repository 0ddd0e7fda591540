# shellcheck shell=bash
# tests/script.sh - sourced by test_*.sh: paths, checks that say what they wanted, a runtime.
# A script is called as: bash test_x.sh SOURCE_DIR BUILD_DIR
set -uo pipefail
source_dir=$1
build_dir=$2
# Read by the scripts that source this.
# shellcheck disable=SC2034
llring=$build_dir/llring llringd=$build_dir/llringd model=$source_dir/tools/demo-model
# shellcheck disable=SC2034
golden=$source_dir/tests/data/golden.json
# Sanitizers make the model some ten times slower: scripts then do less of the same.
is_slow=
case $build_dir in */asan | */tsan) is_slow=yes ;; esac
export is_slow
unset LLRING_SOCKET NO_COLOR
export LC_ALL=C.UTF-8
scratch=$(mktemp -d "${TMPDIR:-/tmp}/llring-test-XXXXXX")
runtime_pid=
n_failed=0
out=$scratch/out err=$scratch/err

clean_up() {
    [ -z "$runtime_pid" ] || kill -KILL "$runtime_pid" 2>/dev/null
    rm -rf "$scratch"
}
trap clean_up EXIT

fail() {
    echo "FAIL: $*"
    [ ! -s "$out" ] || { echo "  standard output:" && head -c 2000 "$out"; }
    [ ! -s "$err" ] || { echo "  standard error:" && head -c 2000 "$err"; }
    n_failed=$((n_failed + 1))
}

# run RC command...: runs it with output in $out and $err; it must end with RC. What hangs is ended
# after $limit_s seconds, of which a machine with other work to do takes many.
limit_s=100
run() {
    local wanted=$1 rc
    shift
    timeout "$limit_s" "$@" >"$out" 2>"$err" </dev/null
    rc=$?
    [ "$rc" = "$wanted" ] || fail "$* ended with $rc instead of $wanted"
}

# says FILE text...: each text must be in it.
says() {
    local file=$1 text
    shift
    for text in "$@"; do
        grep -qF -- "$text" "$file" || fail "no \"$text\" in $(basename "$file")"
    done
}

# equal GOT WANTED what
equal() { [ "$1" = "$2" ] || fail "$3: $1 instead of $2"; }

# ends PID STATUS what: it must end, within a minute and with STATUS; it is killed where it does not.
ends() {
    local pid=$1 state
    for _ in $(seq 600); do
        state=$(sed -n 's/^State:[[:space:]]*\(.\).*/\1/p' "/proc/$pid/status" 2>/dev/null)
        case $state in "" | Z) break ;; esac
        sleep 0.1
    done
    case $state in "" | Z) ;; *)
        fail "$3: not over after a minute; state $state, waiting in $(cat "/proc/$pid/wchan")"
        kill -KILL "$pid"
        ;;
    esac
    wait "$pid" 2>/dev/null
    equal $? "$2" "$3"
}

# start_runtime arguments...: llringd on $socket, ready when this returns; log in $scratch/log.
start_runtime() {
    socket=$scratch/llring.sock
    rm -f "$socket"
    "$llringd" "$@" --socket "$socket" --log-level warn >"$scratch/log" 2>&1 &
    runtime_pid=$!
    for _ in $(seq 600); do
        [ ! -S "$socket" ] || return 0
        kill -0 "$runtime_pid" 2>/dev/null || break
        sleep 0.05
    done
    cat "$scratch/log"
    fail "llringd $* did not come up"
    finish
}

# stop_runtime: SIGTERM; it must end with 0.
stop_runtime() {
    kill -TERM "$runtime_pid"
    ends "$runtime_pid" 0 "exit status of llringd"
    runtime_pid=
}

# stat NAME: one counter of the runtime on $socket.
stat() {
    "$llring" status --socket "$socket" --json | sed -n "s/^ *\"$1\": \([0-9]*\),\{0,1\}$/\1/p"
}

# The ledger of an idle runtime (shm/stat.h): what came in has gone out. Figures may be a moment
# old, so it waits for the last of them.
check_ledger() {
    for _ in $(seq 100); do
        [ "$(stat credits_reserved)" != 0 ] || break
        sleep 0.05
    done
    local submitted rejected accepted ended=0 name
    submitted=$(stat requests_submitted) rejected=$(stat requests_rejected)
    accepted=$(stat requests_accepted)
    for name in finished cancelled expired stalled failed lost; do
        ended=$((ended + $(stat requests_$name)))
    done
    equal "$submitted" $((rejected + accepted)) "ledger: submitted"
    equal "$accepted" "$ended" "ledger: accepted"
    equal "$(stat pages_free)" "$(stat pages_total)" "free pages"
    equal "$(stat credits_reserved)" 0 "reserved credits"
}

finish() {
    [ "$n_failed" = 0 ] || { echo "$n_failed checks failed" && exit 1; }
    exit 0
}
