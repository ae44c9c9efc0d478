//! The limit of an inner address, as the configuration and the command line write it.

use std::net::IpAddr;

use super::error::{Wrong, wrong};
use super::model::{Gateway, Limit};
use super::{identity, units};

/// `10mbit`, `block` or `unlimited`; 0 is `block`, and -1 `unlimited`.
pub fn parse(text: &str) -> Result<Limit, Wrong> {
    match text {
        "block" | "0" => Ok(Limit::Block),
        "unlimited" | "-1" => Ok(Limit::Unlimited),
        _ => match units::rate(text) {
            Ok(bps) => Ok(Limit::Rate(bps)),
            Err(w) => Err(Wrong { fix: format!("{}, block or unlimited", w.fix), ..w }),
        },
    }
}

/// As [`parse`] reads it.
pub fn show_limit(limit: Limit) -> String {
    match limit {
        Limit::Rate(bps) => units::show_rate(bps),
        Limit::Block => "block".to_owned(),
        Limit::Unlimited => "unlimited".to_owned(),
    }
}

/// An inner address in its own form.
pub fn address(text: &str) -> Result<IpAddr, Wrong> {
    identity::ip(text).and_then(|ip| is_plain(ip).map(|()| ip))
}

/// That an address is no IPv4 address in the form of IPv6, which no packet inside a tunnel has.
pub fn is_plain(ip: IpAddr) -> Result<(), Wrong> {
    let plain = ip.to_canonical();
    if plain == ip {
        return Ok(());
    }
    Err(wrong(format!("{ip} is an IPv4 address in the form of IPv6"), format!("write {plain}")))
}

/// Whether an address is one that a gateway may limit.
pub fn is_inside(gateway: &Gateway, ip: IpAddr) -> bool {
    gateway.networks.iter().any(|network| network.contains(ip))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_written_in_its_own_form() {
        assert_eq!(address("10.1.0.9").ok(), Some(IpAddr::from([10, 1, 0, 9])));
        assert!(address("fd00::9").is_ok() && address("10.1.0.0/24").is_err());
        assert_eq!(address("::ffff:10.1.0.9").unwrap_err().fix, "write 10.1.0.9");
    }

    #[test]
    fn limits_read_as_they_are_written_and_nonsense_is_refused() {
        for text in ["10mbit", "1kbit", "100gbit", "block", "unlimited"] {
            assert_eq!(parse(text).map(show_limit).ok().as_deref(), Some(text));
        }
        assert_eq!(parse("0"), Ok(Limit::Block));
        assert_eq!(parse("-1"), Ok(Limit::Unlimited));
        for text in ["0mbit", "1000000000000", "1tbit", "999bit", "-2", "", "fast", "10mbps", "1000gbit"] {
            let wrong = parse(text).unwrap_err();
            assert!(!wrong.what.is_empty() && wrong.fix.contains("block"), "{text}: {wrong:?}");
            assert!(!wrong.fix.contains("tbit"), "{text}: {wrong:?}");
        }
    }
}
