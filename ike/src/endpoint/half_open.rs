//! Half-open IKE SAs of strangers: found by what a repeated request shows, by our SPI, and counted by address.

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};

use cygnet_model::IkeSpi;

/// See the [module](self).
#[derive(Default)]
pub(super) struct HalfOpen {
    of: HashMap<(SocketAddr, u64), IkeSpi>,
    from: HashMap<IkeSpi, (SocketAddr, u64)>,
    by_address: HashMap<IpAddr, usize>,
}

impl HalfOpen {
    /// How many there are.
    pub fn len(&self) -> usize {
        self.from.len()
    }

    /// How many come from an address.
    pub fn of_address(&self, address: IpAddr) -> usize {
        self.by_address.get(&address).copied().unwrap_or(0)
    }

    /// The one that an initiator at `remote` began with its SPI.
    pub fn find(&self, remote: SocketAddr, spi_i: u64) -> Option<IkeSpi> {
        self.of.get(&(remote, spi_i)).copied()
    }

    /// Adds one.
    pub fn add(&mut self, remote: SocketAddr, spi_i: u64, ours: IkeSpi) {
        self.remove(ours);
        if let Some(before) = self.of.insert((remote, spi_i), ours) {
            self.from.remove(&before);
            self.forget(remote.ip());
        }
        self.from.insert(ours, (remote, spi_i));
        *self.by_address.entry(remote.ip()).or_default() += 1;
    }

    /// Takes one out, if it is there.
    pub fn remove(&mut self, ours: IkeSpi) {
        if let Some((remote, spi_i)) = self.from.remove(&ours) {
            self.of.remove(&(remote, spi_i));
            self.forget(remote.ip());
        }
    }

    fn forget(&mut self, address: IpAddr) {
        if let Some(count) = self.by_address.get_mut(&address) {
            *count = count.saturating_sub(1);
            if *count == 0 {
                self.by_address.remove(&address);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn counts_and_look_ups_are_those_of_a_list(
            steps in prop::collection::vec((any::<bool>(), 0u8..3, 0u16..2, 0u64..3, 1u64..8), 0..60),
        ) {
            let mut table = HalfOpen::default();
            let mut list: Vec<((SocketAddr, u64), IkeSpi)> = Vec::new();
            for (add, host, port, theirs, ours) in steps {
                let remote = SocketAddr::new([192, 0, 2, host].into(), port);
                let ours = IkeSpi::new(ours).unwrap();
                list.retain(|(from, spi)| *spi != ours && (!add || *from != (remote, theirs)));
                if add {
                    table.add(remote, theirs, ours);
                    list.push(((remote, theirs), ours));
                } else {
                    table.remove(ours);
                }
                prop_assert_eq!(table.len(), list.len());
                for host in 0..3 {
                    let ip: IpAddr = [192, 0, 2, host].into();
                    prop_assert_eq!(table.of_address(ip), list.iter().filter(|((a, _), _)| a.ip() == ip).count());
                }
                let found = list.iter().find(|(from, _)| *from == (remote, theirs)).map(|(_, spi)| *spi);
                prop_assert_eq!(table.find(remote, theirs), found);
            }
        }
    }
}
