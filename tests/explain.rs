//! `cygnet explain` at both ends of a real negotiation, in network namespaces. Needs root.
#![allow(clippy::unwrap_used, clippy::panic, clippy::print_stdout)] // the lints know tests only inside #[test] functions

mod host;

use host::pair::Pair;
use host::until;
use serde_json::Value;

fn explained(pair: &Pair, side: usize) -> Value {
    let (_, text) = pair.ask(side, &["explain", "a-b", "--all", "--json"]);
    serde_json::from_str(&text).unwrap_or_else(|e| panic!("{e}: {text}"))
}

fn topic<'a>(negotiation: &'a Value, name: &str) -> &'a Value {
    let topics = negotiation["topics"].as_array().unwrap();
    topics.iter().find(|t| t["topic"] == name).unwrap_or_else(|| panic!("no {name} in {negotiation}"))
}

/// Each end names its own line; when the line is changed, the next explanation is of a tunnel that came up.
#[test]
fn each_end_names_the_line_that_would_change_the_outcome() {
    let Some(pair) = Pair::new("each_end_names_the_line_that_would_change_the_outcome") else { return };
    let (code, text) = pair.ask(0, &["explain", "a-b"]);
    assert_eq!(code, Some(69), "{text}");
    let wrong = pair.text(1).replace("aes256gcm16-prfsha384-x25519", "aes128-sha256-modp2048");
    let _b = pair.start(1, &wrong);
    let _a = pair.start(0, &pair.text(0));
    until(|| !explained(&pair, 0)["negotiations"].as_array().unwrap().is_empty());

    // The initiator has only the word of whoever answers.
    let told = explained(&pair, 0);
    let last = &told["negotiations"][0];
    assert_eq!((&last["outcome"], &last["role"]), (&"refused".into(), &"initiator".into()));
    assert_eq!((&last["by"], &last["authenticated"]), (&"peer".into(), &false.into()));
    let change = &topic(last, "ike-proposal")["change"];
    let line = pair.text(0).lines().position(|l| l.contains("proposals: [aes256gcm16-prf")).unwrap() + 1;
    assert_eq!(change["place"], format!("{}:{line}", pair.path("1.yaml").display()));
    assert_eq!(change["key"], "tunnels[0].ike.proposals");

    // The responder has seen what was offered, and says how to take it.
    let seen = explained(&pair, 1);
    let last = &seen["negotiations"][0];
    let proposal = topic(last, "ike-proposal");
    assert_eq!(proposal["theirs"], "aes256gcm16-prfsha384-x25519");
    let how = proposal["change"]["how"].as_str().unwrap();
    assert!(how.starts_with("add aes256gcm16-prfsha384-x25519"), "{how}");
    let (code, text) = pair.ask(1, &["explain", "a-b"]);
    assert_eq!(code, Some(1));
    assert!(
        text.contains("- we wanted") && text.contains("+ the peer offered") && text.contains("2.yaml:"),
        "{text}"
    );

    // The line is changed, and others are put before it.
    let good = format!("# one more line\n{}", pair.text(1));
    pair.write(1, &good);
    let (code, text) = pair.ask(1, &["apply"]);
    assert_eq!(code, Some(0), "{text}");
    let (code, text) = pair.ask(0, &["up", "a-b"]);
    assert_eq!(code, Some(0), "{text}");
    for side in [0, 1] {
        let told = explained(&pair, side);
        let last = &told["negotiations"][0];
        assert_eq!((&last["exchange"], &last["outcome"]), (&"ike-auth".into(), &"agreed".into()), "{told}");
        assert_eq!(topic(last, "our-networks")["result"], "chosen");
        // What failed before is kept as well, and names the line as it is now.
        let before =
            told["negotiations"].as_array().unwrap().iter().find(|n| n["outcome"] == "refused").unwrap();
        let place = topic(before, "ike-proposal")["change"]["place"].as_str().unwrap().to_owned();
        assert!(place.ends_with(&format!("yaml:{}", line + side)), "{place}");
        assert_eq!(pair.ask(side, &["explain", "a-b"]).0, Some(0));
    }
    let (code, _) = pair.ask(0, &["explain", "nobody"]);
    assert_eq!(code, Some(64));
}
