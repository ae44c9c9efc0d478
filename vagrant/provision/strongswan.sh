#!/usr/bin/env bash
# A gateway with strongSwan, in the place of a customer's.
#
# usage: strongswan.sh ADDRESS NETWORK PEER REMOTE-NETWORK
set -euo pipefail
printf 'net.ipv4.ip_forward = 1\n' >/etc/sysctl.d/90-lab.conf
sysctl -q -p /etc/sysctl.d/90-lab.conf
if [[ ! -x /usr/sbin/charon-systemd ]]; then
    apt-get -qq update
    DEBIAN_FRONTEND=noninteractive apt-get -qq install -y --no-install-recommends charon-systemd strongswan-swanctl \
        libcharon-extra-plugins libstrongswan-standard-plugins libstrongswan-extra-plugins >/dev/null
fi
# Where the kernel has no ESP, strongSwan does it by itself.
esp=no
modprobe -q -a esp4 xfrm_user || true
if ! { ip xfrm state add src 192.0.2.254 dst 192.0.2.253 proto esp spi 0x100 mode tunnel \
    aead 'rfc4106(gcm(aes))' 0x0000000000000000000000000000000000000000 128 2>/dev/null; }; then
    esp=yes
else
    ip xfrm state delete src 192.0.2.254 dst 192.0.2.253 proto esp spi 0x100
fi
cat >/etc/strongswan.d/lab.conf <<CONF
charon-systemd {
  plugins {
    kernel-libipsec { load = $esp }
    bypass-lan { load = no }
    dhcp { load = no }
    farp { load = no }
  }
}
CONF
umask 077
cat >/etc/swanctl/conf.d/lab.conf <<CONF
connections {
  lab {
    version = 2
    local_addrs = $1
    remote_addrs = $3
    local { auth = psk
      id = $1 }
    remote { auth = psk
      id = $3 }
    children { lab {
      local_ts = $2
      remote_ts = $4 } }
  }
}
secrets { ike-lab {
    id-1 = $1
    id-2 = $3
    secret = $(cat /vagrant/vagrant/.lab.psk) } }
CONF
systemctl restart strongswan
