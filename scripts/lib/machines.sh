# shellcheck shell=bash
# Machines in namespaces: each has a file system, processes, a network and a systemd of its own, as a virtual machine would, and
# the tree as /vagrant. Sourced by scripts/lab and tests/ansible/run.
#
# LAB is the beginning of the names of their network namespaces; MACHINES a directory for what is known of them.

MACHINES=${MACHINES:-/run/$LAB}

machines_begin() {
    (umask 077 && mkdir -p "$MACHINES")
    # An instance of our own, wherever the host has it.
    mkdir -p "$MACHINES/cgroup"
    mount -t cgroup2 cgroup2 "$MACHINES/cgroup"
}

# Starts one; its network is that of the namespace, which is made if it is not there.
machine_start() { # NAME
    local name=$1 cgroup=$MACHINES/cgroup/$LAB-$1 pid state
    if [[ ! -e /run/netns/$LAB-$name ]]; then ip netns add "$LAB-$name"; fi
    mkdir "$cgroup"
    (
        echo "$BASHPID" >"$cgroup/cgroup.procs"
        exec ip netns exec "$LAB-$name" unshare --mount --pid --uts --ipc --cgroup --fork --kill-child \
            scripts/lib/machine "$name" "$PWD"
    ) >"$MACHINES/$name.log" 2>&1 </dev/null &
    echo $! >"$MACHINES/$name.outer"
    disown
    for _ in {1..300}; do
        kill -0 "$(<"$MACHINES/$name.outer")" 2>/dev/null || break
        # The first process of the machine is the only child of unshare, which has replaced our own.
        pid=$(pgrep -P "$(<"$MACHINES/$name.outer")" || true)
        if [[ -n $pid ]]; then
            echo "$pid" >"$MACHINES/$name.pid"
            state=$(machine_run "$name" systemctl is-system-running 2>/dev/null || true)
            if [[ $state == running || $state == degraded ]]; then return 0; fi
        fi
        sleep 0.1
    done
    echo "machine $name does not start" >&2
    cat "$MACHINES/$name.log" >&2
    return 1
}

# Runs a command on a machine, with nothing of the environment here.
machine_run() { # NAME COMMAND...
    local name=$1 pid
    shift
    if ! pid=$(cat "$MACHINES/$name.pid" 2>/dev/null); then
        echo "there is no machine $name" >&2
        return 69
    fi
    nsenter --target "$pid" --net --mount --pid --uts --ipc --cgroup --root --wdns=/root \
        env -i HOME=/root LANG=C.UTF-8 TERM="${TERM:-dumb}" PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin "$@"
}

# A cable between two machines, with an address at each end, if there is one.
machine_cable() { # NAME INTERFACE ADDRESS  NAME INTERFACE ADDRESS
    ip link add "$2" netns "$LAB-$1" type veth peer name "$5" netns "$LAB-$4"
    local name interface address
    while (($# > 0)); do
        name=$1 interface=$2 address=$3
        shift 3
        if [[ -n $address ]]; then ip -n "$LAB-$name" addr add "$address" dev "$interface"; fi
        ip -n "$LAB-$name" link set "$interface" up
        ip -n "$LAB-$name" link set lo up
    done
}

# Ends all, and leaves nothing.
machines_end() {
    local file name cgroup
    for file in "$MACHINES"/*.outer; do
        if [[ ! -f $file ]]; then continue; fi
        # With the first process of its process namespace a machine ends.
        kill -KILL "$(<"$file")" 2>/dev/null || true
    done
    for cgroup in "$MACHINES/cgroup/$LAB"-*; do
        if [[ ! -d $cgroup ]]; then continue; fi
        for _ in {1..100}; do
            if ! grep -qx 'populated 1' "$cgroup/cgroup.events"; then break; fi
            sleep 0.05
        done
        find "$cgroup" -depth -type d -exec rmdir {} + 2>/dev/null || true
    done
    while read -r name _; do
        if [[ $name == "$LAB"-* ]]; then ip netns del "$name"; fi
    done < <(ip netns list)
    if mountpoint -q "$MACHINES/cgroup"; then umount "$MACHINES/cgroup"; fi
    rm -rf "$MACHINES"
}
