//! What can go wrong between us and the kernel. No variant ever holds octets of a message, since those may be keys.

pub use nix::errno::Errno;

/// Why a netlink call failed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NetlinkError {
    /// The socket could not be made.
    #[error("cannot open a {protocol} netlink socket: {}", describe(*errno))]
    Open {
        /// "XFRM", "netfilter" or "route".
        protocol: &'static str,
        /// Why.
        errno: Errno,
    },
    /// The kernel refused this one message; others of the same batch are not affected.
    #[error("kernel says {}", refusal(*errno, message.as_deref()))]
    Refused {
        /// The error number.
        errno: Errno,
        /// The kernel's own sentence (extended acknowledgement), if it gave one.
        message: Option<String>,
    },
    /// Answers were lost (ENOBUFS): what the kernel holds is unknown and must be read anew.
    #[error("answers of the kernel were lost (ENOBUFS)")]
    Overrun,
    /// The kernel did not answer in time: what it holds is unknown and must be read anew.
    #[error("the kernel did not answer within {0} ms")]
    Timeout(u64),
    /// A dump changed under our eyes every time it was tried.
    #[error("the kernel's table changed during each of {0} dumps")]
    Unsteady(u32),
    /// An answer does not have the shape it must have.
    #[error("cannot understand the kernel's answer: {0}")]
    Malformed(&'static str),
    /// A request that no kernel could take, found out before sending it.
    #[error("{0}")]
    Unfit(String),
    /// The socket itself failed.
    #[error("netlink socket: {}", describe(*.0))]
    Socket(Errno),
}

fn describe(errno: Errno) -> String {
    format!("{} ({errno:?})", errno.desc())
}

fn refusal(errno: Errno, message: Option<&str>) -> String {
    match message {
        Some(m) => format!("\"{m}\" ({errno:?})"),
        None => describe(errno),
    }
}

impl NetlinkError {
    /// The error number of a refusal.
    pub fn errno(&self) -> Option<Errno> {
        match self {
            Self::Refused { errno, .. } | Self::Open { errno, .. } | Self::Socket(errno) => Some(*errno),
            Self::Overrun | Self::Timeout(_) | Self::Unsteady(_) | Self::Malformed(_) | Self::Unfit(_) => {
                None
            }
        }
    }

    /// Whether the kernel's state is unknown after this error, so that the caller must read it anew.
    pub fn is_unsure(&self) -> bool {
        matches!(self, Self::Overrun | Self::Timeout(_) | Self::Socket(_))
    }

    /// The kernel has no such object.
    pub fn is_absent(&self) -> bool {
        matches!(self.errno(), Some(Errno::ESRCH | Errno::ENOENT | Errno::ENODEV))
    }
}

impl From<std::io::Error> for NetlinkError {
    fn from(e: std::io::Error) -> Self {
        let errno = Errno::from_raw(e.raw_os_error().unwrap_or(0));
        if errno == Errno::ENOBUFS { Self::Overrun } else { Self::Socket(errno) }
    }
}

impl From<Errno> for NetlinkError {
    fn from(errno: Errno) -> Self {
        if errno == Errno::ENOBUFS { Self::Overrun } else { Self::Socket(errno) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refusal_quotes_the_kernel() {
        let e = NetlinkError::Refused {
            errno: Errno::ENOSYS,
            message: Some("Requested AEAD algorithm not found".to_owned()),
        };
        assert_eq!(e.to_string(), "kernel says \"Requested AEAD algorithm not found\" (ENOSYS)");
        let e = NetlinkError::Refused { errno: Errno::EPERM, message: None };
        assert_eq!(e.to_string(), "kernel says Operation not permitted (EPERM)");
    }
}
