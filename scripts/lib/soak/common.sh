# shellcheck shell=bash
# What the endurance runs share: progress, figures with bounds, samples of a process, a stream of packets that knows which
# of them were lost. Sourced by scripts/soak after topology.sh and peers.sh.

SOAK=scripts/lib/soak
IKE=aes256gcm16-prfsha384-x25519 ESP=aes256gcm16-x25519

declare -A FIGURES=()
FIGURE_ORDER=() BROKEN=()

say() { printf '%(%H:%M:%S)T  %s\n' -1 "$*" >&2; }

# A figure of the result. Later figures of a name take the place of earlier ones.
figure() { # NAME VALUE
    if [[ -z ${FIGURES[$1]+set} ]]; then FIGURE_ORDER+=("$1"); fi
    FIGURES[$1]=$2
}

# Holds a figure against its bound; a broken one fails the run, which goes on.
must() { # NAME le|ge|eq NUMBER
    if ! python3 -c 'import operator, sys
sys.exit(0 if getattr(operator, sys.argv[2])(float(sys.argv[1]), float(sys.argv[3])) else 1)' "${FIGURES[$1]}" "$2" "$3"; then
        BROKEN+=("$1 is ${FIGURES[$1]}, must be $2 $3")
        say "BROKEN: ${BROKEN[-1]}"
    fi
}

broken() { # WHAT
    BROKEN+=("$*")
    say "BROKEN: $*"
}

# Prints the result as one JSON object; the exit code says whether all bounds were kept.
finish() { # NAME
    local name args=()
    for name in "${FIGURE_ORDER[@]}"; do args+=("$name" "${FIGURES[$name]}"); done
    python3 -c '
import json, sys
def number(text):
    try:
        return json.loads(text)
    except ValueError:
        return text
name, count, rest = sys.argv[1], int(sys.argv[2]), sys.argv[3:]
figures = {rest[n]: number(rest[n + 1]) for n in range(0, 2 * count, 2)}
broken = rest[2 * count:]
print(json.dumps({"soak": name, "ok": not broken, "figures": figures, "broken": broken}))' \
        "$1" "${#FIGURE_ORDER[@]}" "${args[@]}" "${BROKEN[@]}"
    ((${#BROKEN[@]} == 0))
}

# Resident memory in KiB (without pages of files, which the system may drop), open descriptors, threads.
sample() { # HOST
    local pid=${DAEMON_PID[$1]}
    echo "$(awk '/^RssAnon/ { print $2 }' "/proc/$pid/status") $(find "/proc/$pid/fd" -mindepth 1 | wc -l)" \
        "$(find "/proc/$pid/task" -mindepth 1 -maxdepth 1 | wc -l)"
}

# Memory and descriptors now against those of an earlier sample: within 5 % or 1 MiB, and no descriptor more.
must_not_grow() { # PREFIX HOST RSS FDS
    local rss fds
    read -r rss fds _ <<<"$(sample "$2")"
    figure "$1_rss_kib_before" "$3"
    figure "$1_rss_kib_after" "$rss"
    figure "$1_fds_before" "$4"
    figure "$1_fds_after" "$fds"
    figure "$1_rss_kib_grown" $((rss - $3))
    must "$1_rss_kib_grown" le $(($3 / 20 > 1024 ? $3 / 20 : 1024))
    must "$1_fds_after" le "$4"
}

# Nanoseconds on the processor of a process with all its threads.
cpu() { # PID
    cat "/proc/$1/task/"*/schedstat | awk '{ sum += $1 } END { printf "%.0f\n", sum }'
}

# Seconds since the machine was started, on the clock that the stream of packets notes its losses by.
uptime_s() { cut -d' ' -f1 /proc/uptime; }

# Starts a stream of packets between two hosts, each of which is to be answered; `stream_end` tells what was not.
stream_start() { # RATE [FROM-HOST TO-HOST TO-ADDRESS...]
    local rate=$1 from=${2:-vpc} to=${3:-idc}
    shift
    if (($# >= 2)); then shift 2; fi
    ns_start "$to" python3 $SOAK/stream.py echo 7007 </dev/null >"$LAB_DIR/echo.log" 2>&1 &
    STREAM_ECHO=$!
    wait_for 20 says . ns "$to" ss -Hlun sport = 7007
    ns_start "$from" python3 $SOAK/stream.py send 7007 "$rate" "${@:-10.2.0.2}" </dev/null \
        >"$LAB_DIR/stream.json" 2>"$LAB_DIR/stream.log" &
    STREAM=$!
    wait_for 20 grep -q sending "$LAB_DIR/stream.log"
}

# Ends the stream. Its report is in $LAB_DIR/stream.json: sent, answered, lost, gaps.
stream_end() {
    kill -TERM "$STREAM" 2>/dev/null || true
    wait "$STREAM" 2>/dev/null || true
    kill "$STREAM_ECHO" 2>/dev/null || true
    wait "$STREAM_ECHO" 2>/dev/null || true
}

# A value of a JSON file, by a Python expression over its value `v`.
of_json() { # FILE EXPRESSION
    python3 -c 'import json, sys
v = json.load(open(sys.argv[1]))
print(eval(sys.argv[2]))' "$1" "$2"
}

metric() { # HOST PATTERN: the sum of the series that begin so
    ns "$1" curl -sf --max-time 5 http://127.0.0.1:9180/metrics |
        awk -v want="$2" 'index($0, want) == 1 { sum += $NF } END { printf "%.0f\n", sum }'
}

passes() { ns vpc ping -c 1 -W 1 -q 10.2.0.2; }

# A pair of cygnets with a tunnel of IPv4 that is up.
pair_up() { # GWA-START GWB-START
    export V4ONLY=1
    cygnet_config gwb "$2" $IKE $ESP
    cygnet_config gwa "$1" $IKE $ESP
    cygnet_start gwb
    cygnet_start gwa
    wait_for 20 passes
}
