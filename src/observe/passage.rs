//! Whether traffic passes a child that is up: packets leave, do any come back?
//!
//! "Up" says that keys were agreed. ESP can be blocked on the way while IKE passes, one direction can be lost, and a peer
//! can lose its SAs without a word. What an end sees of all that is its own counters: packets go out for a while, and
//! nothing comes in. That is no proof, since there is traffic that is never answered, but reason to look; and new keys,
//! asked for once, put right what a peer has lost. Of tunnels that share their flows any may bring the answer.

use std::collections::BTreeMap;
use std::time::Duration;

use cygnet_model::tunnel::Direction;
use cygnet_model::{ChildId, Timestamp, TunnelId};

/// How long packets must have left without an answer.
const SILENCE: Duration = Duration::from_secs(15);
/// And how many.
const UNANSWERED: u64 = 20;
/// New keys are asked for again after this, and then after twice as long each time.
const RENEW: Duration = Duration::from_secs(60);
/// At most.
const RENEW_MAX: Duration = Duration::from_secs(3600);

/// What a child has carried so far, over all generations of its keys.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct Carried {
    /// Packets sent.
    pub sent: u64,
    /// Packets received.
    pub received: u64,
}

impl Carried {
    /// Counts packets of one direction.
    pub fn add(&mut self, direction: Direction, packets: u64) {
        let count = match direction {
            Direction::In => &mut self.received,
            Direction::Out => &mut self.sent,
        };
        *count = count.saturating_add(packets);
    }
}

/// Counts as received by a tunnel what its partners have received: each end decides by itself which of them a flow goes by.
pub fn share_answers(carried: &mut BTreeMap<ChildId, Carried>, partners: &BTreeMap<TunnelId, Vec<TunnelId>>) {
    let mut received: BTreeMap<TunnelId, u64> = BTreeMap::new();
    for (child, carried) in carried.iter().filter(|(child, _)| partners.contains_key(&child.tunnel)) {
        *received.entry(child.tunnel).or_default() += carried.received;
    }
    for (child, carried) in carried {
        let partners = partners.get(&child.tunnel).into_iter().flatten();
        let of_partners = partners.filter_map(|id| received.get(id)).sum::<u64>();
        carried.received = carried.received.saturating_add(of_partners);
    }
}

/// What follows from a look at the counters.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Change {
    /// From now on there is reason to believe that nothing passes.
    Suspect,
    /// There still is, and it is time to try new keys.
    Renew,
    /// Packets come in again.
    Passes,
}

#[derive(Clone, Copy, Debug)]
struct Watch {
    /// At the last packet that came in, or at the first look.
    heard: Carried,
    /// When the first packet left that nothing has come in since.
    unanswered_since: Option<Timestamp>,
    suspect_since: Option<Timestamp>,
    renew_at: Timestamp,
    renew_wait: Duration,
}

/// Watches the children of all tunnels.
#[derive(Default, Debug)]
pub struct Passage {
    watches: BTreeMap<ChildId, Watch>,
}

impl Passage {
    /// Takes a look at a child that is up.
    pub fn look(&mut self, child: ChildId, now: Timestamp, carried: Carried) -> Option<Change> {
        let watch = self.watches.entry(child).or_insert(Watch {
            heard: carried,
            unanswered_since: None,
            suspect_since: None,
            renew_at: now,
            renew_wait: RENEW,
        });
        if carried.received != watch.heard.received {
            let suspected = watch.suspect_since.is_some();
            *watch = Watch {
                heard: carried,
                unanswered_since: None,
                suspect_since: None,
                renew_wait: RENEW,
                ..*watch
            };
            return suspected.then_some(Change::Passes);
        }
        let unanswered = carried.sent.saturating_sub(watch.heard.sent);
        if unanswered == 0 {
            return None;
        }
        let since = *watch.unanswered_since.get_or_insert(now);
        match watch.suspect_since {
            None if unanswered >= UNANSWERED && now.since(since) >= SILENCE => {
                watch.suspect_since = Some(now);
                watch.renew_at = now;
                Some(Change::Suspect)
            }
            Some(_) if now >= watch.renew_at => {
                watch.renew_at = now + watch.renew_wait;
                watch.renew_wait = (watch.renew_wait * 2).min(RENEW_MAX);
                Some(Change::Renew)
            }
            _ => None,
        }
    }

    /// Since when nothing seems to pass a child.
    pub fn suspect_since(&self, child: ChildId) -> Option<Timestamp> {
        self.watches.get(&child)?.suspect_since
    }

    /// The children that nothing seems to pass.
    pub fn suspects(&self) -> impl Iterator<Item = ChildId> {
        self.watches.iter().filter(|(_, w)| w.suspect_since.is_some()).map(|(child, _)| *child)
    }

    /// Forgets all children but those that are up.
    pub fn retain(&mut self, is_up: impl Fn(ChildId) -> bool) {
        self.watches.retain(|child, _| is_up(*child));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const CHILD: ChildId = ChildId { tunnel: TunnelId(1), index: 0 };

    /// Looks every five seconds at what grows by `sent` and `received` each time; gives the changes with their seconds.
    fn watch(passage: &mut Passage, from: u64, looks: u64, sent: u64, received: u64) -> Vec<(u64, Change)> {
        (0..looks)
            .filter_map(|n| {
                let at = from + 5 * n;
                let carried = Carried { sent: at / 5 * sent, received: at / 5 * received };
                Some((at, passage.look(CHILD, Timestamp::from_nanos(at * 1_000_000_000), carried)?))
            })
            .collect()
    }

    #[test]
    fn packets_that_nobody_answers_are_suspect_within_half_a_minute() {
        let mut passage = Passage::default();
        let changes = watch(&mut passage, 100, 20, 50, 0);
        assert_eq!(changes[0], (120, Change::Suspect));
        assert_eq!(changes[1], (125, Change::Renew));
        assert_eq!(changes[2], (185, Change::Renew), "a minute later");
        assert!(passage.suspect_since(CHILD).is_some());
    }

    /// Two tunnels share: one of them sends, and the other one brings the answers. A third one has nothing to do with them.
    #[test]
    fn what_comes_in_by_a_partner_is_an_answer() {
        let child = |tunnel| ChildId { tunnel: TunnelId(tunnel), index: 0 };
        let of = |sent, received| Carried { sent, received };
        let mut carried =
            BTreeMap::from([(child(1), of(90, 2)), (child(2), of(0, 80)), (child(3), of(7, 0))]);
        let partners =
            BTreeMap::from([(TunnelId(1), vec![TunnelId(2)]), (TunnelId(2), vec![TunnelId(1), TunnelId(9)])]);
        share_answers(&mut carried, &partners);
        assert_eq!(carried.into_values().collect::<Vec<_>>(), [of(90, 82), of(0, 82), of(7, 0)]);
    }

    #[test]
    fn one_packet_that_comes_in_clears_it() {
        let mut passage = Passage::default();
        watch(&mut passage, 100, 8, 50, 0);
        let clear =
            passage.look(CHILD, Timestamp::from_nanos(200_000_000_000), Carried { sent: 9999, received: 1 });
        assert_eq!(clear, Some(Change::Passes));
        assert_eq!(passage.suspect_since(CHILD), None);
    }

    #[test]
    fn answered_and_idle_children_are_left_alone() {
        let mut passage = Passage::default();
        assert_eq!(watch(&mut passage, 0, 100, 50, 1), []);
        assert_eq!(watch(&mut passage, 500, 100, 0, 0), []);
        // A few packets without an answer are nothing: somebody pinged a host that is off.
        let mut passage = Passage::default();
        assert_eq!(watch(&mut passage, 0, 15, 1, 0), []);
    }
}
