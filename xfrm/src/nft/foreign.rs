//! Which chains of others look at packets, and what becomes of those that no rule of theirs decides. Read, never changed.

use netlink_sys::protocols::NETLINK_NETFILTER;

use super::{Message, absent_is_empty, attributes, header, message};
use crate::codec;
use crate::error::NetlinkError;
use crate::socket::NetlinkSocket;

const NFTA_CHAIN_TABLE: u16 = 1;
const NFTA_CHAIN_NAME: u16 = 3;
const NFTA_CHAIN_HOOK: u16 = 4;
const NFTA_CHAIN_POLICY: u16 = 5;
const NFTA_HOOK_HOOKNUM: u16 = 1;
const NF_DROP: u32 = 0;

/// Where a chain looks at packets.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Place {
    /// Those for this host.
    Input,
    /// Those that are forwarded.
    Forward,
    /// Those that this host made.
    Output,
}

/// A chain that drops what none of its rules decides.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Dropping {
    /// Which packets it looks at.
    pub place: Place,
    /// Family as nft names it.
    pub family: &'static str,
    /// Its table.
    pub table: String,
    /// Its name.
    pub chain: String,
}

/// The chains of the network namespace that drop by policy.
///
/// # Errors
/// Missing rights (CAP_NET_ADMIN), or transport errors. No nf_tables means no chains.
pub fn dropping_chains() -> Result<Vec<Dropping>, NetlinkError> {
    let mut socket = NetlinkSocket::open(NETLINK_NETFILTER)?;
    // NFPROTO_UNSPEC: those of all families.
    let request = message(Message::GetChain, 0, header(0, 0));
    let mut found = absent_is_empty(socket.dump(&request, |_, payload| Ok(read(payload))))?;
    found.sort();
    Ok(found)
}

/// Reads an NFT_MSG_NEWCHAIN payload; `None` if it is no chain that drops.
fn read(payload: &[u8]) -> Option<Dropping> {
    let family = match codec::u8_at(payload, 0)? {
        1 => "inet",
        2 => "ip",
        10 => "ip6",
        _ => return None,
    };
    let all = attributes(payload)?;
    let number = |value: &[u8]| Some(u32::from_be_bytes(*value.first_chunk::<4>()?));
    if number(codec::find(all, NFTA_CHAIN_POLICY)?)? != NF_DROP {
        return None;
    }
    let place = match number(codec::find(codec::find(all, NFTA_CHAIN_HOOK)?, NFTA_HOOK_HOOKNUM)?)? {
        1 => Place::Input,
        2 => Place::Forward,
        3 => Place::Output,
        _ => return None,
    };
    let text = |kind| codec::find(all, kind).map(codec::text);
    Some(Dropping { place, family, table: text(NFTA_CHAIN_TABLE)?, chain: text(NFTA_CHAIN_NAME)? })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chain(family: u8, hook: u32, policy: u32) -> Vec<u8> {
        let mut w = header(family, 0);
        w.attr_text(NFTA_CHAIN_TABLE, "filter");
        w.attr_text(NFTA_CHAIN_NAME, "FORWARD");
        w.nest(NFTA_CHAIN_HOOK, |w| w.attr(NFTA_HOOK_HOOKNUM, &hook.to_be_bytes()));
        w.attr(NFTA_CHAIN_POLICY, &policy.to_be_bytes());
        w.bytes().to_vec()
    }

    #[test]
    fn only_chains_that_drop_by_policy_are_found() {
        let found = read(&chain(2, 2, 0)).unwrap();
        assert_eq!((found.place, found.family, &*found.chain), (Place::Forward, "ip", "FORWARD"));
        assert_eq!(read(&chain(2, 2, 1)), None, "it accepts");
        assert_eq!(read(&chain(2, 0, 0)), None, "prerouting");
        assert_eq!(read(&chain(7, 2, 0)), None, "a bridge");
        assert_eq!(read(&chain(2, 2, 0)[..9]), None);
    }
}
