# shellcheck shell=bash
# Cases of a test that run in processes of their own, several at a time. Sourced by tests/interop/run and tests/leaks/run.

chosen() { # NAME PATTERN...: whether a pattern is a part of the name, or "=NAME"
    local name=$1 pattern
    shift
    for pattern in "$@"; do
        if [[ $pattern == "=$name" ]] || [[ $pattern != =* && $name == *"$pattern"* ]]; then return 0; fi
    done
    return 1
}

# Runs each case by this program with "=NAME", JOBS of them at a time, and those alone that measure how long something is away
# (*-lives); what one says is shown when it has ended, but for its last line, the sum of that one case.
said=
side_by_side() { # NAME...
    local name output pid ended code failures=0 room
    local -A running=()
    said=$(mktemp -d "${TMPDIR:-/tmp}/cyg-$$.said.XXXXXX")
    trap 'kill "${!running[@]}" 2>/dev/null || true; wait; rm -rf "$said"' EXIT
    for name in "$@" ''; do
        case $name in *-lives | '') room=1 ;; *) room=$JOBS ;; esac
        while ((${#running[@]} >= room)); do
            code=0
            wait -n -p ended "${!running[@]}" || code=$?
            output=$(<"$said/${running[$ended]}")
            echo "${output%$'\n'*}"
            unset "running[$ended]"
            ((code == 0)) || failures=$((failures + 1))
        done
        if [[ -n $name ]]; then
            JOBS=1 LAB='' "$0" "=$name" >"$said/$name" 2>&1 </dev/null &
            pid=$!
            running[$pid]=$name
        fi
    done
    echo "$(($# - failures)) of $# cases passed"
    ((failures == 0))
}
