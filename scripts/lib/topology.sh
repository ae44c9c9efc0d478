# shellcheck shell=bash
# The topology of two gateways in network namespaces. Sourced by scripts/demo and the tests with real daemons.
#
#    vpc ───────── gwa ═════════ wan ═════════ gwb ───────── idc
#  10.1.0.2   10.1.0.1 192.0.2.1   │   198.51.100.2 10.2.0.1   10.2.0.2
#  fd01::2    fd01::1  2001:db8:a::1  2001:db8:b::2  fd02::1    fd02::2
#
# gwa is the VPN gateway, gwb the customer gateway. wan is a router between them, where leaks would be seen; it can
# translate gwa's address.

LAB=${LAB:-cyg-$$}
LAB_DIR=

lab_hosts=(vpc gwa wan gwb idc)

ns() { # HOST COMMAND...: runs a command on a host
    local host=$1
    shift
    ip netns exec "$LAB-$host" "$@"
}

# The same for a command in the background: the process that `$!` names is the command itself.
ns_start() { # HOST COMMAND...
    local host=$1
    shift
    exec ip netns exec "$LAB-$host" "$@"
}

# A cable between two hosts with an IPv4 and an IPv6 address at each end.
cable() { # HOST V4 V6  HOST V4 V6
    local a="$1-$4" b="$4-$1"
    ip link add "$a" netns "$LAB-$1" type veth peer name "$b" netns "$LAB-$4"
    ns "$1" ip addr add "$2" dev "$a"
    ns "$1" ip addr add "$3" dev "$a" nodad
    ns "$4" ip addr add "$5" dev "$b"
    ns "$4" ip addr add "$6" dev "$b" nodad
    ns "$1" ip link set "$a" up
    ns "$4" ip link set "$b" up
}

lab_up() {
    LAB_DIR=$(mktemp -d "${TMPDIR:-/tmp}/$LAB.XXXXXX")
    chmod 700 "$LAB_DIR"
    local host
    for host in "${lab_hosts[@]}"; do
        ip netns add "$LAB-$host"
        ns "$host" ip link set lo up
        ns "$host" sysctl -qw net.ipv4.ip_forward=1 net.ipv6.conf.all.forwarding=1
        # Nobody else is here to have the same address, and a router whose link-local address is being tested for
        # duplicates cannot ask for its neighbours.
        ns "$host" sysctl -qw net.ipv6.conf.all.accept_dad=0 net.ipv6.conf.default.accept_dad=0
    done
    cable vpc 10.1.0.2/24 fd01::2/64 gwa 10.1.0.1/24 fd01::1/64
    cable gwa 192.0.2.1/24 2001:db8:a::1/64 wan 192.0.2.2/24 2001:db8:a::2/64
    cable wan 198.51.100.1/24 2001:db8:b::1/64 gwb 198.51.100.2/24 2001:db8:b::2/64
    cable gwb 10.2.0.1/24 fd02::1/64 idc 10.2.0.2/24 fd02::2/64
    ns vpc ip route add default via 10.1.0.1
    ns vpc ip -6 route add default via fd01::1
    ns idc ip route add default via 10.2.0.1
    ns idc ip -6 route add default via fd02::1
    ns gwa ip route add default via 192.0.2.2
    ns gwa ip -6 route add default via 2001:db8:a::2
    ns gwb ip route add default via 198.51.100.1
    ns gwb ip -6 route add default via 2001:db8:b::1
    # The router knows both sides, so that a leaked packet would arrive and be seen.
    ns wan ip route add 10.1.0.0/16 via 192.0.2.1
    ns wan ip route add 10.2.0.0/16 via 198.51.100.2
    ns wan ip -6 route add fd01::/16 via 2001:db8:a::1
    ns wan ip -6 route add fd02::/16 via 2001:db8:b::2
}

# Translates gwa's address to the router's. User-Mode Linux of Debian 12 has the older tables only, newer ones have none;
# the exit code tells.
lab_nat() {
    if ns wan nft add table ip lab 2>/dev/null &&
        ns wan nft "add chain ip lab post { type nat hook postrouting priority 100 ; }" 2>/dev/null; then
        ns wan nft add rule ip lab post ip saddr 192.0.2.1 masquerade
    else
        ns wan iptables-legacy -t nat -A POSTROUTING -s 192.0.2.1 -j MASQUERADE 2>/dev/null
    fi
}

lab_down() {
    local host pids
    for host in "${lab_hosts[@]}"; do
        # Whatever still runs there, captures for example; what is gone meanwhile is no fault.
        mapfile -t pids < <(ip netns pids "$LAB-$host" 2>/dev/null)
        if ((${#pids[@]} > 0)); then kill "${pids[@]}" 2>/dev/null || true; fi
        ip netns del "$LAB-$host" 2>/dev/null || true
    done
    if [[ -n $LAB_DIR ]]; then rm -rf "$LAB_DIR"; fi
}

# Listens on the router for packets of the protected networks that a gateway lets out in clear text, until `leaks`.
# Without an argument both gateways are watched, else the interface of the router that is named.
watch_leaks() { # [INTERFACE]
    ns_start wan tcpdump -ni "${1:-any}" -Q in -w "$LAB_DIR/leak.pcap" -U --immediate-mode \
        "net 10.1.0.0/16 or net 10.2.0.0/16 or net fd01::/16 or net fd02::/16" 2>"$LAB_DIR/leak.log" </dev/null &
    LEAK_PID=$!
    for _ in {1..300}; do
        if grep -q 'listening on' "$LAB_DIR/leak.log"; then return 0; fi
        sleep 0.1
    done
    echo "tcpdump did not start" >&2
    return 1
}

leaks() { # prints how many packets were seen since watch_leaks
    sleep 0.3
    kill "$LEAK_PID"
    wait "$LEAK_PID" 2>/dev/null || true
    tcpdump -nr "$LAB_DIR/leak.pcap" 2>/dev/null | wc -l
}
