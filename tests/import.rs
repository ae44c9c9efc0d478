//! `cygnet import`: what becomes of the samples in tests/import, and that what is exported can be imported again.
//! Beside each sample stands what it became, and what was told; `CYGNET_UPDATE_GOLDEN=1` writes both anew.
#![allow(clippy::unwrap_used, clippy::panic)] // the lints know tests only inside #[test] functions

mod common;

use std::collections::BTreeSet;
use std::fmt::Write;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use cygnet::config::{self, Auth, Config, Secrets, Severity, Tunnel};
use cygnet::export::{self, Format};
use cygnet::import::{self, Dialect, Imported, Options, Source};
use proptest::prelude::*;
use proptest::test_runner::RngSeed;

fn samples(dialect: &str) -> Vec<PathBuf> {
    let dir = common::root().join("tests/import").join(dialect);
    let all = fs::read_dir(dir).unwrap().map(|f| f.unwrap().path());
    let mut all: Vec<PathBuf> = all.filter(|p| p.extension().is_some_and(|e| e == "conf")).collect();
    all.sort();
    all
}

fn options(secrets_dir: Option<&Path>) -> Options {
    Options {
        addresses: vec!["192.0.2.1".parse().unwrap(), "2001:db8::1".parse().unwrap()],
        secrets_dir: secrets_dir.map(|d| d.to_str().unwrap().to_owned()),
        ..Options::default()
    }
}

fn errors_of(yaml: &str, dir: &Path, secrets: Secrets) -> Vec<String> {
    let checked = config::check_text(yaml, dir, secrets);
    let errors = checked.problems.iter().filter(|p| p.severity == Severity::Error);
    errors.map(|p| p.one_line("out.yaml")).collect()
}

#[test]
fn samples_become_what_stands_beside_them() {
    for dialect in ["swanctl", "ipsec"] {
        for path in samples(dialect) {
            let name = path.file_name().unwrap().to_str().unwrap().to_owned();
            let text = fs::read_to_string(&path).unwrap();
            let mut told = String::new();
            match import::import(Source { name: &name, text: &text }, None, &options(None)) {
                Ok(made) => {
                    assert_eq!(
                        made.dialect,
                        if dialect == "ipsec" { Dialect::Ipsec } else { Dialect::Swanctl },
                        "{name}"
                    );
                    assert_eq!(
                        errors_of(&made.yaml, Path::new("/nonexistent"), Secrets::Skip),
                        [""; 0],
                        "{name}"
                    );
                    told.push_str(&made.yaml);
                    made.notes.iter().for_each(|n| writeln!(told, "# {}", n.one_line()).unwrap());
                }
                Err(e) => writeln!(told, "# error: {e}").unwrap(),
            }
            common::golden(&format!("tests/import/{dialect}/{}.yaml", name.trim_end_matches(".conf")), &told);
        }
    }
}

#[test]
fn there_are_samples_of_many_shapes() {
    assert!(samples("swanctl").len() >= 20 && samples("ipsec").len() >= 20);
}

/// Keys are taken by the identities that they are for, coded or not.
#[test]
fn keys_with_their_files_make_a_configuration_that_can_run() {
    let dir = tempfile::tempdir().unwrap();
    let text = common::read("tests/import/ipsec/headquarters.conf");
    let secrets = common::read("tests/import/ipsec/headquarters.secrets");
    let made = import::import(
        Source { name: "ipsec.conf", text: &text },
        Some(Source { name: "ipsec.secrets", text: &secrets }),
        &options(Some(dir.path())),
    )
    .unwrap();
    for key in &made.keys {
        let path = dir.path().join(&key.file);
        fs::write(&path, format!("{}\n", key.key.as_str())).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
    }
    assert_eq!(made.keys.len(), made.tunnels);
    assert_eq!(errors_of(&made.yaml, dir.path(), Secrets::Read), [""; 0]);
    let config = config::load_text(&made.yaml, dir.path()).unwrap().config;
    let key = |name: &str| {
        let Auth::Psk(psk) = &config.tunnel(name).unwrap().auth;
        psk.secret.expose().to_vec()
    };
    assert_eq!(key("berlin"), b"kV3xZp9Qw2Ls7Tn4Yb8Rf1Hd6Gm0Jc5");
    assert_eq!(
        key("paris"),
        [0x8f, 0x3a, 0x1c, 0x5e, 0x7b, 0x9d, 0x20, 0x46, 0xf1, 0xe3, 0xa5, 0xc7, 0xd9, 0xb8, 0x06, 0x24]
    );
    assert_eq!(key("oslo"), b"for whoever has none of his own 7");
    // Neither the configuration nor a note shows one.
    let all: String = made.notes.iter().map(|n| n.one_line()).chain([made.yaml.clone()]).collect();
    assert!(!all.contains("kV3x") && !all.contains("8f3a1c") && !all.contains("whoever has none"));
}

fn pairs(t: &Tunnel) -> BTreeSet<(String, String)> {
    let rules = t.spd.iter();
    rules.flat_map(|r| r.remote.iter().map(|b| (r.local.to_string(), b.to_string()))).collect()
}

fn load(yaml: &str) -> Config {
    let checked = config::check_text(yaml, Path::new("/nonexistent"), Secrets::Skip);
    checked.preview.unwrap_or_else(|| panic!("{yaml}\n{:?}", checked.problems))
}

fn imported(text: &str) -> Imported {
    import::import(Source { name: "x", text }, None, &Options::default())
        .unwrap_or_else(|e| panic!("{text}\n{e}"))
}

fn ike() -> impl Strategy<Value = &'static str> {
    prop_oneof![
        Just("aes256gcm16-prfsha384-x25519, aes256-sha256-modp2048"),
        Just("chacha20poly1305-aes128gcm16-prfsha256-prfsha512-ecp384-ecp521"),
        Just("aes192-aes128-sha384-sha512-prfsha256-modp4096-modp8192"),
        Just("3des-sha1-modp1024"),
        Just("aes256gcm16-prfsha384-x25519-ke1_mlkem768-ke2_ecp384-ke2_none, aes256gcm16-prfsha384-x25519"),
    ]
}

fn esp() -> impl Strategy<Value = &'static str> {
    prop_oneof![
        Just("aes256gcm16-x25519, aes256-sha256-modp2048"),
        Just("chacha20poly1305-aes128gcm16-esn"),
        Just("aes128-sha512-ecp256-noesn"),
        Just("3des-aes128-sha1-sha256-modp1536"),
        Just("aes256gcm16-x25519-ke1_mlkem1024-ke1_mlkem768, aes256gcm16-x25519"),
    ]
}

fn id() -> impl Strategy<Value = &'static str> {
    prop_oneof![
        Just("198.51.100.2"),
        Just("gw.example.org"),
        Just("fqdn:198.51.100.9"),
        Just("fqdn:two words \\\" and more"),
        Just("ops@example.org"),
        Just("email:nobody"),
        Just("keyid:c0ffee00"),
        Just("keyid-text:branch/7"),
        Just("dn:C=DE, O=Example, CN=gw-1"),
        Just("2001:db8::7"),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { rng_seed: RngSeed::Fixed(7296), failure_persistence: None, ..ProptestConfig::with_cases(200) })]

    /// What strongSwan is given for the other end, read back, is the tunnel that another cygnet is given for it.
    #[test]
    fn an_exported_swanctl_conf_comes_back_as_the_same_tunnel(
        ike in ike(), esp in esp(), own in id(), their in id(),
        start in prop_oneof![Just("active"), Just("passive"), Just("on-demand")],
        locals in 1u8..4, remotes in 1u8..4, hours in 1u32..100, esp_minutes in 3u32..600,
        dpd in prop_oneof![Just("off".to_owned()), (5u32..3600).prop_map(|n| format!("{n}s"))],
        encap in prop_oneof![Just("auto"), Just("force")], fragmentation in any::<bool>(),
        bytes in prop_oneof![Just("unlimited".to_owned()), (3u64..9000).prop_map(|n| format!("{n}MB"))],
        window in prop_oneof![Just(0u32), (2u32..128).prop_map(|n| n * 32)],
    ) {
        prop_assume!(own != their);
        let legacy = |list: &str| list.contains("sha1") || list.contains("3des");
        let remote: Vec<String> = (0..remotes).map(|n| format!("10.2.{n}.0/24")).collect();
        let rules: String = (0..locals)
            .map(|n| format!("      - {{ local: 10.1.{n}.0/24, remote: [{}] }}\n", remote.join(", ")))
            .collect();
        let text = format!("gateways: [ {{ name: vpc-a, address: 192.0.2.1, networks: [10.1.0.0/16] }} ]
customer_gateways: [ {{ name: idc-b, address: 198.51.100.2, id: \"{their}\" }} ]
tunnels:
  - name: a-b
    gateway: vpc-a
    customer_gateway: idc-b
    start: {start}
    local_id: \"{own}\"
    auth: {{ psk: pL7v0y2QxNf8sKd3RwZtB5 }}
    spd:\n{rules}    ike: {{ proposals: [{ike}], legacy: {}, lifetime: {hours}h, dpd: {dpd}, encap: {encap}, fragmentation: {fragmentation} }}
    esp: {{ proposals: [{esp}], legacy: {}, lifetime: {esp_minutes}m, bytes: {bytes}, replay_window: {window} }}
", legacy(ike), legacy(esp));
        let ours = config::load_text(&text, Path::new("/nonexistent")).unwrap_or_else(|e| panic!("{text}\n{e}")).config;
        let told = |format| export::export(&ours, "a-b", format, &export::Options::default()).unwrap();
        let swan = told(Format::Swanctl);
        let back = imported(&swan.text);
        prop_assert_eq!(back.tunnels, 1, "{}\n{:?}", swan.text.as_str(), back.notes);
        let (back, mirrored) = (load(&back.yaml), load(&told(Format::Cygnet).text));
        let (a, b) = (&back.tunnels[0], &mirrored.tunnels[0]);
        prop_assert_eq!(pairs(a), pairs(b));
        prop_assert_eq!(&a.ike, &b.ike);
        prop_assert_eq!((&a.esp, a.start), (&b.esp, b.start));
        prop_assert_eq!((&a.local_id, &a.remote_id), (&b.local_id, &b.remote_id));
        prop_assert_eq!(&back.gateways[0].addresses, &mirrored.gateways[0].addresses);
        prop_assert_eq!(&back.customer_gateways[0].address, &mirrored.customer_gateways[0].address);
    }

    /// The same of libreswan, whose words are not ours; its children are one for each pair of networks.
    #[test]
    fn an_exported_ipsec_conf_comes_back_as_the_same_tunnel(
        // It has one word for integrity and PRF, and no group of 1024 bits.
        ike in prop_oneof![
            Just("aes256gcm16-prfsha384-x25519, aes256-sha256-modp2048"),
            Just("chacha20poly1305-aes128gcm16-prfsha256-prfsha512-ecp384-ecp521"),
            Just("aes192-aes128-sha384-sha512-modp4096-modp8192"),
            Just("3des-sha1-modp1536"),
            Just("aes256gcm16-prfsha384-x25519-ke1_mlkem768-ke2_ecp384-ke2_none, aes256gcm16-prfsha384-x25519"),
        ],
        esp in esp(), locals in 1u8..3, remotes in 1u8..3, hours in 1u32..24,
    ) {
        let legacy = |list: &str| list.contains("sha1") || list.contains("3des");
        let remote: Vec<String> = (0..remotes).map(|n| format!("10.2.{n}.0/24")).collect();
        let rules: String = (0..locals)
            .map(|n| format!("      - {{ local: 10.1.{n}.0/24, remote: [{}] }}\n", remote.join(", ")))
            .collect();
        let text = format!("gateways: [ {{ name: vpc-a, address: 192.0.2.1, networks: [10.1.0.0/16] }} ]
customer_gateways: [ {{ name: idc-b, address: 198.51.100.2 }} ]
tunnels:
  - name: a-b
    gateway: vpc-a
    customer_gateway: idc-b
    auth: {{ psk: pL7v0y2QxNf8sKd3RwZtB5 }}
    spd:\n{rules}    ike: {{ proposals: [{ike}], legacy: {}, lifetime: {hours}h }}
    esp: {{ proposals: [{esp}], legacy: {} }}
", legacy(ike), legacy(esp));
        let ours = config::load_text(&text, Path::new("/nonexistent")).unwrap_or_else(|e| panic!("{text}\n{e}")).config;
        let told = |format| export::export(&ours, "a-b", format, &export::Options::default()).unwrap();
        let swan = told(Format::Libreswan);
        let back = imported(&swan.text);
        prop_assert_eq!(back.tunnels, 1, "{}\n{:?}", swan.text.as_str(), back.notes);
        let (back, mirrored) = (load(&back.yaml), load(&told(Format::Cygnet).text));
        let (a, b) = (&back.tunnels[0], &mirrored.tunnels[0]);
        prop_assert_eq!(pairs(a), pairs(b));
        let groups = |t: &Tunnel| {
            let each = t.ike.proposals.iter();
            each.map(|p| (p.encrs.clone(), p.groups.clone(), p.additional.clone())).collect::<Vec<_>>()
        };
        prop_assert_eq!(groups(a), groups(b));
        prop_assert_eq!((a.ike.lifetime, a.esp.lifetime, a.start), (b.ike.lifetime, b.esp.lifetime, b.start));
    }

    /// Whatever a file is, reading it ends, and what comes of it passes the check.
    #[test]
    fn no_text_panics_and_all_that_comes_passes_check(text in soup()) {
        for dialect in [Dialect::Swanctl, Dialect::Ipsec] {
            let options = Options { dialect: Some(dialect), ..Options::default() };
            let secrets = Source { name: "s", text: &text };
            if let Ok(made) = import::import(Source { name: "x", text: &text }, Some(secrets), &options) {
                prop_assert_eq!(errors_of(&made.yaml, Path::new("/nonexistent"), Secrets::Skip), [""; 0]);
                for n in &made.notes {
                    prop_assert!(!n.one_line().chars().any(char::is_control), "{:?}", n);
                }
            }
        }
    }
}

/// Texts made of what configurations are made of.
fn soup() -> impl Strategy<Value = String> {
    let words = [
        "conn a\n",
        "conn %default\n",
        "\talso=a\n",
        "\tleft=192.0.2.1\n",
        "\tright=198.51.100.2\n",
        "\trightid=@#c0\n",
        "\tleftsubnet=10.1.0.0/16,0.0.0.0/0\n",
        "\trightsubnet=10.2.0.0-10.3.0.7\n",
        "\tike=aes-md5-dh2,default!\n",
        "\tike=aes_gcm256;dh19;addke1=ml_kem_768+none+dh2;addke9=dh20,aes256-sha2;addke2=ml_kem_768\n",
        "proposals = aes256-sha256-ke1_mlkem768, aes128-sha1-x25519-ke1_kyber3-ke8_ecp256-ke2_none-mlkem512\n",
        "\tesp=null-null\n",
        "\tauto=start\n",
        "\tikelifetime=9999999w\n",
        "connections {\n",
        "c {\n",
        "}\n",
        "children {\n",
        "local_ts = 10.1.0.0/16[tcp/80], dynamic\n",
        "remote_ts = ::/0\n",
        "remote_addrs = 198.51.100.2\n",
        "local_addrs = %any\n",
        "id = \"a b\"\n",
        "local {\n",
        "remote-2 : c {\n",
        "secrets { ike { secret = x } }\n",
        "#",
        "\"",
        "=",
        "\\",
        " ",
        "\n",
        ":",
        ",",
        "include *\n",
        "rekey_bytes = 99999999999999999999\n",
        "é\u{1b}",
        "start_action = trap\n",
        "mark_in = 7/0\n",
        "reauth_time = 1h\n",
        ": PSK \"x\n",
    ];
    proptest::collection::vec(
        prop_oneof![4 => proptest::sample::select(words.to_vec()).prop_map(str::to_owned), 1 => "\\PC{0,6}"],
        0..30,
    )
    .prop_map(|v| v.concat())
}
