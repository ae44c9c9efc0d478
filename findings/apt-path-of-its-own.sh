#!/usr/bin/env bash
# apt runs dpkg, and with it every maintainer script, with a PATH of its own; dpkg alone hands on that of its caller.
#
# One expects that a program that is put in front of PATH, a stand-in for systemctl in a test of a package say, is what postinst
# finds. With "dpkg -i" it is. "apt-get install" sets PATH to DPkg::Path (apt.conf(5)), whose default is
# /usr/sbin:/usr/bin:/sbin:/bin, so the stand-in is silently passed by and the real program is called.
#
# Seen with apt 2.6.1, dpkg 1.21.22 (Debian 12): dpkg: /stand-in:...  apt: /usr/sbin:/usr/bin:/sbin:/bin
#
# usage: findings/apt-path-of-its-own.sh      needs root, apt, dpkg-deb, unshare, overlayfs
set -euo pipefail
[ "$(id -u)" = 0 ] || { echo "needs root" >&2; exit 77; }
grep -q overlay /proc/filesystems || { echo "no overlayfs" >&2; exit 77; }
apt-get --version | head -n 1
dpkg --version | head -n 1
# Over the files of this host, which are not changed.
exec unshare --mount --propagation private bash -euo pipefail -c '
mount -t tmpfs tmp /tmp
for dir in etc usr var; do
    mkdir -p /tmp/$dir.upper /tmp/$dir.work
    mount -t overlay -o lowerdir=/$dir,upperdir=/tmp/$dir.upper,workdir=/tmp/$dir.work files /$dir
done
mkdir -p /tmp/package/DEBIAN
printf "%s\n" "Package: path-probe" "Version: 1" "Architecture: all" "Maintainer: nobody <nobody@localhost>" \
    "Description: says its PATH" >/tmp/package/DEBIAN/control
printf "%s\n" "#!/bin/sh" "echo \"\$PATH\" >/tmp/seen" >/tmp/package/DEBIAN/postinst
chmod 755 /tmp/package/DEBIAN/postinst
dpkg-deb --root-owner-group --build /tmp/package /tmp/path-probe.deb >/dev/null
export PATH=/stand-in:/usr/sbin:/usr/bin:/sbin:/bin DEBIAN_FRONTEND=noninteractive
dpkg -i /tmp/path-probe.deb >/dev/null 2>&1
by_dpkg=$(cat /tmp/seen)
dpkg --purge path-probe >/dev/null 2>&1
apt-get install -y /tmp/path-probe.deb >/dev/null 2>&1
by_apt=$(cat /tmp/seen)
echo "postinst by dpkg: PATH=$by_dpkg"
echo "postinst by apt:  PATH=$by_apt"
[[ $by_dpkg == /stand-in:* ]] || { echo "dpkg does not hand on the PATH any more" >&2; exit 1; }
[[ $by_apt != */stand-in* ]] || { echo "apt hands on the PATH now" >&2; exit 1; }
'
