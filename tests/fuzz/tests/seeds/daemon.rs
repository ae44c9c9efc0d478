//! Seeds of what people and clients write.

use std::fs;

use cygnet::control::frame;
use cygnet::control::{ErrorKind, Request, Response};
use cygnet::observe::snapshot::Snapshot;
use cygnet::store::kept::{self, KeptLevel};
use cygnet::store::record::{Key, Record};
use cygnet::store::{Contents, Place, Store};
use cygnet_ike::saved::Change;
use cygnet_model::plane::{PlaneKind, SaCounters};
use cygnet_model::tunnel::{Direction, NewAddresses};
use cygnet_model::{IkeSpi, SecretBytes};

use super::{file, seed};

const PSK: &str = "pL7v0y2QxNf8sKd3RwZtB5";
const ENDS: &str = "gateways:
  - { name: vpc-a, address: 192.0.2.1, networks: [10.1.0.0/16] }
customer_gateways:
  - { name: idc-b, address: 192.0.2.2 }
";

/// A case of tests/bad-configs with its usual parts written out.
fn expand(case: &str) -> String {
    let mut out = String::new();
    for line in case.lines() {
        match line {
            "<<ends>>" => out += ENDS,
            "<<rule>>" => out += "    spd: [ { local: 10.1.0.0/16, remote: [10.2.0.0/16] } ]\n",
            _ => match line.strip_prefix("<<tunnel ").and_then(|l| l.strip_suffix(">>")) {
                Some(name) => {
                    out += &format!(
                        "  - name: {name}\n    gateway: vpc-a\n    customer_gateway: idc-b\n    auth: {{ psk: \"{PSK}\" }}\n"
                    );
                }
                None => out += &format!("{line}\n"),
            },
        }
    }
    out
}

pub fn import() {
    for dialect in ["swanctl", "ipsec"] {
        for name in samples(dialect) {
            seed(
                "import",
                &format!("{dialect}-{name}"),
                file(&format!("tests/import/{dialect}/{name}.conf")),
            );
        }
    }
    seed("import", "ipsec-secrets", file("tests/import/ipsec/headquarters.secrets"));
}

fn samples(dialect: &str) -> Vec<String> {
    let dir = format!("{}/../import/{dialect}", env!("CARGO_MANIFEST_DIR"));
    let names = fs::read_dir(dir).unwrap().map(|f| f.unwrap().file_name().into_string().unwrap());
    let mut names: Vec<String> = names.filter_map(|n| Some(n.strip_suffix(".conf")?.to_owned())).collect();
    names.sort();
    names
}

pub fn config() {
    for name in ["complete", "hub", "internet", "minimal", "two-vpcs"] {
        seed("config", name, file(&format!("tests/samples/{name}.yaml")));
    }
    let cases = file("tests/bad-configs/cases.txt");
    for (n, case) in cases.split("\n=== ").skip(1).enumerate().filter(|(n, _)| n % 5 == 0) {
        let (_, body) = case.split_once('\n').unwrap_or((case, ""));
        if body.len() < 4000 {
            seed("config", &format!("bad-{n:03}"), expand(body));
        }
    }
    let inline = expand("<<ends>>\ntunnels:\n<<tunnel a-b>>\n<<rule>>\n");
    seed("config", "inline-key", &inline);
    seed("config", "crlf", inline.replace('\n', "\r\n"));
    seed("config", "bom", format!("\u{feff}{inline}"));
    seed("config", "tabs", inline.replace("  ", "\t"));
    seed("config", "wide-characters", inline.replace("vpc-a", "vpc-\u{4e16}\u{1f600}e\u{301}"));
    seed("config", "block-scalar-key", inline.replace(&format!("\"{PSK}\" }}"), "|\n") + "      key\n");
    seed(
        "config",
        "anchors",
        "gateways: &g [ { name: &n a, address: 192.0.2.1, networks: [10.1.0.0/16] } ]\ntunnels: *g\n",
    );
    seed("config", "deep", "[".repeat(40));
    seed(
        "config",
        "json",
        format!("{{\"gateways\": [{{\"name\": \"a\\u0041\", \"address\": \"{}\"}}]}}", "192.0.2.1"),
    );
    let quoted = inline.replace("name: a-b", "name: \"a\\x00\\u2028b\"").replace("192.0.2.2", "'192.0.2.2'");
    seed("config", "escapes", quoted);
    let state =
        format!("daemon: {{ state_dir: \"/v/\\u00e9 '\\\"\\\\\", metrics: {{ listen: 'off' }} }}\n{inline}");
    seed("config", "odd-paths", state);
    let ids = format!(
        "{inline}    local_id: 'keyid:01ff'\n    remote_id: '@Gw.Example.org'\n    mark: 0x10/0xff\n"
    );
    seed("config", "identities", ids);
    let times = "    ike: { lifetime: 90s, dpd: off, retransmit: { first: 250ms, max: 8s, tries: 20 } }\n    esp: { lifetime: 1h, bytes: unlimited, replay_window: 0 }\n";
    seed("config", "times", format!("{inline}{times}"));
}

pub fn quantities() {
    for (n, text) in [
        "100mbit",
        "1.5Gbit",
        "64kbit",
        "0.000001tbit",
        "10tbit",
        "10.000000001tbit",
        "999bit",
        "1000bit",
        "100",
        "100mbps",
        "-1mbit",
        "1e3mbit",
        ".5mbit",
        "1.mbit",
        "99999999999999999999bit",
        "1.0000000001gbit",
        "18446744073709.551615mbit",
        "30s",
        "500ms",
        "7d",
        "0s",
        "90s",
        "213503982334601d",
        "213503982334602d",
        "1h30m",
        "2GiB",
        "2560KB",
        "1gb",
        "0B",
        "16777216TiB",
        "16777215TiB",
        "1 GiB",
        "",
        " ",
        "\u{ff11}mbit",
        "1\u{a0}mbit",
        "1..5mbit",
        "001kbit",
    ]
    .into_iter()
    .enumerate()
    {
        seed("units", &format!("{n:02}"), text);
    }
    for (name, text) in [
        ("text", PSK.to_owned()),
        ("text-with-newline", format!("{PSK}\n")),
        ("text-with-crlf", format!("{PSK}\r\n")),
        ("two-newlines", format!("{PSK}\n\n")),
        ("hex", "0x8f3a1c5e7b9d2046f1e3a5c7d9b80624".to_owned()),
        ("hex-odd", "0x8f3a1c5e7b9d2046f1e3a5c7d9b8062".to_owned()),
        ("hex-upper", "0x8F3A1C5E7B9D2046F1E3A5C7D9B80624\n".to_owned()),
        ("base64", "0sNTcxOGY4YTI5OWM0ZDFlMGI3NjM=".to_owned()),
        ("base64-two-padding", "0sAAECAwQFBgcICQoLDA0ODw==\n".to_owned()),
        ("base64-padding-inside", "0sAAECAwQFBgcICQ==DA0ODw==".to_owned()),
        ("base64-three-padding", "0sAAECAwQFBgcICQoLDA0O===".to_owned()),
        ("base64-loose-bits", "0sAAECAwQFBgcICQoLDA0ODx==".to_owned()),
        ("fifteen", "123456789012345".to_owned()),
        ("sixteen", "1234567890123456".to_owned()),
        ("hex-short", "0x00112233".to_owned()),
        ("0x", "0x".to_owned()),
        ("0s", "0s".to_owned()),
        ("newline", "\n".to_owned()),
        ("passphrase", "correct horse battery staple".to_owned()),
        ("repeated", "Sommer2024!Sommer2024!".to_owned()),
        ("white-space", format!(" {PSK} ")),
    ] {
        seed("psk", name, text);
    }
    seed("psk", "binary", (0..64u8).map(|i| i.wrapping_mul(37)).collect::<Vec<u8>>());
    seed("psk", "nul", b"pL7v0y2Q\0xNf8sKd3R");
    for (n, text) in [
        "aes256gcm16-prfsha384-x25519",
        "aes256-sha256-modp2048",
        "aes256gcm16-x25519",
        "aes256gcm16-aes128gcm16-x25519-ecp384-esn-noesn",
        "aes128-aes256-sha256-sha512-prfsha256-ecp256-modp3072",
        "chacha20poly1305-prfsha512-ecp384",
        "aes256-aes256gcm16-sha256-x25519",
        "aes256gcm16-sha256-x25519",
        "aes256-sha256-sha256-x25519",
        "aes256gcm16-prfsha1-x25519",
        "aes256-sha1-modp1024",
        "rot13",
        "",
        "-",
        "aes-sha2_256-curve25519",
        "aes256--sha256",
        "aes256gcm128-noesn",
        "AES256-SHA256",
        "aes256-x25519",
        "sha256",
        "\u{1b}[31m",
    ]
    .into_iter()
    .enumerate()
    {
        seed("proposal", &format!("{n:02}"), text);
    }
}

pub fn control() {
    let tunnel = || "a-b".to_owned();
    for (name, request) in [
        ("status", Request::Status { name: None }),
        ("up", Request::Up { tunnel: tunnel(), timeout_s: 30 }),
        ("down", Request::Down { tunnel: tunnel(), timeout_s: u64::MAX }),
        ("rekey", Request::Rekey { tunnel: tunnel(), ike: true, timeout_s: 0 }),
        ("reset", Request::Reset { tunnel: "\u{1b}[31m\n\"".into(), timeout_s: 1 }),
        (
            "bandwidth",
            Request::Bandwidth { gateway: "vpc-a".into(), bps: Some(100_000_000), inward: false, save: true },
        ),
        ("unlimited", Request::Bandwidth { gateway: "vpc-a".into(), bps: None, inward: false, save: false }),
        ("logs", Request::Logs { tunnel: tunnel(), since_s: Some(60) }),
        ("doctor", Request::Doctor {}),
        ("events", Request::Events {}),
    ] {
        seed("control_request", name, frame::encode(&request).unwrap());
    }
    let framed = |len: u32, body: &str| [&len.to_be_bytes(), body.as_bytes()].concat();
    for (name, len, body) in [
        ("t101-length-0", 0, ""),
        ("t101-length-65536", 65_536, "{\"verb\":\"status\"}"),
        ("t101-length-65537", 65_537, "{\"verb\":\"status\"}"),
        ("t101-length-max", u32::MAX, "{\"verb\":\"status\"}"),
        ("t101-unknown-verb", 17, "{\"verb\":\"reboot\"}"),
        ("t101-unknown-field", 31, "{\"verb\":\"status\",\"psk\":\"secret\"}"),
        ("t101-field-twice", 40, "{\"verb\":\"up\",\"tunnel\":\"a\",\"tunnel\":\"b\",\"timeout_s\":1}"),
        ("t101-number-too-large", 40, "{\"verb\":\"up\",\"tunnel\":\"a\",\"timeout_s\":1e400}"),
        ("t101-negative", 40, "{\"verb\":\"up\",\"tunnel\":\"a\",\"timeout_s\":-1}"),
        ("t101-lone-surrogate", 40, "{\"verb\":\"up\",\"tunnel\":\"\\ud800\",\"timeout_s\":1}"),
        ("t101-array", 2, "[\"status\"]"),
        ("t101-null", 4, "null"),
    ] {
        seed("control_request", name, framed(len, body));
    }
    seed("control_request", "t101-deep", framed(400, &"[".repeat(400)));
    seed("control_request", "t101-three-octets", [0, 0, 1]);

    let contract = file("src/observe/snapshot.rs");
    let json = contract.split("r#\"").nth(1).and_then(|t| t.split("\"#").next()).unwrap();
    let snapshot: Snapshot = serde_json::from_str(json).unwrap();
    let event = r#"{"time":"2026-01-01T00:00:00Z","unix":1767225600,"event":"tunnel_up","tunnel":"a-b","message":"up"}"#;
    let event = || serde_json::from_str(event).unwrap();
    for (name, response) in [
        ("status", Response::Status { snapshot: Box::new(snapshot) }),
        ("status-empty", Response::Status { snapshot: Box::default() }),
        ("done", Response::done("the tunnel is up")),
        ("events", Response::Events { events: vec![event(), event()] }),
        ("findings", Response::Findings { findings: vec![] }),
        ("streaming", Response::Streaming {}),
        ("event", Response::Event { event: Box::new(event()) }),
        ("error", Response::error(ErrorKind::NotFound, "there is no tunnel \"x\"")),
    ] {
        seed("control_response", name, frame::encode(&response).unwrap());
    }
    for (name, body) in [
        ("newer-error", r#"{"answer":"error","kind":"on-fire","message":"m"}"#),
        ("newer-answer", r#"{"answer":"haiku"}"#),
        ("newer-field", r#"{"answer":"done","message":"m","more":[1,2,{"a":null}]}"#),
        (
            "finding",
            r#"{"answer":"findings","findings":[{"name":"n","verdict":"warning","detail":"d","fix":"f"}]}"#,
        ),
    ] {
        seed("control_response", name, framed(body.len() as u32, body));
    }
    seed("control_response", "length-64-mib", framed(64 * 1024 * 1024, "{}"));
    seed("control_response", "length-64-mib-and-one", framed(64 * 1024 * 1024 + 1, "{}"));

    for (name, text) in [
        ("levels", "{\n  \"vpc-a\": 100000000,\n  \"vpc-b\": null\n}"),
        ("empty", "{}"),
        ("cut", "{\n  \"vpc-a\": 1000"),
        ("largest", "{\"a\": 18446744073709551615}"),
        ("too-large", "{\"a\": 18446744073709551616}"),
        ("negative", "{\"a\": -1}"),
        ("fraction", "{\"a\": 1.0}"),
        ("twice", "{\"a\": 1, \"a\": null}"),
        ("escapes", "{\"\\u0000\\ud83d\\ude00\\\"\": 7}"),
        ("list", "[1, 2]"),
        ("text", "\"100mbit\""),
        ("more-behind", "{} {}"),
    ] {
        seed("bandwidth_saved", name, text);
    }
    seed("bandwidth_saved", "not-utf-8", b"{\"\xff\": 1}");
}

pub fn kept() {
    let sa = |direction| cygnet_fuzz::fixed::sa(cygnet_fuzz::fixed::suites()[0], direction);
    let to = NewAddresses {
        local: "192.0.2.1:4500".parse().unwrap(),
        remote: "[2001:db8::2]:4500".parse().unwrap(),
    };
    let levels = [("vpc-a".to_owned(), KeptLevel { set: Some(70_000_000), configured: None })].into();
    let spi = IkeSpi::new(0x0011_2233_4455_6677).unwrap();
    let batches = [
        vec![kept::changed(Change { spi, saved: Some(SecretBytes::new(vec![7; 40])) })],
        [Direction::In, Direction::Out]
            .into_iter()
            .flat_map(|direction| {
                let sa = sa(direction);
                [
                    kept::installed(&sa, 1),
                    kept::counted(sa.id, &SaCounters { sequence: 1 << 24, ..SaCounters::default() }),
                ]
            })
            .collect(),
        vec![kept::moved(sa(Direction::Out).id, &to), kept::levels(&levels)],
        kept::removed(sa(Direction::In).id).into(),
        vec![Record::Put(Key::HandedOver, SecretBytes::new(vec![])), Record::Delete(Key::Ike(spi))],
    ];
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("kept.sas");
    let place = Place { path: path.clone(), ..cygnet_fuzz::fixed::place() };
    let (mut store, begun) = Store::begin(place, PlaneKind::Userspace, Contents::new());
    begun.unwrap();
    for (n, batch) in batches.into_iter().enumerate() {
        let mut records = Vec::new().into();
        batch.iter().for_each(|record| record.write(&mut records));
        seed("kept_records", &format!("{n}"), &*records);
        store.note(batch).unwrap();
        seed("kept_file", &format!("{n}"), fs::read(&path).unwrap());
    }
    let whole = fs::read(&path).unwrap();
    seed("kept_file", "cut", &whole[..whole.len() - 9]);
    seed("kept_file", "header", &whole[..75]);
}
