//! Two tunnels with the same rules and the same weight, each by a wire of its own.

use std::collections::BTreeMap;

use nix::sys::socket::{setsockopt, sockopt::RcvBufForce};

use super::*;

const FLOWS: u16 = 64;
const FIRST_PORT: u16 = 40_000;

/// A datagram: when it came, of which flow, its number there.
type Taken = (Instant, u16, u32);

/// Flows from one gateway to the other, told apart by their source port alone, some ten datagrams a second each, until they
/// are stopped.
struct Flows {
    stop: Arc<AtomicBool>,
    sender: JoinHandle<()>,
    receiver: JoinHandle<Vec<Taken>>,
}

impl Flows {
    fn open(pair: &Pair, from: usize) -> Self {
        let stop = Arc::<AtomicBool>::default();
        let (source, target) = (pair.inner.address(from), pair.inner.address(1 - from));
        let stopped = Arc::clone(&stop);
        let (ready, is_ready) = mpsc::channel();
        let receiver = pair.hosts[1 - from].thread(move || {
            let socket = UdpSocket::bind((target, 7200)).unwrap();
            socket.set_read_timeout(Some(Duration::from_secs(1))).unwrap();
            // This thread may wait for a processor; what comes meanwhile has to be kept.
            setsockopt(&socket, RcvBufForce, &(8 << 20)).unwrap();
            ready.send(()).unwrap();
            let (mut taken, mut buffer) = (Vec::new(), [0; 4]);
            loop {
                match socket.recv_from(&mut buffer) {
                    Ok((_, from)) => {
                        taken.push((Instant::now(), from.port() - FIRST_PORT, u32::from_be_bytes(buffer)));
                    }
                    Err(_) if stopped.load(Relaxed) => return taken,
                    Err(_) => {}
                }
            }
        });
        is_ready.recv().unwrap();
        let stopped = Arc::clone(&stop);
        let sender = pair.hosts[from].thread(move || {
            let bound = (0..FLOWS).map(|n| UdpSocket::bind((source, FIRST_PORT + n)).unwrap());
            let sockets: Vec<UdpSocket> = bound.collect();
            let mut n = 0u32;
            while !stopped.load(Relaxed) {
                n += 1;
                for socket in &sockets {
                    let _ = socket.send_to(&n.to_be_bytes(), (target, 7200));
                }
                std::thread::sleep(Duration::from_millis(80));
            }
        });
        Self { stop, sender, receiver }
    }

    /// What arrived of each flow.
    fn close(self) -> BTreeMap<u16, Vec<(Instant, u32)>> {
        self.stop.store(true, Relaxed);
        self.sender.join().unwrap();
        let mut by_flow: BTreeMap<u16, Vec<(Instant, u32)>> = BTreeMap::new();
        for (at, flow, n) in self.receiver.join().unwrap() {
            by_flow.entry(flow).or_default().push((at, n));
        }
        assert_eq!(by_flow.len(), usize::from(FLOWS), "every flow arrives");
        by_flow
    }
}

/// Waits until each of the tunnels has carried a part of the flows.
fn both_carry(pair: &Pair) {
    let before = ["t0", "t1"].map(|name| pair.packets_out(name));
    until(|| ["t0", "t1"].iter().zip(before).all(|(name, before)| pair.packets_out(name) > before + 200));
}

/// The wires are up all the time; one of them loses ESP for a while. Which way a flow goes is decided anew by each run, by
/// fair dice: of 64 flows ten or more go each way.
#[test]
fn flows_are_spread_over_two_lines_and_move_only_if_theirs_dies() {
    let Some(mut pair) = Pair::new("flows_are_spread_over_two_lines_and_move_only_if_theirs_dies") else {
        return;
    };
    for side in [1, 0] {
        let check = check(pair.inner, side);
        let text = pair.text(side, &[&check, &check], "metrics: { listen: off }");
        pair.start(side, &text.replace("weight: 1,", "weight: 0,"));
    }
    let all = [(0, "t0"), (0, "t1"), (1, "t0"), (1, "t1")];
    for (side, name) in all {
        until(|| pair.health(side, name) == "good");
        let other = if name == "t0" { "t1" } else { "t0" };
        assert_eq!(pair.tunnel(side, name)["shares_with"], serde_json::json!([other]));
    }
    let text = String::from_utf8(pair.hosts[0].ask("x", &["status", "t0"]).stdout).unwrap();
    assert!(text.contains("shares flows  with t1"), "{text}");

    let streams = [Flows::open(&pair, 0), Flows::open(&pair, 1)];
    both_carry(&pair);
    let undisturbed = Instant::now();
    pair.lose(&[0, 1], "wire0", 1);
    for side in [0, 1] {
        until(|| pair.health(side, "t0") == "degraded");
        assert_eq!(pair.health(side, "t1"), "good", "side {side}");
    }
    pair.carries("t1", "t0");
    pair.lose_nothing();
    for side in [0, 1] {
        until(|| pair.health(side, "t0") == "good");
    }
    both_carry(&pair);
    for (side, stream) in streams.into_iter().enumerate() {
        let flows = stream.close();
        // A line is known to be dead after a second or two; of its flows, and of no others, all is lost until then.
        let is_hit = |taken: &&Vec<(Instant, u32)>| taken.windows(2).any(|pair| pair[1].1 > pair[0].1 + 4);
        let hit = flows.values().filter(is_hit).count();
        let gaps = flows.values().flat_map(|taken| taken.windows(2).map(|pair| pair[1].0 - pair[0].0));
        let gap = gaps.max().unwrap();
        println!("from {side}: {hit} of {FLOWS} flows were hit, {} ms the longest gap", gap.as_millis());
        assert!((10..=54).contains(&hit), "from {side}: {hit} flows were hit");
        // Two seconds, and what a machine with other things to do adds.
        assert!(gap < Duration::from_secs(6), "from {side}: {gap:?}");
        for (flow, taken) in &flows {
            let steady: Vec<u32> =
                taken.iter().filter(|(at, _)| *at < undisturbed).map(|(_, n)| *n).collect();
            assert!(steady.is_sorted(), "from {side}, flow {flow}: {steady:?}");
        }
    }
}

/// A tunnel of two that goes down leaves the other one, and both leave nothing in clear text.
#[test]
fn without_any_of_them_packets_are_blocked() {
    let Some(mut pair) = Pair::new("without_any_of_them_packets_are_blocked") else { return };
    for side in [1, 0] {
        let text = pair.text(side, &["", ""], "metrics: { listen: off }");
        pair.start(side, &text.replace("weight: 1,", "weight: 0,"));
    }
    for name in ["t0", "t1"] {
        until(|| pair.tunnel(0, name)["state"] == "up");
    }
    let counted = "nft add table ip seen && nft 'add chain ip seen in { type filter hook prerouting priority -500; }' && \
                   nft add rule ip seen in iifname '{ wire0, wire1 }' ip daddr 10.2.0.0/16 counter && echo made";
    assert_eq!(pair.hosts[1].sh(counted), "made\n");
    let ping =
        |pair: &Pair| pair.hosts[0].sh("ping -c 1 -W 2 -I 10.1.0.1 10.2.0.1").contains(" 0% packet loss");
    assert!(ping(&pair));
    for name in ["t0", "t1"] {
        let o = pair.hosts[0].ask("x", &["down", name]);
        assert_eq!(o.status.code(), Some(0), "{:?}", told(&o));
        if name == "t0" {
            assert!(ping(&pair), "the other one carries it");
        }
    }
    assert!(!ping(&pair));
    let seen = pair.hosts[1].sh("nft list table ip seen");
    assert!(seen.contains("counter packets 0 "), "{seen}");
}
