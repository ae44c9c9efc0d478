//! DSCP and ECN across the tunnel (RFC 4301 §5.1.2, RFC 6040).
//!
//! The octet is called TOS in IPv4 and traffic class in IPv6: six bits of DSCP, two of ECN. Outwards all of it is copied
//! (RFC 6040 "normal mode"). Inwards the outer DSCP is forgotten and the ECN fields are combined.

const ECN_MASK: u8 = 0b11;
const NOT_ECT: u8 = 0b00;
const ECT_0: u8 = 0b10;
const ECT_1: u8 = 0b01;
const CE: u8 = 0b11;

/// The octet of the outer header for an inner one. CE is copied too (RFC 6040 §4.1).
pub const fn outer(inner: u8) -> u8 {
    inner
}

/// The octet of the inner header after decapsulation (RFC 6040 §4.2, figure 4), or `None` where the packet must be
/// dropped: congestion was experienced, and the inner packet cannot tell.
pub const fn inner(inner: u8, outer: u8) -> Option<u8> {
    match (inner & ECN_MASK, outer & ECN_MASK) {
        (NOT_ECT, CE) => None,
        (ECT_0 | ECT_1, CE) => Some(inner | CE),
        (ECT_0, ECT_1) => Some(inner & !ECN_MASK | ECT_1),
        _ => Some(inner),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn decapsulation_follows_figure_4_of_rfc_6040() {
        // Rows: inner Not-ECT, ECT(0), ECT(1), CE. Columns: outer Not-ECT, ECT(0), ECT(1), CE.
        let table = [
            [Some(NOT_ECT), Some(NOT_ECT), Some(NOT_ECT), None],
            [Some(ECT_0), Some(ECT_0), Some(ECT_1), Some(CE)],
            [Some(ECT_1), Some(ECT_1), Some(ECT_1), Some(CE)],
            [Some(CE), Some(CE), Some(CE), Some(CE)],
        ];
        let codes = [NOT_ECT, ECT_0, ECT_1, CE];
        for (i, row) in codes.into_iter().zip(table) {
            for (o, want) in codes.into_iter().zip(row) {
                assert_eq!(inner(0xB8 | i, 0x28 | o), want.map(|w| 0xB8 | w));
            }
        }
    }

    #[test]
    fn everything_is_copied_outwards() {
        assert_eq!(outer(0xBB), 0xBB);
    }
}
