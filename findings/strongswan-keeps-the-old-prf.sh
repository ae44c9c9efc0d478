#!/usr/bin/env bash
# When an IKE SA is rekeyed with another PRF, strongSwan makes the keys of the new one with the old PRF, and not with the new one.
#
# RFC 7296 section 2.18: SKEYSEED of the new IKE SA comes from the PRF of the old one, and then SK_d, SK_ai and so on from
# SKEYSEED "with the PRF of the new exchange". One expects that an IKE SA of PRF_HMAC_SHA2_256 may have a successor of PRF_HMAC_SHA2_384, as
# whenever two ends prefer different ones. The exchange itself succeeds, both ends call the new IKE SA established, and then neither can
# read the other: each message fails its integrity check, until dead peer detection ends it. Where the PRF stays, all is well.
#
# An initiator of some 100 lines (childless, RFC 6023, so that no kernel has to do ESP) makes an IKE SA, rekeys it, and asks for a sign
# of life on the new one, with the keys of either reading.
#
# Seen with strongSwan 5.9.8 (Debian 12): same PRF: answered; other PRF: keys of the new PRF not answered, keys of the old PRF answered,
# in the lengths of the new one.
#
# usage: findings/strongswan-keeps-the-old-prf.sh      needs root, apt, unshare, overlayfs, /dev/net/tun, python3 with venv
set -euo pipefail
[ "$(id -u)" = 0 ] || { echo "needs root" >&2; exit 77; }
grep -q overlay /proc/filesystems || { echo "no overlayfs" >&2; exit 77; }
dir=$(mktemp -d)
trap 'rm -rf --one-file-system "$dir"' EXIT
python3 -m venv "$dir/venv"
"$dir/venv/bin/pip" install --quiet --disable-pip-version-check cryptography==44.0.0
cat >"$dir/initiator.py" <<'PY'
import hashlib, hmac, os, socket, struct, sys
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

SA, KE, IDI, AUTH, NONCE, SK = 33, 34, 35, 39, 40, 46
HASH = {5: hashlib.sha256, 6: hashlib.sha384}
prf = lambda n, key, data: hmac.new(key, data, HASH[n]).digest()

def prf_plus(n, key, seed, length):
    out, last, i = b"", b"", 1
    while len(out) < length:
        last = prf(n, key, last + seed + bytes([i]))
        out, i = out + last, i + 1
    return out[:length]

def chain(payloads):
    out = b""
    for i, (_, body) in enumerate(payloads):
        following = payloads[i + 1][0] if i + 1 < len(payloads) else 0
        out += struct.pack(">BBH", following, 0, len(body) + 4) + body
    return out

def split(first, data):
    found = {}
    while first:
        following, _, length = struct.unpack(">BBH", data[:4])
        found.setdefault(first, data[4:length])
        first, data = following, data[length:]
    return found

# AES-CBC-256, HMAC-SHA2-256-128, X25519, and this PRF.
def offer(n, spi=b""):
    transforms = [(1, 12, struct.pack(">HH", 0x800e, 256)), (2, n, b""), (3, 12, b""), (4, 31, b"")]
    body = b"".join(struct.pack(">BBHBBH", 3 if i < 3 else 0, 0, 8 + len(a), kind, 0, number) + a
                    for i, (kind, number, a) in enumerate(transforms))
    return struct.pack(">BBHBBBB", 0, 0, 8 + len(spi) + len(body), 1, 1, len(spi), 4) + spi + body

class Keys:
    def __init__(self, n, seed, nonces, spis, lengths_of=None):
        size = HASH[lengths_of or n]().digest_size
        material = prf_plus(n, seed, nonces + spis, 3 * size + 2 * 32 + 2 * 32)
        at = 0
        for name, length in (("d", size), ("ai", 32), ("ar", 32), ("ei", 32), ("er", 32), ("pi", size), ("pr", size)):
            setattr(self, name, material[at:at + length])
            at += length

s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
s.bind(("192.0.2.2", 0))
s.settimeout(2)

def ask(message):
    s.sendto(message, ("192.0.2.1", 500))
    try:
        return s.recv(65535)
    except TimeoutError:
        return None

def header(spis, first, exchange, number, length):
    return spis + struct.pack(">BBBBII", first, 0x20, exchange, 0x08, number, length)

def sealed(keys, spis, exchange, number, payloads):
    plain = chain(payloads)
    plain += bytes(pad := 15 - len(plain) % 16) + bytes([pad])
    iv = os.urandom(16)
    e = Cipher(algorithms.AES(keys.ei), modes.CBC(iv)).encryptor()
    body = iv + e.update(plain) + e.finalize()
    first = payloads[0][0] if payloads else 0
    out = header(spis, SK, exchange, number, 28 + 4 + len(body) + 16) + struct.pack(">BBH", first, 0, 4 + len(body) + 16) + body
    answer = ask(out + hmac.new(keys.ai, out, hashlib.sha256).digest()[:16])
    if answer is None:
        return None
    assert hmac.new(keys.ar, answer[:-16], hashlib.sha256).digest()[:16] == answer[-16:]
    d = Cipher(algorithms.AES(keys.er), modes.CBC(answer[32:48])).decryptor()
    plain = d.update(answer[48:-16]) + d.finalize()
    return split(answer[28], plain[:-1 - plain[-1]])

def exchange_key():
    key = X25519PrivateKey.generate()
    return key, struct.pack(">HH", 31, 0) + key.public_key().public_bytes(Encoding.Raw, PublicFormat.Raw)

def main(second):
    spi_i, ni = os.urandom(8), os.urandom(32)
    key, ke = exchange_key()
    body = chain([(SA, offer(5)), (KE, ke), (NONCE, ni)])
    first = header(spi_i + bytes(8), SA, 34, 0, 28 + len(body)) + body
    answer = ask(first)
    told = split(answer[16], answer[28:])
    spis, nr = answer[:16], told[NONCE]
    keys = Keys(5, prf(5, ni + nr, key.exchange(X25519PublicKey.from_public_bytes(told[KE][4:]))), ni + nr, spis)
    identity = bytes([1, 0, 0, 0]) + socket.inet_aton("192.0.2.2")
    proof = prf(5, prf(5, b"psk of this test", b"Key Pad for IKEv2"), first + nr + prf(5, keys.pi, identity))
    told = sealed(keys, spis, 35, 1, [(IDI, identity), (AUTH, bytes([2, 0, 0, 0]) + proof)])
    assert AUTH in told, "no IKE SA: %r" % told
    # The successor, with the second PRF.
    spi, ni = os.urandom(8), os.urandom(32)
    key, ke = exchange_key()
    told = sealed(keys, spis, 36, 2, [(SA, offer(second, spi)), (NONCE, ni), (KE, ke)])
    assert SA in told, "not rekeyed: %r" % told
    nr, secret = told[NONCE], key.exchange(X25519PublicKey.from_public_bytes(told[KE][4:]))
    seed = prf(5, keys.d, secret + ni + nr)
    new = spi + told[SA][8:16]
    alive = lambda n: sealed(Keys(n, seed, ni + nr, new, second), new, 37, 0, []) is not None
    return [alive(second)] + ([alive(5)] if second != 5 else [])

same, other = main(5), main(6)
print("same PRF, answered:", same, "- other PRF, answered with the keys of the new one, of the old one:", other)
sys.exit("changed" if (same, other) != ([True], [False, True]) else 0)
PY
cat >"$dir/inside.sh" <<'SH'
mount -t tmpfs tmp /run
ip link set lo up
ip address add 192.0.2.1/32 dev lo
ip address add 192.0.2.2/32 dev lo
cat >/mnt/strongswan.conf <<CONF
charon-systemd {
  load_modular = yes
  filelog { log { path = /mnt/log
      flush_line = yes } }
  plugins {
    include /etc/strongswan.d/charon/*.conf
    vici { socket = unix:///run/vici }
    kernel-libipsec { load = yes }
  }
}
CONF
cat >/mnt/swanctl.conf <<CONF
connections { peer {
    version = 2
    local_addrs = 192.0.2.1
    proposals = aes256-sha256-prfsha256-prfsha384-x25519
    childless = allow
    local { auth = psk
      id = 192.0.2.1 }
    remote { auth = psk
      id = 192.0.2.2 } } }
secrets { ike-peer { secret = "psk of this test" } }
CONF
STRONGSWAN_CONF=/mnt/strongswan.conf /usr/sbin/charon-systemd >/mnt/out 2>&1 &
charon=$!
for _ in $(seq 100); do if [ -S /run/vici ]; then break; fi; sleep 0.1; done
swanctl --load-all --file /mnt/swanctl.conf --uri unix:///run/vici >/dev/null 2>&1
dpkg-query -Wf '${Package} ${Version}\n' charon-systemd
code=0
"$dir/venv/bin/python" "$dir/initiator.py" || code=$?
kill "$charon"
wait "$charon" || true
exit "$code"
SH
export dir DEBIAN_FRONTEND=noninteractive
# Over the files of this host, which are not changed; and then without its network.
unshare --mount --propagation private bash -euo pipefail -c '
mount -t tmpfs tmp /mnt
for over in etc usr var; do
    mkdir -p "/mnt/$over.upper" "/mnt/$over.work"
    mount -t overlay -o "lowerdir=/$over,upperdir=/mnt/$over.upper,workdir=/mnt/$over.work" files "/$over"
done
packages="charon-systemd strongswan-swanctl libcharon-extra-plugins libstrongswan-extra-plugins"
if ! dpkg -s $packages >/dev/null 2>&1; then
    apt-get -qq update >/dev/null
    apt-get -qq install -y --no-install-recommends $packages >/dev/null 2>&1
fi
exec unshare --net --pid --fork --mount-proc bash -euo pipefail "$dir/inside.sh"
'
