//! The IKE SA's table of state × input, printed with the outcome of every cell. A changed cell shows in review.
//!
//! `CYGNET_UPDATE_GOLDEN=1 cargo test -p cygnet-sim --test table` writes the file anew.
#![allow(clippy::unwrap_used, reason = "a test stops at the first surprise")]

use std::cell::RefCell;
use std::fmt::Write;
use std::rc::Rc;
use std::time::Duration;

use cygnet_ike::wire::{Exchange, Header, PayloadType};
use cygnet_ike::{Command, Flow};
use cygnet_sim::{ADDRESSES, Lab, Link, TUNNEL};

const GOLDEN: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/state-table.txt");

/// Datagrams by sender.
type Datagrams = Vec<(usize, Vec<u8>)>;

/// A way to bring a gateway of the pair into a state.
struct Case {
    state: &'static str,
    side: usize,
    reach: fn(&mut Lab),
}

/// Lets exactly so many datagrams pass, then none.
fn only(lab: &mut Lab, count: usize) {
    let left = Rc::new(RefCell::new(count));
    lab.tap = Some(Box::new(move |_, bytes| {
        let mut left = left.borrow_mut();
        let pass = *left > 0;
        *left = left.saturating_sub(1);
        pass.then_some(bytes)
    }));
    lab.run(Duration::from_millis(100));
}

const CASES: [Case; 8] = [
    Case { state: "no SA", side: 1, reach: |_| {} },
    Case { state: "InitSent", side: 0, reach: |lab| only(lab, 0) },
    Case { state: "InitAnswered", side: 1, reach: |lab| only(lab, 2) },
    Case { state: "AuthSent", side: 0, reach: |lab| only(lab, 2) },
    Case { state: "Established, initiator", side: 0, reach: |lab| lab.run(Duration::from_millis(100)) },
    Case { state: "Established, responder", side: 1, reach: |lab| lab.run(Duration::from_millis(100)) },
    Case {
        state: "Rekeyed",
        side: 1,
        reach: |lab| {
            lab.run(Duration::from_millis(100));
            lab.command(0, Command::RekeyIke(TUNNEL));
            // The request arrives and is answered; the answer does not.
            only(lab, 0);
            lab.tap = None;
            let once = Rc::new(RefCell::new(true));
            lab.tap = Some(Box::new(move |side, bytes| (side == 0 && once.replace(false)).then_some(bytes)));
            lab.run(Duration::from_millis(700));
        },
    },
    Case {
        state: "Deleting",
        side: 0,
        reach: |lab| {
            lab.run(Duration::from_millis(100));
            only(lab, 0);
            lab.command(0, Command::Down(TUNNEL));
        },
    },
];

/// The SPIs of the gateway's oldest SA, as its last datagram named them.
fn spis(log: &[(usize, Vec<u8>)]) -> (u64, u64) {
    let header = |b: &Vec<u8>| Header::decode(b).ok().map(|(h, _)| (h.spi_i, h.spi_r));
    log.iter().rev().find_map(|(_, b)| header(b)).unwrap_or((0, 0))
}

fn outcome(case: &Case, exchange: Exchange, response: bool, from_initiator: bool, body: &str) -> String {
    let log: Rc<RefCell<Datagrams>> = Rc::default();
    let mut lab = Lab::pair(42, Link::GOOD);
    (case.reach)(&mut lab);
    let mut inner = lab.tap.take();
    let tapped = Rc::clone(&log);
    lab.tap = Some(Box::new(move |side, bytes| {
        tapped.borrow_mut().push((side, bytes.clone()));
        inner.as_mut().map_or(Some(bytes.clone()), |tap| tap(side, bytes))
    }));
    // A retransmission, or a dead peer check, tells the SPIs.
    lab.run(Duration::from_millis(1200));
    let (spi_i, spi_r) = if case.state == "no SA" { (7, 0) } else { spis(&log.borrow()) };
    lab.tap = None;
    log.borrow_mut().clear();
    let tapped = Rc::clone(&log);
    lab.tap = Some(Box::new(move |side, bytes| {
        tapped.borrow_mut().push((side, bytes));
        None
    }));
    let before: Vec<_> = lab.gateways[case.side].drops.clone().into_iter().collect();
    let mut bytes = Vec::new();
    let next = if body == "garbage SK" { PayloadType::SK } else { PayloadType::NONCE };
    Header { spi_i, spi_r, next, exchange, from_initiator, response, message_id: 0 }.encode(&mut bytes);
    bytes.extend_from_slice(&[0, 0, 0, 4 + 40]);
    bytes.extend_from_slice(&[9; 40]);
    let len = (bytes.len() as u32).to_be_bytes();
    bytes[24..28].copy_from_slice(&len);
    let addresses = ADDRESSES.map(|a| a.parse::<std::net::IpAddr>().unwrap());
    let (own, peer) = (addresses[case.side], addresses[1 - case.side]);
    let flow = Flow { local: (own, 500).into(), remote: (peer, 500).into(), natt: false };
    lab.inject(case.side, flow, &bytes);
    let after: Vec<_> = lab.gateways[case.side].drops.clone().into_iter().collect();
    let dropped: Vec<&str> = after.iter().filter(|d| !before.contains(d)).map(|(name, _)| *name).collect();
    let answers = log.borrow().iter().filter(|(side, _)| *side == case.side).count();
    let sas = lab.gateways[case.side].endpoint.sa_count();
    match (dropped.as_slice(), answers) {
        ([], 0) => format!("nothing, {sas} SA"),
        ([], n) => format!("{n} answer, {sas} SA"),
        (d, 0) => format!("drop {}", d.join("+")),
        (d, n) => format!("drop {} and {n} answer", d.join("+")),
    }
}

#[test]
fn t28_every_cell_of_the_state_table_is_the_reviewed_one() {
    let mut table = String::from(
        "# Outcome of a datagram that does not authenticate, by state, exchange, flags and body.\n\
         # R = response, I = the initiator flag is set.\n",
    );
    for case in &CASES {
        writeln!(table, "\n{}", case.state).unwrap();
        let exchanges = [
            Exchange::IKE_SA_INIT,
            Exchange::IKE_AUTH,
            Exchange::CREATE_CHILD_SA,
            Exchange::INFORMATIONAL,
            Exchange(99),
        ];
        for exchange in exchanges {
            for (response, initiator) in [(false, false), (false, true), (true, false), (true, true)] {
                for body in ["clear", "garbage SK"] {
                    let flags =
                        format!("{}{}", if response { "R" } else { "-" }, if initiator { "I" } else { "-" });
                    let what = outcome(case, exchange, response, initiator, body);
                    writeln!(table, "  {:16} {flags} {body:10}  {what}", exchange.to_string()).unwrap();
                }
            }
        }
    }
    if std::env::var_os("CYGNET_UPDATE_GOLDEN").is_some() {
        std::fs::write(GOLDEN, &table).unwrap();
    }
    let golden = std::fs::read_to_string(GOLDEN).unwrap_or_default();
    for (n, (is, was)) in table.lines().zip(golden.lines()).enumerate() {
        assert_eq!(is, was, "line {}", n + 1);
    }
    assert_eq!(table.lines().count(), golden.lines().count());
}
