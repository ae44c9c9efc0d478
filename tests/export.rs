//! `cygnet export-peer`: what each format says of the same tunnels, and that two ends made from one description fit.
//! Expected texts are golden files; `CYGNET_UPDATE_GOLDEN=1` writes them anew.
#![allow(clippy::unwrap_used, clippy::panic)] // the lints know tests only inside #[test] functions

mod common;

use std::collections::BTreeSet;
use std::fmt::Write;
use std::net::IpAddr;
use std::path::Path;

use cygnet::config::{self, Auth, Config, Tunnel};
use cygnet::export::{self, Format, Options};
use proptest::prelude::*;
use proptest::test_runner::RngSeed;

/// A key with characters that some formats eat.
const ODD_KEY: &str = "pL7v0y2Q xNf8\\\\sKd3$Rw\\\"ZtB5?'`";
const PLAIN_KEY: &str = "pL7v0y2QxNf8sKd3RwZtB5";

struct Case {
    title: &'static str,
    gateway: &'static str,
    customer: &'static str,
    tunnel: &'static str,
    key: &'static str,
    options: Options,
}

impl Case {
    fn config(&self) -> Config {
        let text = format!(
            "gateways: [ {{ name: vpc-a, {} }} ]
customer_gateways: [ {{ name: idc-b, {} }} ]
tunnels:
  - name: a-b
    gateway: vpc-a
    customer_gateway: idc-b
    auth: {{ psk: \"{}\" }}
{}",
            self.gateway, self.customer, self.key, self.tunnel
        );
        config::load_text(&text, Path::new("/nonexistent")).unwrap_or_else(|e| panic!("{text}\n{e}")).config
    }
}

fn cases() -> Vec<Case> {
    let usual = Case {
        title: "",
        gateway: "address: 192.0.2.1, networks: [10.1.0.0/16]",
        customer: "address: 198.51.100.2",
        tunnel: "",
        key: PLAIN_KEY,
        options: Options::default(),
    };
    let ip = |text: &str| Some(text.parse::<IpAddr>().unwrap());
    vec![
        Case {
            title: "what every product knows, with the key",
            tunnel: "    spd: [ { local: 10.1.0.0/16, remote: [10.2.0.0/16] } ]
    ike: { proposals: [aes256-sha256-ecp384], lifetime: 8h, dpd: 30s }
    esp: { proposals: [aes256gcm16-ecp384], lifetime: 1h }
",
            options: Options { with_psk: true, ..Options::default() },
            ..usual
        },
        Case {
            title: "defaults, and several networks",
            tunnel: "    spd:
      - { local: 10.1.0.0/24, remote: [10.2.0.0/16, 10.3.0.0/16] }
      - { local: 10.1.1.0/24, remote: [10.2.0.0/16, 10.3.0.0/16] }
      - { local: 10.1.2.0/24, remote: [10.4.0.0/16] }
",
            ..usual
        },
        Case {
            title: "everything that is not the default, and an odd key",
            customer: "address: 198.51.100.2, id: branch-7@example.net",
            tunnel: "    start: passive
    local_id: gw.example.org
    spd: [ { local: 10.1.0.0/16, remote: [10.2.0.0/16] } ]
    ike: { proposals: [aes128-sha1-modp1024, aes128-sha256-modp2048], legacy: true, lifetime: 7d, dpd: off, fragmentation: false, encap: force }
    esp: { proposals: [aes128-sha256-noesn], lifetime: 7d, bytes: unlimited, replay_window: 0 }
",
            key: ODD_KEY,
            options: Options { with_psk: true, ..Options::default() },
            ..usual
        },
        Case {
            title: "a name, an interface, and key ids",
            gateway: "address: { interface: eth0 }, networks: [10.1.0.0/16]",
            customer: "address: vpn.idc-b.example.net, id: \"keyid-text:idc-b/7\"",
            tunnel: "    start: on-demand
    local_id: keyid:c0ffee
    spd: [ { local: 10.1.0.0/16, remote: [10.2.0.0/16] } ]
    ike: { proposals: [aes256-sha512-modp4096] }
    esp: { proposals: [aes256-sha512-modp4096] }
",
            ..usual
        },
        Case {
            title: "behind a NAT each, told by the command line",
            gateway: "address: 10.0.0.4, networks: [10.1.0.0/16]",
            customer: "address: 198.51.100.2, id: 172.16.0.9",
            tunnel: "    spd: [ { local: 10.1.0.0/16, remote: [10.2.0.0/16] } ]
    ike: { proposals: [aes256-sha256-modp2048] }
    esp: { proposals: [aes256-sha256-modp2048] }
",
            options: Options { address: ip("203.0.113.7"), peer_address: ip("172.16.0.9"), ..Options::default() },
            ..usual
        },
        Case {
            title: "IPv6 outside, both families inside",
            gateway: "address: [192.0.2.1, \"2001:db8::1\"], networks: [10.1.0.0/16, \"fd00:1::/48\"]",
            customer: "address: \"2001:db8::2\"",
            tunnel: "    spd:
      - { local: 10.1.0.0/16, remote: [10.2.0.0/16] }
      - { local: \"fd00:1::/48\", remote: [\"fd00:2::/48\"] }
    ike: { proposals: [aes256-sha256-ecp256] }
    esp: { proposals: [aes256-sha256-ecp256] }
",
            ..usual
        },
        Case {
            title: "nothing but the newest algorithms",
            tunnel: "    spd: [ { local: 10.1.0.0/16, remote: [10.2.0.0/16] } ]
    ike: { proposals: [chacha20poly1305-prfsha384-x25519] }
    esp: { proposals: [chacha20poly1305-x25519-esn] }
",
            ..usual
        },
        Case {
            title: "additional key exchanges, with proposals for peers without",
            tunnel: "    spd: [ { local: 10.1.0.0/16, remote: [10.2.0.0/16] } ]
    ike: { proposals: [aes256gcm16-prfsha384-ecp384-ke1_mlkem768-ke1_mlkem1024, aes256-sha384-ecp384] }
    esp: { proposals: [aes256gcm16-ecp384-ke1_mlkem768-noesn, aes256gcm16-ecp384-noesn] }
",
            ..usual
        },
        Case {
            title: "additional key exchanges, some of which may be left out",
            tunnel: "    spd: [ { local: 10.1.0.0/16, remote: [10.2.0.0/16] } ]
    ike: { proposals: [aes256-sha256-modp3072-ke1_mlkem1024-ke1_mlkem768-ke1_mlkem512-ke1_none-ke2_ecp384-ke2_none, aes256-sha256-modp3072] }
    esp: { proposals: [aes256-sha256-modp3072-ke1_mlkem1024-ke1_none] }
",
            ..usual
        },
        Case {
            title: "no less than ML-KEM",
            tunnel: "    preset: cnsa2
    spd: [ { local: 10.1.0.0/16, remote: [10.2.0.0/16] } ]
",
            ..usual
        },
        Case {
            title: "a PRF that is not that of the integrity algorithm",
            tunnel: "    spd: [ { local: 10.1.0.0/16, remote: [10.2.0.0/16] } ]
    ike: { proposals: [aes256-sha256-prfsha384-ecp384, aes128-sha256-prfsha256-ecp384] }
    esp: { proposals: [aes256gcm16-ecp384, aes256-sha256-modp4096, aes128-sha256] }
",
            ..usual
        },
        Case {
            title: "everything into the tunnel, and names that are none",
            customer: "address: 198.51.100.2, id: \"fqdn:198.51.100.2\"",
            tunnel: "    allow_internet: true
    local_id: \"dn:C=DE, O=Example\\\\, Inc, CN=gw-1\"
    spd: [ { local: 10.1.0.0/16, remote: [0.0.0.0/0] } ]
    ike: { proposals: [aes256-sha256-modp2048] }
    esp: { proposals: [aes256-sha256] }
",
            ..usual
        },
    ]
}

#[test]
fn each_format_says_the_same_tunnels_in_its_words() {
    for format in Format::ALL {
        let mut told = String::new();
        for case in cases() {
            writeln!(told, "=== {}", case.title).unwrap();
            match export::export(&case.config(), "a-b", format, &case.options) {
                Ok(made) => {
                    made.notes.iter().for_each(|note| writeln!(told, "note: {note}").unwrap());
                    writeln!(told, "---").unwrap();
                    told.push_str(&made.text);
                }
                Err(e) => writeln!(told, "error: {e}; {}", e.hint()).unwrap(),
            }
        }
        common::golden(&format!("tests/golden/export/{}.txt", format.name()), &told);
    }
}

#[test]
fn without_being_asked_for_it_no_format_shows_the_key() {
    for format in Format::ALL {
        for case in cases() {
            let options = Options { with_psk: false, ..case.options };
            let Ok(made) = export::export(&case.config(), "a-b", format, &options) else { continue };
            let hex: String = PLAIN_KEY.bytes().map(|b| format!("{b:02x}")).collect();
            for key in [PLAIN_KEY, "xNf8", &hex, "784e6638"] {
                assert!(
                    !made.text.to_lowercase().contains(&key.to_lowercase()),
                    "{format:?}: {}",
                    case.title
                );
            }
        }
    }
}

fn pairs(t: &Tunnel) -> BTreeSet<(String, String)> {
    let rules = t.spd.iter();
    rules.flat_map(|r| r.remote.iter().map(|b| (r.local.to_string(), b.to_string()))).collect()
}

/// The text for the other end as a configuration.
fn other_end(config: &Config, options: &Options) -> Config {
    let made = export::export(config, "a-b", Format::Cygnet, options).unwrap();
    config::load_text(&made.text, Path::new("/nonexistent"))
        .unwrap_or_else(|e| panic!("{}\n{e}", made.text.as_str()))
        .config
}

#[test]
fn both_ends_from_one_description_fit() {
    for case in cases() {
        let options = Options { with_psk: true, ..Options::default() };
        let ours = case.config();
        let theirs = other_end(&ours, &options);
        let (a, b) = (&ours.tunnels[0], &theirs.tunnels[0]);
        let turned: BTreeSet<_> = pairs(b).into_iter().map(|(l, r)| (r, l)).collect();
        assert_eq!(pairs(a), turned, "{}", case.title);
        assert_eq!((&a.ike, &a.esp.proposals, a.esp.lifetime), (&b.ike, &b.esp.proposals, b.esp.lifetime));
        let (Auth::Psk(x), Auth::Psk(y)) = (&a.auth, &b.auth);
        assert!(x.secret.ct_eq(y.secret.expose()), "{}", case.title);
    }
}

fn block(net: u8) -> impl Strategy<Value = String> {
    (0u8..4, 8u8..=32).prop_map(move |(c, len)| match len {
        8..=16 => format!("10.{net}.0.0/16"),
        17..=24 => format!("10.{net}.{c}.0/24"),
        len => format!("10.{net}.{c}.{}/{len}", 64u16 & !((1u16 << (32 - len)) - 1)),
    })
}

proptest! {
    #![proptest_config(ProptestConfig { rng_seed: RngSeed::Fixed(7296), failure_persistence: None, ..ProptestConfig::with_cases(128) })]
    /// The other end of the other end is this end.
    #[test]
    fn turned_twice_it_is_the_same(
        locals in proptest::collection::btree_set(block(1), 1..3),
        remotes in proptest::collection::btree_set(block(2), 1..3),
        start in prop_oneof![Just("active"), Just("passive"), Just("on-demand")],
        id in prop_oneof![Just(""), Just("id: gw.example.net"), Just("id: \"keyid:c0ffee\""), Just("id: \"email:a b\"")],
        hours in 1u32..24, dpd in prop_oneof![Just("off"), Just("10s")],
    ) {
        let list = |s: &BTreeSet<String>| s.iter().cloned().collect::<Vec<_>>().join(", ");
        let rules: String = locals.iter().map(|l| format!("      - {{ local: {l}, remote: [{}] }}\n", list(&remotes))).collect();
        let comma = if id.is_empty() { "" } else { ", " };
        let text = format!("gateways: [ {{ name: vpc-a, address: 192.0.2.1, networks: [10.1.0.0/16] }} ]
customer_gateways: [ {{ name: idc-b, address: 198.51.100.2{comma}{id} }} ]
tunnels:
  - name: a-b
    gateway: vpc-a
    customer_gateway: idc-b
    start: {start}
    auth: {{ psk: {PLAIN_KEY} }}
    spd:\n{rules}    ike: {{ lifetime: {hours}h, dpd: {dpd} }}\n");
        // Blocks of one rule may overlap.
        let Ok(ours) = config::load_text(&text, Path::new("/nonexistent")) else { return Ok(()) };
        let options = Options { with_psk: true, ..Options::default() };
        let again = other_end(&other_end(&ours.config, &options), &options);
        let (a, b) = (&ours.config.tunnels[0], &again.tunnels[0]);
        prop_assert_eq!(pairs(a), pairs(b));
        prop_assert_eq!((&a.ike, &a.esp, &a.local_id, &a.remote_id, a.start), (&b.ike, &b.esp, &b.local_id, &b.remote_id, b.start));
        prop_assert_eq!(&ours.config.customer_gateways[0].address, &again.customer_gateways[0].address);
    }
}
