#!/usr/bin/env bash
# A gateway: forwards, and runs cygnet from its systemd unit with the laboratory's configuration.
#
# usage: gateway.sh gateway|customer-gateway
set -euo pipefail
tree=/vagrant
printf 'net.ipv4.ip_forward = 1\nnet.ipv6.conf.all.forwarding = 1\n' >/etc/sysctl.d/90-cygnet.conf
sysctl -q -p /etc/sysctl.d/90-cygnet.conf
modprobe -a esp4 esp6 xfrm_user 2>/dev/null || true

install -m 755 "$tree/target/release/cygnet" /usr/sbin/cygnet
getent group cygnet >/dev/null || groupadd --system cygnet
install -d -m 755 /etc/cygnet
install -m 644 "$tree/vagrant/$1.yaml" /etc/cygnet/cygnet.yaml
install -m 600 "$tree/vagrant/.lab.psk" /etc/cygnet/lab.psk
install -m 644 "$tree/etc/systemd/cygnet.service" /etc/systemd/system/cygnet.service
systemctl daemon-reload
systemctl enable cygnet
systemctl restart cygnet
cygnet status || true
