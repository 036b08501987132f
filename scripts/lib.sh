# shellcheck shell=bash
# What the scripts share: building the binaries, and three brokers on loopback. Sourced, never run.

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
profile=${PROFILE:-release}
nodes=(1 2 3)
declare -A waiter=()
# What goes before the commands of a client, and by node before that of the broker: to run them somewhere else, as in a network of their own.
client=(env)
declare -A place=()
# More for `cargo build`.
build_flags=()
# Functions to call, with the exit status, before the work folder goes.
at_exit=()

say() { printf '%s\n' "$*" >&2; }
die() { say "error: $*"; exit 1; }

# Builds the binaries named and sets `bin` to their folder. NO_BUILD=1 takes those that are there.
build() {
    local target flags=(${build_flags[@]+"${build_flags[@]}"}) name
    target=${CARGO_TARGET_DIR:-$root/target}
    bin=$target/$profile
    if [ -n "${NO_BUILD:-}" ]; then
        for name in "$@"; do [ -x "$bin/$name" ] || die "$bin/$name does not exist"; done
        return
    fi
    for name in "$@"; do flags+=(--bin "$name"); done
    [ "$profile" = debug ] || flags+=(--profile "$profile")
    say "building $* ($profile) ..."
    (cd "$root" && cargo build --quiet "${flags[@]}") || die "the build failed"
}

# Whether somebody listens on port $1 of this machine.
taken() { (exec 3<>"/dev/tcp/127.0.0.1/$1") 2>/dev/null; }

# Sets `base_port`: the first client port. Each node takes three ports, the next node's begin ten higher. Below the ports
# that systems hand out by themselves, and by chance, so that two runs seldom want the same.
choose_ports() {
    local tries node part
    base_port=${BASE_PORT:-}
    [ -z "$base_port" ] || return 0
    for ((tries = 0; tries < 50; tries++)); do
        base_port=$((20000 + RANDOM % 300 * 40))
        for node in "${nodes[@]}"; do
            for part in 0 1 2; do
                if taken $(($(client_port "$node") + part)); then continue 3; fi
            done
        done
        return 0
    done
    die "no free ports found; set BASE_PORT"
}

client_port() { echo $((base_port + 10 * ($1 - 1))); }
host() { echo 127.0.0.1; }

# The addresses of all nodes, by the port $1 above a node's first, with commas.
addresses() {
    local node list=()
    for node in "${nodes[@]}"; do list+=("$(host "$node"):$(($(client_port "$node") + $1))"); done
    (IFS=,; echo "${list[*]}")
}
servers() { addresses 0; }

# Chooses ports, makes `work`, a folder for data and logs, and removes it and every broker on the way out. A failed run keeps its logs.
make_work_folder() {
    choose_ports
    work=$(mktemp -d "${TMPDIR:-/tmp}/highwater-$1.XXXXXX")
    trap clean_up EXIT
    trap 'exit 130' INT TERM
}

clean_up() {
    local status=$? node hook
    trap - EXIT
    for hook in ${at_exit[@]+"${at_exit[@]}"}; do "$hook" "$status" || true; done
    for node in "${!waiter[@]}"; do
        if runs "$node"; then kill -9 "$(cat "$work/node$node.pid")" 2>/dev/null || true; fi
        wait "${waiter[$node]}" 2>/dev/null || true
    done
    if [ "$status" -ne 0 ] && [ "$status" -ne 130 ]; then
        for node in "${nodes[@]}"; do
            [ -f "$work/node$node.log" ] || continue
            say "--- last lines of node $node"
            tail -n 15 "$work/node$node.log" >&2
        done
        rm -rf "$work"/node?
        say "failed; logs are in $work"
    elif [ -n "${KEEP:-}" ]; then
        say "kept $work"
    else
        rm -rf "$work"
    fi
    exit "$status"
}

# Starts node $1 on its data in $work. The seed list is the same for all, which founds the cluster once.
start_node() {
    local port node=$1 address
    rm -f "$work/node$node.pid"
    port=$(client_port "$node") address=$(host "$node")
    # A shell of its own waits for the broker, so that its end is noted in the log and not announced on the terminal.
    (
        # shellcheck disable=SC2086
        ${place[$node]:-} "$bin/broker" --node-id "$node" --data-dir "$work/node$node" \
            --listen "$address:$port" --internal-listen "$address:$((port + 1))" \
            --http-listen "$address:$((port + 2))" --seeds "$(addresses 1)" &
        echo $! >"$work/node$node.pid"
        wait $!
    ) >>"$work/node$node.log" 2>&1 </dev/null &
    waiter[$node]=$!
    while [ ! -s "$work/node$node.pid" ]; do sleep 0.01; done
}

start_all() { local node; for node in "${nodes[@]}"; do start_node "$node"; done; }

# Whether node $1 runs.
runs() { [ -n "${waiter[$1]:-}" ] && kill -0 "${waiter[$1]}" 2>/dev/null; }

# Ends node $1 as a power button would (KILL) or in good order (TERM), and waits until it is gone.
stop_node() {
    local node=$1 signal=$2 status=0
    kill "-$signal" "$(cat "$work/node$node.pid")" 2>/dev/null || true
    wait "${waiter[$node]}" || status=$?
    unset "waiter[$node]"
    rm -f "$work/node$node.pid"
    if [ "$signal" = TERM ] && [ "$status" -ne 0 ]; then
        die "node $node answered SIGTERM with exit code $status"
    fi
}

wait_healthy() {
    "${client[@]}" "$bin/broker-cli" --server "$(servers)" --timeout "${1:-60s}" cluster health --wait >/dev/null ||
        die "the cluster did not become healthy"
}

# Waits until the consumer groups named after $1, the brokers, have nothing left to read: what follows from the last events is done.
wait_groups_done() {
    local brokers=$1 group deadline=$((SECONDS + 120))
    shift
    for group in "$@"; do
        until "$bin/broker-cli" --server "$brokers" --timeout 20s group lag "$group" -o json 2>/dev/null |
            awk 'BEGIN{RS=","} /"lag":/{sub(/.*"lag":/,""); n++; s+=$0} END{exit !(n>0 && s==0)}'; do
            [ "$SECONDS" -lt "$deadline" ] || die "group $group is not done"
            sleep 0.2
        done
    done
}
