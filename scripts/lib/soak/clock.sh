# shellcheck shell=bash
# clock: CLOCK_REALTIME is set a day ahead and back, a day back and ahead, under a tunnel: no rekey, no loss, ages stay what
# they are. Where the clock is everybody's it runs in a machine of its own (scripts/vm-lab uml).

set_clock() { # SECONDS: forward or back
    python3 -c 'import sys, time
time.clock_settime(time.CLOCK_REALTIME, time.time() + float(sys.argv[1]))' "$1"
}

rekeys_seen() { metric gwa cygnet_rekeys_total; }
spis() { ctl gwa status --json | grep -o '"spi_[a-z]*": *"[0-9a-f]*"' | sort; }
# How old the tunnel is by what status says of it.
age_of_tunnel() {
    ctl gwa status --json | python3 -c '
import datetime, json, sys, time
since = json.load(sys.stdin)["tunnels"][0]["since"]
print(round(time.time() - datetime.datetime.fromisoformat(since.replace("Z", "+00:00")).timestamp()))'
}
events_within() { # TIME
    ctl gwa logs tunnel --since "$1" | grep -c . || true
}

soak_clock() {
    if [[ -z ${CYGNET_LAB:-} ]]; then
        echo "the clock is everybody's on this machine" >&2
        return 64
    fi
    pair_up active passive || broken "the tunnel does not come up"
    local up before began all step recent age n=0
    up=$SECONDS before=$(spis)
    sleep 3
    all=$(events_within 1h) began=$(rekeys_seen)
    figure plane "$(ctl gwa status --json | sed -n 's/.*"data_plane": *"\([a-z]*\)".*/\1/p')"
    stream_start 200
    sleep 1
    for step in 86400 -86400 -86400 86400; do
        n=$((n + 1))
        say "the clock is set by $step s"
        set_clock "$step"
        sleep 12
        recent=$(events_within 10m) age=$(age_of_tunnel)
        say "  events of the last ten minutes: $recent of $all; the tunnel says that it is $age s old"
        ((recent == all)) || broken "step $n: $recent of $all events are of the last ten minutes"
        (($(events_within 1s) == 0)) || broken "step $n: $(events_within 1s) events of the last second"
        ((age >= 0 && age <= 120)) || broken "step $n: the tunnel is $age s old"
        ctl gwa status >/dev/null || broken "step $n: not up"
    done
    stream_end
    figure rekeys $(($(rekeys_seen) - began))
    must rekeys eq 0
    [[ $(spis) == "$before" ]] || broken "the SAs changed"
    figure packets "$(of_json "$LAB_DIR/stream.json" 'v["sent"]')"
    figure packets_lost "$(of_json "$LAB_DIR/stream.json" 'v["lost"]')"
    must packets_lost eq 0
    # And the keys can still be renewed.
    ctl gwa rekey tunnel >/dev/null 2>&1 || broken "rekey"
    ctl gwa rekey --ike tunnel >/dev/null 2>&1 || broken "rekey --ike"
    finish clock
}
