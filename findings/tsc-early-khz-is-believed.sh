#!/usr/bin/env bash
# A kernel that is told ten times the frequency of its TSC ("tsc_early_khz") keeps it: its clock runs ten times too slowly, and it says nothing.
#
# One expects that the value serves until the kernel has measured the counter against HPET or the PM timer, as the word "early" says, and that a value that
# is wrong by a factor of ten is found out then. With "tsc=reliable" the measured value only replaces the given one where both differ by less than a
# hundredth (tsc_refine_calibration_work, arch/x86/kernel/tsc.c); else the given one stays. Timers fire too early then, find nothing to do and
# are set anew. So an emulated machine, whose TSC counts a nanosecond for each instruction, becomes one of ten thousand million instructions a second by
# its own clock: enough to see on it what a gateway does at a gigabit.
#
# Seen with Linux 6.1 of Debian 12 (6.1.0-57), QEMU 7.2.22: the same loop took 1.33 s of the machine's own time with 1,000,000 kHz, which is the truth there,
# and 0.14 s with 10,000,000 kHz; the kernel's log had no word of it. Linux 6.12 of the backports keeps the value as well.
#
# usage: findings/tsc-early-khz-is-believed.sh      needs apt, dpkg, qemu-system-x86, busybox-static, cpio, gzip; some minutes
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
package=$(apt-cache depends linux-image-amd64 | sed -n 's/^ *Depends: \(linux-image-[0-9].*-amd64\)$/\1/p' | head -n 1)
apt-get download -qq -o APT::Sandbox::User=root "$package"
dpkg -x linux-image-*.deb root
mkdir -p tree/bin tree/proc
cp "$(command -v busybox)" tree/bin/busybox
cat >tree/init <<'INIT'
#!/bin/busybox sh
b=/bin/busybox
$b mount -t proc proc /proc
uptime() { read -r up _ </proc/uptime; echo "$up"; }
began=$(uptime)
n=0
while [ $n -lt 100000 ]; do n=$((n + 1)); done
ended=$(uptime)
echo "loop: $began to $ended"
$b dmesg | $b grep -iE 'tsc: .*(MHz|warning|unstable)' || true
$b reboot -f
INIT
chmod +x tree/init
(cd tree && find . | cpio -o -H newc --quiet | gzip -1) >initramfs.gz
echo "$package; $(qemu-system-x86_64 --version | head -n 1)"
loop() { # KHZ: hundredths of a second of the machine's own time
    qemu-system-x86_64 -machine q35,accel=tcg -cpu max -icount shift=0,sleep=off -m 256 -no-reboot -nodefaults -display none -serial stdio \
        -kernel root/boot/vmlinuz-* -initrd initramfs.gz \
        -append "console=ttyS0 quiet panic=-1 tsc_early_khz=$1 tsc=reliable clocksource=tsc" </dev/null | tee "said.$1" >&2
    sed -n 's/\r$//; s/^loop: \([0-9]*\)\.\([0-9]*\) to \([0-9]*\)\.\([0-9]*\)$/\1\2 \3\4/p' "said.$1" | awk '{ print $2 - $1 }'
}
told_truth=$(loop 1000000)
told_ten=$(loop 10000000)
echo "the loop took $told_truth and $told_ten hundredths of a second by the clock of the machine"
# Timers that fire too early cost some of it.
((told_truth > 5 * told_ten && told_ten > 0)) || { echo "changed" >&2; exit 1; }
