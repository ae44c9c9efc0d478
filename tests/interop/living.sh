# shellcheck shell=bash
# Cases of gateways whose configuration changes while they run. Sourced by tests/interop/run.

# One of many tunnels changes in every way. RELOAD_TUNNELS and RELOAD_RATE (packets a second and tunnel) make it larger.
case_cygnet-reload() {
    watch_leaks
    python3 tests/interop/reload.py "$LAB" "$LAB_DIR" "$CYGNET" "${PLANE:-auto}" "${RELOAD_TUNNELS:-20}" \
        "${RELOAD_RATE:-20}" >"$LAB_DIR/changes" || fail "a change cost more than it may"
    cat "$LAB_DIR/changes" >>"$LAB_DIR/stderr"
    local seen
    seen=$(leaks)
    if [[ $seen != 0 ]]; then fail "$seen packets in clear text"; fi
}
