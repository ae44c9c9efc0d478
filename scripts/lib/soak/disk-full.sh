# shellcheck shell=bash
# disk-full: the state directory lies on a file system without room. The daemon starts, runs and keeps its tunnels; a level
# that is to be kept is refused with a reason, and what was kept before stays; with room again it is kept.

soak_clean() {
    # In the daemon's order: nobody holds it any more when the topology ends.
    umount "$LAB_DIR/gwa.state" 2>/dev/null || true
}

levels() { cat "$LAB_DIR/gwa.state/bandwidth.json" 2>/dev/null | tr -d ' \n'; }

soak_disk_full() {
    export V4ONLY=1
    cygnet_config gwb passive $IKE $ESP
    cygnet_config gwa active $IKE $ESP
    mkdir "$LAB_DIR/gwa.state"
    mount -t tmpfs -o size=64k,mode=700 tmpfs "$LAB_DIR/gwa.state"
    cygnet_start gwb
    cygnet_start gwa
    wait_for 20 passes || broken "the tunnel does not come up"
    ctl gwa bandwidth gateway 80mbit --save >"$LAB_DIR/said" 2>&1 || broken "a level is not kept while there is room: $(cat "$LAB_DIR/said")"
    local before
    before=$(levels)
    say "no room from here on"
    dd if=/dev/zero of="$LAB_DIR/gwa.state/filler" bs=4k 2>/dev/null || true
    figure octets_free "$(df --output=avail -B1 "$LAB_DIR/gwa.state" | tail -n1 | tr -d ' ')"
    must octets_free eq 0
    stream_start 200
    if ctl gwa bandwidth gateway 50mbit --save >"$LAB_DIR/said" 2>&1; then broken "it says that a level was kept without room"; fi
    figure said_without_room "\"$(tr -d '"\n' <"$LAB_DIR/said")\""
    grep -qi "no space left" "$LAB_DIR/said" || broken "it does not say why: $(cat "$LAB_DIR/said")"
    [[ $(levels) == "$before" ]] || broken "what was kept is lost: $(levels)"
    says '"bandwidth_bps": *50000000' ctl gwa status --json || broken "the level is not in force"
    # Without --save nothing is written.
    ctl gwa bandwidth gateway 60mbit >/dev/null 2>&1 || broken "a level for now is refused"
    ctl gwa rekey tunnel >/dev/null 2>&1 || broken "rekey"
    ctl gwa rekey --ike tunnel >/dev/null 2>&1 || broken "rekey --ike"
    stream_end
    figure packets_lost "$(of_json "$LAB_DIR/stream.json" 'v["lost"]')"
    must packets_lost eq 0
    for signal in KILL TERM; do
        say "a start without room, after $signal"
        daemon_stop gwa $signal
        cygnet_start gwa || broken "it does not start after $signal"
        wait_for 30 passes || broken "no traffic after $signal"
        says '"bandwidth_bps": *80000000' ctl gwa status --json || broken "the level that was kept is not in force after $signal"
    done
    # Not even the file itself: a directory entry needs room, too.
    rm "$LAB_DIR/gwa.state/bandwidth.json"
    dd if=/dev/zero of="$LAB_DIR/gwa.state/filler2" bs=4k 2>/dev/null || true
    if ctl gwa bandwidth gateway 40mbit --save >"$LAB_DIR/said" 2>&1; then broken "it says that a level was kept without room"; fi
    find "$LAB_DIR/gwa.state" -name '*.tmp' | grep -q . && broken "half a file is left"
    say "room again"
    rm "$LAB_DIR/gwa.state/filler" "$LAB_DIR/gwa.state/filler2"
    ctl gwa bandwidth gateway 70mbit --save >"$LAB_DIR/said" 2>&1 || broken "a level is not kept with room again: $(cat "$LAB_DIR/said")"
    [[ $(levels) == '{"gateway":70000000}' ]] || broken "kept: $(levels)"
    daemon_stop gwa TERM
    cygnet_start gwa
    says '"bandwidth_bps": *70000000' ctl gwa status --json || broken "the level does not outlive a restart"
    daemons_stop
    finish disk-full
}
