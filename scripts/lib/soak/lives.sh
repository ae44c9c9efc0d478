# shellcheck shell=bash
# lives [TIMES]: a gateway is handed over and started again, and killed and started again, so many times each, under 1,000
# packets a second each way. PEER=swan: strongSwan at the other end.

# shellcheck source=tests/interop/lives.sh
source tests/interop/lives.sh

soak_lives() {
    local peer=${PEER:-cygnet} plane seen ok=0
    export V4ONLY=1
    cygnet_config gwa active $IKE $ESP
    "${peer}_config" gwb passive $IKE $ESP
    "${peer}_start" gwb || broken "$peer does not start"
    cygnet_start gwa || broken "cygnet does not start"
    plane=$(plane_of gwa)
    daemon_stop gwa
    watch_leaks wan-gwa
    say "$plane, against $peer"
    python3 tests/interop/lives.py "$LAB" "$LAB_DIR" "$CYGNET" "$plane" "${1:-50}" "${LIVES_RATE:-1000}" >"$LAB_DIR/lives" || ok=$?
    seen=$(leaks)
    figure peer "$peer"
    figure lives "$(cat "$LAB_DIR/lives")"
    figure clear_packets "$seen"
    must clear_packets eq 0
    if ((ok != 0)); then broken "a restart cost more than it may"; fi
    finish lives
}
