//! The binary without a daemon: exit codes, messages, and where they go.
#![allow(clippy::unwrap_used, clippy::panic)] // the lints know tests only inside #[test] functions

mod common;

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::process::{Command, Output};

fn cygnet(args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_cygnet")).args(args).env_remove("NO_COLOR").output().unwrap()
}

struct Told {
    code: i32,
    out: String,
    err: String,
}

fn told(args: &[&str]) -> Told {
    let o = cygnet(args);
    let text = |b| String::from_utf8(b).unwrap();
    Told { code: o.status.code().unwrap(), out: text(o.stdout), err: text(o.stderr) }
}

const GOOD: &str = "gateways: [ { name: vpc-a, address: 192.0.2.1, networks: [10.1.0.0/16] } ]
customer_gateways: [ { name: idc-b, address: 192.0.2.2 } ]
tunnels:
  - { name: a-b, gateway: vpc-a, customer_gateway: idc-b, auth: { psk_file: a-b.psk },
      spd: [ { local: 10.1.0.0/16, remote: [10.2.0.0/16] } ] }
";

fn configuration(text: &str) -> (tempfile::TempDir, String) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("c.yaml");
    fs::write(&path, text).unwrap();
    let key = dir.path().join("a-b.psk");
    fs::write(&key, "pL7v0y2QxNf8sKd3RwZtB5\n").unwrap();
    fs::set_permissions(&key, fs::Permissions::from_mode(0o600)).unwrap();
    (dir, path.to_str().unwrap().to_owned())
}

#[test]
fn usage_errors_exit_64_and_help_exits_0() {
    for args in [
        &[][..],
        &["fly"],
        &["check", "--jsno"],
        &["up"],
        &["bandwidth", "vpc-a", "fast"],
        &["limit", "vpc-a", "10.1.0.5"],
        &["limit", "vpc-a", "10.1.0.5", "-5mbit"],
        &["limit", "vpc-a", "10.1.0.5", "-2"],
        &["limit", "vpc-a", "::ffff:10.1.0.5", "1mbit"],
        &["limit", "vpc-a", "10.1.0.5", "1tbit"],
        &["limit", "vpc-a", "10.1.0.256", "1mbit"],
        &["limit", "vpc-a", "--save"],
        &["up", "a", "--timeout", "soon"],
    ] {
        let t = told(args);
        assert_eq!(t.code, 64, "{args:?}: {}", t.err);
        assert!(t.out.is_empty() && !t.err.is_empty());
    }
    for args in [&["--help"][..], &["check", "--help"], &["help", "rekey"], &["--version"]] {
        let t = told(args);
        assert_eq!(t.code, 0, "{args:?}");
        assert!(t.err.is_empty() && !t.out.is_empty());
    }
    assert_eq!(told(&["--version"]).out, format!("cygnet {}\n", env!("CARGO_PKG_VERSION")));
}

#[test]
fn export_peer_needs_no_daemon_and_guards_the_key() {
    let (dir, file) = configuration(GOOD);
    let t = told(&["export-peer", "a-b", "--format", "swanctl", "--config", &file]);
    assert_eq!(t.code, 0, "{}", t.err);
    assert!(t.out.contains("remote_addrs = 192.0.2.1") && t.out.contains(cygnet::export::PLACEHOLDER));
    assert!(t.err.starts_with("note: ") && !t.out.contains("pL7v"), "{}", t.err);

    let kept = dir.path().join("their.conf");
    let kept = kept.to_str().unwrap();
    let args = ["export-peer", "a-b", "--format", "swanctl", "--config", &file, "--with-psk", "-o", kept];
    let t = told(&args);
    assert_eq!((t.code, t.out.as_str()), (0, ""), "{}", t.err);
    assert!(fs::read_to_string(kept).unwrap().contains("secret = \"pL7v0y2QxNf8sKd3RwZtB5\""));
    assert_eq!(fs::metadata(kept).unwrap().permissions().mode() & 0o777, 0o600);
    let t = told(&args);
    assert!(t.code == 74 && t.err.contains("nothing is written over"), "{}", t.err);

    let t = told(&["export-peer", "b-a", "--format", "junos", "--config", &file]);
    assert!(t.code == 64 && t.err.contains("it has a-b"), "{}", t.err);
    assert_eq!(told(&["export-peer", "a-b", "--format", "word", "--config", &file]).code, 64);
    fs::write(&file, "gateways: 7\n").unwrap();
    let t = told(&["export-peer", "a-b", "--format", "junos", "--config", &file]);
    assert!(t.code == 78 && t.out.is_empty() && t.err.contains(":1:11: error: gateways"), "{}", t.err);
}

/// A file of somebody else is read on a terminal.
#[test]
fn notes_of_an_import_carry_no_control_characters() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("ipsec.conf");
    let conn = "conn a\n left=192.0.2.1\n right=198.51.100.2\n authby=secret\n leftsubnet=10.1.0.0/16[\u{1b}]0;x\u{7}]\n rightsubnet=10.2.0.0/16\n";
    fs::write(&file, conn).unwrap();
    let t = told(&["import", file.to_str().unwrap()]);
    assert!(t.err.contains("protocols and ports"), "{}", t.err);
    assert!(!t.err.chars().any(|c| c.is_control() && c != '\n'), "{:?}", t.err);
}

#[test]
fn import_gives_a_configuration_and_notes_and_takes_keys_along_when_asked() {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name).to_str().unwrap().to_owned();
    let (file, keys, yaml) = (path("ipsec.conf"), path("keys"), path("cygnet.yaml"));
    fs::copy(common::root().join("tests/import/ipsec/headquarters.conf"), &file).unwrap();
    fs::copy(common::root().join("tests/import/ipsec/headquarters.secrets"), path("ipsec.secrets")).unwrap();

    let t = told(&["import", &file]);
    assert_eq!(t.code, 0, "{}", t.err);
    assert!(t.out.contains("psk_file: berlin.psk") && !t.out.contains("kV3x") && !t.err.contains("kV3x"));
    assert!(t.err.contains(&format!("{file}:2: ignored: strictcrlpolicy = no: ")), "{}", t.err);

    let args = ["import", &file, "--secrets-dir", &keys];
    assert_eq!(told(&args).code, 64, "the directory has to be there");
    fs::create_dir(&keys).unwrap();
    let t = told(&args);
    assert_eq!(t.code, 0, "{}", t.err);
    let key = dir.path().join("keys/berlin.psk");
    assert_eq!(fs::read_to_string(&key).unwrap(), "kV3xZp9Qw2Ls7Tn4Yb8Rf1Hd6Gm0Jc5\n");
    assert_eq!(fs::metadata(&key).unwrap().permissions().mode() & 0o777, 0o600);
    fs::write(&yaml, &t.out).unwrap();
    let checked = told(&["check", &yaml]);
    assert_eq!(checked.code, 0, "{}", checked.out);
    let t = told(&args);
    assert!(t.code == 74 && t.err.contains("nothing is written over"), "{}", t.err);

    let t = told(&["import", &file, "--json"]);
    let json: serde_json::Value = serde_json::from_str(&t.out).unwrap();
    assert_eq!((&json["version"], &json["tunnels"]), (&1.into(), &3.into()));
    assert!(
        json["notes"].as_array().unwrap().iter().any(|n| n["kind"] == "ignored" && n["line"] == 3),
        "{json}"
    );

    fs::write(&file, "conn a\n\tleft 192.0.2.1\n").unwrap();
    let t = told(&["import", &file]);
    assert!(t.code == 78 && t.out.is_empty() && t.err.contains("ipsec.conf:2: "), "{}", t.err);
    fs::write(&file, "conn a\n\tleft=192.0.2.1\n\tright=%any\n").unwrap();
    let t = told(&["import", &file]);
    assert!(t.code == 78 && t.out.is_empty() && t.err.contains("left out: connection = a"), "{}", t.err);
    assert_eq!(told(&["import", "/nonexistent"]).code, 78);
    assert_eq!(told(&["import"]).code, 64);
}

#[test]
fn without_a_daemon_the_exit_code_is_69() {
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("none.sock");
    let socket = socket.to_str().unwrap();
    for verb in [
        &["status"][..],
        &["status", "--json"],
        &["up", "a-b"],
        &["down", "a-b"],
        &["rekey", "--ike", "a-b"],
        &["reset", "a-b"],
        &["bandwidth", "vpc-a", "100mbit"],
        &["limit", "vpc-a", "10.1.0.5", "10mbit"],
        &["limit", "vpc-a"],
        &["events", "--json"],
        &["logs", "a-b", "--since", "10m"],
        &["explain", "a-b"],
        &["status", "--follow", "--timeout", "20s"],
        &["events", "--since", "1h", "--no-follow"],
        &["up", "a-b", "--json", "--timeout", "1"],
    ] {
        let t = told(&[&["--control", socket], verb].concat());
        assert_eq!(t.code, 69, "{verb:?}");
        assert!(t.err.contains("not reachable") && t.err.contains(socket) && t.out.is_empty(), "{}", t.err);
    }
}

#[test]
fn check_says_ok_or_everything_that_is_wrong() {
    let (_dir, path) = configuration(GOOD);
    let t = told(&["check", &path]);
    assert_eq!(
        (t.code, t.out.as_str()),
        (0, &*format!("{path}: ok (gateways: 1, customer gateways: 1, tunnels: 1)\n"))
    );

    let (_dir, path) = configuration(
        &GOOD.replace("10.1.0.0/16, remote", "10.9.0.0/16, remote").replace("tunnels", "tunels"),
    );
    let t = told(&["check", &path]);
    assert_eq!(t.code, 78);
    assert!(
        t.out.starts_with(&format!(
            "{path}:3:1: error: tunels: unknown key \"tunels\"; did you mean tunnels?"
        )),
        "{}",
        t.out
    );
    assert!(t.out.ends_with("1 error\n"), "{}", t.out);

    let t = told(&["check", "/nonexistent/c.yaml"]);
    assert_eq!(t.code, 78);
    assert!(t.out.contains("cannot read the file"), "{}", t.out);
}

#[test]
fn check_in_json_is_for_programs() {
    let (_dir, path) = configuration(&GOOD.replace("192.0.2.2", "127.0.0.1"));
    let t = told(&["check", &path, "--json"]);
    assert_eq!(t.code, 78);
    let v: serde_json::Value = serde_json::from_str(&t.out).unwrap();
    assert_eq!((&v["version"], &v["valid"]), (&1.into(), &false.into()));
    let e = &v["errors"][0];
    assert_eq!((&e["file"], &e["line"], &e["column"]), (&path.as_str().into(), &2.into(), &46.into()));
    assert_eq!(e["path"], "customer_gateways[0].address");
    assert!(
        e["message"].as_str().unwrap().contains("loopback") && e["hint"].as_str().unwrap().contains("public")
    );
    let (_dir, path) = configuration(GOOD);
    let v: serde_json::Value = serde_json::from_str(&told(&["check", "--json", &path]).out).unwrap();
    assert_eq!(
        (&v["valid"], &v["errors"], &v["warnings"]),
        (&true.into(), &serde_json::json!([]), &serde_json::json!([]))
    );
}

/// What `--resolved` writes is a configuration with the same meaning.
#[test]
fn the_resolved_form_resolves_to_itself() {
    let dir = tempfile::tempdir().unwrap();
    for sample in fs::read_dir(common::root().join("tests/samples")).unwrap() {
        let sample = sample.unwrap().path();
        let first = told(&["check", "--no-secrets", "--resolved", sample.to_str().unwrap()]);
        assert_eq!(first.code, 0, "{}", first.err);
        let again = dir.path().join("again.yaml");
        fs::write(&again, &first.out).unwrap();
        let second = told(&["check", "--no-secrets", "--resolved", again.to_str().unwrap()]);
        let keys =
            |text: &str| text.lines().filter(|l| !l.contains("psk_file")).collect::<Vec<_>>().join("\n");
        assert_eq!(keys(&first.out), keys(&second.out));
        assert!(!first.out.contains("warning"), "{}", first.out);
    }
}

/// What each preset puts in the place of the defaults is what `--resolved` says.
#[test]
fn the_resolved_form_shows_what_a_preset_fixes() {
    let mut all = String::new();
    for name in cygnet::config::preset::NAMES {
        let text = GOOD.replace("192.0.2.2 }", &format!("192.0.2.2, preset: {name} }}"));
        let (_dir, path) = configuration(&text);
        let t = told(&["check", "--no-secrets", "--resolved", &path]);
        assert_eq!(t.code, 0, "{}", t.err);
        all.push_str(&format!("preset {name}\n"));
        let mut of_preset = false;
        for line in t.out.lines() {
            // A section of a tunnel begins at the third column.
            if !line.starts_with("   ") && !line.starts_with("  - ") {
                of_preset = matches!(line, "  ike:" | "  esp:");
            }
            if of_preset {
                all.push_str(&format!("{line}\n"));
            }
        }
    }
    common::golden("tests/golden/presets.txt", &all);
}

/// What is accepted for the sake of later versions must not look as if it were in force.
#[test]
fn keys_without_effect_are_named() {
    let text = GOOD.replace("psk_file: a-b.psk },", "psk_file: a-b.psk }, esp: { dpd_action: clear },");
    let (_dir, path) = configuration(&text);
    let t = told(&["check", &path]);
    assert_eq!(t.code, 0);
    assert!(t.out.contains("dpd_action"), "{}", t.out);
}

/// Of a long line only its beginning is shown; nothing is underlined that is not there, and no line is empty.
#[test]
fn excerpts_are_short_and_whole() {
    let (_dir, path) = configuration(&format!("gateways: [ {{ name: {}, adress: x }} ]\n", "a".repeat(200)));
    let t = told(&["check", &path]);
    assert!(t.out.contains("adress") && t.out.lines().all(|l| !l.is_empty() && l.len() < 400), "{}", t.out);
    assert!(t.out.lines().all(|l| !l.contains('^') || l.len() < 180), "{}", t.out);
}

#[test]
fn samples_pass_the_check() {
    for sample in fs::read_dir(common::root().join("tests/samples")).unwrap() {
        let sample = sample.unwrap().path();
        let t = told(&["check", "--no-secrets", sample.to_str().unwrap()]);
        assert_eq!(t.code, 0, "{}: {}", sample.display(), t.out);
    }
}

#[test]
fn colours_are_for_terminals_or_on_demand() {
    let (_dir, path) = configuration("gateways: x\n");
    assert!(!told(&["check", &path]).out.contains('\x1b'));
    assert!(told(&["--color", "always", "check", &path]).out.contains("\x1b[31merror\x1b[0m"));
}

/// What a shell's script asks with: a line, and which word of it is being typed.
fn completed(line: &[&str]) -> String {
    let o = Command::new(env!("CARGO_BIN_EXE_cygnet"))
        .env("CYGNET_COMPLETE", "bash")
        .env("_CLAP_COMPLETE_INDEX", (line.len() - 1).to_string())
        .env("_CLAP_IFS", "\n")
        .arg("--")
        .args(line)
        .output()
        .unwrap();
    assert!(o.status.success() && o.stderr.is_empty(), "{}", String::from_utf8_lossy(&o.stderr));
    String::from_utf8(o.stdout).unwrap()
}

#[test]
fn completions_know_commands_and_options_and_are_silent_without_a_daemon() {
    assert_eq!(completed(&["cygnet", "bandw"]), "bandwidth");
    assert!(completed(&["cygnet", "status", "--fo"]).contains("--follow"));
    // Options are there without one.
    let offered = completed(&["cygnet", "--control", "/nonexistent", "up", ""]);
    assert!(offered.lines().all(|word| word.starts_with("--")), "{offered}");
    let (_dir, path) = configuration(GOOD);
    assert_eq!(completed(&["cygnet", "export-peer", "--config", &path, "a"]), "a-b");
}

/// The script of bash, in bash.
#[test]
fn the_script_of_bash_completes() {
    let exe = env!("CARGO_BIN_EXE_cygnet");
    let script = format!(
        "PATH=$(dirname {exe}):$PATH; source <(cygnet completions bash)
         COMP_WORDS=(cygnet bandw) COMP_CWORD=1 COMP_TYPE=9
         _clap_complete_cygnet cygnet bandw cygnet; printf '%s\n' \"${{COMPREPLY[@]}}\""
    );
    let o = Command::new("bash").args(["--norc", "-c", &script]).output().unwrap();
    assert_eq!(String::from_utf8_lossy(&o.stdout), "bandwidth\n", "{}", String::from_utf8_lossy(&o.stderr));
}

#[test]
fn a_code_that_there_is_not_is_a_wrong_usage_and_the_right_one_is_named() {
    let t = told(&["events", "--code", "tunel_failed"]);
    assert!(t.code == 64 && t.err.contains("did you mean tunnel_failed?"), "{}", t.err);
}

#[test]
fn a_name_that_there_is_not_is_corrected() {
    let (_dir, path) = configuration(GOOD);
    let t = told(&["export-peer", "a-bb", "--format", "junos", "--config", &path]);
    assert!(t.code == 64 && t.err.contains("did you mean \"a-b\"?"), "{}", t.err);
}

#[test]
fn a_bad_configuration_starts_nothing() {
    let (_dir, path) = configuration("gateways: x\n");
    let t = told(&["run", "--config", &path]);
    assert_eq!(t.code, 78);
    assert!(t.out.is_empty() && t.err.contains(":1:11: error: gateways: "), "{}", t.err);
}

#[test]
fn generated_things_are_usable() {
    let (a, b) = (told(&["psk"]), told(&["psk"]));
    assert_eq!((a.code, a.out.trim().len()), (0, 43));
    assert_ne!(a.out, b.out);
    assert!(told(&["psk", "--format", "hex"]).out.starts_with("0x"));
    assert!(told(&["psk", "--format", "base64"]).out.starts_with("0s"));
    let schema: serde_json::Value = serde_json::from_str(&told(&["schema"]).out).unwrap();
    assert_eq!(schema["properties"]["tunnels"]["items"]["required"][0], "name");
    for shell in ["bash", "zsh", "fish"] {
        assert!(told(&["completions", shell]).out.contains("CYGNET_COMPLETE"));
    }
    let dir = tempfile::tempdir().unwrap();
    assert_eq!(told(&["man", dir.path().to_str().unwrap()]).code, 0);
    assert!(fs::read_to_string(dir.path().join("man8/cygnet-check.8")).unwrap().contains("cygnet check"));
    let main = fs::read_to_string(dir.path().join("man8/cygnet.8")).unwrap();
    let status = main.split(".SH \"EXIT STATUS\"\n").nth(1).unwrap().split(".SH").next().unwrap();
    for code in [0, 1, 2, 64, 69, 70, 74, 75, 76, 77, 78] {
        assert!(status.contains(&format!("\\fB{code}\\fR\n")), "{code}: {status}");
    }
    assert_eq!(main.matches("Examples:").count(), 1);
    assert!(fs::read_to_string(dir.path().join("man5/cygnet.yaml.5")).unwrap().contains("replay_window"));
}

#[test]
fn the_schema_in_the_repository_is_the_one_that_is_printed() {
    common::golden("docs/cygnet.schema.json", &told(&["schema"]).out);
}

#[test]
fn doctor_answers_in_json() {
    let t = told(&["doctor", "--json", "--control", "/nonexistent.sock"]);
    let v: serde_json::Value = serde_json::from_str(&t.out).unwrap();
    assert_eq!(v["healthy"].as_bool().unwrap(), t.code == 0);
    assert!(v["findings"].as_array().unwrap().iter().any(|f| f["name"] == "kernel"));
}

/// A closed pipe ends the program without a word.
#[test]
fn a_reader_that_goes_away_is_no_error() {
    let script =
        format!("{} schema | head -c 1 > /dev/null; exit ${{PIPESTATUS[0]}}", env!("CARGO_BIN_EXE_cygnet"));
    let o = Command::new("bash").args(["-c", &script]).output().unwrap();
    assert!(o.stderr.is_empty(), "{}", String::from_utf8_lossy(&o.stderr));
}
