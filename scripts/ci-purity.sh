#!/usr/bin/env bash
# Checks the dependency rule: model <- {ike, esp, xfrm} <- the daemon, reconcile <- the daemon; the protocol crates see no socket, clock, file,
# thread or random source of their own, and none of the three sees another. usage: scripts/ci-purity.sh
set -euo pipefail
cd "$(dirname "$0")/.."
fail=0
complain() { printf 'purity: %s\n' "$1" >&2; fail=1; }

# Here and not in a pipe, where a failure would pass for "found nothing".
cargo metadata --locked --format-version 1 >/dev/null

# The names of a package's normal dependencies, direct and indirect.
tree() { cargo tree --locked -p "$1" -e normal --prefix none --format '{p}' | cut -d' ' -f1 | sort -u; }

for crate in cygnet-model cygnet-ike cygnet-esp cygnet-reconcile; do
    found=$(tree "$crate" | grep -xE 'tokio|mio|nix|socket2|rtnetlink|netlink-.*|hyper|serde_yaml|anyhow' || true)
    [ -z "$found" ] || complain "$crate depends on: ${found//$'\n'/ }"
done

declare -A may=([cygnet-model]='' [cygnet-ike]='cygnet-model' [cygnet-esp]='cygnet-model' [cygnet-xfrm]='cygnet-model' [cygnet-reconcile]='')
for crate in "${!may[@]}"; do
    found=$(tree "$crate" | grep -E '^cygnet' | grep -vxF "$crate" | grep -vxF "${may[$crate]:-none}" || true)
    [ -z "$found" ] || complain "$crate must not see: ${found//$'\n'/ }"
done

# `test-util` (fake planes, fast key exchange, forgeries) must not reach the daemon.
for crate in cygnet-model cygnet-ike cygnet-reconcile; do
    found=$(cargo tree --locked -p cygnet -e normal,features -i "$crate" --prefix none)
    ! grep -q 'feature "test-util"' <<<"$found" || complain "the daemon is built with feature test-util of $crate"
done

# Lines of the given files that match a pattern, outside of tests and comments. usage: lines PATTERN FILE...
lines() {
    local pattern=$1 file
    shift
    git ls-files -- "$@" | { grep -vE '(^|/)(tests?|testing)(\.rs|/)' || true; } | while read -r file; do
        awk -v file="$file" -v pattern="$pattern" '
            /^[[:space:]]*#\[cfg\(test\)\]/ { exit }
            /^[[:space:]]*\/\// { next }
            $0 ~ pattern { printf "%s:%d: %s\n", file, FNR, $0 }' "$file"
    done
}
world='UdpSocket|TcpStream|TcpListener|UnixStream|std::fs|std::process|std::thread|::now\\(\\)|thread_rng|OsRng|from_os_rng'
found=$(lines "$world" 'model/src/*.rs' 'ike/src/*.rs' 'esp/src/*.rs' 'reconcile/src/*.rs' 'src/shaping/plan.rs' 'src/plane/spd.rs' 'src/plane/user/windows.rs')
[ -z "$found" ] || complain $'the world is touched where only values belong:\n'"$found"

# Inside the daemon: configuration reads files in two places and knows nothing of the loop; only the command line prints.
found=$(git grep -nE 'tokio|cygnet_ike|cygnet_xfrm|netlink' -- 'src/config/*.rs' || true)
[ -z "$found" ] || complain $'src/config knows too much:\n'"$found"
found=$(git grep -lE 'std::fs|File::open' -- 'src/config/*.rs' | grep -vE 'config/(mod|secrets)\.rs$' || true)
[ -z "$found" ] || complain "files are read outside config/mod.rs and config/secrets.rs: $found"
found=$(lines '(^|[^_[:alnum:]])e?print(ln)?!' 'src/*.rs' 'model/src/*.rs' 'ike/src/*.rs' 'esp/src/*.rs' 'reconcile/src/*.rs' 'xfrm/src/*.rs' ':!src/cli')
[ -z "$found" ] || complain $'printing outside src/cli:\n'"$found"
for crate in model ike esp reconcile; do
    if ! grep -q 'forbid(unsafe_code)' "$crate/src/lib.rs"; then complain "$crate/src/lib.rs does not forbid unsafe code"; fi
done

[ "$fail" = 0 ] && echo 'purity: ok'
exit "$fail"
