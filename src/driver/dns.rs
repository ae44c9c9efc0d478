//! How long an answer of DNS holds: one question for a name's addresses, of which only the time to live counts (RFC 1035).
//!
//! The addresses that are used come from the system's resolver, with all that it honours (`/etc/hosts`, nsswitch); it does
//! not tell how long they hold. What is learnt here decides when to ask again and nothing else, so that an answer that
//! cannot be had, or is forged, costs no more than a question too early or too late, within bounds.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use ring::rand::{SecureRandom, SystemRandom};
use tokio::net::UdpSocket;

const PORT: u16 = 53;
/// Of `resolv.conf`, as glibc does (`MAXNS`).
const SERVERS: usize = 3;
/// How long one server is waited for.
const PATIENCE: Duration = Duration::from_secs(2);
/// Longest answer without EDNS (RFC 1035 §2.3.4); longer ones come truncated, which is enough.
const ANSWER: usize = 512;
/// QR and RD of the flags, and the response code.
const RESPONSE: u16 = 0x8000;
const RECURSE: u16 = 0x0100;
const CODE: u16 = 0x000F;
const CLASS_IN: u16 = 1;

/// A kind of address (RFC 1035 §3.2.2, RFC 3596).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Kind {
    /// IPv4.
    A,
    /// IPv6.
    Aaaa,
}

impl Kind {
    const fn number(self) -> u16 {
        match self {
            Self::A => 1,
            Self::Aaaa => 28,
        }
    }
}

/// What an answer says.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Held {
    /// The addresses in it.
    pub addresses: BTreeSet<IpAddr>,
    /// The shortest time to live of all its records, those of aliases included.
    pub ttl: Duration,
}

/// The servers that a `resolv.conf` names; without any it is the one on this host.
pub(super) fn servers(text: &str) -> Vec<SocketAddr> {
    let named = text.lines().filter_map(|line| {
        let mut words = line.split_ascii_whitespace();
        if words.next()? != "nameserver" {
            return None;
        }
        Some(SocketAddr::new(words.next()?.parse().ok()?, PORT))
    });
    let mut out: Vec<SocketAddr> = named.take(SERVERS).collect();
    if out.is_empty() {
        out.push(SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), PORT));
    }
    out
}

/// For how long a name stands for these addresses; `None` if DNS does not say so, because it says something else (the
/// addresses are from `/etc/hosts`, say) or nothing.
pub(super) async fn holds(servers: &[SocketAddr], name: &str, addresses: &[IpAddr]) -> Option<Duration> {
    let mut ttl: Option<Duration> = None;
    for (kind, is_v4) in [(Kind::A, true), (Kind::Aaaa, false)] {
        let wanted: BTreeSet<IpAddr> = addresses.iter().copied().filter(|ip| ip.is_ipv4() == is_v4).collect();
        if wanted.is_empty() {
            continue;
        }
        let held = ask(servers, name, kind).await?;
        if !wanted.is_subset(&held.addresses) {
            return None;
        }
        ttl = Some(ttl.map_or(held.ttl, |shortest| shortest.min(held.ttl)));
    }
    ttl
}

async fn ask(servers: &[SocketAddr], name: &str, kind: Kind) -> Option<Held> {
    for server in servers {
        let mut id = [0; 2];
        SystemRandom::new().fill(&mut id).ok()?;
        let question = question(u16::from_be_bytes(id), name, kind)?;
        if let Ok(Ok(held)) = tokio::time::timeout(PATIENCE, exchange(*server, &question)).await {
            return held;
        }
    }
    None
}

/// Asks one server; `None` if it answers with an error or without records.
async fn exchange(server: SocketAddr, question: &[u8]) -> std::io::Result<Option<Held>> {
    let any: IpAddr =
        if server.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
    // A connected socket takes nothing from elsewhere, and hears of a server that is not there.
    let socket = UdpSocket::bind((any, 0)).await?;
    socket.connect(server).await?;
    socket.send(question).await?;
    let mut buffer = [0; ANSWER];
    loop {
        let len = socket.recv(&mut buffer).await?;
        if let Some(answer) = read(question, buffer.get(..len).unwrap_or(&[])) {
            return Ok(answer.held());
        }
    }
}

/// The question for a name; `None` if DNS has no such names.
fn question(id: u16, name: &str, kind: Kind) -> Option<Vec<u8>> {
    let mut out = Vec::with_capacity(name.len() + 18);
    for word in [id, RECURSE, 1, 0, 0, 0] {
        out.extend(word.to_be_bytes());
    }
    for label in name.trim_end_matches('.').split('.') {
        let len = u8::try_from(label.len()).ok().filter(|len| (1..64).contains(len))?;
        out.push(len);
        out.extend(label.as_bytes());
    }
    out.push(0);
    out.extend(kind.number().to_be_bytes());
    out.extend(CLASS_IN.to_be_bytes());
    Some(out)
}

/// An answer to our question.
#[derive(Debug)]
struct Response {
    failed: bool,
    addresses: BTreeSet<IpAddr>,
    ttl: Option<u32>,
}

impl Response {
    fn held(self) -> Option<Held> {
        let ttl = Duration::from_secs(self.ttl.filter(|_| !self.failed)?.into());
        Some(Held { addresses: self.addresses, ttl })
    }
}

/// Reads a datagram; `None` if it is no answer to the question.
fn read(question: &[u8], datagram: &[u8]) -> Option<Response> {
    let mut rest = Reader(datagram);
    let asked = Reader(question).take(2)?;
    if rest.take(2)? != asked {
        return None;
    }
    let flags = rest.u16()?;
    let (questions, answers) = (rest.u16()?, rest.u16()?);
    rest.take(4)?;
    let asked = question.get(12..)?;
    // Servers return the question as it was.
    if flags & RESPONSE == 0 || questions != 1 || !rest.take(asked.len())?.eq_ignore_ascii_case(asked) {
        return None;
    }
    let mut out = Response { failed: flags & CODE != 0, addresses: BTreeSet::new(), ttl: None };
    for _ in 0..answers {
        // A truncated answer ends somewhere.
        let Some((address, ttl)) = record(&mut rest) else { break };
        out.addresses.extend(address);
        // RFC 2181 §8: with the first bit set it counts as zero.
        let ttl = if ttl >> 31 == 1 { 0 } else { ttl };
        out.ttl = Some(out.ttl.map_or(ttl, |shortest| shortest.min(ttl)));
    }
    Some(out)
}

/// One record: its address, if it has one, and its time to live.
fn record(rest: &mut Reader<'_>) -> Option<(Option<IpAddr>, u32)> {
    rest.skip_name()?;
    let (kind, class) = (rest.u16()?, rest.u16()?);
    let ttl = u32::from_be_bytes(rest.take(4)?.try_into().ok()?);
    let len = rest.u16()?;
    let data = rest.take(usize::from(len))?;
    let address = match kind {
        _ if class != CLASS_IN => None,
        kind if kind == Kind::A.number() => <[u8; 4]>::try_from(data).ok().map(IpAddr::from),
        kind if kind == Kind::Aaaa.number() => <[u8; 16]>::try_from(data).ok().map(IpAddr::from),
        // Aliases, and whatever else a server adds.
        _ => None,
    };
    Some((address, ttl))
}

/// What is left of a datagram.
struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn take(&mut self, len: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(len)?;
        self.0 = rest;
        Some(taken)
    }

    fn u16(&mut self) -> Option<u16> {
        Some(u16::from_be_bytes(self.take(2)?.try_into().ok()?))
    }

    /// Passes over a name: labels up to an empty one, or up to a pointer to elsewhere (RFC 1035 §4.1.4).
    fn skip_name(&mut self) -> Option<()> {
        loop {
            let len = *self.take(1)?.first()?;
            match len >> 6 {
                0 if len == 0 => return Some(()),
                0 => self.take(usize::from(len)).map(drop)?,
                0b11 => return self.take(1).map(drop),
                _ => return None,
            }
        }
    }
}

#[cfg(test)]
pub(super) mod tests {
    use proptest::prelude::*;

    use super::*;

    /// A server on a free port of the loopback network that answers each question about A with these records, as long as
    /// the test runs; says how often it was asked.
    pub(in crate::driver) async fn server(
        ttl: u32,
        addresses: &'static [[u8; 4]],
    ) -> (SocketAddr, std::sync::Arc<std::sync::atomic::AtomicU32>) {
        let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        let at = socket.local_addr().unwrap();
        let asked = std::sync::Arc::new(std::sync::atomic::AtomicU32::new(0));
        let count = std::sync::Arc::clone(&asked);
        tokio::spawn(async move {
            let mut buffer = [0; 512];
            while let Ok((len, from)) = socket.recv_from(&mut buffer).await {
                count.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
                let _ = socket.send_to(&answer(&buffer[..len], 0, ttl, addresses), from).await;
            }
        });
        (at, asked)
    }

    fn answer(question: &[u8], code: u16, ttl: u32, addresses: &[[u8; 4]]) -> Vec<u8> {
        let mut out = question.to_vec();
        out[2..4].copy_from_slice(&(RESPONSE | code).to_be_bytes());
        out[6..8].copy_from_slice(&(addresses.len() as u16).to_be_bytes());
        for address in addresses {
            // A pointer to the name of the question.
            out.extend([0xC0, 12, 0, 1, 0, 1]);
            out.extend(ttl.to_be_bytes());
            out.extend([0, 4]);
            out.extend(address);
        }
        out
    }

    #[test]
    fn the_shortest_time_to_live_counts_and_only_answers_to_the_question_do() {
        let question = question(7, "gw.example.org", Kind::A).unwrap();
        let mut both = answer(&question, 0, 300, &[[192, 0, 2, 1], [192, 0, 2, 2]]);
        let last = both.len() - 10;
        both[last..last + 4].copy_from_slice(&60u32.to_be_bytes());
        let held = read(&question, &both).unwrap().held().unwrap();
        assert_eq!((held.ttl.as_secs(), held.addresses.len()), (60, 2));
        both[last] = 0x80;
        assert_eq!(read(&question, &both).unwrap().held().unwrap().ttl.as_secs(), 0, "RFC 2181 §8");
        assert!(read(&question, &answer(&question, 3, 300, &[])).unwrap().held().is_none(), "no such name");
        for at in [0, 2, 5, 13] {
            let mut wrong = answer(&question, 0, 300, &[[192, 0, 2, 1]]);
            wrong[at] ^= 0xA0;
            assert!(read(&question, &wrong).is_none(), "octet {at}");
        }
        assert!(super::question(7, &"a".repeat(64), Kind::A).is_none());
    }

    #[test]
    fn servers_are_those_of_resolv_conf_or_this_host() {
        let text = "search example.org\nnameserver 192.0.2.53\n#nameserver 192.0.2.54\nnameserver 2001:db8::53\nnameserver x\n";
        let expected = ["192.0.2.53:53", "[2001:db8::53]:53"].map(|s| s.parse().unwrap());
        assert_eq!(servers(text), expected);
        assert_eq!(servers("options edns0\n"), ["127.0.0.1:53".parse().unwrap()]);
    }

    #[tokio::test]
    async fn a_time_to_live_holds_for_what_dns_says_and_for_nothing_else() {
        let (at, _) = server(42, &[[192, 0, 2, 1], [192, 0, 2, 2]]).await;
        let ip = |text: &str| text.parse::<IpAddr>().unwrap();
        assert_eq!(holds(&[at], "gw.example.org", &[ip("192.0.2.2")]).await, Some(Duration::from_secs(42)));
        assert_eq!(holds(&[at], "gw.example.org", &[ip("192.0.2.9")]).await, None, "from /etc/hosts");
        // Nobody there, then somebody.
        let nobody = std::net::UdpSocket::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let found = holds(&[nobody, at], "gw.example.org", &[ip("192.0.2.1")]).await;
        assert_eq!(found, Some(Duration::from_secs(42)));
    }

    proptest! {
        #[test]
        fn nothing_that_comes_makes_it_fall(bytes in prop::collection::vec(any::<u8>(), 0..600), cut in 0usize..60) {
            let question = question(7, "gw.example.org", Kind::A).unwrap();
            let _ = read(&question, &bytes);
            let good = answer(&question, 0, 300, &[[192, 0, 2, 1]]);
            let mut mixed = good[..cut.min(good.len())].to_vec();
            mixed.extend(&bytes);
            let _ = read(&question, &mixed);
        }
    }
}
