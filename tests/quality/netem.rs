//! What probes measure of a line of which `tc netem` makes the delay.

use super::*;

const DELAY_MS: f64 = 60.0;
/// Each packet is earlier or later by up to so much, each value as likely as the other.
const SPREAD_MS: f64 = 30.0;

/// Two wires of the same two hosts, one of them slow in one direction: what the quick one has on a busy machine the slow one
/// has as well, so that the difference is what netem adds.
#[test]
fn probes_measure_the_delay_and_the_jitter_that_the_line_has() {
    let test = "probes_measure_the_delay_and_the_jitter_that_the_line_has";
    let Some(mut pair) = Pair::new(test) else { return };
    let netem =
        format!("tc qdisc add dev wire0 root netem delay {DELAY_MS}ms {SPREAD_MS}ms 2>&1 && echo made");
    let made = pair.hosts[0].sh(&netem);
    if !made.ends_with("made\n") {
        let why = format!("this kernel has no netem: {}", made.trim());
        let required = std::env::var("CYGNET_REQUIRE").unwrap_or_default();
        assert!(!required.split(',').any(|what| what == "netem"), "{why}");
        println!("{test} is skipped: {why}");
        return;
    }
    for side in [1, 0] {
        let check = format!(
            "health_check: {{ target: {}, interval: 1s, failures: 8 }},",
            pair.inner.address(1 - side)
        );
        let text = pair.text(side, &[&check, &check], "metrics: { listen: off }");
        pair.start(side, &text);
    }
    for name in ["t0", "t1"] {
        until(|| pair.health(0, name) == "good");
    }
    // Jitter is smoothed over sixteen answers (RFC 3550 §6.4.1), and reaches nine tenths of what it is after 37.
    std::thread::sleep(Duration::from_secs(45));
    let figures = |name: &str| {
        let quality = pair.tunnel(0, name)["quality"].clone();
        println!("{name}: {quality}");
        ["delay_ms", "delay_min_ms", "jitter_ms", "loss_ratio"].map(|of| quality[of].as_f64().unwrap())
    };
    let ([slow, slow_least, shaken, lost], [quick, quick_least, still, _]) = (figures("t0"), figures("t1"));
    // The mean of so many values is within 10 ms of the middle, but for one in 10,000 tries; the least of them near the lower end.
    let (delay, least) = (slow - quick, slow_least - quick_least);
    assert!((delay - DELAY_MS).abs() < 10.0, "{delay} ms more than the quick one, as a mean");
    let lowest = DELAY_MS - SPREAD_MS;
    assert!((lowest - 3.0..lowest + 12.0).contains(&least), "{least} ms more at least");
    // Two values of an even spread differ by a third of its width, as a mean. What the machine adds is in both.
    let expected = 2.0 * SPREAD_MS / 3.0;
    assert!((expected * 0.5..expected * 1.8 + still).contains(&shaken), "{shaken} ms, of {expected} ms");
    assert!(lost < 0.05, "{lost}");
}
