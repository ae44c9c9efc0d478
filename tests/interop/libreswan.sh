# shellcheck shell=bash
# libreswan on the kernel's ESP as the peer, of the root that scripts/vm-lab fetch libreswan makes. Sourced by run, after peers.sh.

LIBRESWAN_ROOT=$PWD/.lab/libreswan
# What export-peer makes of the tunnel: one for each pair of networks.
CONNECTIONS='tunnel-1 tunnel-2'

has_libreswan() {
    if [[ ! -e $LIBRESWAN_ROOT/version ]]; then
        SKIPPED='no libreswan: scripts/vm-lab fetch libreswan'
        return 1
    fi
    if [[ ${PLANE:-} != kernel ]]; then
        SKIPPED='libreswan has no ESP of its own: it needs a kernel with it (scripts/vm-lab)'
        return 1
    fi
}

# In a mount namespace, with files of its own release.
LIBRESWAN_MOUNTS='mount -t tmpfs tmpfs /run && mkdir -p /run/pluto || exit
mount --bind "$LIBRESWAN_ROOT/etc" /etc && mount --bind "$LIBRESWAN_ROOT/usr" /usr || exit
exec "$@"'

libreswan() { # HOST PROGRAM ARGUMENT...
    local host=$1
    shift
    LIBRESWAN_ROOT=$LIBRESWAN_ROOT ns "$host" unshare -m sh -c "$LIBRESWAN_MOUNTS" sh "$@"
}

whack() { # HOST ARGUMENT...
    local host=$1
    shift
    libreswan "$host" /usr/libexec/ipsec/whack --rundir "$LAB_DIR/$host.lsw" "$@"
}

# ipsec.conf and ipsec.secrets of the host must be there.
libreswan_start() { # HOST
    local dir=$LAB_DIR/$1.lsw
    mkdir -p "$dir/nss"
    # Of a database that is there it asks the terminal for a password, for ever.
    if [[ ! -e $dir/nss/cert9.db ]]; then
        libreswan "$1" /usr/bin/certutil -N -d "sql:$dir/nss" --empty-password >>"$dir/out" 2>&1 </dev/null
    fi
    LIBRESWAN_ROOT=$LIBRESWAN_ROOT ns_start "$1" unshare -m sh -c "$LIBRESWAN_MOUNTS" sh \
        /usr/libexec/ipsec/pluto --nofork --use-xfrm --rundir "$dir" --config "$dir/ipsec.conf" --secretsfile "$dir/ipsec.secrets" \
        --nssdir "$dir/nss" --logfile "$dir/log" --expire-shunt-interval 5 >>"$dir/out" 2>&1 </dev/null &
    DAEMON_PID[$1]=$!
    wait_for "$PATIENCE" whack "$1" --status || return 1
    local conn
    for conn in $CONNECTIONS; do
        libreswan "$1" /usr/libexec/ipsec/addconn --ctlsocket "$dir/pluto.ctl" --config "$dir/ipsec.conf" "$conn" >>"$dir/out" 2>&1 || return 1
    done
}

libreswan_initiates() { # HOST
    local conn
    for conn in $CONNECTIONS; do
        whack "$1" --initiate --name "$conn" >>"$LAB_DIR/commands" 2>&1 || fail "$conn does not come up"
    done
}

# The other end of our own description, by export-peer: only the secret is put where it says.
libreswan_as_exported() { # of cygnet on HOST
    local dir=$LAB_DIR/$(other "$1").lsw
    mkdir -p "$dir"
    "$CYGNET" export-peer tunnel --format libreswan --with-psk --config "$LAB_DIR/$1.yaml" >"$dir/ipsec.conf" 2>>"$LAB_DIR/stderr" ||
        fail "export-peer"
    (umask 077 && sed -n 's/^# \(.* : PSK .*\)/\1/p' "$dir/ipsec.conf" >"$dir/ipsec.secrets")
}

# cygnet on gwa initiates, or libreswan there with what is exported for it.
libreswan_pair() { # cygnet|libreswan IKE ESP
    local us=gwa them=gwb start=active
    if [[ $1 == libreswan ]]; then us=gwb them=gwa start=passive; fi
    cygnet_config $us $start "$2" "$3"
    libreswan_as_exported $us
    libreswan_start $them || { fail "libreswan does not take its configuration"; return; }
    cygnet_start $us || { fail "cygnet does not start"; return; }
    watch_leaks wan-$us
    if [[ $1 == libreswan ]]; then libreswan_initiates $them; fi
    wait_for "$PATIENCE" is_up $us || { fail "the tunnel does not come up"; return; }
}

# As `full`, with libreswan: traffic, new keys asked for by either end, and down.
full_libreswan() { # cygnet|libreswan IKE ESP
    has_libreswan || return 0
    libreswan_pair "$@" || return
    local us=gwa them=gwb seen
    if [[ $1 == libreswan ]]; then us=gwb them=gwa; fi
    traffic
    counters_agree $us
    # It uses new keys at once, when whoever asked for them is still computing them.
    MAY_LOSE=20 lossless ctl $us rekey tunnel
    lossless ctl $us rekey --ike tunnel
    lossless whack $them --rekey-child --name tunnel-1
    lossless whack $them --rekey-ike --name tunnel-1
    wait_for 10 is_up $us || fail "not up after the rekeys"
    wait_for "$PATIENCE" pings || fail "ping after the rekeys"
    ctl $us down tunnel >>"$LAB_DIR/commands" 2>&1 || fail "down"
    if ns vpc ping -c 2 -i 0.2 -W 1 -q 10.2.0.2 >/dev/null; then fail "packets pass a tunnel that is down"; fi
    seen=$(leaks)
    if [[ $seen != 0 ]]; then fail "$seen packets in clear text"; fi
}

case_pluto-gcm-initiator() { full_libreswan cygnet $GCM; }
case_pluto-gcm-responder() { full_libreswan libreswan $GCM; }
case_pluto-cbc-initiator() { full_libreswan cygnet $CBC; }
case_pluto-cbc-responder() { full_libreswan libreswan $CBC; }
case_pluto-chacha-initiator() { full_libreswan cygnet $CHACHA; }
case_pluto-chacha-responder() { full_libreswan libreswan $CHACHA; }

# Either of them dies without a word, and the other one notices by its silence, or by what it says when it is back.
restarts_libreswan() { # cygnet|libreswan
    has_libreswan || return 0
    libreswan_pair "$1" $GCM || return
    local us=gwa them=gwb seen
    if [[ $1 == libreswan ]]; then us=gwb them=gwa; fi
    daemon_stop $us KILL
    ns vpc ping -c 10 -i 0.1 -W 1 -q 10.2.0.2 >/dev/null || true
    cygnet_start $us
    wait_for 60 pings || fail "no traffic after kill -9 of cygnet"
    daemon_stop $them KILL
    libreswan_start $them || { fail "libreswan does not start again"; return; }
    if [[ $1 == libreswan ]]; then libreswan_initiates $them; fi
    wait_for 60 pings || fail "no traffic after kill -9 of libreswan"
    seen=$(leaks)
    if [[ $seen != 0 ]]; then fail "$seen packets in clear text"; fi
}
case_pluto-restart-initiator() { restarts_libreswan cygnet; }
case_pluto-restart-responder() { restarts_libreswan libreswan; }
