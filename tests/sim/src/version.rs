//! One of many configurations of a tunnel. Each bit is a choice that the two ends may make at different times.

use std::time::Duration;

use cygnet_ike::policy::{RemoteId, TunnelPolicy};
use cygnet_ike::wire::Identity;
use cygnet_model::SecretBytes;
use cygnet_model::selector::TrafficSelector;

/// What two ends may choose, by bit.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Version(pub u16);

/// What the choices of a tunnel are between, beside what its policy says without them.
pub struct Choices {
    /// A shorter time until a silent peer is asked.
    pub dpd: Duration,
    /// A shorter lifetime of the IKE SA.
    pub ike: Duration,
    /// A shorter lifetime of the first child's SAs.
    pub child: Duration,
    /// A network of end 1 that the first rule may have in addition.
    pub network: TrafficSelector,
    /// Other names of both ends.
    pub names: [Identity; 2],
}

impl Version {
    /// How many choices there are.
    pub const CHOICES: u32 = 9;

    /// Whether one more IKE proposal is preferred.
    pub const PROPOSALS: u32 = 3;

    /// Whether the ends have other names.
    pub const NAMES: u32 = 8;

    /// The same but for one choice, as an operator changes it.
    pub const fn but(self, choice: u64) -> Self {
        Self(self.0 ^ 1 << choice)
    }

    /// Whether it differs from the policy without choices in this.
    pub const fn chose(self, choice: u32) -> bool {
        self.0 >> choice & 1 == 1
    }

    /// Whether both chose the same there.
    pub const fn agrees(self, other: Self, choice: u32) -> bool {
        self.chose(choice) == other.chose(choice)
    }

    /// Makes the choices in the policy of one end.
    pub fn apply(self, side: usize, p: &mut TunnelPolicy, choices: &Choices) {
        if self.chose(0) {
            p.dpd = Some(choices.dpd);
        }
        let keys = ["one horse of thirty-two octets!!", "another horse, as long as that!!"];
        let key = |n: usize| SecretBytes::copy_of(format!("{} {}", keys[n], p.name).as_bytes());
        let first = usize::from(self.chose(1));
        (p.psk, p.other_psks) = (key(first), vec![key(1 - first)]);
        if self.chose(2) {
            p.lifetime = choices.ike;
        }
        if self.chose(Self::PROPOSALS) {
            p.proposals.insert(0, "aes128gcm16-prfsha256-ecp384".parse().expect("a proposal"));
        }
        let last = p.children.len().saturating_sub(1) as u16;
        if self.chose(4) {
            p.children[0].lifetime = choices.child;
            p.children[0].weight = 9;
        }
        if self.chose(5) {
            let proposal = "aes128gcm16-ecp384".parse().expect("a proposal");
            p.children[last.min(1)].proposals.insert(0, proposal);
        }
        if self.chose(7) && last > 0 {
            p.children.remove(last);
        }
        // A network joins the first rule, which makes another child of it.
        if self.chose(6) {
            let mut wide = p.children.remove(0).expect("the first rule");
            if side == 0 { &mut wide.remote } else { &mut wide.local }.push(choices.network);
            p.children.insert(10, wide);
        }
        if self.chose(Self::NAMES) {
            let [own, peer] = [side, 1 - side].map(|side| choices.names[side].clone());
            (p.local_id, p.remote_id) = (own, RemoteId::Is(peer));
        }
    }
}
