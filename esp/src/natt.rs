//! UDP encapsulation of ESP and IKE on port 4500 (RFC 3948): telling them apart, and their markers.

/// Four zero octets stand where ESP has its SPI (RFC 3948 §2.2).
pub const NON_ESP_MARKER: [u8; 4] = [0; 4];

/// The single octet that keeps a NAT's mapping alive (RFC 3948 §2.3).
pub const KEEPALIVE: [u8; 1] = [0xFF];

/// What a datagram on port 4500 carries.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Carried<'a> {
    /// An IKE message, its marker taken off.
    Ike(&'a [u8]),
    /// An ESP packet.
    Esp,
    /// A NAT keepalive, to be ignored.
    Keepalive,
    /// Nothing that belongs here.
    Noise,
}

/// Tells what a datagram carries.
pub fn classify(datagram: &[u8]) -> Carried<'_> {
    match datagram.split_first_chunk::<4>() {
        Some((&NON_ESP_MARKER, message)) => Carried::Ike(message),
        Some(_) => Carried::Esp,
        None if datagram == KEEPALIVE => Carried::Keepalive,
        None => Carried::Noise,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn datagrams_are_told_apart() {
        assert_eq!(classify(&[0xFF]), Carried::Keepalive);
        assert_eq!(classify(&[0, 0, 0, 0, 1, 2]), Carried::Ike(&[1, 2]));
        assert_eq!(classify(&[0, 0, 0, 0]), Carried::Ike(&[]));
        assert_eq!(classify(&[0, 0, 1, 0, 0]), Carried::Esp);
        for noise in [&[][..], &[0], &[0xFF, 0xFF], &[0, 0, 0]] {
            assert_eq!(classify(noise), Carried::Noise);
        }
    }
}
