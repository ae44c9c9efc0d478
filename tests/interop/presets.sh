# shellcheck shell=bash
# Presets: cygnet says `preset: NAME` and only what an operator has to write; strongSwan is configured as that gateway behaves.
# Sourced by run.
#
# What a gateway does is a function `gateway_NAME` that sets
#   PRESET       the preset, if it is not NAME
#   TITLE        what the gateway is, in a few words
#   IKE, ESP     what it takes, in its own order
#   WE, THEY     what is chosen if we begin, and if it begins: "IKE-suite ESP-suite" in the words of `cygnet status`, the
#                key exchange of later children included; THEY is empty for a gateway that only answers
#   LIFE         its lifetimes in seconds: of the IKE SA, of a child
#   DPD          its dead peer detection in seconds
#   TS           its selectors: any (0.0.0.0/0 on both sides), one (the networks, one of each), list (all of them in a child),
#                pairs (a child for each pair)
#   OUR, THEIR   identities, if they are not the addresses; as cygnet writes them
#   SAYS         what an operator has to write besides, as YAML for the tunnel
#   IDLE         if set, its own dead peer detection is waited for, once
#   REKEYS       "ours" for a gateway that leaves new keys to us
#   MORE         more lines for its connection
#   WEAK         what it offers where nobody has changed its defaults, or has chosen badly: "IKE ESP", which must be refused

gateway_aws() {
    TITLE='every algorithm allowed, as it is unless somebody chooses; the lowest that is allowed is taken'
    IKE=aes128-aes256-sha1-sha256-sha384-sha512-modp1024-modp2048-modp3072-modp4096-modp6144-modp8192-ecp256-ecp384-ecp521
    IKE+=,aes128gcm16-aes256gcm16-prfsha1-prfsha256-prfsha384-prfsha512-modp1024-modp2048-modp3072-modp4096-ecp256-ecp384-ecp521
    ESP=aes128-aes256-sha1-sha256-sha384-sha512-modp1024-modp1536-modp2048-modp3072-modp4096-ecp256-ecp384-ecp521
    ESP+=,aes128gcm16-aes256gcm16-modp1024-modp1536-modp2048-modp3072-modp4096-ecp256-ecp384-ecp521
    WE='aes256-sha256-prfsha256-modp2048 aes256-sha256-modp2048'
    THEY='aes256gcm16-prfsha384-ecp384 aes256gcm16-ecp384'
    LIFE='28800 3600' DPD=10 TS=any
    WEAK='aes128-sha1-modp1024 aes128-sha1-modp1024'
}
gateway_aws_guide() {
    PRESET=aws TITLE='the lists of the guide'
    IKE=aes256gcm16-prfsha384-ecp384 ESP=aes256gcm16-ecp384
    WE="$IKE $ESP" THEY=$WE LIFE='28800 3600' DPD=10 TS=one
}
gateway_azure() {
    TITLE='the custom policy of the guide, policy-based selectors'
    IKE=aes256gcm16-prfsha384-ecp384 ESP=aes256gcm16-ecp384
    WE="$IKE $ESP" THEY=$WE LIFE='28800 27000' DPD=45 TS=pairs
    # Without a policy it has group 2 alone, and SHA-1 first.
    WEAK='aes256-sha1-modp1024,aes256-sha256-modp1024,aes128-sha1-modp1024 aes256-sha1,aes128-sha1'
}
gateway_azure_without_pfs() {
    PRESET=azure TITLE='a custom policy with PFS none: it renews without a key exchange'
    IKE=aes256gcm16-prfsha384-ecp384 ESP=aes256gcm16
    WE="$IKE $ESP" THEY=$WE LIFE='28800 27000' DPD=45 TS=any
}
gateway_gcp() {
    TITLE='its own order: AES-GCM before AES-CBC, X25519 before all; one child for all ranges'
    IKE=aes256gcm16-aes128gcm16-prfsha256-prfsha384-prfsha512-x25519-ecp256-ecp384-ecp521-modp3072-modp4096-modp2048
    IKE+=,aes256-aes128-sha256-sha384-sha512-sha1-x25519-ecp256-ecp384-ecp521-modp3072-modp4096-modp2048-modp1024
    ESP=aes256gcm16-aes128gcm16-x25519-ecp256-ecp384-ecp521-modp3072-modp4096-modp2048
    ESP+=,aes256-aes128-sha256-sha512-x25519-ecp256-ecp384-ecp521-modp3072-modp4096-modp2048
    WE='aes256gcm16-prfsha256-x25519 aes256gcm16-x25519' THEY=$WE LIFE='36000 10800' DPD=20 TS=list
    WEAK='aes128-sha1-modp1024 aes128-sha1-modp1024'
}
gateway_gcp_nat() {
    gateway_gcp
    # It does not reach us from outside.
    PRESET=gcp TITLE='we are behind NAT and say the public address' OUR=198.51.100.1 THEY='' WEAK=''
}
gateway_aliyun() {
    TITLE='IKEv2 with the algorithms of the guide, protected data flows'
    IKE=aes256-sha256-modp2048 ESP=aes256-sha256-modp2048
    WE='aes256-sha256-prfsha256-modp2048 aes256-sha256-modp2048' THEY=$WE LIFE='86400 86400' DPD=30 TS=list
    WEAK='aes128-sha1-modp1024 aes128-sha1-modp1024'
}
gateway_tencent() {
    TITLE='the algorithms of the guide, each pair of an SPD policy by itself'
    IKE=aes256-sha256-modp2048 ESP=aes256-sha256-modp2048
    WE='aes256-sha256-prfsha256-modp2048 aes256-sha256-modp2048' THEY=$WE LIFE='86400 3600' DPD=30 TS=pairs
    WEAK='3des-sha1-modp1024 3des-sha1-modp1024'
}
gateway_cloudflare() {
    TITLE='only answers, knows us by a name, a pair in each child'
    IKE=aes128gcm16-aes256gcm16-prfsha256-prfsha384-prfsha512-ecp384-modp2048-modp1536,aes256-sha256-ecp384-modp2048-modp1536
    ESP=aes128gcm16-aes256gcm16-ecp384-modp2048-modp1536,aes128-aes256-sha256-sha1-ecp384-modp2048-modp1536
    WE='aes256gcm16-prfsha384-ecp384 aes256gcm16-ecp384' THEY='' LIFE='86400 28800' DPD=30 TS=pairs REKEYS=ours
    OUR=tunnel1.0123456789abcdef.ipsec.cloudflare.com
    WEAK='aes256-sha256-modp1536 aes128-sha1-modp1536'
}
gateway_cloudflare_nat() {
    gateway_cloudflare
    PRESET=cloudflare TITLE='we are behind NAT: nothing but UDP 4500 is answered' SAYS='    ike: { encap: from-start }' WEAK=''
    ns wan nft add table ip only4500 && ns wan nft 'add chain ip only4500 f { type filter hook forward priority 0 ; }' &&
        ns wan nft add rule ip only4500 f udp dport 500 drop && ns wan nft add rule ip only4500 f ip protocol esp drop ||
        fail "the filter"
}
gateway_strongswan() {
    TITLE='no proposals of its own, its own lifetimes'
    IKE=default ESP=default
    WE='aes256-sha256-prfsha256-x25519 aes256-sha256' THEY='aes256-sha256-prfsha256-x25519 aes256gcm16' LIFE='14400 3600' DPD=30 TS=list
    WEAK='aes128-sha1-modp1024 aes128-sha1'
}
gateway_libreswan() {
    TITLE='its default lists, PFS with the group of the IKE SA'
    IKE=aes256gcm16-aes128gcm16-prfsha512-prfsha256-ecp256-ecp384-ecp521-x25519-modp2048-modp3072-modp4096-modp8192
    IKE+=,aes256-aes128-sha512-sha256-ecp256-ecp384-ecp521-x25519-modp2048-modp3072-modp4096-modp8192
    ESP=aes256gcm16-aes128gcm16-ecp256-ecp384-modp2048,aes256-aes128-sha512-sha256-ecp256-ecp384-modp2048
    WE='aes256gcm16-prfsha512-ecp384 aes256gcm16-ecp384' THEY=$WE
    LIFE='28800 28800' DPD=30 TS=one
    WEAK='aes128-sha1-modp1536 aes128-sha1-modp1536'
}
gateway_cisco() {
    TITLE='the default IKEv2 proposal of IOS-XE, a transform set with PFS, a pair of its access list in each child'
    IKE=aes256-sha512-sha384-ecp256-modp2048-ecp521 ESP=aes256gcm16-ecp384
    WE='aes256-sha512-prfsha512-ecp256 aes256gcm16-ecp384' THEY=$WE LIFE='86400 3600' DPD=10 TS=pairs
    WEAK='aes128-sha1-modp1536-modp1024 aes128-sha1'
}
gateway_fortinet() {
    TITLE='the defaults of FortiOS 7: both phases with groups 14 and 5, 0.0.0.0/0, a name as identity'
    IKE=aes128-aes256-sha256-modp2048-modp1536,aes128gcm16-prfsha256-modp2048-modp1536,aes256gcm16-prfsha384-modp2048-modp1536
    IKE+=,chacha20poly1305-prfsha256-modp2048-modp1536
    ESP=aes128-aes256-sha1-sha256-modp2048-modp1536,aes128gcm16-modp2048-modp1536,aes256gcm16-modp2048-modp1536
    WE='aes256-sha256-prfsha256-modp2048 aes256-sha256-modp2048'
    # The child of IKE_AUTH has no group that could differ; the next ones are CBC again.
    THEY='aes256-sha256-prfsha256-modp2048 aes256gcm16' LIFE='86400 43200' DPD=20 TS=any
    THEIR=fortigate.example
    WEAK='3des-sha1-modp1536 3des-sha1-modp1536'
}
gateway_fortinet_strong() {
    PRESET=fortinet TITLE='groups 20 and 21, a phase 2 for each pair, NAT traversal forced' MORE='encap = yes'
    IKE=aes128-sha256-ecp384-ecp521,aes256gcm16-prfsha384-ecp384-ecp521 ESP=aes256gcm16-ecp384-ecp521
    WE='aes256gcm16-prfsha384-ecp384 aes256gcm16-ecp384' THEY=$WE LIFE='86400 43200' DPD=20 TS=pairs
}
gateway_juniper() {
    TITLE='suiteb-gcm-256, a traffic selector in each child, an address of mail as identity'
    IKE=aes256-sha384-ecp384 ESP=aes256gcm16-ecp384
    WE='aes256-sha384-prfsha384-ecp384 aes256gcm16-ecp384' THEY=$WE LIFE='28800 3600' DPD=10 TS=pairs
    THEIR=srx@junos.example
    WEAK='aes128-sha1-modp1024,3des-sha1-modp1024 aes128-sha1-modp1024'
}
gateway_mikrotik() {
    TITLE='a profile of SHA-256, AES-256 and two groups, a policy for each pair'
    IKE=aes256-sha256-modp2048-ecp384 ESP=aes256-sha256-modp2048,aes256gcm16-modp2048
    WE='aes256-sha256-prfsha256-ecp384 aes256-sha256-modp2048'
    THEY='aes256-sha256-prfsha256-ecp384 aes256gcm16-modp2048' LIFE='86400 1800' DPD=8 TS=pairs
    THEIR=router.example
    WEAK='aes128-3des-sha1-modp2048-modp1024 aes256-aes128-sha1-modp1024'
}
gateway_paloalto() {
    TITLE='its profile Suite-B-GCM-256 in both phases, a proxy ID in each child'
    IKE=aes256-sha384-ecp384 ESP=aes256gcm16-ecp384
    WE='aes256-sha384-prfsha384-ecp384 aes256gcm16-ecp384' THEY=$WE LIFE='28800 3600' DPD=5 TS=pairs
    THEIR=keyid-text:pan-0471 IDLE=yes
    WEAK='aes128-3des-sha1-modp1024 aes128-3des-sha1-modp1024'
}
gateway_bsi() {
    TITLE='any peer that holds to TR-02102-3'
    IKE=aes256gcm16-prfsha384-ecp384 ESP=aes256gcm16-ecp384-esn
    WE='aes256gcm16-prfsha384-ecp384 aes256gcm16-ecp384-esn' THEY=$WE LIFE='86400 14400' DPD=30 TS=one
    WEAK='aes256-sha256-modp2048 aes256gcm16-modp2048-esn'
}

gateway_cnsa2() {
    TITLE='any peer that holds to CNSA 2.0'
    IKE=aes256gcm16-prfsha384-ecp384-ke1_mlkem1024 ESP=aes256gcm16-ecp384-ke1_mlkem1024
    WE="$IKE $ESP" THEY=$WE LIFE='86400 14400' DPD=30 TS=one
    WEAK='aes256gcm16-prfsha384-ecp384 aes256gcm16-ecp384'
}

# --- the two ends --------------------------------------------------------------------------------------------------

# What an operator writes for a peer that has a preset, and nothing more.
preset_config() { # HOST [YAML for the tunnel]
    local id=${OUR:-} peer=${THEIR:-}
    (umask 077 && echo "0x$PSK_HEX" >"$LAB_DIR/psk")
    cat >"$LAB_DIR/$1.yaml" <<YAML
daemon:
  control_socket: $LAB_DIR/$1.sock
  state_dir: $LAB_DIR/$1.state
  data_plane: ${PLANE:-auto}
  metrics: { listen: "127.0.0.1:9180" }
gateways:
  - { name: gateway, address: $(outer "$1"), networks: [10.1.0.0/16]${id:+, id: \"$id\"} }
customer_gateways:
  - { name: peer, address: $(peer_address "$1"), preset: $PRESET${peer:+, id: \"$peer\"} }
tunnels:
  - name: tunnel
    gateway: gateway
    customer_gateway: peer
    auth: { psk_file: psk }
    spd: [ { local: 10.1.0.0/16, remote: [$(selectors gwb | paste -sd,)] } ]
${SAYS:-}
${2:-}
YAML
}

# An identity in strongSwan's words.
swan_id() {
    case $1 in
        keyid-text:*) echo "keyid:${1#keyid-text:}" ;;
        *) echo "$1" ;;
    esac
}

# The gateway: strongSwan with these lists, and all else that is known of it.
gateway_config() { # HOST IKE ESP
    local host=$1 dir=$LAB_DIR/$1.swan ike_life child_life us them children='' remote n=0
    read -r ike_life child_life <<<"$LIFE"
    us=$(swan_id "${THEIR:-$(outer "$host")}")
    them=$(swan_id "${OUR:-$(outer "$(other "$host")")}")
    # The daemon's own configuration.
    swan_config "$host" passive "$2" "$3"
    child() { # NAME LOCAL REMOTE
        # New keys come a tenth before the end, unless they are left to us.
        children+="$1 { local_ts = $2
        remote_ts = $3
        esp_proposals = $ESP_LIST
        life_time = ${child_life}s
        rekey_time = $([[ -n ${REKEYS:-} ]] && echo 0 || echo $((child_life * 9 / 10)))s
        dpd_action = clear
        close_action = none }"$'\n'
    }
    local ESP_LIST=$3
    case $TS in
        any) child v4 0.0.0.0/0 0.0.0.0/0 ;;
        one | list) child v4 "$(selectors "$host" | paste -sd,)" 10.1.0.0/16 ;;
        pairs) for remote in $(selectors "$host"); do child "v4-$n" "$remote" 10.1.0.0/16 && n=$((n + 1)); done ;;
    esac
    cat >"$dir/swanctl.conf" <<CONF
connections {
  tunnel {
    version = 2
    local_addrs = $(outer "$host")
    remote_addrs = $(peer_address "$host")
    proposals = $2
    keyingtries = 1
    mobike = no
    over_time = $((ike_life / 10))s
    rekey_time = $([[ -n ${REKEYS:-} ]] && echo 0 || echo $((ike_life * 9 / 10)))s
    dpd_delay = ${DPD}s
    ${MORE:-}
    local { auth = psk
      id = $us }
    remote { auth = psk
      id = $them }
    children {
      $children
    }
  }
}
secrets {
  ike { id-1 = $us
    id-2 = $them
    secret = 0x$PSK_HEX }
}
CONF
}

# --- what is asked of both -----------------------------------------------------------------------------------------

# A suite of cygnet's in the words of strongSwan.
swan_suite() {
    sed -e 's/^aes\([0-9]*\)gcm16/AES_GCM_16-\1/; s/^aes\([0-9]*\)/AES_CBC-\1/' \
        -e 's/-prfsha\([0-9]*\)/\/PRF_HMAC_SHA2_\1/' \
        -e 's/-sha256/\/HMAC_SHA2_256_128/; s/-sha384/\/HMAC_SHA2_384_192/; s/-sha512/\/HMAC_SHA2_512_256/' \
        -e 's/-modp/\/MODP_/; s/-ecp/\/ECP_/; s/-x25519/\/CURVE_25519/; s/-ke1_mlkem/\/KE1_ML_KEM_/; s/-esn/\/ESN/' <<<"$1"
}

# Both ends say that they have these suites. The child that came with the IKE SA has no key exchange of its own, the others have;
# new keys are chosen by the order of whoever answers: the suite of either direction.
suites() { # IKE ESP...
    local ike=$1 esp theirs
    shift
    ctl gwa status tunnel --json | python3 -c '
import json, sys
t = json.load(sys.stdin)["tunnels"][0]
ike, *esp = sys.argv[1:]
sys.exit(0 if t["ike"]["proposal"] == ike and {c["proposal"] for c in t["children"]} <= set(esp) else 1)' "$ike" "$@" || return 1
    theirs=$(swan gwb --list-sas)
    grep -qxF "  $(swan_suite "$ike")" <<<"$theirs" || return 1
    for esp in "$@"; do
        if grep -q "INSTALLED, .*ESP:$(swan_suite "$esp")\$" <<<"$theirs"; then return 0; fi
    done
    return 1
}
told_suites() { ctl gwa status tunnel --json | grep '"proposal"' | tr -s ' \n' ' '; }

# The ESP suite of a first child: without the key exchanges.
without_group() { sed -E 's/-(modp[0-9]+|ecp[0-9]+|x25519)//; s/-ke1_mlkem[0-9]+//' <<<"$1"; }

networks_answer() { # both ways, each network of the gateway
    ns vpc ping -c 1 -W 2 -q 10.2.0.2 && ns idc ping -c 1 -W 2 -q 10.1.0.2 &&
        { [[ $TS == one || $TS == any ]] || ns vpc ping -c 1 -W 2 -q 10.2.1.2; }
}

sas() { # ike|children: SPIs of the IKE SA, or of all children
    ctl gwa status tunnel --json | python3 -c '
import json, sys
t = json.load(sys.stdin)["tunnels"][0]
print(t["ike"]["spi_i"] if sys.argv[1] == "ike" else sorted(c["spi_in"] for c in t["children"]))' "$1"
}

# Runs a command and waits until an SA of that kind is another one and there are as many as before.
renews() { # ike|children COMMAND...
    local kind=$1 before
    shift
    before=$(sas "$kind")
    changed() { [[ $(sas "$kind") != "$before" ]] && carried gwa "$PAIRS_OF_NETWORKS"; }
    "$@" >>"$LAB_DIR/commands" 2>&1 || { fail "$*"; return; }
    wait_for "$PATIENCE" changed || fail "no new keys: $*"
}

# New keys of every kind from both ends, while packets pass; none is missing between the first and the last that came.
new_keys() {
    local flood child missing first=v4
    if [[ $TS == pairs ]]; then first=v4-0; fi
    ns_start vpc ping -n -i 0.01 -W 2 10.2.0.2 >"$LAB_DIR/ping" &
    flood=$!
    wait_for "$PATIENCE" grep -q icmp_seq=3 "$LAB_DIR/ping" || fail "no packets pass"
    renews children ctl gwa rekey tunnel
    renews ike ctl gwa rekey --ike tunnel
    if [[ -z ${REKEYS:-} ]]; then
        renews children swan gwb --rekey --child $first
        renews ike swan gwb --rekey --ike tunnel
    fi
    sleep 0.1
    kill -INT $flood
    wait $flood || true
    missing=$(sed -n 's/.*icmp_seq=\([0-9]*\).*/\1/p' "$LAB_DIR/ping" | awk '$1 > last { last = $1 } { n++ } END { print last - n }')
    if [[ $missing != 0 ]]; then fail "$missing packets lost while keys were renewed"; fi
}

# Ours end no later than the gateway's own: it need not throw away what we still use.
lifetimes_fit() {
    "$CYGNET" check --resolved "$LAB_DIR/gwa.yaml" | python3 -c '
import re, sys
text, units = sys.stdin.read(), {"s": 1, "m": 60, "h": 3600, "d": 86400}
ours = [sum(int(n) * units[u] for n, u in re.findall(r"(\d+)([smhd])", life)) for life in re.findall(r"lifetime: (\S+)", text)]
theirs = [int(n) for n in sys.argv[1:]]
sys.exit(0 if len(ours) == 2 and ours[0] <= theirs[0] and ours[1] <= theirs[1] else f"ours {ours}, theirs {theirs}")' $LIFE ||
        fail "our lifetimes are longer than the gateway's"
}

comes_up() { # SUITES
    wait_for 10 carried gwa "$PAIRS_OF_NETWORKS" || { fail "the tunnel does not come up: $(ctl gwa status tunnel 2>&1)"; return 1; }
    suites $1 "$(without_group "${1#* }")" || fail "expected $1, have $(told_suites), $(swan gwb --list-sas)"
    if [[ ${SWAN_ESP:-libipsec} != kernel || -n $MORE ]]; then
        says '"remote": *"198.51.100.2:4500"' ctl gwa status --json || fail "not by UDP 4500"
        says 'TUNNEL-in-UDP' swan gwb --list-sas || fail "the gateway does not encapsulate"
    fi
    wait_for "$PATIENCE" networks_answer || fail "ping"
}

# A gateway that has nothing of the preset: both ends' words name it.
refused() { # IKE ESP
    gateway_config gwb "$1" "$2"
    swan gwb --load-all --file "$LAB_DIR/gwb.swan/swanctl.conf" >>"$LAB_DIR/commands" 2>&1 || fail "load"
    preset_config gwa '    start: passive'
    cygnet_start gwa || fail "cygnet does not start"
    if [[ -n $THEY ]]; then
        swan gwb --initiate --child "$([[ $TS == pairs ]] && echo v4-0 || echo v4)" --timeout 5 >>"$LAB_DIR/commands" 2>&1 &&
            fail "a gateway with nothing but $1 is let in"
        wait_for 5 grep -q 'was refused: no_proposal_chosen: .*the peer offers .*, we want ' "$LAB_DIR/gwa.log" ||
            fail "the log does not say what differs"
    fi
    # Nobody has signed such an answer to the first request, so the truth is waited for: some seconds.
    if [[ -n $THEY && $PRESET != aws ]]; then return; fi
    local answer
    answer=$(ctl gwa up tunnel --timeout 5 2>&1) && fail "up with a gateway of nothing but $1"
    [[ $answer == *no_proposal_chosen* ]] || fail "expected no_proposal_chosen, was told: $answer"
    says '"last_error": *"no_proposal_chosen: ' ctl gwa status --json || fail "the status does not name the refusal"
    says no_proposal_chosen ctl gwa explain tunnel || fail "explain does not name the refusal"
}

against_preset() { # NAME
    V4ONLY=1 PRESET=$1 TS=one OUR='' THEIR='' REKEYS='' MORE='' WEAK='' IDLE='' SAYS=''
    "gateway_${1//-/_}"
    echo "    $PRESET: $TITLE"
    PAIRS_OF_NETWORKS=1
    if [[ $TS == list || $TS == pairs ]]; then
        PAIRS_OF_NETWORKS=2 MANY='gwb 2'
        ns idc ip address add 10.2.1.2/32 dev lo
        # kernel-libipsec refuses a child without an address of its own inside, which its route is to come from.
        ns gwb ip address add 10.2.1.1/32 dev lo
        ns gwb ip route add 10.2.1.0/24 via 10.2.0.2
    fi
    gateway_config gwb "$IKE" "$ESP"
    swan_start gwb || fail "strongSwan does not start"
    preset_config gwa '    start: passive'
    lifetimes_fit
    if [[ -n $THEY ]]; then
        cygnet_start gwa || fail "cygnet does not start"
        local child
        for child in $(swan gwb --list-conns | sed -n 's/^  \(v4[-0-9]*\): TUNNEL.*/\1/p'); do
            swan gwb --initiate --child "$child" --timeout 10 >>"$LAB_DIR/commands" 2>&1 || fail "the gateway cannot begin $child"
        done
        comes_up "$THEY" || return
        daemon_stop gwa
    fi
    preset_config gwa
    cygnet_start gwa || fail "cygnet does not start"
    comes_up "$WE" || return
    if [[ -n $IDLE ]]; then
        asked() { grep -q 'sending DPD request' "$LAB_DIR/gwb.swan/log"; }
        wait_for $((DPD + 5)) asked || fail "the gateway's dead peer detection is silent"
        sleep 0.2
        if says 'retransmit' cat "$LAB_DIR/gwb.swan/log"; then fail "we do not answer dead peer detection"; fi
    fi
    new_keys
    # Who answers chooses, but the PRF stays.
    wait_for "$PATIENCE" suites $WE "${THEY#* }" || fail "after new keys expected $WE, have $(told_suites)"
    wait_for "$PATIENCE" networks_answer || fail "ping after new keys"
    daemon_stop gwa
    if [[ -n $WEAK ]]; then refused "${WEAK% *}" "${WEAK#* }"; fi
}

case_preset-aws() { against_preset aws; }
case_preset-aws-guide() { against_preset aws-guide; }
case_preset-azure() { against_preset azure; }
case_preset-azure-without-pfs() { against_preset azure-without-pfs; }
case_preset-gcp() { against_preset gcp; }
case_preset-gcp-nat() { NAT=1; lab_nat || { SKIPPED='the kernel has no NAT'; return; }; against_preset gcp-nat; }
case_preset-aliyun() { against_preset aliyun; }
case_preset-tencent() { against_preset tencent; }
case_preset-cloudflare() { against_preset cloudflare; }
case_preset-cloudflare-nat() { NAT=1; lab_nat || { SKIPPED='the kernel has no NAT'; return; }; against_preset cloudflare-nat; }
case_preset-strongswan() { against_preset strongswan; }
case_preset-libreswan() { against_preset libreswan; }
case_preset-cisco() { against_preset cisco; }
case_preset-fortinet() { against_preset fortinet; }
case_preset-fortinet-strong() { against_preset fortinet-strong; }
case_preset-juniper() { against_preset juniper; }
case_preset-mikrotik() { against_preset mikrotik; }
case_preset-paloalto() { against_preset paloalto; }

# The preset takes nothing without extended sequence numbers, and strongSwan's kernel-libipsec has none: there the refusal of the
# child is what can be seen, by its name. With the kernel's ESP all of it is.
case_preset-bsi() {
    if [[ ${SWAN_ESP:-libipsec} == kernel ]]; then
        against_preset bsi
        return
    fi
    V4ONLY=1 PRESET=bsi OUR='' THEIR='' REKEYS='' MORE=''
    gateway_bsi
    TS=one
    gateway_config gwb "$IKE" "${ESP%-esn}"
    swan_start gwb || fail "strongSwan does not start"
    preset_config gwa '    start: passive'
    lifetimes_fit
    cygnet_start gwa || fail "cygnet does not start"
    swan gwb --initiate --child v4 --timeout 5 >>"$LAB_DIR/commands" 2>&1 && fail "a child without extended sequence numbers"
    says "ESTABLISHED" swan gwb --list-sas || fail "no IKE SA"
    says "$(swan_suite "${WE% *}")" swan gwb --list-sas || fail "expected $WE, have $(swan gwb --list-sas)"
    wait_for 5 says 'no_proposal_chosen: .*the peer offers 32-bit ones, we want extended ones' ctl gwa logs tunnel || fail "it is not said what differs"
    echo "    strongSwan's libipsec has no extended sequence numbers: the IKE SA and the refusal of the child were tested"
}

case_preset-cnsa2() { has_kem && against_preset cnsa2; }

# A peer without ML-KEM is refused, and it is said why: the preset holds no proposal without it.
case_preset-cnsa2-classic() {
    V4ONLY=1 PRESET=cnsa2 OUR='' THEIR='' REKEYS='' MORE=''
    gateway_cnsa2
    # shellcheck disable=SC2086
    gateway_config gwb $WEAK
    swan_start gwb || fail "strongSwan does not start"
    preset_config gwa '    start: passive'
    cygnet_start gwa || fail "cygnet does not start"
    swan gwb --initiate --child v4 --timeout 5 >>"$LAB_DIR/commands" 2>&1 && fail "a peer without ML-KEM"
    wait_for 5 grep -q 'was refused: no_proposal_chosen: .*additional key exchange: the peer offers none, we want mlkem1024' "$LAB_DIR/gwa.log" ||
        fail "it is not said what differs"
}
