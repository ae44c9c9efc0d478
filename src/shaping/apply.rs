//! Brings a plan into the kernel and reads its counters. The kernel is asked each time what it holds, so that a
//! restart takes over what an earlier daemon left, and root qdiscs of others are found and left alone.

use std::collections::BTreeSet;
use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use cygnet_reconcile::{Step, Stuck, World};
use cygnet_xfrm::NetlinkError;
use cygnet_xfrm::lookup::Way;
use cygnet_xfrm::routing::Routing;
use cygnet_xfrm::tc::{Class, ClassSpec, Qdisc, QueueStats, RootOwner, Tc};

use super::pause::Pause;
use super::plan::{ClassIds, GatewayRate, InterfacePlan, Part, Plan, Rate, plan};

/// A gateway that may have a cap.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Gateway {
    /// Its name.
    pub name: String,
    /// Its outer addresses.
    pub addresses: Vec<IpAddr>,
    /// Where its peers are, as far as that is known: by what interfaces packets to them leave.
    pub peers: BTreeSet<IpAddr>,
    /// Bits per second that may leave to the public network; `None` is unlimited.
    pub bandwidth_bps: Option<u64>,
}

/// What a gateway's class counted on one interface.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct GatewayStats {
    /// The gateway.
    pub name: String,
    /// The interface.
    pub interface: u32,
    /// The cap in force, bits per second.
    pub bandwidth_bps: u64,
    /// Counters since the class was made.
    pub stats: QueueStats,
}

/// A cap that is not in force, with its reason as a sentence.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ShapingError {
    text: String,
    /// The gateways whose caps it is about; none: any.
    gateways: Vec<String>,
}

impl ShapingError {
    fn new(text: String) -> Self {
        Self { text, gateways: Vec::new() }
    }

    /// Whether the cap of this gateway may not be in force.
    pub fn concerns(&self, gateway: &str) -> bool {
        self.gateways.is_empty() || self.gateways.iter().any(|g| g == gateway)
    }
}

impl fmt::Display for ShapingError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl std::error::Error for ShapingError {}

/// Holds the caps of all gateways.
#[derive(Debug)]
pub struct Shaper {
    tc: Tc,
    routing: Option<Routing>,
    ids: ClassIds,
    gateways: Vec<Gateway>,
    plan: Plan,
    /// Whoever sends the packets.
    sender: Option<Arc<Pause>>,
}

impl Shaper {
    /// Opens traffic control in the current network namespace. Changes nothing. `sender` stands still while the root of an
    /// interface is exchanged; without it what is sent meanwhile is lost.
    ///
    /// # Errors
    /// If there is no route socket.
    pub fn open(sender: Option<Arc<Pause>>) -> Result<Self, ShapingError> {
        let tc = Tc::open().map_err(|e| ShapingError::new(format!("cannot open traffic control: {e}")))?;
        // Without it packets leave by the interface that has their address.
        let routing = Routing::open().ok();
        Ok(Self { tc, routing, ids: ClassIds::default(), gateways: vec![], plan: Plan::new(), sender })
    }

    /// The number by which the kernel names us as the cause of a change.
    pub const fn port(&self) -> u32 {
        self.tc.port()
    }

    /// Makes the caps of `gateways` the only ones. Rates change in place; interfaces without a capped gateway get
    /// their default qdisc back. Call it again when addresses have moved.
    ///
    /// # Errors
    /// Goes on after errors and returns all: other gateways are capped all the same.
    pub fn apply(&mut self, gateways: Vec<Gateway>) -> Result<(), Vec<ShapingError>> {
        self.gateways = gateways;
        self.mend().map(|_| ())
    }

    /// Puts right what others changed, or what went with an interface. Returns how many steps that took.
    ///
    /// # Errors
    /// As [`Self::apply`].
    pub fn mend(&mut self) -> Result<usize, Vec<ShapingError>> {
        let mut errors = Vec::new();
        let mut steps = 0;
        let rates: Vec<GatewayRate> = self
            .gateways
            .iter()
            .map(|g| locate(&mut self.tc, self.routing.as_mut(), g, &mut errors))
            .collect();
        self.plan = plan(&rates, &mut self.ids);
        let mut interfaces: BTreeSet<u32> = self.plan.keys().copied().collect();
        match self.tc.our_roots() {
            Ok(roots) => interfaces.extend(roots),
            Err(e) => errors.push(ShapingError::new(format!("cannot list queueing disciplines: {e}"))),
        }
        for interface in interfaces {
            let want = self.plan.get(&interface);
            match bring(&mut self.tc, interface, want, self.sender.as_deref()) {
                Ok(done) => steps += done,
                Err(e) => {
                    let capped =
                        want.into_iter().flat_map(|w| w.classes.values()).map(|(name, _)| name.clone());
                    errors.push(ShapingError { gateways: capped.collect(), ..e });
                }
            }
        }
        if errors.is_empty() { Ok(steps) } else { Err(errors) }
    }

    /// Changes the cap of one gateway, live. `false` if there is no gateway of that name.
    ///
    /// # Errors
    /// As [`Self::apply`].
    pub fn change(&mut self, name: &str, bandwidth_bps: Option<u64>) -> Result<bool, Vec<ShapingError>> {
        let mut gateways = self.gateways.clone();
        let Some(gateway) = gateways.iter_mut().find(|g| g.name == name) else { return Ok(false) };
        gateway.bandwidth_bps = bandwidth_bps;
        self.apply(gateways).map(|()| true)
    }

    /// On how many interfaces a gateway is capped, each on its own.
    pub fn interfaces_of(&self, gateway: &str) -> usize {
        let has = |at: &&InterfacePlan| at.classes.values().any(|(name, _)| name == gateway);
        self.plan.values().filter(has).count()
    }

    /// Takes all caps away and gives the interfaces back.
    ///
    /// # Errors
    /// As [`Self::apply`].
    pub fn remove_all(&mut self) -> Result<(), Vec<ShapingError>> {
        self.apply(vec![])
    }

    /// What the classes counted, one entry for each gateway and interface.
    ///
    /// # Errors
    /// If an interface cannot be read.
    pub fn stats(&mut self) -> Result<Vec<GatewayStats>, ShapingError> {
        let mut out = Vec::new();
        for (interface, want) in &self.plan {
            let failed = |e: NetlinkError| {
                ShapingError::new(format!("cannot read the classes of interface {interface}: {e}"))
            };
            let classes = self.tc.classes(*interface).map_err(failed)?;
            let qdiscs = self.tc.qdiscs(*interface).map_err(failed)?;
            // A class counts packets that its queue refused whole. What fq_codel drops later to keep the queue short, and
            // segments of superpackets, only the queue itself knows; it counts those that the class knows as well.
            let drops = |class: &Class| {
                let queue = qdiscs.iter().find(|q| q.parent == class.handle);
                queue.map_or(class.stats.drops, |q| q.stats.drops)
            };
            out.extend(classes.iter().filter_map(|class| {
                let (name, _) = want.classes.get(&class.handle)?;
                Some(GatewayStats {
                    name: name.clone(),
                    interface: *interface,
                    bandwidth_bps: class.rates.ceil_bps,
                    stats: QueueStats { drops: drops(class), ..class.stats },
                })
            }));
        }
        Ok(out)
    }
}

/// Peers whose routes are asked for; who has more of them has no more interfaces for it.
const MOST_PEERS: usize = 512;

/// The interfaces by which packets from an address leave to a gateway's peers: not always those that have the address.
fn ways(routing: Option<&mut Routing>, address: IpAddr, gateway: &Gateway) -> BTreeSet<u32> {
    let Some(routing) = routing else { return BTreeSet::new() };
    let peers = gateway.peers.iter().filter(|peer| peer.is_ipv4() == address.is_ipv4()).take(MOST_PEERS);
    let out = |peer: &IpAddr| match routing.way(*peer, Some(address), None) {
        Ok(Way::Out { link, .. }) => Some(link),
        // For this host itself, or nowhere: there is nothing to cap.
        Ok(Way::Local | Way::Nowhere(_)) | Err(_) => None,
    };
    peers.filter_map(out).collect()
}

/// Finds the interfaces by which packets from a gateway's addresses leave.
fn locate(
    tc: &mut Tc,
    mut routing: Option<&mut Routing>,
    gateway: &Gateway,
    errors: &mut Vec<ShapingError>,
) -> GatewayRate {
    let mut addresses = Vec::new();
    if let Some(bps) = gateway.bandwidth_bps {
        for address in &gateway.addresses {
            let ways = ways(routing.as_deref_mut(), *address, gateway);
            addresses.extend(ways.iter().map(|link| (*address, *link)));
            if !ways.is_empty() {
                continue;
            }
            let trouble = match tc.interface_of(*address) {
                Ok(Some(i)) if !i.loopback => {
                    addresses.push((*address, i.index));
                    continue;
                }
                Ok(Some(i)) => {
                    format!("its address {address} is on {}, where nothing leaves the host", i.name)
                }
                Ok(None) => format!("no interface has its address {address}"),
                Err(e) => format!("cannot look for its address {address}: {e}"),
            };
            let text = format!(
                "the bandwidth {} of gateway \"{}\" is not in force: {trouble}",
                Rate(bps),
                gateway.name
            );
            errors.push(ShapingError { text, gateways: vec![gateway.name.clone()] });
        }
    }
    GatewayRate { name: gateway.name.clone(), addresses, bandwidth_bps: gateway.bandwidth_bps }
}

/// Does what an interface needs, and says how many steps that took.
fn bring(
    tc: &mut Tc,
    index: u32,
    want: Option<&InterfacePlan>,
    sender: Option<&Pause>,
) -> Result<usize, ShapingError> {
    let (device, mtu) =
        tc.interface(index).map_or_else(|_| (format!("interface {index}"), 1500), |i| (i.name, i.mtu));
    let mut foreign = None;
    let brought = cygnet_reconcile::bring(&mut Interface { tc, index, mtu, sender }, |_, seen| {
        foreign = seen.iter().find_map(|part| match part {
            Part::Root(theirs) => theirs.clone(),
            _ => None,
        });
        let parts = want.into_iter().flat_map(InterfacePlan::parts);
        cygnet_reconcile::plan(parts, seen, Part::is_ours)
    });
    match (brought, want, foreign) {
        (Ok(_), Some(want), Some(theirs)) => Err(ShapingError::new(in_the_way(&device, want, &theirs))),
        (Ok(steps), ..) => Ok(steps),
        (Err(stuck), ..) => Err(ShapingError::new(told(&stuck, &device))),
    }
}

fn in_the_way(device: &str, want: &InterfacePlan, theirs: &Qdisc) -> String {
    let names: Vec<&str> = want.classes.values().map(|(name, _)| name.as_str()).collect();
    format!(
        "{device} has the queueing discipline {} {} that cygnet did not make, so the bandwidth of gateway \
         \"{}\" has no queue there; remove it with \"tc qdisc del dev {device} root\", or do the shaping there",
        theirs.kind,
        theirs.handle,
        names.join("\", \"")
    )
}

fn told(stuck: &Stuck<Part, NetlinkError>, device: &str) -> String {
    let (step, error) = match stuck {
        Stuck::Blind(e) => return format!("cannot look at traffic control on {device}: {e}"),
        Stuck::Restless => {
            return format!("cannot shape {device}: somebody else changes its traffic control all the time");
        }
        Stuck::Refused(step, error) => (step, error),
    };
    let verb = if matches!(**step, Step::Remove(_)) { "remove" } else { "set" };
    let what = match step.object() {
        Part::Root(_) => "the HTB",
        Part::Class(..) => "a class",
        Part::Filter(..) => "a filter",
    };
    format!("cannot {verb} {what} on {device}: {error}")
}

/// In this time a full queue of ours is empty when nobody sends; others may send all the time.
const DRAINED: Duration = Duration::from_millis(40);

/// The traffic control of one interface.
struct Interface<'a> {
    tc: &'a mut Tc,
    index: u32,
    mtu: u32,
    sender: Option<&'a Pause>,
}

impl World for Interface<'_> {
    type Object = Part;
    type Error = NetlinkError;

    fn look(&mut self) -> Result<Vec<Part>, NetlinkError> {
        match self.tc.root_owner(self.index) {
            Ok(RootOwner::Ours) => {}
            Ok(RootOwner::Default) => return Ok(vec![]),
            Ok(RootOwner::Foreign(qdisc)) => return Ok(vec![Part::Root(Some(qdisc))]),
            Err(e) => return Err(e),
        }
        let mut parts = vec![Part::Root(None)];
        parts.extend(self.tc.classes(self.index)?.iter().map(|class| Part::Class(class.handle, class.rates)));
        parts.extend(self.tc.filters(self.index)?.into_iter().map(|f| Part::Filter(f.spec, Some(f))));
        Ok(parts)
    }

    /// Stops at the first refusal: what comes behind it may build upon it.
    fn run(&mut self, steps: &[Step<Part>]) -> Vec<Result<(), NetlinkError>> {
        let mut results = Vec::with_capacity(steps.len());
        for step in steps {
            let result = match step {
                Step::Add(part) | Step::Put(part) => self.make(part),
                Step::Remove(part) => self.remove(part),
            };
            let is_refused = result.is_err();
            results.push(result);
            if is_refused {
                break;
            }
        }
        results
    }
}

impl Interface<'_> {
    fn make(&mut self, part: &Part) -> Result<(), NetlinkError> {
        match part {
            Part::Root(_) => self.quietly(|tc, index| tc.add_root(index)),
            Part::Class(handle, rates) => {
                let spec = ClassSpec { handle: *handle, rates: *rates };
                self.tc.put_class(self.index, &spec, self.mtu)
            }
            Part::Filter(spec, _) => self.tc.add_filter(self.index, spec),
        }
    }

    fn remove(&mut self, part: &Part) -> Result<(), NetlinkError> {
        match part {
            Part::Root(_) => self.quietly(|tc, index| tc.delete_root(index)),
            Part::Class(handle, _) => self.tc.delete_class(self.index, *handle),
            // Only what was seen is removed, and has a name.
            Part::Filter(_, seen) => seen.map_or(Ok(()), |filter| self.tc.delete_filter(self.index, &filter)),
        }
    }

    /// Exchanges the root while nothing is sent and nothing waits: the kernel throws away what waits in the old one, and what
    /// is sent until the new one is in its place.
    fn quietly(
        &mut self,
        exchange: impl FnOnce(&mut Tc, u32) -> Result<(), NetlinkError>,
    ) -> Result<(), NetlinkError> {
        let held = self.sender.map(Pause::hold);
        if held.is_some() {
            let began = Instant::now();
            while began.elapsed() < DRAINED && self.is_waiting() {
                std::thread::sleep(Duration::from_millis(1));
            }
        }
        exchange(self.tc, self.index)
    }

    /// Whether packets wait on the interface.
    fn is_waiting(&mut self) -> bool {
        let qdiscs = self.tc.qdiscs(self.index);
        qdiscs.is_ok_and(|all| all.iter().any(|qdisc| qdisc.stats.backlog_packets > 0))
    }
}
