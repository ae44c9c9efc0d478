# shellcheck shell=bash
# Cases about single exchanges: fragmentation, cookies, negotiation on demand. Sourced by run.

# Notes the packets that pass the router until `seen`.
watch_packets() { # FILTER
    ns_start wan tcpdump -ni any -Q in -w "$LAB_DIR/seen.pcap" -U --immediate-mode "$1" 2>"$LAB_DIR/seen.log" </dev/null &
    SEEN_PID=$!
    wait_for "$PATIENCE" grep -q 'listening on' "$LAB_DIR/seen.log"
}

seen() { # prints how many packets that was
    sleep 0.3
    kill "$SEEN_PID"
    wait "$SEEN_PID" 2>/dev/null || true
    tcpdump -nr "$LAB_DIR/seen.pcap" 2>/dev/null | wc -l
}

# So many selectors that IKE_AUTH does not fit into a packet: it goes in fragments of IKE (payload 53), none of IP.
fragments() { # GWA-DAEMON GWB-DAEMON
    # At our end: strongSwan wants an address of its own in each local network.
    MANY="$(cygnet_of "$1") 120"
    # On port 4500 behind the non-ESP marker.
    local ike="(udp port 4500 and udp[8:4] = 0 and udp[28] = 53) or (udp port 500 and udp[24] = 53)"
    watch_packets "$ike or (ip[6:2] & 0x3fff != 0)"
    start_pair "$1" active "$2" passive "${GCM% *}" "${GCM#* }"
    local us count fragments
    us=$(cygnet_of "$1")
    wait_for 15 is_up "$us" || fail "the tunnel does not come up"
    wait_for "$PATIENCE" pings || fail "ping"
    lossless ctl "$us" rekey tunnel
    count=$(seen)
    fragments=$(tcpdump -nr "$LAB_DIR/seen.pcap" "$ike" 2>/dev/null | wc -l)
    # IKE_AUTH and the rekey of the large child, each with request and response of two fragments.
    if ((fragments < 8)); then fail "$fragments fragments of IKE"; fi
    if ((count != fragments)); then fail "$((count - fragments)) fragments of IP"; fi
}

half_open() { # HOST
    ns "$1" curl -sf http://127.0.0.1:9180/metrics | sed -n 's/^cygnet_ike_half_open \([0-9]*\).*/\1/p'
}

# A flood of first requests makes us demand cookies; a peer that returns its cookie is served, and the flood costs the
# tunnel that is up nothing.
case_swan-cookie-responder() {
    start_pair swan passive cygnet passive "${GCM% *}" "${GCM#* }"
    local cookies
    cookies=$(ns gwa python3 $here/flood.py 192.0.2.1 198.51.100.2 500 100)
    if ((cookies < 50)); then fail "$cookies of 100 strangers were asked for a cookie"; fi
    if (($(half_open gwb) > 40)); then fail "$(half_open gwb) half-open SAs"; fi
    swan gwa --initiate --child v4 >>"$LAB_DIR/commands" 2>&1 || fail "the peer is not let in"
    grep -q "received COOKIE\|N(COOKIE)" "$LAB_DIR/gwa.swan/log" || fail "it was not asked for a cookie"
    wait_for "$PATIENCE" ns vpc ping -c 1 -W 1 -q 10.2.0.2 || fail "ping"
    lossless ns gwa python3 $here/flood.py 192.0.2.1 198.51.100.2 500 1000 1000
}

# The peer demands cookies of us.
case_swan-cookie-initiator() {
    SWAN_EXTRA=$'cookie_threshold = 2\nblock_threshold = 0\ncookie_threshold_ip = 2'
    start_pair cygnet passive swan passive "${GCM% *}" "${GCM#* }"
    local cookies
    cookies=$(ns gwa python3 $here/flood.py 192.0.2.1 198.51.100.2 500 20)
    if ((cookies == 0)); then fail "strongSwan asks nobody for a cookie"; fi
    watch_packets "udp port 500 and src 192.0.2.1 and udp[24] = 41"
    ctl gwa up tunnel >>"$LAB_DIR/commands" 2>&1 || fail "not let in"
    if (($(seen) == 0)); then fail "no request began with a cookie"; fi
    wait_for "$PATIENCE" pings || fail "ping"
}

# A tunnel that waits for traffic comes up with the first packet, and not before.
case_swan-on-demand() {
    start_pair cygnet on-demand swan passive "${GCM% *}" "${GCM#* }"
    sleep 1
    says '"waiting"' ctl gwa status --json || fail "it does not wait for traffic"
    wait_for "$PATIENCE" ns vpc ping -c 1 -W 1 -q 10.2.0.2 || fail "the first packets bring nothing up"
    wait_for "$PATIENCE" ns vpc ping -c 1 -W 1 -q fd02::2 || fail "the second child does not come up"
    is_up gwa || fail "not up"
}

case_swan-fragments-initiator() { fragments cygnet swan; }
case_swan-fragments-responder() { fragments swan cygnet; }
case_cygnet-fragments() { fragments cygnet cygnet; }
