//! What the kernel says about traffic control.

use cygnet_xfrm::tc::ClassSpec;
use cygnet_xfrm::testing;

use crate::input::is_one_line;

/// The interface that a message is about.
fn interface(data: &[u8]) -> u32 {
    data.get(4..8).and_then(|f| f.try_into().ok()).map_or(0, u32::from_ne_bytes)
}

/// A class of ours: its rates can be put, and read the same.
pub fn tc_class(data: &[u8]) {
    let at = interface(data);
    assert_eq!(testing::read_class(data, at.wrapping_add(1)), None);
    let Some(class) = testing::read_class(data, at) else { return };
    assert!(class.handle.is_ours());
    let spec = ClassSpec { handle: class.handle, rates: class.rates };
    let put = testing::write_class(at, &spec);
    let again = testing::read_class(&put, at).expect("what we put can be read");
    assert_eq!((again.handle, again.rates.quantum), (class.handle, class.rates.quantum));
    // Rates are whole octets; those beyond what 64 bits say in bits are no longer told apart.
    let octets = |bps: u64| if bps == u64::MAX { u64::MAX / 8 } else { bps / 8 };
    assert_eq!(octets(again.rates.rate_bps), octets(class.rates.rate_bps));
    assert_eq!(octets(again.rates.ceil_bps), octets(class.rates.ceil_bps));
    // Bursts are told in ticks of 64 ns: a burst that fits them comes back within one tick.
    let rate = octets(class.rates.rate_bps).max(1);
    let tick = u128::from(rate) * 64 / 1_000_000_000;
    let ticks = u128::from(class.rates.burst) * 1_000_000_000 / 64 / u128::from(rate);
    if octets(class.rates.rate_bps) > 0 && ticks < u128::from(u32::MAX) {
        let off = u128::from(again.rates.burst.abs_diff(class.rates.burst));
        assert!(off <= tick + 1, "{off} octets off, a tick is {tick}");
    }
}

/// A qdisc: its kind is one line, whatever the octets.
pub fn tc_qdisc(data: &[u8]) {
    let at = interface(data);
    assert_eq!(testing::read_qdisc(data, at.wrapping_add(1)), None);
    let Some(qdisc) = testing::read_qdisc(data, at) else { return };
    assert!(is_one_line(&qdisc.kind) && qdisc.kind.len() <= 3 * data.len());
}

/// A filter of ours: it can be added again, and reads the same.
pub fn tc_filter(data: &[u8]) {
    let at = interface(data);
    assert_eq!(testing::read_filter(data, at.wrapping_add(1)), None);
    let Some(filter) = testing::read_filter(data, at) else { return };
    let again = testing::read_filter(&testing::write_filter(at, &filter.spec), at);
    assert_eq!(again.map(|f| f.spec), Some(filter.spec));
}
