# shellcheck shell=bash
# flaps [TIMES]: the gateway's outer interface goes down and up, its route and its address go and come, under 200 packets a
# second. The tunnel must carry traffic again each time, and nothing may pass the transit hop in clear text.

# What a network manager puts back when an interface is up again.
flaps_restore() {
    ns gwa ip link set gwa-wan up
    ns gwa ip addr replace 192.0.2.1/24 dev gwa-wan
    ns gwa ip addr replace 2001:db8:a::1/64 dev gwa-wan nodad
    ns gwa ip route replace default via 192.0.2.2
    ns gwa ip -6 route replace default via 2001:db8:a::2
}

flaps_break() { # KIND
    case $1 in
        interface) ns gwa ip link set gwa-wan down ;;
        route) ns gwa ip route del default ;;
        address) ns gwa ip addr del 192.0.2.1/24 dev gwa-wan ;;
    esac
}

soak_flaps() {
    local times=${1:-20} kind n restored
    pair_up active passive || broken "the tunnel does not come up"
    watch_leaks
    local rss fds
    for kind in interface route address; do
        say "$kind, $times times"
        stream_start 200
        sleep 1
        : >"$LAB_DIR/restored"
        for ((n = 1; n <= times; n++)); do
            flaps_break $kind
            # Long enough to be noticed, now and then so long that requests are repeated, and once until the peer counts as dead.
            if ((n == times)); then sleep 40; elif ((n % 5 == 0)); then sleep 6; else sleep 1; fi
            restored=$(uptime_s)
            flaps_restore
            echo "$restored" >>"$LAB_DIR/restored"
            ns vpc ping -c 1 -w 60 -i 0.02 -q 10.2.0.2 >/dev/null || broken "$kind: no traffic within a minute ($n)"
            sleep 0.7
            if [[ $kind == interface && $n == 2 ]]; then read -r rss fds _ <<<"$(sample gwa)"; fi
        done
        stream_end
        # From the moment when all is restored to the first packet that is answered, and what was lost beside the outages.
        python3 - "$LAB_DIR/stream.json" "$LAB_DIR/restored" >"$LAB_DIR/figures" <<'PY'
import json, statistics, sys
v = json.load(open(sys.argv[1]))
took, within = [], 0
for line in open(sys.argv[2]):
    at = float(line)
    gap = next((g for g in v["gaps"] if g["begin"] <= at <= g["end"] + 0.05), None)
    took.append(max(0.0, gap["end"] - at) if gap else 0.0)
    within += gap["lost"] if gap else 0
print(round(1000 * statistics.median(took)), round(1000 * max(took)), v["sent"], v["lost"], v["lost"] - within)
PY
        local median longest sent all beside
        read -r median longest sent all beside <"$LAB_DIR/figures"
        figure "${kind}_back_ms_median" "$median"
        figure "${kind}_back_ms_longest" "$longest"
        figure "${kind}_packets" "$sent"
        figure "${kind}_lost_in_outages" $((all - beside))
        figure "${kind}_lost_beside_outages" "$beside"
        must "${kind}_lost_beside_outages" eq 0
    done
    sleep 10
    must_not_grow gateway gwa "$rss" "$fds"
    figure clear_packets "$(leaks)"
    must clear_packets eq 0
    finish flaps
}
