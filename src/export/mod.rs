//! The configuration of a tunnel's other end, made from ours: `cygnet export-peer`.
//!
//! ```text
//! Config + tunnel ─▶ Mirror (the tunnel seen from the peer) ─▶ one renderer for each format ─▶ text and notes
//!                    mirror.rs                                 swanctl.rs, cisco.rs, ...
//! ```
//! Renderers are pure. What a format cannot say is a note; what would leave the ends without common ground is an error.

mod cisco;
mod cygnet;
mod fit;
mod fortigate;
mod iked;
mod junos;
mod libreswan;
mod mikrotik;
mod mirror;
mod swanctl;
mod text;

use std::net::IpAddr;

use zeroize::Zeroizing;

use crate::config::Config;
use mirror::Mirror;
pub use text::PLACEHOLDER;

/// Whose words to use.
#[derive(Clone, Copy, PartialEq, Eq, Debug, clap::ValueEnum)]
pub enum Format {
    /// cygnet.yaml of another cygnet
    Cygnet,
    /// swanctl.conf of strongSwan
    Swanctl,
    /// ipsec.conf of libreswan 4.0 or later
    Libreswan,
    /// iked.conf of OpenIKED
    Iked,
    /// Cisco IOS-XE 16.12 or later
    Cisco,
    /// Juniper Junos, as set commands
    Junos,
    /// FortiGate, FortiOS 7.0 or later
    Fortigate,
    /// MikroTik RouterOS 7
    Mikrotik,
}

impl Format {
    /// Every format.
    pub const ALL: [Self; 8] = [
        Self::Cygnet,
        Self::Swanctl,
        Self::Libreswan,
        Self::Iked,
        Self::Cisco,
        Self::Junos,
        Self::Fortigate,
        Self::Mikrotik,
    ];

    /// Its name on the command line.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Cygnet => "cygnet",
            Self::Swanctl => "swanctl",
            Self::Libreswan => "libreswan",
            Self::Iked => "iked",
            Self::Cisco => "cisco",
            Self::Junos => "junos",
            Self::Fortigate => "fortigate",
            Self::Mikrotik => "mikrotik",
        }
    }

    /// The product, for messages.
    pub const fn product(self) -> &'static str {
        match self {
            Self::Cygnet => "cygnet",
            Self::Swanctl => "strongSwan",
            Self::Libreswan => "libreswan",
            Self::Iked => "iked",
            Self::Cisco => "IOS-XE",
            Self::Junos => "Junos",
            Self::Fortigate => "FortiOS",
            Self::Mikrotik => "RouterOS",
        }
    }
}

/// What the configuration does not say, or shall not be said.
#[derive(Clone, Copy, Default, Debug)]
pub struct Options {
    /// The key itself, instead of a place for it. The configuration must have been read with its keys.
    pub with_psk: bool,
    /// Our address as the peer sees it; else the gateway's.
    pub address: Option<IpAddr>,
    /// The peer's own address; else the customer gateway's.
    pub peer_address: Option<IpAddr>,
}

/// A configuration for the other end.
#[derive(Debug)]
pub struct Exported {
    /// The text, which ends with a newline. With a key in it, it is wiped when dropped.
    pub text: Zeroizing<String>,
    /// What the format could not say, or what is left to do.
    pub notes: Vec<String>,
}

/// Why there is no configuration for the other end.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum ExportError {
    /// No tunnel has that name.
    #[error("there is no tunnel of that name")]
    NoTunnel,
    /// Nothing is left that both ends know.
    #[error("{product} knows no algorithm of ours for the {protocol} SA: it lacks {lacks}")]
    NoCommonAlgorithm {
        /// The peer's product.
        product: &'static str,
        /// IKE or ESP.
        protocol: &'static str,
        /// Keywords that it lacks.
        lacks: String,
    },
    /// An identity that the format cannot say.
    #[error("{product} cannot say the identity {identity} of {whose}: {why}")]
    Identity {
        /// The peer's product.
        product: &'static str,
        /// Whose identity it is.
        whose: &'static str,
        /// The identity, escaped.
        identity: String,
        /// Why not.
        why: &'static str,
    },
    /// The format needs an address that the configuration does not tell.
    #[error("{product} needs the address of {whose}, which the configuration does not tell")]
    Address {
        /// The peer's product.
        product: &'static str,
        /// Whose address it is.
        whose: &'static str,
        /// The flag that tells it.
        flag: &'static str,
    },
    /// Nothing is left to protect.
    #[error("{product} can protect none of the tunnel's networks: {why}")]
    Networks {
        /// The peer's product.
        product: &'static str,
        /// Why not.
        why: &'static str,
    },
    /// The key is not there.
    #[error("the pre-shared key was not read")]
    NoKey,
}

impl ExportError {
    /// What to do about it.
    pub fn hint(&self) -> String {
        match self {
            Self::NoTunnel => "see the names of the tunnels in the configuration".into(),
            Self::NoCommonAlgorithm { .. } => {
                "add a proposal of algorithms that both ends know, such as aes256-sha256-ecp384".into()
            }
            Self::Identity { .. } => "give the tunnel another local_id or remote_id".into(),
            Self::Address { flag, .. } => format!("name it with {flag}"),
            Self::Networks { .. } => "choose another format".into(),
            Self::NoKey => "run as a user who may read it".into(),
        }
    }
}

/// Makes the configuration for the other end of a tunnel.
///
/// # Errors
/// [`ExportError`] where the format leaves the two ends without common ground.
pub fn export(
    config: &Config,
    tunnel: &str,
    format: Format,
    options: &Options,
) -> Result<Exported, ExportError> {
    let mirror = Mirror::new(config, tunnel, format, options)?;
    let mut notes = mirror.notes.clone();
    let text = match format {
        Format::Cygnet => cygnet::render(&mirror, &mut notes),
        Format::Swanctl => swanctl::render(&mirror, &mut notes)?,
        Format::Libreswan => libreswan::render(&mirror, &mut notes)?,
        Format::Iked => iked::render(&mirror, &mut notes)?,
        Format::Cisco => cisco::render(&mirror, &mut notes)?,
        Format::Junos => junos::render(&mirror, &mut notes)?,
        Format::Fortigate => fortigate::render(&mirror, &mut notes)?,
        Format::Mikrotik => mikrotik::render(&mirror, &mut notes)?,
    };
    let mut told = Vec::new();
    notes.into_iter().for_each(|note| {
        if !told.contains(&note) {
            told.push(note);
        }
    });
    Ok(Exported { text, notes: told })
}
