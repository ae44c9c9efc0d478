#!/usr/bin/env bash
# A /proc with hidepid=invisible hides a process of the same user from that user, once it is not dumpable.
#
# One expects ProtectProc=invisible (hidepid=invisible, "processes of other users are hidden") to leave a service its own: that the
# script of ExecStop= could look for /proc/$MAINPID, both being root or both the service's user. But the kernel asks whether
# the reader may trace the process, and nobody without CAP_SYS_PTRACE may trace one that has called prctl(PR_SET_DUMPABLE, 0), as
# daemons with keys do. Whoever waits for the end of such a process by /proc takes it for ended at once. kill(2) with signal 0 tells.
#
# Seen with Linux 6.18: dumpable: in /proc, kill says it lives; not dumpable: not in /proc, kill says it lives.
#
# usage: findings/hidepid-hides-own-processes.sh      needs root, python3, unshare
set -euo pipefail
[ "$(id -u)" = 0 ] || { echo "needs root" >&2; exit 77; }
uname -r
exec unshare --mount --pid --fork bash -euo pipefail -c '
mount --make-rprivate /
mount -t proc -o hidepid=invisible proc /proc
exec python3 -c "
import ctypes, os, sys, time
libc = ctypes.CDLL(None)
os.setgroups([]), os.setgid(54000), os.setuid(54000)
seen = []
for dumpable in (1, 0):
    ready, tell = os.pipe()
    pid = os.fork()
    if pid == 0:
        libc.prctl(4, dumpable, 0, 0, 0)
        os.write(tell, b\"x\")
        time.sleep(60)
        os._exit(0)
    os.read(ready, 1)
    os.kill(pid, 0)
    seen.append(os.path.exists(\"/proc/%d/stat\" % pid))
    print(\"dumpable\" if dumpable else \"not dumpable\", \"- in /proc:\", seen[-1], \"- kill(pid, 0): it lives\")
    os.kill(pid, 9)
    os.waitpid(pid, 0)
sys.exit(\"changed\" if seen != [True, False] else 0)
"
'
