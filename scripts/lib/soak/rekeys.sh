# shellcheck shell=bash
# rekeys [CHILDREN] [IKE]: new keys for children (10,000) and IKE SAs (1,000), asked for at both ends in turn, under 1,000
# packets a second. A peer may ask for one new IKE SA in five seconds, so there are ten tunnels side by side.

REKEY_TUNNELS=10

# Rekeys one tunnel TIMES times, at both ends in turn, with a pause; counts what was refused.
rekeys_of() { # TUNNEL TIMES PAUSE [--ike]
    local n host ends=(gwa gwb) failed=0
    for ((n = 0; n < $2; n++)); do
        host=${ends[n % 2]}
        ctl "$host" rekey "${@:4}" "$1" --timeout 20 >>"$LAB_DIR/rekeys.log" 2>&1 || failed=$((failed + 1))
        sleep "$3"
    done
    echo "$failed" >"$LAB_DIR/failed-$1"
}

rekeys_round() { # NAME TIMES PAUSE [--ike]
    local n each=$(($2 / REKEY_TUNNELS)) failed=0 began=$SECONDS workers=()
    say "$2 rekeys: $1"
    for ((n = 0; n < REKEY_TUNNELS; n++)); do
        rekeys_of "t$n" "$each" "$3" "${@:4}" &
        workers+=("$!")
    done
    while [[ -n $(jobs -pr | grep -Fx -f <(printf '%s\n' "${workers[@]}")) ]]; do
        sleep 20
        say "  gateway: $(sample gwa | cut -d' ' -f1) KiB, $(sample gwa | cut -d' ' -f2) descriptors, $(metric gwa cygnet_rekeys_total) rekeys"
    done
    wait "${workers[@]}"
    for ((n = 0; n < REKEY_TUNNELS; n++)); do failed=$((failed + $(<"$LAB_DIR/failed-t$n"))); done
    figure "$1_rekeys" $((each * REKEY_TUNNELS))
    figure "$1_refused" $failed
    figure "$1_seconds" $((SECONDS - began))
    must "$1_refused" eq 0
}

soak_rekeys() {
    local children=${1:-10000} ikes=${2:-1000} n targets=() host
    for ((n = 0; n < REKEY_TUNNELS; n++)); do
        ns vpc ip addr add "10.1.$n.9/32" dev lo
        ns idc ip addr add "10.2.$n.9/32" dev lo
        ns gwa ip route add "10.1.$n.9/32" via 10.1.0.2
        ns gwb ip route add "10.2.$n.9/32" via 10.2.0.2
        ns vpc ip route add "10.2.$n.9/32" via 10.1.0.1 src "10.1.$n.9"
        ns idc ip route add "10.1.$n.9/32" via 10.2.0.1 src "10.2.$n.9"
        targets+=("10.2.$n.9")
    done
    cygnet_many_config gwb passive $IKE $ESP $REKEY_TUNNELS
    cygnet_many_config gwa active $IKE $ESP $REKEY_TUNNELS
    for host in gwb gwa; do
        TUNNEL=t0 cygnet_start $host || broken "no daemon on $host: $(tail -n3 "$LAB_DIR/$host.log")"
    done
    wait_for 20 ctl gwa status || broken "not every tunnel comes up"
    watch_leaks
    rekeys_round warm-up $((20 * REKEY_TUNNELS)) 0.05
    stream_start 1000 vpc idc "${targets[@]}"
    # What the pairs of the last seconds and the history of each tunnel (200 events) take is reached in the first half.
    local rss fds rss_b fds_b
    rekeys_round child-first $((children / 2)) 0.05
    sleep 8
    read -r rss fds _ <<<"$(sample gwa)"
    read -r rss_b fds_b _ <<<"$(sample gwb)"
    rekeys_round child-second $((children / 2)) 0.05
    # Both ends ask in turn, each of them once in five seconds at most.
    rekeys_round ike "$ikes" 2.6 --ike
    stream_end
    figure packets "$(of_json "$LAB_DIR/stream.json" 'v["sent"]')"
    figure packets_lost "$(of_json "$LAB_DIR/stream.json" 'v["lost"]')"
    must packets_lost eq 0
    sleep 10
    must_not_grow initiator gwa "$rss" "$fds"
    must_not_grow responder gwb "$rss_b" "$fds_b"
    figure clear_packets "$(leaks)"
    must clear_packets eq 0
    finish rekeys
}
