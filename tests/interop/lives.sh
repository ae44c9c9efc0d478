# shellcheck shell=bash
# Cases of gateways that are restarted and go on with their tunnels. Sourced by tests/interop/run and scripts/soak.

# The data plane that a gateway of this lab has.
plane_of() { # HOST
    # Its exit code says how the tunnels are.
    { ctl "$1" status --json || true; } | python3 -c 'import json, sys
print(json.load(sys.stdin)["data_plane"])'
}

# LIVES handovers and as many kills (4), under LIVES_RATE packets a second each way (1,000). What they cost goes to
# $LAB_DIR/lives. A machine that runs other tests beside is not one to measure outages on: LIVES_OUTAGE_MS is 3 s here.
lives() { # PEER-DAEMON
    V4ONLY=1
    local ike=${GCM% *} esp=${GCM#* } seen plane
    cygnet_config gwa active "$ike" "$esp"
    "$1_config" gwb passive "$ike" "$esp"
    "$1_start" gwb || { fail "$1 does not start"; return; }
    cygnet_start gwa || { fail "cygnet does not start"; return; }
    plane=$(plane_of gwa)
    daemon_stop gwa
    watch_leaks wan-gwa
    LIVES_OUTAGE_MS=${LIVES_OUTAGE_MS:-3000} python3 tests/interop/lives.py "$LAB" "$LAB_DIR" "$CYGNET" "$plane" "${LIVES:-4}" "${LIVES_RATE:-1000}" >"$LAB_DIR/lives" ||
        fail "a restart cost more than it may: $(cat "$LAB_DIR/lives")"
    cat "$LAB_DIR/lives" >>"$LAB_DIR/stderr"
    seen=$(leaks)
    if [[ $seen != 0 ]]; then fail "$seen packets in clear text"; fi
}
case_cygnet-lives() { lives cygnet; }
case_swan-lives() { lives swan; }
