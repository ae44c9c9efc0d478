# shellcheck shell=bash
# Cases of hybrid key exchange: IKE_INTERMEDIATE (RFC 9242), additional key exchanges (RFC 9370), ML-KEM. The peer is a
# strongSwan that has them, or the installed one, which has never heard of them. Sourced by run.

has_kem() {
    if [[ -e .lab/strongswan/version ]]; then
        SWAN_ROOT=$PWD/.lab/strongswan
    else
        SKIPPED='no strongSwan with ML-KEM (scripts/vm-lab fetch strongswan)'
        return 1
    fi
}

# "IKE ESP" of these key exchanges.
proposals() { echo "aes256gcm16-prfsha384-$1 aes256gcm16-$1"; }
# The same with a second choice, which has no additional key exchange.
or_classic() { echo "aes256gcm16-prfsha384-$1,aes256gcm16-prfsha384-x25519 aes256gcm16-$1,aes256gcm16-x25519"; }

# The key exchanges of every SA as strongSwan has noted them: at least of the first IKE SA and of one rekeyed by each end, of the second
# child and of one rekeyed by each end.
peer_agreed() { # HOST EXCHANGES
    local log=$LAB_DIR/$1.swan/log ike esp methods
    methods=$(sed 's/x25519/CURVE_25519/; s/mlkem/ML_KEM_/g; s/ecp/ECP_/g; s/ke\([1-7]\)_/KE\1_/g; s|-|/|g' <<<"$2")
    ike=$(grep -o 'selected proposal: IKE:.*' "$log")
    # The child of IKE_AUTH has no key exchange of its own.
    esp=$(grep -o 'selected proposal: ESP:.*' "$log" | sed 's|/[A-Z_]*EXT_SEQ||' | grep -v '/AES_GCM_16_256$\|:AES_GCM_16_256$')
    if (($(wc -l <<<"$ike") < 3)) || grep -qvxF "selected proposal: IKE:AES_GCM_16_256/PRF_HMAC_SHA2_384/$methods" <<<"$ike"; then
        fail "IKE SAs other than of $methods: $ike"
    fi
    if (($(wc -l <<<"$esp") < 4)) || grep -qvxF "selected proposal: ESP:AES_GCM_16_256/$methods" <<<"$esp"; then
        fail "children other than of $methods: $esp"
    fi
}

# What we say of SAs that have all been rekeyed.
we_agreed() { # HOST EXCHANGES
    ctl "$1" status tunnel --json | python3 -c '
import json, sys
t = json.load(sys.stdin)["tunnels"][0]
told = t["ike"]["proposal"], {c["proposal"] for c in t["children"]}
sys.exit(0 if told == ("aes256gcm16-prfsha384-" + sys.argv[1], {"aes256gcm16-" + sys.argv[1]}) else f"    we say {told}")' "$2" 2>&1 ||
        fail "not $2"
}

# As `full`. FRAGMENTS=ip: messages of IKE go in fragments of IP, which they do not else.
hybrid() { # GWA-DAEMON GWB-DAEMON EXCHANGES [OUR-PROPOSALS [THEIR-PROPOSALS]]; gwa initiates. EXCHANGES: what is agreed on
    local MEGABYTES=5 PACKETS=2000 us count ours=${4:-$(proposals "$3")}
    us=$(cygnet_of "$1")
    SWAN_PROPOSALS=${5:-$ours}
    watch_packets "ip[6:2] & 0x3fff != 0"
    # shellcheck disable=SC2086
    BEFORE_DOWN="we_agreed $us $3" full "$1" "$2" $ours
    count=$(seen)
    if [[ ${FRAGMENTS:-} == ip ]]; then
        if ((count == 0)); then fail "no fragments of IP"; fi
    elif ((count > 0)); then
        fail "$count fragments of IP"
    fi
    peer_agreed "$(other "$us")" "$3"
}

# Both ways: the two sides of a KEM are not alike.
case_hybrid-initiator() { has_kem && hybrid cygnet swan x25519-ke1_mlkem768; }
case_hybrid-responder() { has_kem && hybrid swan cygnet x25519-ke1_mlkem768; }
case_hybrid-1024-initiator() { has_kem && hybrid cygnet swan ecp384-ke1_mlkem1024; }
case_hybrid-1024-responder() { has_kem && hybrid swan cygnet ecp384-ke1_mlkem1024; }
case_hybrid-512-initiator() { has_kem && hybrid cygnet swan ecp256-ke1_mlkem512; }
case_hybrid-twice-initiator() { has_kem && hybrid cygnet swan x25519-ke1_mlkem768-ke2_mlkem1024; }
case_hybrid-twice-responder() { has_kem && hybrid swan cygnet x25519-ke1_mlkem768-ke2_mlkem1024; }
case_hybrid-ecp-responder() { has_kem && hybrid swan cygnet x25519-ke1_mlkem768-ke2_ecp384; }

# A peer that does not fragment IKE messages (RFC 7383): a key of ML-KEM-1024 is longer than a packet.
case_hybrid-unfragmented-initiator() {
    FRAGMENTS=ip SWAN_CONNECTION='fragmentation = no'
    has_kem && hybrid cygnet swan ecp384-ke1_mlkem1024
}
case_hybrid-unfragmented-responder() {
    FRAGMENTS=ip SWAN_CONNECTION='fragmentation = no'
    has_kem && hybrid swan cygnet ecp384-ke1_mlkem1024
}

# The initiator's first guess is wrong (INVALID_KE_PAYLOAD), and so is its first choice of KEM.
CHOICE=x25519-ecp384-ke1_mlkem768-ke1_mlkem1024
case_hybrid-guess-initiator() {
    has_kem && hybrid cygnet swan ecp384-ke1_mlkem1024 "$(proposals $CHOICE)" "$(proposals ecp384-ke1_mlkem1024)"
}
case_hybrid-guess-responder() {
    has_kem && hybrid swan cygnet ecp384-ke1_mlkem1024 "$(proposals ecp384-ke1_mlkem1024)" "$(proposals $CHOICE)"
}

# With a peer that has no additional key exchange, or has been told to use none, the second choice is taken.
BOTH=$(or_classic x25519-ke1_mlkem768)
CLASSIC=$(proposals x25519)
case_hybrid-classic-initiator() { has_kem && hybrid cygnet swan x25519 "$BOTH" "$CLASSIC"; }
case_hybrid-classic-responder() { has_kem && hybrid swan cygnet x25519 "$BOTH" "$CLASSIC"; }
case_hybrid-plain-responder() { has_kem && hybrid swan cygnet x25519 "$CLASSIC" "$BOTH"; }
case_swan-hybrid-classic-initiator() { hybrid cygnet swan x25519 "$BOTH" "$CLASSIC"; }
case_swan-hybrid-classic-responder() { hybrid swan cygnet x25519 "$BOTH" "$CLASSIC"; }
# In one proposal: NONE as a value of the additional key exchange (RFC 9370 §2.2.2).
OPTIONAL=$(proposals x25519-ke1_mlkem768-ke1_none)
case_hybrid-optional-initiator() { has_kem && hybrid cygnet swan x25519 "$OPTIONAL" "$CLASSIC"; }
case_hybrid-optional-responder() { has_kem && hybrid swan cygnet x25519 "$CLASSIC" "$OPTIONAL"; }

# Both ends rekey at once: neither has the other's CREATE_CHILD_SA request when it sends its own, and after each there is an
# IKE_FOLLOWUP_KE.
collisions() { # GWA-DAEMON GWB-DAEMON
    local us them clear
    V4ONLY=1 CLOSE=none
    us=$(cygnet_of "$1")
    them=$(other "$us")
    # shellcheck disable=SC2046
    start_pair "$1" active "$2" passive $(proposals x25519-ke1_mlkem768)
    wait_for 15 carried "$us" 1 || { fail "the tunnel does not come up"; return; }
    at_once() { # [--ike] OPTIONS-OF-SWANCTL...
        local option='' pids=()
        if [[ $1 == --ike ]]; then option=--ike; fi
        # The first requests are lost, those sent again meet. What has no marker of four zeros behind the UDP header is ESP.
        ns wan nft 'table ip hold { chain f { type filter hook forward priority 0; udp dport 4500 @th,64,32 0 drop; }; }'
        swan "$them" --rekey "$@" &
        pids+=($!)
        ctl "$us" rekey $option tunnel &
        pids+=($!)
        sleep 0.4
        ns wan nft delete table ip hold
        # One of the two comes to nothing, and whoever asked for it may be told so.
        wait "${pids[@]}" || true
        sleep 0.3
    }
    rekeys() {
        local n
        for n in 1 2 3; do
            at_once --child v4
            at_once --ike tunnel
        done
    }
    INTERVAL=0.003 PACKETS=5000 lossless rekeys
    grep -q 'rekey collision for CHILD_SA' "$LAB_DIR/$them.swan/log" || fail "the rekeys of children did not meet"
    grep -q 'IKE_REKEY collision with IKE_REKEY' "$LAB_DIR/$them.swan/log" || fail "the rekeys of IKE SAs did not meet"
    alone() {
        carried "$us" 1 && [[ $(spis "$us" | grep -c spi_in) == 1 ]] &&
            [[ $(swan "$them" --list-sas | grep -c INSTALLED) == 1 && $(swan "$them" --list-sas | grep -c ESTABLISHED) == 1 ]]
    }
    wait_for 20 alone || fail "more than one SA of a kind: $(spis "$us") $(swan "$them" --list-sas)"
    we_agreed "$us" x25519-ke1_mlkem768
    wait_for "$PATIENCE" ns vpc ping -c 1 -W 2 -q 10.2.0.2 || fail "ping"
    clear=$(leaks)
    if [[ $clear != 0 ]]; then fail "$clear packets in clear text"; fi
}
case_hybrid-collisions-initiator() { has_kem && collisions cygnet swan; }
case_hybrid-collisions-responder() { has_kem && collisions swan cygnet; }

# Whoever insists on a KEM has no tunnel with a peer without, and says why; nothing passes in clear text.
insists() { # GWA-DAEMON GWB-DAEMON
    V4ONLY=1 SWAN_PROPOSALS=$CLASSIC
    # shellcheck disable=SC2046
    start_pair "$1" passive "$2" passive $(proposals x25519-ke1_mlkem768)
    local us answer seen
    us=$(cygnet_of "$1")
    watch_events "$us"
    if [[ $us == gwa ]]; then
        answer=$(ctl gwa up tunnel --timeout 10 2>&1) && fail "it came up all the same"
        if [[ $answer != *no_proposal_chosen* ]]; then fail "expected no_proposal_chosen, was told: $answer"; fi
        ctl gwa down tunnel >>"$LAB_DIR/commands" 2>&1 || fail "down"
        told gwa no_proposal_chosen
        ns vpc ping -c 3 -i 0.2 -W 1 -q 10.2.0.2 >/dev/null && fail "packets pass without a tunnel"
    else
        swan gwa --initiate --child v4 --timeout 10 >>"$LAB_DIR/commands" 2>&1
        grep -q 'received NO_PROPOSAL_CHOSEN' "$LAB_DIR/gwa.swan/log" || fail "it was not refused"
        told_of_stranger gwb no_proposal_chosen
        ns idc ping -c 3 -i 0.2 -W 1 -q 10.1.0.2 >/dev/null && fail "packets pass without a tunnel"
    fi
    seen=$(leaks)
    if [[ $seen != 0 ]]; then fail "$seen packets in clear text"; fi
}
case_hybrid-insists-initiator() { has_kem && insists cygnet swan; }
case_hybrid-insists-responder() { has_kem && insists swan cygnet; }
case_swan-hybrid-insists-initiator() { insists cygnet swan; }
case_swan-hybrid-insists-responder() { insists swan cygnet; }
