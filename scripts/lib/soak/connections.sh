# shellcheck shell=bash
# connections [COUNT]: clients that connect and say nothing, at the control socket as root and as a member of the group, and
# at the exporter. Root still gets an answer, a scrape too, memory is bounded, IKE goes on.

soak_clean() {
    local pid
    for pid in "${SITTERS[@]}"; do kill "$pid" 2>/dev/null || true; done
}
SITTERS=()

# Holds COUNT connections open, as another user if one is named; goes on trying where it is turned away.
sit() { # NAME HOST COUNT unix|tcp ADDRESS [USER-AND-GROUP]
    ns_start "$2" python3 $SOAK/sit.py "$3" "$4" "$5" "${@:6}" </dev/null >"$LAB_DIR/$1.sitter" 2>&1 &
    SITTERS+=("$!")
    wait_for 30 grep -q sitting "$LAB_DIR/$1.sitter" || broken "$1: $(tail -n1 "$LAB_DIR/$1.sitter")"
}

soak_connections() {
    local count=${1:-1000} rss fds began n
    ulimit -n $((4 * count + 1024)) 2>/dev/null || true
    # The daemon has the descriptors that its unit gives it, not those of this shell.
    pair_up active passive || broken "the tunnel does not come up"
    read -r rss fds _ <<<"$(sample gwa)"
    local idle=$rss
    figure rss_kib_alone "$idle"
    # The group exists only in the user database that the daemon sees; its number is what counts at the socket.
    local gid
    gid=$(getent group cygnet | cut -d: -f3 || true)
    chmod 755 "$LAB_DIR"
    stream_start 200
    local kinds=(root metrics) kind
    if [[ -n $gid ]]; then
        kinds=(member root metrics)
    else
        say "there is no group cygnet here: its members are strangers"
        gid=65534
        kinds=(member root metrics)
        chmod 666 "$LAB_DIR/gwa.sock"
    fi
    # The second crowd must find room in what the first one left.
    for kind in "${kinds[@]}" "${kinds[@]}"; do
        if [[ -n ${FIGURES[metrics_held]:-} && $kind == member && -z ${again:-} ]]; then
            local again=yes
            soak_clean
            SITTERS=()
            sleep 3
            read -r rss fds _ <<<"$(sample gwa)"
        fi
        say "$count connections: $kind"
        case $kind in
            member) sit member gwa "$count" unix "$LAB_DIR/gwa.sock" 65534 "$gid" ;;
            root) sit root gwa "$count" unix "$LAB_DIR/gwa.sock" ;;
            metrics) sit metrics gwa "$count" tcp 127.0.0.1:9180 ;;
        esac
        local refused=0 slowest=0 ms unscraped=0
        for n in {1..10}; do
            began=$EPOCHREALTIME
            timeout 5 "$CYGNET" --control "$LAB_DIR/gwa.sock" status >/dev/null 2>&1 || refused=$((refused + 1))
            ms=$(((${EPOCHREALTIME/./} - ${began/./}) / 1000))
            if ((ms > slowest)); then slowest=$ms; fi
            ns gwa curl -sf --max-time 5 -o /dev/null http://127.0.0.1:9180/metrics || unscraped=$((unscraped + 1))
            sleep 0.1
        done
        figure "${kind}_held" "$(sed -n 's/.*sitting \([0-9]*\).*/\1/p' "$LAB_DIR/$kind.sitter")"
        figure "${kind}_status_refused_of_10" $refused
        figure "${kind}_status_ms_longest" $slowest
        figure "${kind}_scrapes_refused_of_10" $unscraped
        must "${kind}_status_refused_of_10" eq 0
        must "${kind}_status_ms_longest" le 1000
        must "${kind}_scrapes_refused_of_10" eq 0
    done
    timeout 20 "$CYGNET" --control "$LAB_DIR/gwa.sock" rekey tunnel >/dev/null 2>&1 || broken "no rekey"
    timeout 20 "$CYGNET" --control "$LAB_DIR/gwa.sock" rekey --ike tunnel >/dev/null 2>&1 || broken "no rekey of the IKE SA"
    figure rss_kib_while_they_sit "$(sample gwa | cut -d' ' -f1)"
    figure fds_while_they_sit "$(sample gwa | cut -d' ' -f2)"
    must rss_kib_while_they_sit le $((idle + 8192))
    soak_clean
    SITTERS=()
    stream_end
    figure packets "$(of_json "$LAB_DIR/stream.json" 'v["sent"]')"
    figure packets_lost "$(of_json "$LAB_DIR/stream.json" 'v["lost"]')"
    must packets_lost eq 0
    sleep 2
    must_not_grow gateway gwa "$rss" "$fds"
    finish connections
}
