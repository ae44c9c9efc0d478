# shellcheck shell=bash
# restarts [TIMES]: the peer is killed and ended in turn and starts again at once; the gateway beside it must carry traffic
# each time, and be no larger at the end.

soak_restarts() {
    local times=${1:-200} n signal began ms warm
    warm=$((times / 10 > 0 ? times / 10 : 1))
    # Both begin: a peer that comes back may be the first to say so.
    pair_up active active || broken "the tunnel does not come up"
    watch_leaks
    local rss fds lost=0
    : >"$LAB_DIR/times"
    for ((n = 1; n <= times; n++)); do
        if ((n % 2)); then signal=KILL; else signal=TERM; fi
        daemon_stop gwb $signal
        began=$EPOCHREALTIME
        cygnet_start gwb || broken "the peer does not start after $signal ($n)"
        # With a deadline, `-c 1` waits for one answer and not for one packet.
        if ns vpc ping -c 1 -w 60 -i 0.02 -q 10.2.0.2 >/dev/null; then
            ms=$(((${EPOCHREALTIME/./} - ${began/./}) / 1000))
            echo "$signal $ms" >>"$LAB_DIR/times"
        else
            lost=$((lost + 1))
            broken "no traffic within a minute after $signal ($n)"
        fi
        if ((n == warm)); then read -r rss fds _ <<<"$(sample gwa)"; fi
        if ((n % 20 == 0)); then say "$n restarts, $(sample gwa | cut -d' ' -f1) KiB, $(sample gwa | cut -d' ' -f2) descriptors"; fi
    done
    figure restarts "$times"
    figure not_back "$lost"
    must not_back eq 0
    for signal in KILL TERM; do
        figure "${signal,,}_ms_median" "$(sed -n "s/^$signal //p" "$LAB_DIR/times" | sort -n | awk '{ v[NR] = $1 } END { print v[int((NR + 1) / 2)] }')"
        figure "${signal,,}_ms_longest" "$(sed -n "s/^$signal //p" "$LAB_DIR/times" | sort -n | tail -n1)"
    done
    # What belongs to the last pair that was replaced goes within seconds.
    sleep 10
    must_not_grow gateway gwa "$rss" "$fds"
    figure clear_packets "$(leaks)"
    must clear_packets eq 0
    finish restarts
}
