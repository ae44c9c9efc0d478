//! What the configuration protects, held against what the SAs carry: in pairs of one local and one remote selector.

use std::fmt::Write as _;

use cygnet_model::selector::{TrafficSelector, overlap, within};

use crate::policy::ChildPolicy;

/// Networks of both sides; every combination is meant.
pub type Networks<'a> = (&'a [TrafficSelector], &'a [TrafficSelector]);

/// Most missing pairs that are listed by name.
const LISTED: usize = 64;

/// A pair of selectors that no SA carries as a whole.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct MissingPair {
    /// Our side.
    pub local: TrafficSelector,
    /// The peer's side.
    pub remote: TrafficSelector,
    /// Whether some of it is carried: the peer narrowed it, as to one protocol or a smaller network.
    pub partly: bool,
}

/// How much of what is configured is carried.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct Coverage {
    /// Pairs that are configured.
    pub pairs: usize,
    /// Pairs that SAs carry as a whole.
    pub covered: usize,
    /// The first of the others.
    pub missing: Vec<MissingPair>,
}

impl Coverage {
    /// Whether everything is carried.
    pub const fn is_whole(&self) -> bool {
        self.covered == self.pairs
    }

    /// Adds that of another child.
    pub fn add(&mut self, other: Self) {
        self.pairs += other.pairs;
        self.covered += other.covered;
        let room = LISTED.saturating_sub(self.missing.len());
        self.missing.extend(other.missing.into_iter().take(room));
    }
}

/// The coverage of a configured child by pairs of SAs.
pub fn coverage(child: &ChildPolicy, carried: &[Networks<'_>]) -> Coverage {
    let pairs = child.local.len().saturating_mul(child.remote.len());
    if carried.iter().any(|(l, r)| within(&child.local, l) && within(&child.remote, r)) {
        return Coverage { pairs, covered: pairs, missing: Vec::new() };
    }
    let mut out = Coverage { pairs, ..Coverage::default() };
    for (local, remote) in pairs_of(child) {
        let (local, remote) = ([local], [remote]);
        if carried.iter().any(|(l, r)| within(&local, l) && within(&remote, r)) {
            out.covered += 1;
        } else if out.missing.len() < LISTED {
            let partly = touches(&local, &remote, carried);
            out.missing.push(MissingPair { local: local[0], remote: remote[0], partly });
        }
    }
    out
}

/// Every pair of a configured child.
pub(crate) fn pairs_of(
    child: &ChildPolicy,
) -> impl Iterator<Item = (TrafficSelector, TrafficSelector)> + use<'_> {
    child.local.iter().flat_map(|local| child.remote.iter().map(|remote| (*local, *remote)))
}

/// Whether anything of these networks is carried.
pub(crate) fn touches(
    local: &[TrafficSelector],
    remote: &[TrafficSelector],
    carried: &[Networks<'_>],
) -> bool {
    carried.iter().any(|(l, r)| overlap(local, l) && overlap(remote, r))
}

/// Networks of both sides for people: `10.1.0.0/16 -> 10.2.0.0/16, 10.3.0.0/16`, with a limit on how many.
pub fn networks(local: &[TrafficSelector], remote: &[TrafficSelector]) -> String {
    format!("{} -> {}", list(local), list(remote))
}

/// The first selectors of a list.
pub(crate) fn list(all: &[TrafficSelector]) -> String {
    let mut text = String::new();
    for (n, selector) in all.iter().take(8).enumerate() {
        // A String takes anything.
        let _ = write!(text, "{}{selector}", if n > 0 { ", " } else { "" });
    }
    if all.len() > 8 {
        text.push_str(", …");
    }
    text
}
