//! The limit of an inner address, as the configuration and the command line write it.

use std::net::IpAddr;

use super::error::Wrong;
use super::model::{Gateway, Limit};
use super::units;

/// `10mbit`, `block` or `unlimited`.
pub fn parse(text: &str) -> Result<Limit, Wrong> {
    match text {
        "block" => Ok(Limit::Block),
        "unlimited" => Ok(Limit::Unlimited),
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

/// Whether an address is one that a gateway may limit.
pub fn is_inside(gateway: &Gateway, ip: IpAddr) -> bool {
    gateway.networks.iter().any(|network| network.contains(ip))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits_read_as_they_are_written_and_nonsense_is_refused() {
        for text in ["10mbit", "1kbit", "100gbit", "block", "unlimited"] {
            assert_eq!(parse(text).map(show_limit).ok().as_deref(), Some(text));
        }
        for text in ["0", "0mbit", "1000000000000", "1tbit", "999bit", "-1", "", "fast", "10mbps", "1000gbit"]
        {
            let wrong = parse(text).unwrap_err();
            assert!(!wrong.what.is_empty() && wrong.fix.contains("block"), "{text}: {wrong:?}");
            assert!(!wrong.fix.contains("tbit"), "{text}: {wrong:?}");
        }
    }
}
