# shellcheck shell=bash
# What the scripts share: building the binaries, and three brokers on loopback. Sourced, never run.

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
profile=${PROFILE:-release}
# First client port; each node takes three ports, the next node's begin ten higher.
base_port=${BASE_PORT:-27420}
nodes=(1 2 3)
declare -A node_pid=()

say() { printf '%s\n' "$*" >&2; }
die() { say "error: $*"; exit 1; }

# Builds the binaries named and sets `bin` to their folder. NO_BUILD=1 takes those that are there.
build() {
    local target flags=() name
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

client_port() { echo $((base_port + 10 * ($1 - 1))); }
servers() { echo "127.0.0.1:$(client_port 1),127.0.0.1:$(client_port 2),127.0.0.1:$(client_port 3)"; }

# Makes `work`, a folder for data and logs, and removes it and every broker on the way out. A failed run keeps its logs.
make_work_folder() {
    work=$(mktemp -d "${TMPDIR:-/tmp}/highwater-$1.XXXXXX")
    trap clean_up EXIT
    trap 'exit 130' INT TERM
}

clean_up() {
    local status=$? node
    trap - EXIT
    for node in "${!node_pid[@]}"; do kill -9 "${node_pid[$node]}" 2>/dev/null || true; done
    for node in "${!node_pid[@]}"; do wait "${node_pid[$node]}" 2>/dev/null || true; done
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
    local port seeds node=$1
    port=$(client_port "$node")
    seeds="127.0.0.1:$(($(client_port 1) + 1)),127.0.0.1:$(($(client_port 2) + 1)),127.0.0.1:$(($(client_port 3) + 1))"
    "$bin/broker" --node-id "$node" --data-dir "$work/node$node" \
        --listen "127.0.0.1:$port" --internal-listen "127.0.0.1:$((port + 1))" \
        --http-listen "127.0.0.1:$((port + 2))" --seeds "$seeds" \
        >>"$work/node$node.log" 2>&1 </dev/null &
    node_pid[$node]=$!
    echo "${node_pid[$node]}" >"$work/node$node.pid"
}

start_all() { local node; for node in "${nodes[@]}"; do start_node "$node"; done; }

# Ends node $1 as a power button would (KILL) or in good order (TERM), and waits until it is gone.
stop_node() {
    local node=$1 signal=$2 status=0
    kill "-$signal" "${node_pid[$node]}" 2>/dev/null || true
    wait "${node_pid[$node]}" 2>/dev/null || status=$?
    unset "node_pid[$node]"
    if [ "$signal" = TERM ] && [ "$status" -ne 0 ]; then
        die "node $node answered SIGTERM with exit code $status"
    fi
}

wait_healthy() {
    "$bin/broker-cli" --server "$(servers)" --timeout "${1:-60s}" cluster health --wait >/dev/null ||
        die "the cluster did not become healthy"
}
