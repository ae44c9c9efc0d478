//! Stateless cookies against floods of IKE_SA_INIT from forged addresses (RFC 7296 §2.6).
//!
//! `cookie = version | HMAC-SHA256(secret, Ni | address | SPIi)`, cut to 16 octets. The secret is changed every two
//! minutes; the one before stays valid, so that an answer on its way is not lost.

use std::net::IpAddr;
use std::time::Duration;

use cygnet_model::Timestamp;
use ring::hmac;

use crate::crypto::Random;

/// How long one secret makes cookies.
const PERIOD: Duration = Duration::from_secs(120);

struct Secret {
    version: u8,
    key: hmac::Key,
}

/// The current secret and the one before.
pub(crate) struct Cookies {
    current: Secret,
    previous: Option<Secret>,
    since: Timestamp,
}

impl Secret {
    fn new(version: u8, random: &mut dyn Random) -> Self {
        let mut key = [0u8; 32];
        random.fill(&mut key);
        Self { version, key: hmac::Key::new(hmac::HMAC_SHA256, &key) }
    }

    fn cookie(&self, nonce: &[u8], peer: IpAddr, spi_i: u64) -> Vec<u8> {
        let mut ctx = hmac::Context::with_key(&self.key);
        ctx.update(nonce);
        match peer {
            IpAddr::V4(a) => ctx.update(&a.octets()),
            IpAddr::V6(a) => ctx.update(&a.octets()),
        }
        ctx.update(&spi_i.to_be_bytes());
        let tag = ctx.sign();
        let mut cookie = vec![self.version];
        cookie.extend_from_slice(tag.as_ref().get(..16).unwrap_or_default());
        cookie
    }
}

impl Cookies {
    pub fn new(now: Timestamp, random: &mut dyn Random) -> Self {
        Self { current: Secret::new(0, random), previous: None, since: now }
    }

    fn roll(&mut self, now: Timestamp, random: &mut dyn Random) {
        let age = now.since(self.since);
        if age < PERIOD {
            return;
        }
        let next = Secret::new(self.current.version.wrapping_add(1), random);
        let old = std::mem::replace(&mut self.current, next);
        self.previous = (age < 2 * PERIOD).then_some(old);
        self.since = now;
    }

    /// The cookie that a peer must bring back.
    pub fn make(
        &mut self,
        now: Timestamp,
        random: &mut dyn Random,
        nonce: &[u8],
        peer: IpAddr,
        spi_i: u64,
    ) -> Vec<u8> {
        self.roll(now, random);
        self.current.cookie(nonce, peer, spi_i)
    }

    /// Whether a cookie is one of ours for this peer, compared in constant time.
    pub fn check(
        &mut self,
        now: Timestamp,
        random: &mut dyn Random,
        cookie: &[u8],
        nonce: &[u8],
        peer: IpAddr,
        spi_i: u64,
    ) -> bool {
        use subtle::ConstantTimeEq;
        self.roll(now, random);
        [Some(&self.current), self.previous.as_ref()]
            .into_iter()
            .flatten()
            .any(|s| s.cookie(nonce, peer, spi_i).ct_eq(cookie).into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Zeroes(u8);

    impl Random for Zeroes {
        fn fill(&mut self, out: &mut [u8]) {
            self.0 += 1;
            out.fill(self.0);
        }
    }

    #[test]
    fn t32_a_cookie_is_bound_to_address_spi_and_nonce_and_ages() {
        let mut r = Zeroes(0);
        let at = |s| Timestamp::from_nanos(0) + Duration::from_secs(s);
        let (a, b): (IpAddr, IpAddr) = ([192, 0, 2, 1].into(), [192, 0, 2, 2].into());
        let mut c = Cookies::new(at(0), &mut r);
        let cookie = c.make(at(1), &mut r, b"nonce", a, 7);
        assert!((1..=64).contains(&cookie.len()));
        assert!(c.check(at(2), &mut r, &cookie, b"nonce", a, 7));
        assert!(!c.check(at(2), &mut r, &cookie, b"other", a, 7));
        assert!(!c.check(at(2), &mut r, &cookie, b"nonce", b, 7));
        assert!(!c.check(at(2), &mut r, &cookie, b"nonce", a, 8));
        assert!(c.check(at(121), &mut r, &cookie, b"nonce", a, 7), "one period of grace");
        assert!(!c.check(at(242), &mut r, &cookie, b"nonce", a, 7));
    }
}
