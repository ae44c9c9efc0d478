//! Cryptography of IKE: PRF, key derivation, key exchange and the SK cipher, on ring, aes, des, crypto-bigint, p521 and
//! ml-kem.

pub mod cipher;
mod curves;
pub mod kex;
pub mod keymat;
mod mlkem;
mod modp;
mod p521;
pub mod prf;

#[cfg(test)]
pub(crate) mod tests;

/// A source of random octets. Production fills from the operating system, simulations from a seed.
pub trait Random: Send {
    /// Fills `out` with unpredictable octets.
    fn fill(&mut self, out: &mut [u8]);

    /// A random number.
    fn u64(&mut self) -> u64 {
        let mut b = [0u8; 8];
        self.fill(&mut b);
        u64::from_be_bytes(b)
    }

    /// A random number below `bound` (0 for a bound of 0). The bias is below 2⁻³² for bounds below 2³².
    fn below(&mut self, bound: u64) -> u64 {
        self.u64().checked_rem(bound).unwrap_or(0)
    }
}
