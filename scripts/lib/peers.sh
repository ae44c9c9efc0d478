# shellcheck shell=bash
# Daemons for the topology: cygnet, and strongSwan with ESP in userspace or in the kernel. Sourced after topology.sh.

CYGNET=${CYGNET:-target/release/cygnet}
PSK_HEX=$(head -c 32 /dev/urandom | od -An -tx1 | tr -d ' \n')
declare -A DAEMON_PID=()
# Seconds in which a program has started or a first answer has come. An emulated machine loads Python for as long.
PATIENCE=${PATIENCE:-30}

# V4ONLY=1: a single child, IPv4. TUNNEL: a name from the configuration, if that is not "tunnel". SWAN_LOG: level of strongSwan's log (1).

# Outer address, peer's outer address and networks, as seen from a gateway. V6OUT=1: IPv6 outside.
outer() { # HOST
    case $1${V6OUT:+6} in
        gwa) echo 192.0.2.1 ;; gwb) echo 198.51.100.2 ;;
        gwa6) echo 2001:db8:a::1 ;; gwb6) echo 2001:db8:b::2 ;;
    esac
}
other() { if [[ $1 == gwa ]]; then echo gwb; else echo gwa; fi; }
nets() { # HOST: IPv4 and IPv6 network behind it
    if [[ $1 == gwa ]]; then echo "10.1.0.0/16 fd01::/16"; else echo "10.2.0.0/16 fd02::/16"; fi
}


# The IPv4 selectors of a side: its network, or with MANY="HOST N" the first N networks of 256 addresses behind that host,
# as many as make a message that IKE has to fragment.
selectors() { # HOST
    local host n count network
    read -r host count <<<"${MANY:-}"
    if [[ $1 == "$host" ]]; then
        network=$(nets "$1" | cut -d. -f1-2)
        for ((n = 0; n < count; n++)); do echo "$network.$n.0/24"; done
    else
        nets "$1" | cut -d' ' -f1
    fi
}

# What a gateway knows as the address of its peer: behind NAT that of the router.
peer_address() { # HOST
    if [[ $1 == gwb && -n ${NAT:-} ]]; then echo 198.51.100.1; else outer "$(other "$1")"; fi
}

cygnet_config() { # HOST START IKE ESP [extra yaml for the tunnel]; ENCAP=force: ESP always in UDP; LEGACY=true: legacy
    # algorithms; ANY=1: the peer may say any identity
    local host=$1 peer l4 l6 r6
    peer=$(other "$host")
    read -r l4 l6 <<<"$(nets "$host")"
    read -r _ r6 <<<"$(nets "$peer")"
    local rules="" network remotes
    remotes=$(selectors "$peer" | paste -sd,)
    for network in $(selectors "$host"); do rules+="      - { local: $network, remote: [$remotes] }"$'\n'; done
    if [[ -z ${V4ONLY:-} ]]; then rules+="      - { local: \"$l6\", remote: [\"$r6\"] }"$'\n'; fi
    (umask 077 && echo "0x$PSK_HEX" >"$LAB_DIR/psk" && echo "0x${PSK_HEX//[0-4]/5}" >"$LAB_DIR/other-psk")
    cat >"$LAB_DIR/$host.yaml" <<YAML
daemon:
  control_socket: $LAB_DIR/$host.sock
  state_dir: $LAB_DIR/$host.state
  data_plane: ${PLANE:-auto}
  metrics: { listen: "127.0.0.1:9180" }
gateways:
  - name: gateway
    address: "$(outer "$host")"
    networks: [$l4, "$l6"]
customer_gateways:
  - { name: peer, address: "$(peer_address "$host")", id: "$(if [[ -n ${ANY:-} ]]; then echo any; else outer "$peer"; fi)" }
tunnels:
  - name: tunnel
    gateway: gateway
    customer_gateway: peer
    start: $2
    auth: { psk_file: psk }
    spd:
$rules    ike: { proposals: [$3], ${LEGACY:+legacy: $LEGACY, }dpd: 10s, encap: ${ENCAP:-auto}, retransmit: { first: 500ms, tries: 4 } }
    esp: { proposals: [$4]${LEGACY:+, legacy: $LEGACY} }
${5:-}
YAML
}

# Tunnels t0, t1, ... between the two, each for a network of 256 addresses at both ends (10.1.N.0/24 and 10.2.N.0/24). gwa
# has an identity of its own for each of them, so that there are as many IKE SAs.
cygnet_many_config() { # HOST START IKE ESP COUNT: each with a network of 256 addresses, or of 64 where they are many
    local host=$1 peer n own=1 their=2 local_id remote_id net
    peer=$(other "$host")
    if [[ $host == gwb ]]; then own=2 their=1; fi
    (umask 077 && echo "0x$PSK_HEX" >"$LAB_DIR/psk")
    {
        cat <<YAML
daemon:
  control_socket: $LAB_DIR/$host.sock
  state_dir: $LAB_DIR/$host.state
  data_plane: ${PLANE:-auto}
  metrics: { listen: "127.0.0.1:9180" }
gateways:
  - { name: gateway, address: $(outer "$host"), networks: [10.$own.0.0/16] }
customer_gateways:
  - { name: peer, address: $(outer "$peer") }
tunnels:
YAML
        for ((n = 0; n < $5; n++)); do
            if [[ $host == gwa ]]; then local_id=gwa-$n.example remote_id=gwb.example; else local_id=gwb.example remote_id=gwa-$n.example; fi
            net=$n.0/24
            if (($5 > 256)); then net=$((n / 4)).$((n % 4 * 64))/26; fi
            cat <<YAML
  - name: t$n
    gateway: gateway
    customer_gateway: peer
    local_id: $local_id
    remote_id: $remote_id
    start: $2
    auth: { psk_file: psk }
    spd: [{ local: 10.$own.$net, remote: [10.$their.$net] }]
    ike: { proposals: [$3], dpd: 10s, retransmit: { first: 500ms, tries: 6 } }
    esp: { proposals: [$4] }
YAML
        done
    } >"$LAB_DIR/$host.yaml"
}

cygnet_start() { # HOST
    ns_start "$1" "$CYGNET" ${VERBOSE:+-v} run --config "$LAB_DIR/$1.yaml" >>"$LAB_DIR/$1.log" 2>&1 </dev/null &
    DAEMON_PID[$1]=$!
    # The socket itself may be that of a daemon that was killed. An emulated kernel loads its modules for seconds.
    wait_for "$PATIENCE" ctl "$1" logs "${TUNNEL:-tunnel}"
}

ctl() { # HOST VERB...
    local host=$1
    shift
    "$CYGNET" --control "$LAB_DIR/$host.sock" "$@"
}

# Whether a command's output has the pattern. Not a pipe: a command that is told to stop by SIGPIPE, or that says by its
# exit code how tunnels are, would count as failed.
says() { # PATTERN COMMAND...
    local pattern=$1
    shift
    grep -q -- "$pattern" <<<"$("$@" 2>/dev/null)"
}

# Tries a command until it succeeds.
wait_for() { # SECONDS COMMAND...
    local end=$((SECONDS + $1))
    shift
    until "$@" >/dev/null 2>&1; do
        if ((SECONDS >= end)); then return 1; fi
        sleep 0.1
    done
}

daemon_stop() { # HOST [SIGNAL]
    local pid=${DAEMON_PID[$1]:-}
    if [[ -n $pid ]]; then
        kill "-${2:-TERM}" "$pid" 2>/dev/null || true
        wait "$pid" 2>/dev/null || true
        unset "DAEMON_PID[$1]"
    fi
}

daemons_stop() {
    local host
    for host in "${!DAEMON_PID[@]}"; do daemon_stop "$host"; done
}

# The IPv4 children of strongSwan: one of all selectors, or with PAIRS=1 one for each local selector (v4-0, v4-1, ...), as
# peers have them that take one pair of networks into each child. CLOSE: their close_action, else as their start_action.
swan_children() { # HOST START ESP
    local local_ts=() n name
    if [[ -n ${PAIRS:-} ]]; then
        mapfile -t local_ts < <(selectors "$1")
    else
        local_ts=("$(selectors "$1" | paste -sd,)")
    fi
    for n in "${!local_ts[@]}"; do
        name=v4${PAIRS:+-$n}
        cat <<CONF
      $name { local_ts = ${local_ts[n]}
        remote_ts = $(selectors "$(other "$1")" | paste -sd,)
        esp_proposals = $3
        start_action = $2
        close_action = ${CLOSE:-$2}
        dpd_action = $([[ $2 == start ]] && echo restart || echo clear) }
CONF
    done
}

# strongSwan, one instance for a namespace. SWAN_ESP=libipsec (default) or kernel; SWAN_EXTRA: more for its daemon's section;
# SWAN_CONNECTION: more for its connection; SWAN_PROPOSALS: "IKE ESP", if others than its peer's; SWAN_ROOT: a directory whose usr
# and etc have another strongSwan than the installed one (scripts/vm-lab fetch strongswan).
swan_config() { # HOST START IKE ESP
    local host=$1 peer dir=$LAB_DIR/$1.swan l6 r6 libipsec=yes ike esp
    read -r ike esp <<<"${SWAN_PROPOSALS:-$3 $4}"
    peer=$(other "$host")
    read -r _ l6 <<<"$(nets "$host")"
    read -r _ r6 <<<"$(nets "$peer")"
    if [[ ${SWAN_ESP:-libipsec} == kernel ]]; then libipsec=no; fi
    mkdir -p "$dir"
    cat >"$dir/strongswan.conf" <<CONF
charon-systemd {
  load_modular = yes
${SWAN_EXTRA:-}
  install_virtual_ip = no
  retransmit_base = 1.5
  retransmit_timeout = 1.0
  retransmit_tries = 4
  filelog { log { path = $dir/log
      flush_line = yes
      default = ${SWAN_LOG:-1} } }
  plugins {
    include /etc/strongswan.d/charon/*.conf
    vici { socket = unix://$dir/vici }
    kernel-libipsec { load = $libipsec }
    dhcp { load = no }
    farp { load = no }
    forecast { load = no }
    ha { load = no }
    whitelist { load = no }
    bypass-lan { load = no }
    systime-fix { load = no }
    tnc-tnccs { load = no }
    test-vectors { load = no }
  }
}
swanctl { load = random openssl }
CONF
    local start=none v6=""
    if [[ $2 == active ]]; then start=start; fi
    if [[ -z ${V4ONLY:-} ]]; then
        v6="v6 { local_ts = $l6
        remote_ts = $r6
        esp_proposals = $esp
        start_action = $start
        dpd_action = $([[ $start == start ]] && echo restart || echo clear) }"
    fi
    cat >"$dir/swanctl.conf" <<CONF
connections {
  tunnel {
    version = 2
    local_addrs = $(outer "$host")
    remote_addrs = $(peer_address "$host")
    proposals = $ike
    keyingtries = 0
    dpd_delay = 10s
    ${SWAN_CONNECTION:-}
    local { auth = psk
      id = $(outer "$host") }
    remote { auth = psk
      id = $(outer "$peer") }
    children {
$(swan_children "$host" "$start" "$esp")
      $v6
    }
  }
}
secrets {
  ike { id-1 = $(outer "$host")
    id-2 = $(outer "$peer")
    secret = 0x$PSK_HEX }
}
CONF
}

# In a mount namespace: its pid file and sockets are private, and so are its files where it is another than the installed one.
SWAN_MOUNTS='mount -t tmpfs tmpfs /run && mkdir -p /run/lock || exit
if [ -n "$SWAN_ROOT" ]; then mount --bind "$SWAN_ROOT/etc" /etc && mount --bind "$SWAN_ROOT/usr" /usr || exit; fi
exec "$@"'

swan_start() { # HOST
    local dir=$LAB_DIR/$1.swan
    SWAN_ROOT=${SWAN_ROOT:-} STRONGSWAN_CONF=$dir/strongswan.conf ns_start "$1" unshare -m sh -c "$SWAN_MOUNTS" sh \
        /usr/sbin/charon-systemd >>"$dir/out" 2>&1 </dev/null &
    DAEMON_PID[$1]=$!
    # An emulated machine takes its time.
    wait_for 60 test -S "$dir/vici"
    wait_for 30 swan "$1" --load-all --file "$dir/swanctl.conf"
}

swan() { # HOST SWANCTL-ARGS...
    local host=$1
    shift
    set -- swanctl "$@" --uri "unix://$LAB_DIR/$host.swan/vici"
    if [[ -n ${SWAN_ROOT:-} ]]; then set -- env SWAN_ROOT="$SWAN_ROOT" STRONGSWAN_CONF="$LAB_DIR/$host.swan/strongswan.conf" unshare -m sh -c "$SWAN_MOUNTS" sh "$@"; fi
    "$@"
}
