//! The last guard: an nf_tables table of ours, shared by both planes, behind whatever others have configured.
//!
//! Planes keep protected packets in their tunnels by policies or routing rules. Others can turn packets away from there
//! without touching these: by NAT (the kernel looks its policies up anew with the translated source), by routing rules
//! and marks, by policies that allow. So protected connections are exempt from NAT, and what is about to leave around
//! its tunnel all the same is dropped and counted; `want` says how.
//!
//! The table stays when the process ends, however it ends. The next one takes it over in one transaction: there is no
//! moment without it, and its counters go on. While a daemon runs, a table that others have changed is made anew.
//!
//! It is a second line: a kernel without nf_tables, or a wall that cannot be built, stops no tunnel; [`Wall::gaps`] says
//! what is not defended then.

pub mod want;

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::os::fd::BorrowedFd;

use cygnet_model::ChildId;
use cygnet_model::plane::{PlaneError, PlaneErrorKind};
use cygnet_model::tunnel::GuardSpec;
use cygnet_xfrm::NetlinkError;
use cygnet_xfrm::conntrack::{Conntrack, Ended};
use cygnet_xfrm::nft::{Change, Counted, Keeping, Monitor, Nft};

use cygnet_xfrm::route::Prefix;

use crate::observe::snapshot::{Finding, Verdict};

pub use self::want::Protection;
use self::want::{Addresses, Frame, Pair, Shape};

/// Connections that are ended when guards come up; what is left over is dropped by the last guard where it matters.
const CONNECTIONS: usize = 262_144;

/// See the [module](self).
pub struct Wall {
    frame: Frame,
    nft: Option<Nft>,
    monitor: Option<Monitor>,
    specs: BTreeMap<ChildId, GuardSpec>,
    /// Own addresses and attached networks.
    attached: BTreeSet<Prefix>,
    guards: BTreeMap<ChildId, BTreeSet<(Shape, Pair)>>,
    /// What the guards want, and how many of them want it.
    held: BTreeMap<Shape, BTreeMap<Pair, u32>>,
    state: State,
    counted: BTreeMap<String, Counted>,
    /// What is not defended, by what it is about, in words.
    gaps: BTreeMap<&'static str, String>,
    /// How often the wall had to be put back.
    repairs: u64,
}

/// What is known of the kernel's table.
enum State {
    /// Guards are being collected; a table of an earlier process may be in force.
    Collecting,
    /// The table is as wanted.
    InForce { shapes: BTreeSet<Shape>, rules: usize },
    /// It could not be made.
    Failed,
}

impl Wall {
    /// Gets ready to build. Changes nothing: a wall of an earlier process stays until [`Self::settle`].
    pub fn open(protection: Protection, own: impl IntoIterator<Item = IpAddr>) -> Self {
        let mut gaps = BTreeMap::new();
        let nft = Nft::open(want::TABLE).map_err(|e| gaps.insert("nf_tables", no_wall(&e.to_string()))).ok();
        // Without it the regular look finds changes later.
        let monitor = Monitor::open(want::TABLE).ok();
        let frame = Frame {
            protection,
            own: own.into_iter().collect(),
            nat: true,
            keeping: Keeping::OwnedAndPersistent,
        };
        Self {
            frame,
            nft,
            monitor,
            specs: BTreeMap::new(),
            attached: BTreeSet::new(),
            guards: BTreeMap::new(),
            held: BTreeMap::new(),
            state: State::Collecting,
            counted: BTreeMap::new(),
            gaps,
            repairs: 0,
        }
    }

    /// Takes a guard's packets behind the wall; replaces what was there for its child without a gap. Until
    /// [`Self::settle`] guards are only collected.
    pub fn guard(&mut self, spec: &GuardSpec) {
        self.specs.insert(spec.child, spec.clone());
        self.renew(spec);
    }

    fn renew(&mut self, spec: &GuardSpec) {
        match want::pairs(spec, &self.attached) {
            Ok(new) => self.exchange(spec.child, new),
            Err(e) => {
                self.gaps.insert("guards", e.to_string());
                tracing::error!(error = %e, "a guard is not behind the wall");
            }
        }
    }

    /// The outer addresses have changed: what leaves from them as IKE or ESP is nobody's protected packet.
    pub fn follow(&mut self, own: impl IntoIterator<Item = IpAddr>) {
        let own = own.into_iter().collect();
        if own != self.frame.own {
            self.frame.own = own;
            if matches!(self.state, State::InForce { .. }) {
                self.rebuild();
            }
        }
    }

    /// The own addresses and attached networks have changed, which guards may let by.
    pub fn follow_attached(&mut self, attached: &BTreeSet<Prefix>) {
        if *attached == self.attached {
            return;
        }
        self.attached.clone_from(attached);
        let concerned = self.specs.values().filter(|spec| spec.bypass.attached);
        for spec in concerned.cloned().collect::<Vec<_>>() {
            self.renew(&spec);
        }
    }

    /// Lets a guard's packets go.
    pub fn unguard(&mut self, child: ChildId) {
        self.specs.remove(&child);
        self.exchange(child, BTreeSet::new());
    }

    /// Builds the wall for all guards so far, in place of one of an earlier process, and ends connections that began
    /// before there was a guard for them.
    pub fn settle(&mut self) {
        let known = self.known_keys();
        self.state = State::Failed;
        if !self.rebuild() {
            return;
        }
        let mut fresh = Addresses::default();
        for (shape, pairs) in self.held.iter().filter(|(shape, _)| shape.protects()) {
            let known = known.get(&shape.set());
            for pair in pairs.keys().filter(|p| known.is_none_or(|keys| !keys.contains(&shape.key(p)))) {
                fresh.add(shape, pair);
            }
        }
        self.end_connections(&fresh);
    }

    /// Looks whether the wall stands, and puts it back if somebody changed it. `thorough` also looks without having been
    /// told of a change. Says whether it had to be put back.
    pub fn check(&mut self, thorough: bool) -> bool {
        let touched = self.monitor.as_mut().is_some_and(|m| m.drain().unwrap_or(true));
        let State::InForce { rules, .. } = &self.state else {
            if thorough && matches!(self.state, State::Failed) && self.nft.is_some() {
                self.rebuild();
            }
            return false;
        };
        let rules = *rules;
        let damaged = touched || (thorough && self.is_damaged(rules));
        if !damaged {
            return false;
        }
        self.repairs += 1;
        self.rebuild();
        true
    }

    /// Takes the wall down.
    ///
    /// # Errors
    /// As the kernel says.
    pub fn release(&mut self) -> Result<(), PlaneError> {
        self.state = State::Collecting;
        let Some(nft) = &mut self.nft else { return Ok(()) };
        match nft.is_there() {
            Ok(true) => {}
            // Kernels without nf_tables have no table either.
            Ok(false) => return Ok(()),
            Err(_) if self.gaps.contains_key("nf_tables") => return Ok(()),
            Err(_) => {}
        }
        nft.commit(&[Change::RemoveTable]).map_err(|e| PlaneError {
            operation: "remove the table inet cygnet".to_owned(),
            kind: PlaneErrorKind::Other,
            detail: format!("{e}; remove it: nft delete table inet cygnet"),
        })
    }

    /// Packets that the last guard dropped, by reason; as of now, or of the last time that the kernel could be asked.
    pub fn drops(&mut self) -> Vec<(&'static str, u64)> {
        if matches!(self.state, State::InForce { .. }) {
            self.read_counters();
        }
        want::REASONS
            .iter()
            .map(|reason| (*reason, self.counted.get(*reason).map_or(0, |counted| counted.packets)))
            .collect()
    }

    /// What the wall does not defend on this host, in words.
    pub fn gaps(&self) -> impl Iterator<Item = &str> {
        self.gaps.values().map(String::as_str)
    }

    /// What people should know about it.
    pub fn findings(&mut self) -> Vec<Finding> {
        let finding = |verdict, detail: String, fix: &str| Finding {
            name: "wall".to_owned(),
            verdict,
            detail,
            fix: fix.to_owned(),
        };
        let mut out = Vec::new();
        for (reason, count) in self.drops().into_iter().filter(|(_, count)| *count > 0) {
            let (verdict, what, fix) = match reason {
                want::ICMP_ERROR => (
                    Verdict::Ok,
                    "errors about protected packets, from an address that no tunnel covers, would have carried parts of \
                     them",
                    "",
                ),
                want::NAT => (
                    Verdict::Warning,
                    "a NAT rule, or an answer to a translated connection, took them out of their tunnel",
                    "exclude the networks of the tunnels in the NAT rules; see: nft list ruleset, iptables-save -t nat, \
                     conntrack -L",
                ),
                want::FORGED => continue,
                _ => (
                    Verdict::Warning,
                    "a routing rule, a policy or a mark of others led them around their tunnel",
                    "see: ip rule, ip xfrm policy, ip route get DESTINATION from SOURCE",
                ),
            };
            let detail =
                format!("{count} packets were about to leave in clear text and were dropped: {what}");
            out.push(finding(verdict, detail, fix));
        }
        let forged = self.counted.get(want::FORGED).map_or(0, |counted| counted.packets);
        if forged > 0 {
            let detail = format!(
                "{forged} packets to this host claimed to come out of a tunnel, came in clear text and were dropped"
            );
            let fix = "see who sends them: tcpdump on the interfaces outside; or the peer sends in clear text what the \
                       configuration wants encrypted";
            out.push(finding(Verdict::Warning, detail, fix));
        }
        out.extend(self.gaps().map(|gap| {
            let (detail, fix) = gap.split_once("; ").unwrap_or((gap, ""));
            finding(Verdict::Warning, detail.to_owned(), fix)
        }));
        if out.is_empty() && self.stands() {
            let detail =
                "protected packets are exempt from NAT, and none is about to leave in clear text".to_owned();
            out.push(finding(Verdict::Ok, detail, ""));
        }
        out
    }

    /// Whether the kernel has the table as wanted.
    pub const fn stands(&self) -> bool {
        matches!(self.state, State::InForce { .. })
    }

    /// How often others' changes had to be undone.
    pub const fn repairs(&self) -> u64 {
        self.repairs
    }

    /// Readable when the wall may have been changed: then [`Self::check`] it.
    pub fn event_fd(&self) -> Option<BorrowedFd<'_>> {
        self.monitor.as_ref().map(Monitor::fd)
    }

    /// Exchanges what a child wants, here and in the kernel.
    fn exchange(&mut self, child: ChildId, new: BTreeSet<(Shape, Pair)>) {
        let old = self.guards.remove(&child).unwrap_or_default();
        let mut added: BTreeMap<Shape, Vec<Pair>> = BTreeMap::new();
        let mut removed: BTreeMap<Shape, Vec<Pair>> = BTreeMap::new();
        for (shape, pair) in new.difference(&old) {
            let count = self.held.entry(*shape).or_default().entry(*pair).or_default();
            *count += 1;
            if *count == 1 {
                added.entry(*shape).or_default().push(*pair);
            }
        }
        for (shape, pair) in old.difference(&new) {
            let Some(pairs) = self.held.get_mut(shape) else { continue };
            let Some(count) = pairs.get_mut(pair) else { continue };
            *count -= 1;
            if *count == 0 {
                pairs.remove(pair);
                removed.entry(*shape).or_default().push(*pair);
            }
        }
        // Sets that got empty cost a look-up until the next daemon; taking their rules out needs the kernel's numbers.
        if !new.is_empty() {
            self.guards.insert(child, new);
        }
        if matches!(self.state, State::InForce { .. }) && self.apply(&added, &removed) {
            let mut fresh = Addresses::default();
            for (shape, pairs) in added.iter().filter(|(shape, _)| shape.protects()) {
                pairs.iter().for_each(|pair| fresh.add(shape, pair));
            }
            self.end_connections(&fresh);
        }
    }

    /// Puts differences into the kernel's table, or makes it anew if that fails; says whether the wall stands.
    fn apply(&mut self, added: &BTreeMap<Shape, Vec<Pair>>, removed: &BTreeMap<Shape, Vec<Pair>>) -> bool {
        // What others did until now is noticed before our own change tells us of itself.
        if self.check(false) {
            return matches!(self.state, State::InForce { .. });
        }
        let State::InForce { shapes, .. } = &self.state else { return false };
        // Rules stand in an order, so that those of a new set cannot be appended.
        if added.keys().any(|shape| !shapes.contains(shape)) {
            return self.rebuild();
        }
        let mut changes = Vec::new();
        for (shape, pairs) in added {
            changes.extend(want::put(shape, pairs));
        }
        for (shape, pairs) in removed {
            changes.extend(want::take(shape, pairs));
        }
        let done = self.nft.as_mut().is_some_and(|nft| nft.commit(&changes).is_ok());
        self.forget_own_events();
        done || self.rebuild()
    }

    /// Makes the whole table in one transaction, as good as this kernel can; says whether it is in force.
    fn rebuild(&mut self) -> bool {
        self.read_counters();
        let wanted = self.held.iter().filter(|(_, pairs)| !pairs.is_empty()).map(|(shape, _)| *shape);
        let (protecting, letting_go): (Vec<Shape>, Vec<Shape>) = wanted.partition(Shape::protects);
        if protecting.len() > want::SHAPES {
            self.gaps.insert("guards", format!(
                "the guards look at packets in {} ways, the wall at {} at most; use CIDR blocks instead of ranges",
                protecting.len(), want::SHAPES
            ));
        }
        // What is not let go stays in its tunnel.
        let limited = |shapes: Vec<Shape>| shapes.into_iter().take(want::SHAPES);
        let mut shapes: Vec<Shape> = limited(protecting).chain(limited(letting_go)).collect();
        shapes.sort_by_key(Shape::place);
        let Some(nft) = &mut self.nft else { return false };
        let mut refusal = None;
        let keeping = keeping();
        for nat in [true, false] {
            let frame = Frame { nat, keeping, ..self.frame.clone() };
            let mut changes = frame.make(&self.counted);
            for shape in &shapes {
                changes.extend(frame.shape(shape));
                let pairs: Vec<Pair> =
                    self.held.get(shape).map(|p| p.keys().copied().collect()).unwrap_or_default();
                changes.extend(want::put(shape, &pairs));
            }
            changes.extend(frame.end());
            match nft.commit(&changes) {
                Ok(()) => {
                    self.gaps.remove("nf_tables");
                    if nat {
                        self.gaps.remove("nat");
                    } else {
                        let why = refusal.as_ref().map(ToString::to_string).unwrap_or_default();
                        self.gaps.insert("nat", format!(
                            "this kernel has no NAT by nf_tables ({why}): protected packets that a NAT rule translates \
                             are dropped instead of being exempt from it; exclude them in the NAT rules, or load the \
                             modules nft_chain_nat and nft_nat"
                        ));
                    }
                    let shapes = shapes.into_iter().collect();
                    self.state = State::InForce { rules: count_rules(&changes), shapes };
                    self.frame = frame;
                    self.forget_own_events();
                    return true;
                }
                Err(e) => {
                    tracing::debug!(error = %e, nat, ?keeping, "the wall cannot be built like this");
                    refusal = refusal.or(Some(e));
                }
            }
        }
        self.state = State::Failed;
        self.forget_own_events();
        let why = refusal.map(|e| e.to_string()).unwrap_or_default();
        self.gaps.insert("nf_tables", no_wall(&why));
        false
    }

    /// What the monitor says about our own transaction.
    fn forget_own_events(&mut self) {
        if let Some(monitor) = &mut self.monitor {
            let _ = monitor.drain();
        }
    }

    fn is_damaged(&mut self, rules: usize) -> bool {
        let Some(nft) = &mut self.nft else { return false };
        // If the kernel does not answer, it is not known to be damaged; the next look will tell.
        nft.rules().is_ok_and(|found| found != rules)
    }

    fn read_counters(&mut self) {
        let Some(counters) = self.nft.as_mut().and_then(|nft| nft.counters().ok()) else { return };
        for (name, counted) in counters {
            if want::REASONS.contains(&name.as_str()) {
                self.counted.insert(name, counted);
            }
        }
    }

    /// The keys of an earlier process, by set.
    fn known_keys(&mut self) -> BTreeMap<String, BTreeSet<Vec<u8>>> {
        let Some(nft) = &mut self.nft else { return BTreeMap::new() };
        let sets = nft.sets().unwrap_or_default();
        sets.into_iter()
            .filter_map(|set| Some((set.clone(), nft.keys(&set).ok()?.into_iter().collect())))
            .collect()
    }

    /// Ends connections between addresses that have just come behind the wall: their bindings and flowtable entries are
    /// from before.
    fn end_connections(&mut self, fresh: &Addresses) {
        if fresh.is_empty() {
            return;
        }
        let ended = Conntrack::open().and_then(|mut conntrack| {
            conntrack.end(CONNECTIONS, |ends| {
                let ((source, destination), (answerer, _)) = (ends.original, ends.reply);
                fresh.cover(source, destination)
                    || fresh.cover(source, answerer)
                    || fresh.cover(answerer, source)
            })
        });
        match ended {
            Ok(Ended { ended, kept: 0 }) => {
                self.gaps.remove("conntrack");
                if ended > 0 {
                    tracing::info!(ended, "connections from before their guard were ended");
                }
            }
            Ok(Ended { ended, kept }) => {
                tracing::warn!(ended, kept, "not all connections from before their guard could be ended");
                self.gaps.insert("conntrack", format!(
                    "{kept} connections from before their guard could not be ended: flowtable entries of theirs may still \
                     forward in clear text; remove the flowtable, or delete them: conntrack -D"
                ));
            }
            Err(e) => {
                tracing::warn!(error = %e, "connections from before their guard could not be ended");
                self.gaps.insert("conntrack", unended(&e));
            }
        }
    }
}

/// What this kernel can do to keep others from changing a table. Tried with a table that does not outlive the question, so
/// that the wall need not be sent twice.
fn keeping() -> Keeping {
    let question = [Change::Table(Keeping::OwnedAndPersistent), Change::RemoveTable];
    let able = Nft::open(want::PROBE).is_ok_and(|mut nft| nft.commit(&question).is_ok());
    if able { Keeping::OwnedAndPersistent } else { Keeping::Shared }
}

fn count_rules(changes: &[Change]) -> usize {
    changes.iter().filter(|c| matches!(c, Change::Rule { .. })).count()
}

fn no_wall(why: &str) -> String {
    format!(
        "no table of ours behind NAT and foreign rules ({why}): policies and routing rules alone keep protected packets in \
         their tunnels; load the modules nf_tables, nft_ct and nf_conntrack"
    )
}

fn unended(e: &NetlinkError) -> String {
    format!(
        "connections from before their guard are not ended ({e}): NAT bindings of theirs are dropped, but flowtables may \
         forward them in clear text; load the module nf_conntrack_netlink, or use no flowtable"
    )
}
