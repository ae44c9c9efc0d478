//! What can be wrong: a closed list, each cause with a name, the layer that it belongs to, and what it means.

use serde::{Serialize, Serializer};

/// The layers, in the order in which they are walked.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Layer {
    /// The daemon and its configuration.
    Configuration,
    /// Names of customer gateways.
    Names,
    /// Addresses of this host and the way to the peer.
    Route,
    /// Whether UDP 500, 4500 and ESP pass.
    Reach,
    /// IKE.
    Negotiation,
    /// SAs, and what they carry.
    Sas,
    /// What stands before the guards, or behind them.
    Policies,
    /// Forwarding, filters and routes behind the gateway.
    Forwarding,
    /// Packets that do not fit.
    Mtu,
    /// Packets that nobody answers.
    Traffic,
}

impl Layer {
    /// The word for it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Configuration => "configuration",
            Self::Names => "names",
            Self::Route => "route",
            Self::Reach => "reachability",
            Self::Negotiation => "negotiation",
            Self::Sas => "SAs",
            Self::Policies => "policies",
            Self::Forwarding => "forwarding",
            Self::Mtu => "MTU",
            Self::Traffic => "traffic",
        }
    }
}

macro_rules! causes {
    ($($variant:ident, $name:literal, $layer:ident, $meaning:literal;)*) => {
        /// Why a tunnel is not up, or passes nothing.
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
        pub enum Cause { $(#[doc = $meaning] $variant,)* }

        impl Cause {
            /// All of them, in the order of the walk.
            pub const ALL: &[Self] = &[$(Self::$variant,)*];

            /// The name in JSON and in the manual.
            pub const fn name(self) -> &'static str {
                match self { $(Self::$variant => $name,)* }
            }

            /// Where it is.
            pub const fn layer(self) -> Layer {
                match self { $(Self::$variant => Layer::$layer,)* }
            }

            /// What it means, in a sentence.
            pub const fn meaning(self) -> &'static str {
                match self { $(Self::$variant => $meaning,)* }
            }
        }
    };
}

causes! {
    DaemonUnreachable, "daemon-unreachable", Configuration, "No daemon answers on the control socket.";
    ConfigInvalid, "config-invalid", Configuration, "The configuration file has errors; a running daemon goes on with what it had.";
    ConfigNotApplied, "config-not-applied", Configuration, "The configuration file says something else than what runs.";
    TakenDown, "taken-down", Configuration, "The tunnel was taken down by command.";
    WaitsForTraffic, "waits-for-traffic", Configuration, "The tunnel starts on demand, and no packet has asked for it.";
    WaitsForPeer, "waits-for-peer", Configuration, "The tunnel is passive, and its peer has not begun.";
    NameUnresolved, "name-unresolved", Names, "The name of the customer gateway has no address.";
    AddressAbsent, "address-absent", Route, "No interface of this host has the gateway's outer address.";
    PortTaken, "port-taken", Route, "Another program has UDP 500 or 4500 of the gateway's address.";
    PeerIsHere, "peer-is-here", Route, "The customer gateway's address is one of this host.";
    NoRoute, "no-route", Route, "There is no route to the peer.";
    LinkDown, "link-down", Route, "The link by which the peer is reached is down or has no carrier.";
    OuterIntoTunnel, "outer-into-tunnel", Route, "Packets for the peer itself are led into the tunnel's device.";
    LocalFirewall, "local-firewall", Reach, "A filter of this host refuses datagrams to the peer.";
    FirewallInput, "firewall-input", Reach, "A filter of this host drops what comes in, and nothing of the peer has come.";
    PeerUnreachable, "peer-unreachable", Reach, "A router says that the peer's host or network cannot be reached.";
    Prohibited, "prohibited", Reach, "A filter on the way, or at the peer, refuses datagrams.";
    PeerNotListening, "peer-not-listening", Reach, "The peer's host is there, and nobody listens on its UDP port 500.";
    Udp500Filtered, "udp-500-filtered", Reach, "UDP 4500 reaches the peer, UDP 500 does not.";
    Udp4500Filtered, "udp-4500-filtered", Reach, "UDP 500 reaches the peer, UDP 4500 does not.";
    PeerSilent, "peer-silent", Reach, "Nothing at all comes back from the peer.";
    PeerIgnoresUs, "peer-ignores-us", Reach, "The peer speaks IKE and does not answer this gateway.";
    IkeProposal, "ike-proposal", Negotiation, "The IKE proposals of both ends have nothing in common.";
    KeyExchange, "key-exchange", Negotiation, "The key exchange groups of both ends have nothing in common.";
    PeerIdentity, "peer-identity", Negotiation, "The peer calls itself otherwise than the tunnel expects.";
    OwnIdentity, "own-identity", Negotiation, "The peer asks for another name than ours.";
    PresharedKey, "pre-shared-key", Negotiation, "The peer does not prove to know the tunnel's key.";
    RefusedByPeer, "refused-by-peer", Negotiation, "The peer does not accept our name, its name as we ask for it, or our key.";
    EspProposal, "esp-proposal", Negotiation, "The ESP proposals of both ends have nothing in common.";
    Pfs, "pfs", Negotiation, "One end wants a key exchange for new keys of the SAs (PFS), the other does not, or by another group.";
    Networks, "networks", Negotiation, "The networks of the SPD rules of both ends do not meet.";
    PeerError, "peer-error", Negotiation, "The peer answers with another error.";
    PlaneRefused, "data-plane-refused", Sas, "The data plane refused the SAs.";
    EspBlocked, "esp-blocked", Sas, "The configuration wants the kernel's ESP, and this kernel's modules are blocked or missing.";
    PartlyCarried, "partly-carried", Sas, "The tunnel is up and carries a part of its networks only.";
    PeerForgot, "peer-forgot", Sas, "The peer sends on SAs that are not there any more.";
    Replayed, "replayed", Sas, "Packets come too late or twice.";
    Altered, "altered", Sas, "Packets come in that are not authentic.";
    PolicyInFront, "policy-in-front", Policies, "Something of another program decides about protected packets before the guards.";
    WallDown, "wall-down", Policies, "The last guard against NAT and foreign rules is not in force.";
    NetworksDiffer, "networks-differ", Policies, "The peer sends packets of networks that were not agreed.";
    ForwardingOff, "forwarding-off", Forwarding, "This host does not forward packets.";
    IpsecOff, "ipsec-off", Forwarding, "A setting of an interface turns IPsec off.";
    ReversePath, "reverse-path", Forwarding, "Reverse path filtering drops packets of the tunnel.";
    RouteAround, "route-around", Forwarding, "Packets for the peer's networks are routed past the tunnel.";
    NoInnerRoute, "no-inner-route", Forwarding, "This host has no route for packets to the peer's networks.";
    LocalNotAttached, "local-not-attached", Forwarding, "This host has no way to the tunnel's local networks.";
    FirewallForward, "firewall-forward", Forwarding, "A filter of this host drops what is forwarded, and nothing passes the tunnel.";
    PathMtu, "path-mtu", Mtu, "The way to the peer takes smaller packets than this host's link.";
    TooBig, "too-big", Mtu, "Packets do not fit the way to the peer.";
    NothingComesBack, "nothing-comes-back", Traffic, "Packets leave by the tunnel, and none come back.";
    NothingAnswers, "nothing-answers", Traffic, "Packets come in by the tunnel, and none go back.";
    NotProbed, "not-probed", Traffic, "The tunnel has a health check that can send no probes.";
    TargetSilent, "target-silent", Traffic, "The target of the tunnel's health check does not answer.";
    LineDegraded, "line-degraded", Traffic, "Probes through the tunnel are lost, or take longer than its health check allows.";
}

impl Serialize for Cause {
    fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        s.serialize_str(self.name())
    }
}

/// A cause that was found.
#[derive(Clone, PartialEq, Eq, Serialize, Debug)]
pub struct Found {
    /// Which.
    pub cause: Cause,
    /// Whose; `None`: of the host as a whole.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tunnel: Option<String>,
    /// What was seen, in one line.
    pub detail: String,
    /// What to do about it, in one line.
    pub fix: String,
}

impl Found {
    /// A cause of the host.
    pub fn new(cause: Cause, detail: impl Into<String>, fix: impl Into<String>) -> Self {
        Self { cause, tunnel: None, detail: detail.into(), fix: fix.into() }
    }

    /// The same, of a tunnel.
    pub fn of(self, tunnel: &str) -> Self {
        Self { tunnel: Some(tunnel.to_owned()), ..self }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_unique_and_layers_are_in_the_order_of_the_walk() {
        let names: std::collections::BTreeSet<_> = Cause::ALL.iter().map(|c| c.name()).collect();
        assert_eq!(names.len(), Cause::ALL.len());
        assert!(Cause::ALL.windows(2).all(|w| w[0].layer() <= w[1].layer()));
    }
}
