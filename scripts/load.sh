# shellcheck shell=bash
# The load of a test that breaks things: flights into a topic of its own each round, a reader beside it, and the one checker over the
# history. Sourced after lib.sh, never run.
#
# Wants: bin, work, round, file, rate, partitions; an array `complained` and a number `complaints`.

load=
stop_load() { if [ -n "$load" ]; then kill -9 "$load" 2>/dev/null || true; fi; }
at_exit+=(stop_load)

# Starts the load of a round: a topic of its own, a producer with acks quorum-fsync, a reader beside it.
begin_load() {
    local tries
    topic=flights-$round history=$work/history-$round.jsonl
    # shellcheck disable=SC2154
    "${client[@]}" "$bin/flights" run --replication-factor "${replicas:-3}" --servers "$(servers)" --topic "$topic" --partitions "$partitions" --file "$file" --rate "$rate" \
        --history "$history" >"$work/run-$round.out" 2>&1 &
    load=$!
    for ((tries = 0; tries < 600; tries++)); do
        # It appears when the topic has been created.
        if [ -e "$history" ]; then
            # Segments of a second, so that files come into being while the power goes.
            "${client[@]}" "$bin/broker-cli" --server "$(servers)" --timeout 30s topic alter "$topic" -c segment.ms=1000 \
                >/dev/null 2>"$work/alter.err" || { cat "$work/alter.err" >&2; die "cannot alter $topic"; }
            return
        fi
        kill -0 "$load" 2>/dev/null || break
        sleep 0.05
    done
    cat "$work/run-$round.out" >&2
    die "the load of round $round did not start"
}

# Judges what `flights` printed into file $1: loss ends the run; an event that was refused, or a reader that was sent away, is
# a complaint. The reader beside the load may have been sent away early, so that only what it saw counts.
judge() {
    local bad
    bad=$(awk '
        /^reader / { live = $2 ~ /live/ }
        /^  lost / && !live { bad += $2 }
        /^  (duplicated|altered) / { bad += $2 }
        /^  out of order / { bad += $4 }
        END { print bad + 0 }' "$1")
    if [ "$bad" -ne 0 ]; then
        tail -n 60 "$1" >&2
        die "round $round: $bad acknowledged events are lost, changed or moved"
    fi
}

complain() {
    complaints=$((complaints + 1))
    say "  complaint: $1: $(grep -m 1 -E '^(error|event [0-9]+):' "$2" | cut -c1-200)"
    cp "$2" "$work/complaint-$complaints.out"
}

end_load() {
    local status=0
    wait "$load" || status=$?
    load=
    judge "$work/run-$round.out"
    if [ "$status" -ne 0 ]; then
        complained[round]=1
        complain "round $round's load" "$work/run-$round.out"
    fi
}

# Reads a topic from its start once more and judges: $1 is the round it is of, $2 a name for the reader.
verify() {
    local status=0
    "${client[@]}" "$bin/flights" verify --servers "$(servers)" --topic "flights-$1" --history "$work/history-$1.jsonl" --reader "$2" \
        >"$work/verify.out" 2>&1 || status=$?
    if ! grep -q "^reader '$2'" "$work/verify.out"; then
        tail -n 20 "$work/verify.out" >&2
        die "round $round: flights-$1 cannot be read"
    fi
    judge "$work/verify.out"
    # What the load complained of is in the verdict of every later reader, too.
    if [ "$status" -ne 0 ] && [ -z "${complained[$1]:-}" ]; then
        complain "reader $2 of flights-$1" "$work/verify.out"
    fi
}
