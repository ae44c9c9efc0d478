//! What packets that were dropped lately say about a gateway, for `cygnet doctor`: from the reasons of our own data plane and
//! from the kernel's XFRM statistics. A reason that explains nothing (a scanner's noise, a dummy packet) is counted only.

use std::collections::BTreeMap;
use std::time::Duration;

use cygnet_model::Timestamp;

use super::snapshot::{Finding, Verdict};

/// What was dropped this long ago is told.
const LATELY: Duration = Duration::from_secs(600);
/// Names that are watched: all that we know, and what a newer kernel may have.
const WATCHED: usize = 256;

/// What a reason means: what happened, and what to do about it.
struct Cause {
    name: &'static str,
    what: &'static str,
    fix: &'static str,
}

const fn cause(name: &'static str, what: &'static str, fix: &'static str) -> Cause {
    Cause { name, what, fix }
}

const MIRROR: &str = "compare the SPD rules of both ends; they must mirror each other";
const PEER_FORGOT: &str = "cygnet reset TUNNEL begins the tunnel anew if it does not pass by itself";
const ALTERED: &str =
    "something on the way alters packets, or somebody forges them; tcpdump at both ends compares";
const OVERTAKEN: &str = "packets overtake each other by more than the window, or somebody repeats them: see QoS and load \
                         balancing on the way";
const TOO_LARGE: &str = "lower the MTU of the hosts behind the tunnel, or clamp the MSS of TCP";

/// Reasons of our own data plane ([`cygnet_esp::DropReason`]).
const OF_PLANE: &[Cause] = &[
    cause("unknown_spi", "ESP came on SAs that are not there: the peer has older ones", PEER_FORGOT),
    cause("replay", "packets were repeated or came too late", OVERTAKEN),
    cause("integrity", "packets were not authentic", ALTERED),
    cause("selectors", "the peer sent packets of networks that were not agreed", MIRROR),
    cause("no_sa", "packets had no SA to leave by: their tunnel is not up", "cygnet status tells why"),
    cause("limit", "an SA had used up its volume before it had a successor", "raise the volume limit of esp"),
    cause(
        "sequence",
        "an SA had used up its sequence numbers before it had a successor",
        "the peer refuses new keys: cygnet status",
    ),
    cause(
        "reserve",
        "packets left faster than sequence numbers could be noted",
        "the control socket's directory must take writes",
    ),
    cause(
        "ip_rate",
        "inner addresses sent or received more than their limits",
        "cygnet limit GATEWAY tells which",
    ),
    cause("ip_block", "packets of blocked inner addresses were dropped", "cygnet limit GATEWAY tells which"),
    cause(
        "bandwidth",
        "tunnels sent or received more than their bandwidth levels, or those of their gateways",
        "cygnet status shows the levels, cygnet bandwidth NAME RATE changes one",
    ),
    cause("too_big", "packets did not fit the way to the peer", TOO_LARGE),
    cause(
        "socket",
        "the kernel refused to send ESP",
        "look for a route to the peer, and for filters on the way out",
    ),
    cause(
        "socket_full",
        "packets came faster than the network takes them",
        "a bandwidth level below the line's rate queues them fairly",
    ),
    cause("tun", "the kernel refused decrypted packets", "ip -s link show names the device's errors"),
];

/// The kernel's statistics that say something about a gateway.
const OF_KERNEL: &[Cause] = &[
    cause("XfrmInNoStates", "ESP came on SAs that are not there: the peer has older ones", PEER_FORGOT),
    cause("XfrmInStateProtoError", "packets were not authentic, or could not be decrypted", ALTERED),
    cause("XfrmInStateSeqError", "packets were repeated or came too late", OVERTAKEN),
    cause(
        "XfrmInStateModeError",
        "packets came in another mode than was agreed",
        "compare the modes of both ends",
    ),
    cause(
        "XfrmInStateMismatch",
        "packets came in other clothes than was agreed (ESP in UDP or not)",
        "compare encap of both ends",
    ),
    cause("XfrmInTmplMismatch", "packets came in clear text, or on the SA of another child", MIRROR),
    cause(
        "XfrmInPolBlock",
        "packets came in clear text that belong into a tunnel",
        "the peer's end must encrypt them",
    ),
    cause(
        "XfrmOutNoStates",
        "packets had no SA to leave by: their tunnel is not up",
        "cygnet status tells why",
    ),
    cause(
        "XfrmOutStateExpired",
        "an SA had used up its volume before it had a successor",
        "raise the volume limit of esp",
    ),
    cause(
        "XfrmOutStateSeqError",
        "an SA had used up its sequence numbers before it had a successor",
        "the peer refuses new keys: cygnet status",
    ),
    cause("XfrmOutStateProtoError", "the kernel could not encrypt", "dmesg names the algorithm's error"),
    cause("XfrmFwdHdrError", "packets to be forwarded were malformed", "tcpdump names their source"),
    cause("XfrmAcquireError", "the kernel could not ask for SAs", "look into the log"),
];

/// A count, and when it last grew.
#[derive(Clone, Copy, Debug)]
struct Seen {
    count: u64,
    /// What was there at the first look is somebody's who was there before.
    lately: u64,
    grew: Option<Timestamp>,
}

/// Watches counters for what has grown lately.
#[derive(Default, Debug)]
pub struct Causes {
    seen: BTreeMap<String, Seen>,
}

impl Causes {
    /// Takes a look at a counter. What it counted before the first look is not told.
    pub fn look(&mut self, name: &str, count: u64, now: Timestamp) {
        if let Some(seen) = self.seen.get_mut(name) {
            let more = count.saturating_sub(seen.count);
            if seen.grew.is_none_or(|at| now.since(at) > LATELY) {
                seen.lately = 0;
            }
            seen.count = count;
            if more > 0 {
                seen.lately = seen.lately.saturating_add(more);
                seen.grew = Some(now);
            }
        } else if self.seen.len() < WATCHED {
            self.seen.insert(name.to_owned(), Seen { count, lately: 0, grew: None });
        }
    }

    /// What was dropped lately and says something.
    pub fn findings(&self, now: Timestamp) -> Vec<Finding> {
        let told = |cause: &Cause| {
            let seen = self.seen.get(cause.name)?;
            let at = seen.grew.filter(|at| now.since(*at) <= LATELY)?;
            Some(Finding {
                name: "drops".to_owned(),
                verdict: Verdict::Warning,
                detail: format!(
                    "{}: {} ({}, the last one {} s ago)",
                    cause.name,
                    cause.what,
                    packets(seen.lately),
                    now.since(at).as_secs()
                ),
                fix: cause.fix.to_owned(),
            })
        };
        OF_PLANE.iter().chain(OF_KERNEL).filter_map(told).collect()
    }
}

fn packets(n: u64) -> String {
    if n == 1 { "1 packet".to_owned() } else { format!("{n} packets") }
}

#[cfg(test)]
mod tests {
    use cygnet_esp::DropReason;

    use super::*;

    fn at(seconds: u64) -> Timestamp {
        Timestamp::from_nanos(seconds * 1_000_000_000)
    }

    #[test]
    fn what_grew_lately_is_told_and_what_was_there_before_is_not() {
        let mut causes = Causes::default();
        causes.look("selectors", 0, at(100));
        causes.look("XfrmInNoStates", 1000, at(100));
        assert!(causes.findings(at(101)).is_empty());
        causes.look("selectors", 3, at(105));
        causes.look("XfrmInNoStates", 1001, at(105));
        causes.look("dummy", 0, at(100));
        causes.look("dummy", 9, at(105));
        let found = causes.findings(at(107));
        assert_eq!(found.len(), 2);
        assert!(found[0].detail.contains("3 packets, the last one 2 s ago"), "{}", found[0].detail);
        assert!(found[1].detail.contains("(1 packet,"), "{}", found[1].detail);
        assert!(causes.findings(at(2000)).is_empty());
        causes.look("selectors", 4, at(2000));
        assert!(causes.findings(at(2000))[0].detail.contains("1 packet"));
    }

    #[test]
    fn causes_name_reasons_that_there_are() {
        for cause in OF_PLANE {
            assert!(DropReason::ALL.iter().any(|r| r.name() == cause.name), "{}", cause.name);
        }
        for cause in OF_KERNEL {
            assert!(crate::observe::counters::XFRM_STATISTICS.contains(&cause.name), "{}", cause.name);
        }
    }

    #[test]
    fn names_are_bounded() {
        let mut causes = Causes::default();
        (0..10_000).for_each(|n| causes.look(&n.to_string(), n, at(1)));
        assert_eq!(causes.seen.len(), WATCHED);
    }
}
