//! Presets: the parameters that a product at the other end, or a policy, takes. They stand in the place of the defaults; whatever
//! the file says of a tunnel counts before them.
//!
//! The numbers are those that the vendors publish for their gateways; where they leave a choice, the strongest that both ends
//! have comes first, and few are named: some products take the weakest of what they are offered.

use std::time::Duration;

use cygnet_model::proposal::{EspProposal, IkeProposal, Permit};

use super::model::{EspParams, IkeParams};

/// A preset.
#[derive(Debug)]
pub struct Preset {
    /// Its name in the file.
    pub name: &'static str,
    /// What it is for.
    pub of: &'static str,
    ike: &'static [&'static str],
    esp: &'static [&'static str],
    /// Lifetimes of the IKE SA and of ESP SAs, in minutes: no longer than the product's own.
    minutes: (u64, u64),
    /// Silence after which the peer is asked, in seconds.
    dpd: u64,
    /// Volume in kilobytes (1000 octets) after which new keys are made; 0: what is the default.
    kilobytes: u64,
    /// Anti-replay window; 0: off.
    window: u32,
    /// The product keeps one pair of networks for each tunnel, and answers more with silence.
    pub one_pair: bool,
}

const WINDOW: u32 = 1024;

const fn preset(
    name: &'static str,
    of: &'static str,
    ike: &'static [&'static str],
    esp: &'static [&'static str],
    minutes: (u64, u64),
    dpd: u64,
) -> Preset {
    Preset { name, of, ike, esp, minutes, dpd, kilobytes: 0, window: WINDOW, one_pair: false }
}

/// All presets.
pub static PRESETS: &[Preset] = &[
    Preset {
        one_pair: true,
        ..preset(
            "aws",
            "AWS Site-to-Site VPN",
            &["aes256gcm16-prfsha384-ecp384", "aes256-sha256-modp2048"],
            &["aes256gcm16-ecp384-noesn", "aes256-sha256-modp2048-noesn"],
            (8 * 60, 60),
            10,
        )
    },
    Preset {
        kilobytes: 102_400_000,
        ..preset(
            "azure",
            "Azure VPN Gateway with a custom policy of GCMAES256, SHA384 and ECP384",
            &["aes256gcm16-prfsha384-ecp384", "aes256-sha384-ecp384"],
            &["aes256gcm16-ecp384-noesn", "aes256gcm16-noesn"],
            (8 * 60, 450),
            45,
        )
    },
    preset(
        "gcp",
        "Google Cloud HA VPN",
        &["aes256gcm16-prfsha256-x25519"],
        &["aes256gcm16-x25519-noesn"],
        (10 * 60, 3 * 60),
        30,
    ),
    preset(
        "aliyun",
        "Alibaba Cloud VPN Gateway with IKEv2, aes256, sha256 and group14",
        &["aes256-sha256-modp2048"],
        &["aes256-sha256-modp2048-noesn"],
        (8 * 60, 60),
        30,
    ),
    preset(
        "tencent",
        "Tencent Cloud VPN Gateway with IKEv2, AES-CBC-256, SHA-256 and GROUP14",
        &["aes256-sha256-modp2048"],
        &["aes256-sha256-modp2048-noesn"],
        (24 * 60, 60),
        30,
    ),
    Preset {
        window: 0,
        ..preset(
            "cloudflare",
            "Cloudflare WAN, which sends from many places at once and out of order",
            &["aes256gcm16-prfsha384-ecp384"],
            &["aes256gcm16-ecp384-noesn"],
            (24 * 60, 8 * 60),
            30,
        )
    },
    preset(
        "strongswan",
        "strongSwan as it is without proposals of its own",
        &["aes256-sha256-x25519", "aes256-sha256-ecp256", "aes256-sha256-modp3072"],
        &["aes256gcm16-x25519-noesn", "aes256gcm16-noesn", "aes256-sha256-noesn"],
        (4 * 60, 60),
        30,
    ),
    preset(
        "libreswan",
        "libreswan as it is without ike= and esp=",
        &["aes256gcm16-prfsha512-ecp384", "aes256gcm16-prfsha512-ecp256", "aes256gcm16-prfsha512-modp2048"],
        &["aes256gcm16-ecp384", "aes256gcm16"],
        (8 * 60, 8 * 60),
        30,
    ),
    preset(
        "cisco",
        "Cisco IOS-XE",
        // The second one holds what its default IKEv2 proposal takes: SHA-512 or SHA-384, groups 19 and 14.
        &["aes256gcm16-prfsha384-ecp384", "aes256-sha512-sha384-sha256-ecp256-modp2048"],
        &["aes256gcm16-ecp384-noesn", "aes256-sha256-ecp256-noesn", "aes256-sha256-modp2048-noesn"],
        (24 * 60, 60),
        10,
    ),
    preset(
        "fortinet",
        "FortiGate",
        &["aes256gcm16-prfsha384-ecp384", "aes256-sha256-modp2048"],
        &["aes256gcm16-ecp384-noesn", "aes256-sha256-modp2048-noesn"],
        (24 * 60, 12 * 60),
        20,
    ),
    preset(
        "juniper",
        "Juniper SRX and vSRX",
        &["aes256-sha384-ecp384", "aes256-sha256-modp2048"],
        &["aes256gcm16-ecp384-noesn", "aes256-sha256-modp2048-noesn"],
        (8 * 60, 60),
        10,
    ),
    preset(
        "mikrotik",
        "MikroTik RouterOS 7",
        &["aes256-sha256-ecp384", "aes256-sha256-modp2048"],
        &["aes256gcm16-modp2048-noesn", "aes256-sha256-modp2048-noesn"],
        (24 * 60, 30),
        8,
    ),
    preset(
        "paloalto",
        "Palo Alto Networks PAN-OS",
        // The second one is its profile Suite-B-GCM-256, which has CBC in IKE (RFC 6379) and GCM in ESP only.
        &["aes256gcm16-prfsha384-ecp384", "aes256-sha384-ecp384", "aes256-sha256-ecp256"],
        &["aes256gcm16-ecp384-noesn", "aes256-sha256-ecp256-noesn"],
        (8 * 60, 60),
        5,
    ),
    preset(
        "bsi",
        "BSI TR-02102-3, whoever the peer is",
        &["aes256gcm16-prfsha384-ecp384", "aes256gcm16-prfsha512-ecp521", "aes256-sha384-ecp384"],
        &["aes256gcm16-ecp384-esn", "aes256gcm16-ecp521-esn", "aes256-sha384-ecp384-esn"],
        (24 * 60, 4 * 60),
        30,
    ),
    preset(
        "cnsa2",
        "the algorithms of CNSA 2.0, whoever the peer is",
        // SHA-384 is the suite's hash, and PRF_HMAC_SHA2_512 as good (RFC 9206 §8). A child's key exchange is that of its IKE SA
        // (RFC 9206 §11).
        &["aes256gcm16-prfsha384-prfsha512-ecp384-ke1_mlkem1024"],
        &["aes256gcm16-ecp384-ke1_mlkem1024"],
        (24 * 60, 4 * 60),
        30,
    ),
];

/// Their names, in the same order.
pub const NAMES: &[&str] = &[
    "aws",
    "azure",
    "gcp",
    "aliyun",
    "tencent",
    "cloudflare",
    "strongswan",
    "libreswan",
    "cisco",
    "fortinet",
    "juniper",
    "mikrotik",
    "paloalto",
    "bsi",
    "cnsa2",
];

impl Preset {
    /// The preset of that name.
    pub fn named(name: &str) -> Option<&'static Self> {
        PRESETS.iter().find(|p| p.name == name)
    }

    /// What holds where a tunnel says nothing of its IKE SA.
    pub fn ike(&self) -> IkeParams {
        IkeParams {
            // Tested to be readable.
            proposals: self.ike.iter().filter_map(|p| IkeProposal::read(p, Permit::Sound).ok()).collect(),
            lifetime: Duration::from_secs(self.minutes.0 * 60),
            dpd: Some(Duration::from_secs(self.dpd)),
            ..IkeParams::default()
        }
    }

    /// The same of its ESP SAs.
    pub fn esp(&self) -> EspParams {
        let default = EspParams::default();
        EspParams {
            proposals: self.esp.iter().filter_map(|p| EspProposal::read(p, Permit::Sound).ok()).collect(),
            lifetime: Duration::from_secs(self.minutes.1 * 60),
            bytes: if self.kilobytes == 0 { default.bytes } else { Some(self.kilobytes * 1000) },
            replay_window: self.window,
            ..default
        }
    }
}

impl PartialEq for Preset {
    fn eq(&self, other: &Self) -> bool {
        self.name == other.name
    }
}

impl Eq for Preset {}

#[cfg(test)]
mod tests {
    use cygnet_model::addke::{Additional, AdditionalOffer};

    use super::*;

    #[test]
    fn every_preset_can_be_read_whole() {
        assert!(PRESETS.iter().map(|p| p.name).eq(NAMES.iter().copied()));
        for p in PRESETS {
            assert_eq!(
                (p.ike().proposals.len(), p.esp().proposals.len()),
                (p.ike.len(), p.esp.len()),
                "{}",
                p.name
            );
            let minutes = |d: Duration| d.as_secs() / 60;
            assert!((1..=10_080).contains(&minutes(p.ike().lifetime)), "{}", p.name);
            assert!((3..=10_080).contains(&minutes(p.esp().lifetime)), "{}", p.name);
        }
    }

    /// No fall-back to less than the suite has.
    #[test]
    fn cnsa2_offers_nothing_but_its_suite() {
        let p = Preset::named("cnsa2").unwrap();
        let suite = ["aes256gcm16", "prfsha384", "prfsha512", "ecp384", "ke1_mlkem1024"];
        for words in p.ike.iter().chain(p.esp) {
            assert!(words.split('-').all(|word| suite.contains(&word)), "{words}");
            assert!(words.contains("-ecp384-ke1_mlkem1024"), "{words}");
        }
        let demanded = |offer: &AdditionalOffer| !offer.allows(&Additional::NONE);
        assert!(p.ike().proposals.iter().all(|p| demanded(&p.additional)));
        assert!(p.esp().proposals.iter().all(|p| demanded(&p.additional)));
    }

    /// What the vendors publish that their gateways take. A keyword beyond would be refused by them.
    #[test]
    fn presets_offer_what_the_product_takes() {
        type Takes = (&'static str, &'static [&'static str], &'static [&'static str], (u64, u64));
        let takes: [Takes; 5] = [
            (
                "aws",
                &[
                    "aes128",
                    "aes256",
                    "aes128gcm16",
                    "aes256gcm16",
                    "sha256",
                    "sha384",
                    "sha512",
                    "prfsha256",
                    "prfsha384",
                    "prfsha512",
                    "modp2048",
                    "modp3072",
                    "modp4096",
                    "ecp256",
                    "ecp384",
                    "ecp521",
                ],
                &[
                    "aes128",
                    "aes256",
                    "aes128gcm16",
                    "aes256gcm16",
                    "sha256",
                    "sha384",
                    "sha512",
                    "modp2048",
                    "modp3072",
                    "modp4096",
                    "ecp256",
                    "ecp384",
                    "ecp521",
                    "noesn",
                ],
                (480, 60),
            ),
            (
                "azure",
                &[
                    "aes256gcm16",
                    "aes128gcm16",
                    "aes256",
                    "aes128",
                    "sha384",
                    "sha256",
                    "prfsha384",
                    "prfsha256",
                    "ecp384",
                    "ecp256",
                    "modp2048",
                ],
                &["aes256gcm16", "aes128gcm16", "aes256", "sha256", "ecp384", "ecp256", "modp2048", "noesn"],
                (480, 450),
            ),
            (
                "gcp",
                &[
                    "aes128gcm16",
                    "aes256gcm16",
                    "prfsha256",
                    "prfsha384",
                    "prfsha512",
                    "x25519",
                    "ecp256",
                    "ecp384",
                    "modp3072",
                ],
                &["aes128gcm16", "aes256gcm16", "x25519", "ecp256", "ecp384", "modp3072", "noesn"],
                (600, 180),
            ),
            (
                "aliyun",
                &["aes256", "sha256", "modp2048"],
                &["aes256", "sha256", "modp2048", "noesn"],
                (1440, 1440),
            ),
            (
                "cloudflare",
                &[
                    "aes128gcm16",
                    "aes256gcm16",
                    "aes256",
                    "sha256",
                    "prfsha256",
                    "prfsha384",
                    "prfsha512",
                    "ecp384",
                    "modp2048",
                ],
                &["aes128gcm16", "aes256gcm16", "aes256", "aes128", "sha256", "ecp384", "modp2048", "noesn"],
                (1440, 480),
            ),
        ];
        for (name, ike, esp, longest) in takes {
            let p = Preset::named(name).unwrap();
            for (offered, taken) in [(p.ike, ike), (p.esp, esp)] {
                for word in offered.iter().flat_map(|p| p.split('-')) {
                    assert!(taken.contains(&word), "{name} does not take {word}");
                }
            }
            assert!(p.minutes.0 <= longest.0 && p.minutes.1 <= longest.1, "{name}");
        }
    }
}
