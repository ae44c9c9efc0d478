#!/usr/bin/env bash
# rpm 4.20 runs no scriptlet in a chroot whose root is a plain directory, and an installation succeeds all the same.
#
# One expects of a package in a root that is being made (an image, a container's layer) what dpkg does there: %post runs, or
# the installation fails. rpm's plugin "unshare" makes the mounts of each scriptlet's namespace private, beginning with "/",
# and where that is no mount point it gives up before the scriptlet: %post is passed by with a warning, "rpm -i" exits with 0,
# and users, units and directories that %post makes are missing. "rpm -e" of a package with %preun then fails, with 1. A bind
# mount of the root onto itself is enough for both to work.
#
# Seen with rpm 4.20.1 (Debian 13), and the same package before and after the bind mount:
#   plain directory: rpm -i exits with 0, %post ran: no, rpm -e exits with 1
#   mount point:     rpm -i exits with 0, %post ran: yes, rpm -e exits with 0
#
# usage: findings/rpm-scriptlets-need-a-mount.sh      needs root, debootstrap, rpmbuild (package rpm), some 400 MB in /tmp
set -euo pipefail
[ "$(id -u)" = 0 ] || { echo "needs root" >&2; exit 77; }
for program in debootstrap rpmbuild unshare; do
    command -v $program >/dev/null || { echo "no $program" >&2; exit 77; }
done
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
printf '%s\n' 'Name: probe' 'Version: 1' 'Release: 1' 'Summary: says that it was here' 'License: MIT' 'BuildArch: noarch' \
    '%description' 'It has nothing but scriptlets.' '%post' 'touch /post-ran' '%preun' 'touch /preun-ran' '%files' >"$work/probe.spec"
rpmbuild --quiet -bb --define "_topdir $work/build" "$work/probe.spec"
debootstrap --variant=minbase --include=rpm trixie "$work/root" >"$work/log" 2>&1 || { tail "$work/log" >&2; exit 1; }
cp "$work"/build/RPMS/noarch/probe-1-1.noarch.rpm "$work/root/probe.rpm"
chroot "$work/root" rpm --version

# What becomes of an installation and a removal; with an argument the root is a mount point.
try() {
    unshare --mount --propagation private bash -c '
        root=$1
        if [ -n "${2:-}" ]; then mount --bind "$root" "$root"; fi
        mount -t proc proc "$root/proc"
        inside() { (cd "$root" && chroot . "$@") >/dev/null 2>&1; }
        rm -f "$root/post-ran"
        inside rpm --initdb
        installed=0 removed=0
        inside rpm -i --nodeps /probe.rpm || installed=$?
        ran=no
        if [ -e "$root/post-ran" ]; then ran=yes; fi
        inside rpm -e --nodeps probe || removed=$?
        inside rpm -e --nodeps --noscripts probe
        echo "rpm -i exits with $installed, %post ran: $ran, rpm -e exits with $removed"
    ' try "$work/root" "${1:-}"
}
plain=$(try)
mounted=$(try mount)
echo "plain directory: $plain"
echo "mount point:     $mounted"
[[ $plain == "rpm -i exits with 0, %post ran: no, rpm -e exits with 1" ]] || { echo "it is otherwise in a plain directory now" >&2; exit 1; }
[[ $mounted == "rpm -i exits with 0, %post ran: yes, rpm -e exits with 0" ]] || { echo "it is otherwise at a mount point now" >&2; exit 1; }
