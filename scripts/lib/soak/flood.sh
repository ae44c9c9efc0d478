# shellcheck shell=bash
# flood [SECONDS] [RATE] [KIND...]: forged datagrams (20,000 a second, 60 s of each kind) at a gateway with a live tunnel, while
# another peer makes one tunnel after the other. Kinds: first requests from addresses that nobody has configured, the same
# from those of the peers, garbage and recorded datagrams to both ports.

flood_config() { # HOST ADDRESS NETWORK  PEER-NAME PEER-ADDRESS PEER-NETWORK START ...
    local host=$1 address=$2 network=$3
    shift 3
    (umask 077 && echo "0x$PSK_HEX" >"$LAB_DIR/psk")
    {
        cat <<YAML
daemon:
  control_socket: $LAB_DIR/$host.sock
  state_dir: $LAB_DIR/$host.state
  data_plane: ${PLANE:-auto}
  metrics: { listen: "127.0.0.1:9180" }
gateways:
  - { name: gateway, address: $address, networks: [$network] }
YAML
        local peers=("$@") n
        echo "customer_gateways:"
        for ((n = 0; n < ${#peers[@]}; n += 4)); do
            echo "  - { name: ${peers[n]}, address: ${peers[n + 1]} }"
        done
        echo "tunnels:"
        for ((n = 0; n < ${#peers[@]}; n += 4)); do
            cat <<YAML
  - name: ${peers[n]}
    gateway: gateway
    customer_gateway: ${peers[n]}
    start: ${peers[n + 3]}
    auth: { psk_file: psk }
    spd: [{ local: $network, remote: [${peers[n + 2]}] }]
    ike: { proposals: [$IKE], dpd: 10s, retransmit: { first: 500ms, tries: 6 } }
    esp: { proposals: [$ESP] }
YAML
        done
    } >"$LAB_DIR/$host.yaml"
}

flood_start() { # HOST TUNNEL
    ns_start "$1" "$CYGNET" run --config "$LAB_DIR/$1.yaml" >>"$LAB_DIR/$1.log" 2>&1 </dev/null &
    DAEMON_PID[$1]=$!
    wait_for 10 ctl "$1" logs "$2"
}

# One tunnel after the other until it is ended; a line for each: milliseconds, or "lost". The pause keeps to what a peer may
# ask for in the long run, one IKE_AUTH in two seconds.
flood_handshakes() {
    local began
    while :; do
        began=$EPOCHREALTIME
        if ctl wan up knock --timeout 10 >/dev/null 2>&1; then
            echo $(((${EPOCHREALTIME/./} - ${began/./}) / 1000))
        else
            echo lost
        fi
        ctl wan down knock --timeout 10 >/dev/null 2>&1 || true
        sleep 2
    done
}

udp_lost() { # HOST: datagrams that the kernel had no room for
    ns "$1" awk '/^Udp: [0-9]/ { print $6 }' /proc/net/snmp
}

# One kind: what it cost and what was lost.
flood_kind() { # NAME SECONDS [flood.py's KIND RATE [SOURCE... --pcap FILE]]
    local name=$1 seconds=$2 sent=0 took
    shift 2
    if [[ $name != quiet && " ${FLOOD_KINDS:-$name} " != *" $name "* ]]; then return 0; fi
    say "$name"
    local before after dropped rss fds
    read -r rss fds _ <<<"$(sample gwb)"
    stream_start 200
    flood_handshakes >"$LAB_DIR/handshakes" &
    local handshakes=$!
    sleep 1
    before=$(cpu "${DAEMON_PID[gwb]}") dropped=$(udp_lost gwb)
    if (($# > 0)); then
        local kind=$1 rate=$2
        shift 2
        read -r sent took <<<"$(ns wan python3 $SOAK/flood.py "$kind" wan-gwb "$(ns gwb cat /sys/class/net/gwb-wan/address)" \
            198.51.100.2 "$rate" "$seconds" "$@")"
    else
        sleep "$seconds"
        took=$seconds
    fi
    figure "${name}_connections_tracked" "$(ns gwb sysctl -n net.netfilter.nf_conntrack_count 2>/dev/null || echo 0)"
    after=$(cpu "${DAEMON_PID[gwb]}") dropped=$(($(udp_lost gwb) - dropped))
    # Whoever is still on its way may arrive.
    sleep 2
    kill $handshakes && wait $handshakes 2>/dev/null || true
    stream_end
    local idle=${FIGURES[quiet_cpu_ns_per_s]:-0}
    if ((sent == 0)); then
        figure "${name}_cpu_ns_per_s" $(((after - before) / seconds))
    else
        figure "${name}_per_s" "$(python3 -c "print(round($sent / $took))")"
        figure "${name}_cpu_us_per_datagram" \
            "$(python3 -c "print(round(($after - $before - $idle * $took) / 1000 / max(1, $sent - $dropped), 2))")"
        figure "${name}_no_room_in_socket" "$dropped"
    fi
    figure "${name}_handshakes" "$(grep -c . "$LAB_DIR/handshakes")"
    figure "${name}_handshakes_lost" "$(grep -c lost "$LAB_DIR/handshakes" || true)"
    figure "${name}_handshake_ms_longest" "$(grep -v lost "$LAB_DIR/handshakes" | sort -n | tail -n1)"
    figure "${name}_packets" "$(of_json "$LAB_DIR/stream.json" 'v["sent"]')"
    figure "${name}_packets_lost" "$(of_json "$LAB_DIR/stream.json" 'v["lost"]')"
    must "${name}_handshakes" ge 1
    must "${name}_handshakes_lost" eq 0
    must "${name}_packets_lost" eq 0
    must_not_grow "$name" gwb "$rss" "$fds"
}

soak_flood() {
    local seconds=${1:-60} rate=${2:-20000} name
    FLOOD_KINDS=${*:3}
    flood_config gwb 198.51.100.2 10.2.0.0/16 tunnel 192.0.2.1 10.1.0.0/16 passive knock 198.51.100.1 10.9.0.0/16 passive
    flood_config gwa 192.0.2.1 10.1.0.0/16 tunnel 198.51.100.2 10.2.0.0/16 active
    flood_config wan 198.51.100.1 10.9.0.0/16 knock 198.51.100.2 10.2.0.0/16 passive
    flood_start gwb tunnel
    # What the replays repeat: the handshakes, a rekey of each kind, and ESP.
    ns_start wan tcpdump -ni wan-gwb -Q out -s 0 -w "$LAB_DIR/real.pcap" -U udp port 500 or udp port 4500 2>"$LAB_DIR/dump.log" &
    local dump=$!
    wait_for 5 grep -q listening "$LAB_DIR/dump.log"
    flood_start gwa tunnel
    flood_start wan knock
    wait_for 20 passes || broken "the tunnel does not come up"
    ctl gwa rekey tunnel >/dev/null && ctl gwa rekey --ike tunnel >/dev/null || broken "rekey"
    ctl wan up knock >/dev/null && ctl wan down knock >/dev/null || broken "the other tunnel"
    ns vpc ping -c 200 -i 0.01 -q 10.2.0.2 >/dev/null
    kill $dump && wait $dump 2>/dev/null || true
    # Whose addresses were forged does not answer for it: the answers end at the router, or the figures would be those of
    # its ICMP errors, too.
    ns wan nft add table ip swallow
    ns wan nft "add chain ip swallow pre { type filter hook prerouting priority -300 ; }"
    ns wan nft add rule ip swallow pre iif wan-gwb udp sport '{ 500, 4500 }' udp dport != '{ 500, 4500 }' drop
    # A handshake under way or two belong to the quiet, as they do to the floods.
    flood_kind quiet $((seconds / 2))
    flood_kind unconfigured "$seconds" init "$rate"
    flood_kind configured "$seconds" init "$rate" 192.0.2.1 198.51.100.1
    flood_kind singly "$seconds" init "$rate" 192.0.2.1 198.51.100.1 --singly
    flood_kind garbage "$seconds" garbage "$rate" 192.0.2.1 198.51.100.1
    flood_kind replays "$seconds" replay "$rate" 192.0.2.1 198.51.100.1 --pcap "$LAB_DIR/real.pcap"
    for name in unconfigured configured singly; do
        if [[ -n ${FIGURES[${name}_cpu_us_per_datagram]:-} ]]; then must "${name}_cpu_us_per_datagram" le 10; fi
    done
    finish flood
}
