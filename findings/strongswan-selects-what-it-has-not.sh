#!/usr/bin/env bash
# strongSwan offers and selects a key exchange that none of its plugins has, and fails after IKE_SA_INIT, also where both ends have
# a second proposal without it.
#
# One expects that an implementation selects among what it can do: with the proposals "...-x25519-ke1_mlkem768, ...-x25519" at both
# ends, one of which has no ML-KEM, the second one would be taken. But the words of a configured proposal are not compared with the loaded
# plugins. As responder it selects the first, and answers the IKE_INTERMEDIATE with the KE payload by INVALID_SYNTAX: not by
# NO_PROPOSAL_CHOSEN, so that the initiator has no reason to leave the method out. As initiator it offers the first, and stops when it
# is selected, without a word to the responder.
#
# Seen with strongSwan 6.0.1 (Debian 13, whose packages have no plugin with ML-KEM) beside 6.1.0 (forky): without ML-KEM in the
# configuration: established both ways; with it: as said.
#
# usage: findings/strongswan-selects-what-it-has-not.sh      needs root, apt of a Debian, iproute2, unshare
set -euo pipefail
[ "$(id -u)" = 0 ] || { echo "needs root" >&2; exit 77; }
dir=$(mktemp -d)
lab=finding-$$
declare -A charon=()
clean() {
    if [ "${#charon[@]}" -gt 0 ]; then kill "${charon[@]}" 2>/dev/null || true; wait; fi
    for host in old new; do ip netns delete "$lab-$host" 2>/dev/null || true; done
    rm -rf --one-file-system "$dir"
}
trap clean EXIT

# The programs of a release and all their libraries, in a directory.
archive=$(apt-get indextargets --format '$(RELEASE) $(REPO_URI)' |
    awk -v want="$(. /etc/os-release && echo "$VERSION_CODENAME")" '$1 == want && $2 ~ /debian/ { print $2; exit }')
[ -n "$archive" ] || { echo "no lists of apt: apt-get update first" >&2; exit 77; }
unpack() { # HOST RELEASE
    local to=$dir/$1 deb
    mkdir -p "$to"/apt/{state/lists/partial,cache/archives/partial} "$to/root"
    echo "deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] $archive $2 main" >"$to/apt/sources.list"
    : >"$to/apt/status"
    local apt=(apt-get -qq -o Dir::State="$to/apt/state" -o Dir::Cache="$to/apt/cache" -o Dir::State::status="$to/apt/status"
        -o Dir::Etc::sourcelist="$to/apt/sources.list" -o Dir::Etc::sourceparts=- -o APT::Sandbox::User=root
        -o Acquire::Languages=none)
    "${apt[@]}" update
    "${apt[@]}" install -y --download-only --no-install-recommends charon-systemd strongswan-swanctl libstrongswan-standard-plugins >/dev/null
    for deb in "$to"/apt/cache/archives/*.deb; do dpkg -x "$deb" "$to/root"; done
    for deb in libstrongswan libssl3t64; do dpkg-deb --show "$to"/apt/cache/archives/${deb}_*.deb | sed "s/^/$2: /"; done
    rm -r "$to/apt"
}
unpack old trixie
unpack new forky

declare -A address=([old]=192.0.2.1 [new]=192.0.2.2)
for host in old new; do
    ip netns add "$lab-$host"
    ip -n "$lab-$host" link set lo up
done
ip link add old netns "$lab-old" type veth peer name new netns "$lab-new"
for host in old new; do
    ip -n "$lab-$host" address add "${address[$host]}/24" dev $host
    ip -n "$lab-$host" link set $host up
done

inside() { # HOST PROGRAM ARG...
    exec ip netns exec "$lab-$1" unshare --mount sh -c 'root=$1
shift 2
mount -t tmpfs tmpfs /run && mount --bind "$root/etc" /etc && mount --bind "$root/usr" /usr && exec "$@"' sh "$dir/$1/root" "$@"
}

start() { # PROPOSALS
    local host peer
    for host in old new; do
        peer=$([ $host = old ] && echo new || echo old)
        : >"$dir/$host.log"
        cat >"$dir/$host.conf" <<CONF
charon-systemd {
  load = random drbg openssl aesni gcm nonce vici kernel-netlink socket-default
  filelog { log { path = $dir/$host.log
      flush_line = yes } }
  plugins { vici { socket = unix://$dir/$host.vici } }
}
swanctl { load = random openssl }
CONF
        # Without a child, so that no kernel has to do ESP.
        cat >"$dir/$host.swanctl" <<CONF
connections { peer {
    version = 2
    local_addrs = ${address[$host]}
    remote_addrs = ${address[$peer]}
    proposals = $1
    childless = force
    local { auth = psk
      id = ${address[$host]} }
    remote { auth = psk
      id = ${address[$peer]} } } }
secrets { ike-peer { secret = "psk of this test" } }
CONF
        (export STRONGSWAN_CONF="$dir/$host.conf" && inside $host /usr/sbin/charon-systemd) >"$dir/$host.out" 2>&1 &
        charon[$host]=$!
        for _ in $(seq 100); do if [ -S "$dir/$host.vici" ]; then break; fi; sleep 0.1; done
        swan $host --load-all --file "$dir/$host.swanctl" >>"$dir/$host.out" 2>&1 || { cat "$dir/$host.out" >&2; exit 1; }
    done
}
swan() { # HOST ARG...
    local host=$1
    shift
    (export STRONGSWAN_CONF="$dir/$host.conf" && inside "$host" swanctl "$@" --uri "unix://$dir/$host.vici")
}
stop() {
    kill "${charon[@]}"
    wait
    charon=()
    rm -f "$dir"/*.vici
}

ok=yes
tries() { # WHAT HOST yes|no SAID: whether it establishes the SA, and what the log of the old one has of it
    local established=no
    swan "$2" --initiate --ike peer --timeout 5 >/dev/null 2>&1 || true
    if swan "$2" --list-sas 2>/dev/null | grep -q ESTABLISHED; then established=yes; fi
    echo "$1: established: $established; the old one says:"
    sed -n 's/.*\] \(selected proposal\|negotiated key exchange method\|generating IKE_INTERMEDIATE response\)/    \1/p' "$dir/old.log"
    [ "$established" = "$3" ] || ok=no
    if [ "$3" = no ]; then grep -q "$4" "$dir/old.log" || ok=no; fi
}
plain=aes256gcm16-prfsha384-x25519
for host in old new; do
    start "$plain"
    tries "without ML-KEM, $host initiates" $host yes
    stop
    start "$plain-ke1_mlkem768,$plain"
    said='negotiated key exchange method ML_KEM_768 not supported'
    if [ $host = new ]; then said='generating IKE_INTERMEDIATE response 1 \[ N(INVAL_SYN) \]'; fi
    tries "with it first, $host initiates" $host no "$said"
    stop
done
[ $ok = yes ] || { echo "changed" >&2; exit 1; }
