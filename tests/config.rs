//! What a configuration may say, and what is told about one that may not. Expected messages are golden files;
//! `CYGNET_UPDATE_GOLDEN=1` writes them anew.
#![allow(clippy::unwrap_used, clippy::panic)] // the lints know tests only inside #[test] functions

mod common;
#[path = "common/growth.rs"]
mod growth;

use std::fmt::Write;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use cygnet::config::{self, Auth, Identity, Severity};
use proptest::prelude::*;
use proptest::test_runner::RngSeed;

use growth::assert_linear;

const ENDS: &str = "gateways:
  - { name: vpc-a, address: 192.0.2.1, networks: [10.1.0.0/16] }
customer_gateways:
  - { name: idc-b, address: 192.0.2.2 }
";
const RULE: &str = "    spd: [ { local: 10.1.0.0/16, remote: [10.2.0.0/16] } ]\n";
const PSK: &str = "pL7v0y2QxNf8sKd3RwZtB5";

fn tunnel(name: &str) -> String {
    format!(
        "  - name: {name}\n    gateway: vpc-a\n    customer_gateway: idc-b\n    auth: {{ psk: \"{PSK}\" }}\n"
    )
}

fn expand(text: &str) -> String {
    let mut out = String::new();
    for line in text.lines() {
        match line {
            "<<ends>>" => out.push_str(ENDS),
            "<<rule>>" => out.push_str(RULE),
            _ => match line.strip_prefix("<<tunnel ").and_then(|l| l.strip_suffix(">>")) {
                Some(name) => out.push_str(&tunnel(name)),
                None => {
                    out.push_str(line);
                    out.push('\n');
                }
            },
        }
    }
    out
}

/// A directory with key files of all sorts.
fn keys() -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    for (name, key, mode) in
        [("good.psk", PSK, 0o600), ("open.psk", PSK, 0o644), ("short.psk", "hunter2", 0o600)]
    {
        let path = dir.path().join(name);
        fs::write(&path, key).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
    }
    dir
}

#[test]
fn bad_configurations_are_refused_with_these_words() {
    let dir = keys();
    let cases = common::read("tests/bad-configs/cases.txt");
    let mut told = String::new();
    let mut count = 0;
    for case in cases.split("\n=== ").skip(1) {
        let (title, body) = case.split_once('\n').unwrap_or((case, ""));
        count += 1;
        let errors = match config::load_text(&expand(body), dir.path()) {
            Err(errors) => errors,
            Ok(_) => panic!("\"{title}\" was accepted"),
        };
        writeln!(told, "=== {title}").unwrap();
        for p in &errors.problems {
            writeln!(told, "{}", p.one_line(&errors.file)).unwrap();
            told.push_str(&p.excerpt());
        }
    }
    assert!(count >= 100, "only {count} cases");
    let told = told.replace(&dir.path().display().to_string(), "DIR");
    for secret in [PSK, "hunter2", "passwordpassword", "0011223344"] {
        assert!(!told.contains(secret), "a key was quoted");
    }
    assert!(told.chars().all(|c| c == '\n' || !c.is_control()), "a control character got through");
    common::golden("tests/bad-configs/expected.txt", &told);
}

fn load(text: &str) -> config::Loaded {
    config::load_text(&expand(text), Path::new("/nonexistent")).unwrap_or_else(|e| panic!("{e}"))
}

#[test]
fn what_is_left_out_gets_its_default() {
    let c = load("<<ends>>\ntunnels:\n<<tunnel a-b>>\n<<rule>>\n").config;
    let t = &c.tunnels[0];
    assert_eq!(t.local_id, Some(Identity::Ip("192.0.2.1".parse().unwrap())));
    assert_eq!(t.remote_id, config::RemoteId::Is(Identity::Ip("192.0.2.2".parse().unwrap())));
    assert_eq!(t.ike, config::IkeParams::default());
    assert_eq!(t.esp, config::EspParams::default());
    assert_eq!((t.ike.lifetime.as_secs(), t.esp.lifetime.as_secs()), (86_400, 3600));
    assert_eq!(c.daemon.metrics.unwrap().to_string(), "127.0.0.1:9180");
    let Auth::Psk(psk) = &t.auth;
    assert_eq!(psk.secret.expose(), PSK.as_bytes());
    assert!(!format!("{c:?}").contains(PSK));
}

#[test]
fn identities_follow_tunnel_then_gateway_then_address() {
    let c = load(
        "gateways:
  - { name: vpc-a, address: [192.0.2.1, '2001:db8::1'], networks: [10.1.0.0/16] }
  - { name: vpc-i, address: { interface: eth0 }, networks: [10.1.0.0/16] }
customer_gateways:
  - { name: v6, address: '2001:db8::2' }
  - { name: dns, address: vpn.example.org }
  - { name: named, address: 192.0.2.9, id: ops@example.org }
tunnels:
  - { name: a, gateway: vpc-a, customer_gateway: v6, auth: {psk: pL7v0y2QxNf8sKd3RwZtB5}, spd: [{local: 10.1.0.0/16, remote: [10.2.0.0/16]}] }
  - { name: b, gateway: vpc-i, customer_gateway: dns, auth: {psk: pL7v0y2QxNf8sKd3RwZtB5}, spd: [{local: 10.1.0.0/16, remote: [10.3.0.0/16]}] }
  - { name: c, gateway: vpc-i, customer_gateway: named, local_id: 'keyid:01', auth: {psk: pL7v0y2QxNf8sKd3RwZtB5}, spd: [{local: 10.1.0.0/16, remote: [10.4.0.0/16]}] }
",
    )
    .config;
    let ids: Vec<String> = (c.tunnels.iter())
        .map(|t| format!("{} {}", t.local_id.as_ref().map_or("-".into(), Identity::to_string), t.remote_id))
        .collect();
    assert_eq!(ids, ["2001:db8::1 2001:db8::2", "- vpn.example.org", "keyid:01 ops@example.org"]);
}

/// Nothing asks for a tunnel on demand while another one carries its packets.
#[test]
fn a_tunnel_that_shares_its_flows_and_waits_to_be_asked_for_is_warned_of() {
    let loaded = load(
        "daemon: { data_plane: userspace }\n<<ends>>\ntunnels:\n<<tunnel a-b>>\n    weight: 7\n    start: active\n<<rule>>\n\
         <<tunnel a-c>>\n    remote_id: c.example.org\n    weight: 7\n    start: on-demand\n<<rule>>\n",
    );
    let told: Vec<String> = loaded.warnings.iter().map(|w| w.one_line("f")).collect();
    assert_eq!(told.len(), 1, "{told:?}");
    assert!(told[0].contains("tunnels[1].name: it starts on demand, and shares its flows"), "{told:?}");
}

#[test]
fn legacy_algorithms_are_permitted_by_section_and_warned_of_where_they_stand() {
    let loaded = load(
        "<<ends>>\ntunnels:\n<<tunnel a-b>>\n    ike:\n      legacy: true\n      proposals: [aes256-sha256-modp2048, 3des-sha1-modp1024]\n    \
         esp: { legacy: true }\n<<rule>>\n",
    );
    let t = &loaded.config.tunnels[0];
    assert_eq!(t.ike.proposals[1].to_string(), "3des-sha1-prfsha1-modp1024");
    assert_eq!(t.esp, config::EspParams::default(), "the defaults offer nothing legacy, permitted or not");
    let told: Vec<String> = loaded.warnings.iter().map(|w| w.one_line("f")).collect();
    assert_eq!(told.len(), 2, "{told:?}");
    assert!(
        told[0].contains("warning: tunnels[0].ike.proposals[1]: legacy: 3des, sha1, modp1024, prfsha1"),
        "{told:?}"
    );
    assert!(told[1].contains("tunnels[0].esp.legacy: no proposal names"), "{told:?}");
    let shown = config::show::resolved(&loaded.config);
    assert_eq!(
        (&shown["tunnels"][0]["ike"]["legacy"], &shown["tunnels"][0]["esp"]["legacy"]),
        (&true.into(), &false.into())
    );
}

#[test]
fn a_peer_of_any_identity_is_one_of_its_own_address() {
    let c = load("<<ends>>\ntunnels:\n<<tunnel a-b>>\n    remote_id: any\n<<rule>>\n").config;
    assert_eq!(c.tunnels[0].remote_id, config::RemoteId::Any);
    let c = load(
        "gateways: [ { name: g, address: 192.0.2.1, networks: [10.1.0.0/16] } ]
customer_gateways: [ { name: a, address: 192.0.2.2, id: any }, { name: b, address: 192.0.2.3 } ]
tunnels:
  - { name: a, gateway: g, customer_gateway: a, auth: {psk: pL7v0y2QxNf8sKd3RwZtB5}, spd: [{local: 10.1.0.0/16, remote: [10.2.0.0/16]}] }
  - { name: b, gateway: g, customer_gateway: b, remote_id: any, auth: {psk: pL7v0y2QxNf8sKd3RwZtB5}, spd: [{local: 10.1.0.0/16, remote: [10.3.0.0/16]}] }
",
    )
    .config;
    assert!(c.tunnels.iter().all(|t| t.remote_id == config::RemoteId::Any));
}

/// PRODUCT.md's example, the accepted half; the refused one is among the bad configurations.
#[test]
fn overlap_in_one_half_is_no_conflict() {
    let c = load(
        "gateways: [ { name: vpc-a, address: 192.0.2.1, networks: [10.0.0.0/16] } ]
customer_gateways: [ { name: idc-b, address: 192.0.2.2 } ]
tunnels:
<<tunnel a-b>>
    spd:
      - { local: 10.0.0.0/24, remote: [192.168.0.0/24, 192.168.1.0/24] }
      - { local: 10.0.1.0/24, remote: [192.168.2.0/24] }
      - { local: 10.0.2.0/24, remote: [192.168.2.0/24] }
      - { local: 10.0.1.0/24, remote: [192.168.1.0/24] }
",
    );
    assert_eq!(c.warnings, vec![]);
    assert_eq!(c.config.tunnels[0].children().len(), 3);
}

const TWO_TENANTS: &str = "gateways:
  - { name: ga, address: 192.0.2.1, networks: [10.1.0.0/16] }
  - { name: gb, address: 192.0.2.3, networks: [10.1.0.0/16] }
customer_gateways: [ { name: idc-b, address: 192.0.2.2 }, { name: idc-c, address: 192.0.2.4 } ]
DAEMON
tunnels:
  - { name: a, gateway: ga, customer_gateway: idc-b, auth: { psk: KEY }, A spd: [ { local: 10.1.0.0/16, remote: [10.2.0.0/16] } ] }
  - { name: b, gateway: gb, customer_gateway: idc-c, auth: { psk: KEY }, B spd: [ { local: 10.1.0.0/16, remote: [10.2.0.0/16] } ] }
";

fn two_tenants(daemon: &str, a: &str, b: &str) -> Result<config::Loaded, config::ConfigErrors> {
    let text = TWO_TENANTS.replace("DAEMON", daemon).replace("A spd", &format!("{a} spd"));
    let text = text.replace("B spd", &format!("{b} spd")).replace("KEY", PSK);
    config::load_text(&text, Path::new("/nonexistent"))
}

/// The host has one SPD: two gateways on it cannot both have a packet.
#[test]
fn tunnels_of_two_gateways_share_packets_only_as_primary_and_backup_or_by_marks() {
    let refused = |daemon, a, b| two_tenants(daemon, a, b).unwrap_err().to_string();
    let told = refused("", "", "");
    assert!(
        told.contains("also claimed by tunnel a of another gateway") && told.contains("line 7"),
        "{told}"
    );
    assert!(refused("", "weight: 1,", "weight: 1,").contains("the same weight"));
    let weights = two_tenants("", "weight: 0,", "weight: 10,").unwrap().config;
    assert_eq!(weights.tunnels.iter().map(|t| t.weight).collect::<Vec<_>>(), [0, 10]);
    assert!(two_tenants("", "mark: 1/0xff,", "mark: 2/0xff,").is_ok());
    let userspace = "daemon: { data_plane: userspace }";
    let told = refused(userspace, "mark: 1/0xff,", "mark: 2/0xff,");
    assert!(told.contains("does not see marks"), "{told}");
    assert!(two_tenants(userspace, "weight: 0,", "weight: 1,").is_ok());
}

/// A hub has everything, its spokes a part each; on either side the narrower block wins.
#[test]
fn a_remote_block_may_lie_around_a_network_or_inside_one() {
    let load = |network: &str, remote: &str| {
        let text = format!(
            "gateways: [ {{ name: vpc-a, address: 192.0.2.1, networks: [{network}] }} ]\n\
             customer_gateways: [ {{ name: idc-b, address: 192.0.2.2 }} ]\ntunnels:\n{}    spd: [ {{ local: {network}, remote: [{remote}] }} ]\n",
            tunnel("a-b")
        );
        config::load_text(&text, Path::new("/nonexistent")).map(|_| ()).map_err(|e| e.to_string())
    };
    assert_eq!(load("10.2.0.0/16", "10.0.0.0/8"), Ok(()), "a spoke");
    assert_eq!(load("10.0.0.0/8", "10.2.0.0/16"), Ok(()), "its hub");
    assert!(load("10.0.0.0/8", "10.0.0.0/8").unwrap_err().contains("the gateway's own network"));
}

#[test]
fn warnings_do_not_refuse() {
    let c = load(
        "<<ends>>\ndaemon: { metrics: { listen: '0.0.0.0:9180' } }\ntunnels:\n<<tunnel a-b>>\n    spd: [ { local: 10.1.0.0/16, remote: [64.0.0.0/4] } ]\n",
    );
    assert_eq!(c.warnings.len(), 2);
    assert!(c.warnings.iter().all(|w| w.severity == Severity::Warning));
}

#[test]
fn an_inline_key_needs_a_private_file() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("c.yaml");
    fs::write(&path, expand("<<ends>>\ntunnels:\n<<tunnel a-b>>\n<<rule>>\n")).unwrap();
    let mode = |m| fs::set_permissions(&path, fs::Permissions::from_mode(m)).unwrap();
    mode(0o644);
    let errors = config::load(&path).unwrap_err();
    assert_eq!(errors.errors(), 1);
    assert!(errors.to_string().contains("mode 0644"), "{errors}");
    mode(0o600);
    assert!(config::load(&path).is_ok());
}

/// A lone CR ends a line of YAML: were it not counted, the excerpt would be another line than the one that is masked.
#[test]
fn keys_stay_hidden_in_files_with_odd_line_ends() {
    for end in ["\n", "\r\n", "\r"] {
        let text = expand("<<ends>>\ntunnels:\n<<tunnel a b>>\n<<rule>>\n");
        let text = format!("#{end}#{end}#{end}{text}");
        let errors = config::load_text(&text, Path::new("/nonexistent")).unwrap_err();
        let shown: String = errors.problems.iter().map(config::Problem::excerpt).collect();
        assert!(shown.contains("name: a b") && !shown.contains(PSK), "{shown}");
    }
}

/// Random enough that four characters of it stand in no message by chance.
const CANARY: &str = "Zq7Xw9Kj4Vb8Gh3Ty6Rm";

/// Ways in which a key gets into a file: read, refused, or in the wrong place. `KEY` stands for it.
const WAYS: &[&str] = &[
    "    auth: { psk: \"KEY\" }\n",
    "    auth: { psk: 'KEY' } # KEY\n",
    "    auth: {psk: KEY}\n",
    "    auth: { \"psk\": KEY, psk: KEY }\n",
    "    auth:\n      psk: KEY\n",
    "    auth:\n      psk: 'KEY'\n      psk: KEY\n",
    "    auth:\n      psk: ?KEY\n",
    "    auth:\n      psk: >KEY\n",
    "    auth:\n      psk: !KEY\n",
    "    auth:\n      psk: !KEY x\n",
    "    auth:\n      psk: &KEY\n",
    "    auth:\n      psk: &a KEY\n",
    "    auth:\n      psk: *KEY\n",
    "    auth:\n      psk: @KEY\n",
    "    auth:\n      psk: `KEY\n",
    "    auth:\n      psk: %KEY\n",
    "    auth:\n      psk: #KEY\n      psk_file: # KEY\n",
    "    auth:\n      psk:\tKEY\n",
    "    auth:\n      psk:\t\"KEY\"\t# KEY\n",
    "    auth:\n      psk:\n        KEY\n",
    "    auth:\n      psk:\n        KEY\n        KEY\n",
    "    auth:\n      psk: |\n        KEY\n",
    "    auth:\n      psk: >-\n        KEY\n\n        KEY\n",
    "    auth:\n      psk: 'KEY\n        KEY'\n",
    "    auth:\n      psk: \"KEY\\\n        KEY\"\n",
    "    auth:\n      ? psk\n      : KEY\n",
    "    auth:\n      ? KEY\n      : psk\n",
    "    auth:\n      KEY\n",
    "    auth: KEY\n",
    "    auth: !KEY\n",
    "    auth: !KEY { psk: KEY }\n",
    "    auth: &KEY { psk: *KEY }\n",
    "    auth: [KEY, { psk: KEY }]\n",
    "    auth: { psk: [KEY, !KEY y] }\n",
    "    auth: { psk: { KEY: KEY } }\n",
    "    auth: { KEY }\n",
    "    auth: { KEY: KEY, KEY: KEY }\n",
    "    auth: { pks: KEY }\n",
    "    auth: { psk_file: KEY }\n",
    "    auth: { psk_file: 0sKEY== }\n",
    "    auth: { psk_file: { KEY: x } }\n",
    "    auth: { psk_file: [KEY] }\n",
    "    psk: KEY\n",
    "    PSK: KEY\n",
    "    pre-shared-key: KEY\n    key: KEY\n    shared_secret: [KEY]\n",
    "    KEY: KEY\n    KEY: x\n",
    "    auht: { psk: KEY, pks: KEY }\n",
    "    auth: { psk: &k KEY }\n    local_id: *k\n",
    "    auth! { psk: &k KEY }\n    local_id: *k\n",
    "    auht: &k KEY\n    local_id: *k\n",
    "    local_id: &k KEY\n    auth: { psk: *k }\n    remote_id: *k\n",
];

fn quotes_canary(text: &str) -> bool {
    let key: Vec<char> = CANARY.chars().collect();
    key.windows(4).any(|part| text.contains(&part.iter().collect::<String>()))
}

/// Everything that is told about a text, in each of the forms in which it is told.
fn told_about(text: &str) -> String {
    let checked = config::check_text(text, Path::new("/nonexistent"), config::Secrets::Read);
    let mut told = serde_json::to_string(&checked.problems).unwrap();
    for p in &checked.problems {
        told += &p.one_line("f");
        told += &p.excerpt();
    }
    told
}

fn written(way: &str, end: &str) -> String {
    let text = format!(
        "{ENDS}tunnels:\n  - name: a b\n    gateway: vpc-a\n{way}    customer_gateway: idc-b\n    nonsense: 1\n{RULE}"
    );
    text.replace("KEY", CANARY).replace('\n', end)
}

#[test]
fn no_message_shows_a_character_of_a_key_whatever_its_style() {
    for end in ["\n", "\r\n", "\r"] {
        for way in WAYS {
            let told = told_about(&written(way, end));
            assert!(told.contains("error"), "{way:?} was accepted");
            assert!(!quotes_canary(&told), "{way:?} {end:?}: {told}");
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { rng_seed: RngSeed::Fixed(4301), ..ProptestConfig::with_cases(20_000) })]
    #[test]
    fn no_message_about_a_mutated_file_shows_a_key(
        // Where a key stands in a public place by its alias, or for the name of a file, a mutation makes it just that.
        way in prop::sample::select(WAYS)
            .prop_filter("public", |way| !way.contains("_id: &k") && !way.contains("psk_file: ")),
        at in 0usize..400,
        len in 0usize..8,
        with in "[ -~\\n\\r\\t\\PC]{0,3}|\\n +|: |!|&a |\\* ?a|#",
    ) {
        let mut text = written(way, "\n");
        let from = text.find("tunnels:").unwrap();
        let at = text.floor_char_boundary((from + at).min(text.len()));
        let end = text.floor_char_boundary((at + len).min(text.len()));
        text.replace_range(at..end, &with);
        let told = told_about(&text);
        prop_assert!(!quotes_canary(&told), "{text}\n{told}");
    }
}

/// Refused, with a bounded list of what is wrong, and for no more work than it has octets.
#[test]
fn hostile_yaml_ends_early() {
    let refused = |text: &String| {
        let errors = config::load_text(text, Path::new("/nonexistent")).unwrap_err();
        assert!(errors.problems.len() <= 2000);
    };
    // Each alias is four of those before it: written out, more octets than there are atoms.
    let bomb = (1..30).fold("a0: &a0 [x, x]\n".to_owned(), |mut s, n| {
        writeln!(s, "a{n}: &a{n} [*a{p}, *a{p}, *a{p}, *a{p}]", p = n - 1).unwrap();
        s
    });
    for text in [bomb, "\u{feff}gateways: []\n\0".into(), "a: b: c".into(), "\"\\x00\": 1".into()] {
        refused(&text);
    }
    assert_linear(25_000, |n| "[".repeat(n), refused);
    assert_linear(60_000, |n| "tunnels:\n".to_owned() + &"- x\n".repeat(n), refused);
    assert_linear(12_000, |n| (0..n).fold(String::new(), |s, n| s + &format!("k{n}: 1\n")), refused);
}

/// Warnings have their own limit: however many there are, an error behind them still refuses the file.
#[test]
fn no_number_of_warnings_hides_an_error() {
    let mut text = String::from(ENDS) + "tunnels:\n";
    for n in 0..1200 {
        if n % 200 == 0 {
            text.push_str(&(tunnel(&format!("t{n}")) + "    spd:\n"));
        }
        writeln!(text, "      - {{ local: 10.1.{}.{}/32, remote: [16.0.0.0/7] }}", n / 250, n % 250).unwrap();
    }
    assert!(config::load_text(&text, Path::new("/nonexistent")).is_ok());
    text.push_str("      - { local: 10.1.9.9/32, remote: [0.0.0.0/0] }\n");
    assert_eq!(config::load_text(&text, Path::new("/nonexistent")).unwrap_err().errors(), 1);
}

/// The size cap, and text that is not text.
#[test]
fn files_that_are_no_text_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("c.yaml");
    fs::write(&path, b"gateways: []\n# \xff\n").unwrap();
    assert!(config::load(&path).unwrap_err().to_string().contains(":2:3: error: not valid UTF-8"));
    fs::write(&path, vec![b'#'; 4 * 1024 * 1024 + 1]).unwrap();
    assert!(config::load(&path).unwrap_err().to_string().contains("larger than 4 MiB"));
    assert!(config::load(dir.path()).unwrap_err().to_string().contains("directory"));
}

#[test]
fn large_configurations_are_checked_as_a_whole() {
    let mut text = String::from(
        "gateways: [ { name: vpc-a, address: 192.0.2.1, networks: [10.0.0.0/9] } ]\ncustomer_gateways:\n",
    );
    for n in 0..1000 {
        writeln!(text, "  - {{ name: c{n}, address: 198.18.{}.{} }}", n / 250, n % 250 + 1).unwrap();
    }
    text.push_str("tunnels:\n");
    for n in 0..1000 {
        writeln!(text, "  - {{ name: t{n}, gateway: vpc-a, customer_gateway: c{n}, auth: {{ psk: {PSK} }},")
            .unwrap();
        writeln!(
            text,
            "      spd: [ {{ local: 10.0.0.0/9, remote: [10.{}.{}.0/24, 172.16.{}.{}/32] }} ] }}",
            128 + n / 250,
            n % 250,
            n / 250,
            n % 250
        )
        .unwrap();
    }
    assert_eq!(load(&text).config.tunnels.len(), 1000);
}

/// Whatever we take for YAML, another parser takes for YAML as well, and with the same keys.
fn parsers_agree(text: &str) {
    if let Ok(loaded) = config::load_text(text, Path::new("/nonexistent")) {
        let value: serde_yaml::Value = serde_yaml::from_str(text).unwrap_or_else(|e| panic!("{e}: {text:?}"));
        let count = |key: &str| value.get(key).and_then(|v| v.as_sequence()).map_or(0, Vec::len);
        assert_eq!(loaded.config.tunnels.len(), count("tunnels"));
        assert_eq!(loaded.config.gateways.len(), count("gateways"));
    }
}

proptest! {
    // YAML 1.1 and 1.2 differ in corners: a bare "::1" between brackets is a word in one and not in the other. The same
    // mutations every time, so that such a corner is found when the parsers or the mutations change, not by chance.
    #![proptest_config(ProptestConfig { rng_seed: RngSeed::Fixed(7296), ..ProptestConfig::with_cases(1000) })]
    #[test]
    fn mutated_configurations_neither_panic_nor_divide_the_parsers(
        cuts in prop::collection::vec((0usize..2000, 0usize..12, "[ -~\\n\\PC]{0,6}"), 0..4),
    ) {
        let mut text = expand(
            "<<ends>>\n# comment\ntunnels:\n<<tunnel a-b>>\n    ike: { lifetime: 1h, dpd: 30s }\n<<rule>>\n\n",
        );
        for (at, len, with) in cuts {
            let at = text.floor_char_boundary(at % (text.len() + 1));
            let end = text.floor_char_boundary((at + len).min(text.len()));
            text.replace_range(at..end, &with);
        }
        parsers_agree(&text);
    }
}

fn tunnel_with(keys: &str) -> String {
    format!(
        "{ENDS}tunnels:\n  - name: a-b\n    gateway: vpc-a\n    customer_gateway: idc-b\n    auth: {{ psk: {CANARY}x9 }}\n{keys}{RULE}"
    )
}

fn told(text: &str, here: Option<&config::Here>) -> Vec<String> {
    let checked = config::check_text_here(text, Path::new("/nonexistent"), config::Secrets::Read, here);
    checked.problems.iter().map(|p| p.one_line("f")).collect()
}

#[test]
fn networks_may_be_listed_to_pass_beside_a_tunnel_and_show_as_they_are() {
    let shown = |bypass: &str| {
        let checked =
            config::check_text(&tunnel_with(bypass), Path::new("/nonexistent"), config::Secrets::Read);
        let config = checked.preview.unwrap_or_else(|| panic!("{bypass}: {:?}", checked.problems));
        config::show::resolved(&config)["tunnels"][0]["bypass"].clone()
    };
    assert_eq!(shown(""), "attached");
    assert_eq!(shown("    bypass: none\n"), "none");
    assert_eq!(shown("    bypass: []\n"), "none");
    assert_eq!(shown("    bypass: [attached]\n"), "attached");
    let listed = serde_json::json!(["attached", "10.2.200.0/24"]);
    assert_eq!(shown("    bypass: [10.2.200.0/24, attached]\n"), listed);
    // What takes a whole rule away, and what takes nothing, is told.
    let warned = |bypass: &str| told(&tunnel_with(&format!("    bypass: {bypass}\n")), None).join("\n");
    assert!(!warned("[10.2.200.0/24]").contains("bypass"));
    assert!(warned("[10.0.0.0/8]").contains("10.0.0.0/8 covers all of 10.2.0.0/16"));
    assert!(warned("[10.2.0.0/16]").contains("none of its packets will be protected"));
    assert!(warned("[10.9.0.0/16]").contains("no rule of the tunnel covers 10.9.0.0/16"));
    assert!(warned("[none]").contains("error"));
    let many: Vec<String> = (0..65).map(|n| format!("10.2.{n}.0/24")).collect();
    assert!(warned(&format!("[{}]", many.join(", "))).contains("more than 64"));
}

/// Off the host nothing can be said about its addresses, and nothing is.
#[test]
fn on_the_gateway_itself_a_rule_without_an_own_address_inside_is_told() {
    let here = |addresses: &[&str]| {
        config::Here::new(addresses.iter().map(|ip| ("eth0".to_owned(), ip.parse().unwrap())))
    };
    let warned = |keys: &str, here: Option<&config::Here>| {
        told(&tunnel_with(keys), here).iter().filter(|line| line.contains("own packets")).count()
    };
    assert_eq!(warned("", None), 0);
    assert_eq!(warned("", Some(&here(&["198.51.100.7"]))), 0, "another host");
    assert_eq!(warned("", Some(&here(&["192.0.2.1"]))), 1);
    assert_eq!(warned("    source: none\n", Some(&here(&["192.0.2.1"]))), 0);
    assert_eq!(warned("", Some(&here(&["192.0.2.1", "10.1.0.1"]))), 0);
    assert_eq!(warned("    source: 10.1.0.9\n", Some(&here(&["192.0.2.1", "10.1.0.1"]))), 1);
}

#[test]
fn samples_are_good() {
    let mut seen = 0;
    let installed = common::root().join("etc/cygnet.yaml");
    let samples = fs::read_dir(common::root().join("tests/samples")).unwrap().map(|e| e.unwrap().path());
    for path in samples.chain([installed]) {
        if path.extension().is_none_or(|e| e != "yaml") {
            continue;
        }
        seen += 1;
        let checked = config::check(&path, config::Secrets::Skip, None);
        // The complete sample has keys of later versions, too.
        let told = checked.problems.iter().map(|p| p.one_line(&checked.file));
        let told: Vec<String> = told.filter(|line| !line.contains("this version")).collect();
        assert!(told.is_empty(), "{told:?}");
        let text = fs::read_to_string(&path).unwrap();
        assert!(serde_yaml::from_str::<serde_yaml::Value>(&text).is_ok());
    }
    assert!(seen >= 4);
}

#[test]
fn a_copy_elsewhere_with_the_same_keys_beside_it_changes_nothing() {
    use std::os::unix::fs::OpenOptionsExt;
    let load = |dir: &Path, name: &str, key: &str| {
        let mut options = std::fs::OpenOptions::new();
        let file = options.write(true).create(true).truncate(true).mode(0o600).open(dir.join(name));
        std::io::Write::write_all(&mut file.unwrap(), key.as_bytes()).unwrap();
        let text = format!(
            "gateways: [ {{ name: g, address: 192.0.2.1, networks: [10.1.0.0/16] }} ]
customer_gateways: [ {{ name: c, address: 192.0.2.2 }} ]
tunnels: [ {{ name: a, gateway: g, customer_gateway: c, auth: {{ psk_file: {name} }},
             spd: [ {{ local: 10.1.0.0/16, remote: [10.2.0.0/16] }} ] }} ]
"
        );
        config::load_text(&text, dir).unwrap().config
    };
    let (here, there) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let installed = load(here.path(), "a.psk", "pL7v0y2QxNf8sKd3RwZtB5");
    let copy = load(there.path(), "a.psk", "pL7v0y2QxNf8sKd3RwZtB5");
    assert!(!config::diff::plan(&installed, &copy).changes());
    let fields = |new: &config::model::Config| -> Vec<String> {
        config::diff::plan(&installed, new)
            .steps
            .into_iter()
            .flat_map(|s| s.changes)
            .map(|c| c.field)
            .collect()
    };
    assert_eq!(fields(&load(there.path(), "a.psk", "qM7v0y2QxNf8sKd3RwZtB5")), ["auth.psk"]);
    assert_eq!(fields(&load(there.path(), "b.psk", "pL7v0y2QxNf8sKd3RwZtB5")), ["auth.psk_file"]);
}
