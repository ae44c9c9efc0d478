//! What twice as many tunnels cost: twice as much, in datagrams, timers and memory asked for, and nothing that is lost for
//! being too much at once.

#![allow(clippy::unwrap_used, clippy::panic, reason = "tests")]

mod allocations;

use std::time::Duration;

use cygnet_ike::policy::{Start, TunnelPolicy};
use cygnet_ike::view::TunnelState;
use cygnet_ike::wire::Identity;
use cygnet_ike::{Command, Event};
use cygnet_model::TunnelId;
use cygnet_sim::{Lab, Link, net, policy};

#[global_allocator]
static ALLOCATOR: allocations::Counted = allocations::Counted;

/// Tunnel `n` of a gateway: between the same addresses as the others, with an identity and networks of its own.
fn tunnel(side: usize, n: u32) -> TunnelPolicy {
    let name =
        |of: usize| Identity::fqdn(&if of == 0 { format!("a-{n}.example") } else { "b.example".into() });
    let mut p = policy(side, 1);
    let network = |of: usize| vec![net(&format!("{}.{}.{}.0/24", 20 + of, n >> 8, n & 255))];
    for child in p.children.values_mut() {
        (child.local, child.remote) = (network(side), network(1 - side));
    }
    TunnelPolicy { id: TunnelId(n), local_id: name(side), remote_id: name(1 - side).into(), dpd: None, ..p }
}

/// What something cost both gateways together.
#[derive(Clone, Copy, Debug)]
struct Cost {
    octets: u64,
    sent: u64,
    wakes: u64,
}

impl Cost {
    fn of(lab: &mut Lab, work: impl FnOnce(&mut Lab)) -> Self {
        let (sent, wakes) = (lab.sent.clone(), lab.wakes.clone());
        let octets = allocations::of(|| work(lab));
        Self {
            octets,
            sent: lab.sent[0] + lab.sent[1] - sent[0] - sent[1],
            wakes: lab.wakes[0] + lab.wakes[1] - wakes[0] - wakes[1],
        }
    }
}

struct Costs {
    start: Cost,
    rekey: Cost,
    end: Cost,
}

fn costs(tunnels: u32) -> Costs {
    let mut lab =
        Lab::new(1, Link::GOOD, [TunnelPolicy { start: Start::Passive, ..tunnel(0, 0) }, tunnel(1, 0)]);
    let start = Cost::of(&mut lab, |lab| {
        for side in [1, 0] {
            lab.configure_all(side, (0..tunnels).map(|n| tunnel(side, n)).collect());
        }
        lab.run(Duration::from_secs(20));
    });
    for n in 0..tunnels {
        for gateway in &lab.gateways {
            let view = gateway.endpoint.view(TunnelId(n)).unwrap();
            assert_eq!(view.state, TunnelState::Up, "tunnel {n} of {tunnels}");
        }
    }
    assert!(lab.gateways.iter().all(|g| g.drops.is_empty()), "{:?}", lab.gateways[1].drops);
    let rekey = Cost::of(&mut lab, |lab| {
        for n in 0..tunnels {
            lab.command(0, Command::RekeyChildren(TunnelId(n)));
        }
        lab.run(Duration::from_secs(20));
    });
    let is_rekeyed = |e: &&(_, Event)| matches!(e.1, Event::Rekeyed { failure: None, .. });
    assert_eq!(lab.gateways[0].events.iter().filter(is_rekeyed).count(), tunnels as usize);
    let end = Cost::of(&mut lab, |lab| {
        lab.command(0, Command::Shutdown);
        lab.run(Duration::from_secs(20));
    });
    assert!(lab.gateways[0].endpoint.is_idle());
    Costs { start, rekey, end }
}

#[test]
fn twice_as_many_tunnels_cost_twice_as_much_to_start_to_rekey_and_to_end() {
    let (few, many) = (costs(150), costs(300));
    for (what, few, many) in
        [("start", few.start, many.start), ("rekey", few.rekey, many.rekey), ("end", few.end, many.end)]
    {
        // No request was sent twice, and no cookie was asked for.
        assert_eq!(many.sent, 2 * few.sent, "{what}: datagrams of {few:?} and {many:?}");
        assert!(many.wakes <= 2 * few.wakes + 64, "{what}: timers of {few:?} and {many:?}");
        assert!(many.octets * 100 <= few.octets * 215, "{what}: octets of {few:?} and {many:?}");
    }
    // IKE_SA_INIT and IKE_AUTH with their answers; CREATE_CHILD_SA and the old pair's deletion; the IKE SA's deletion.
    assert_eq!((few.start.sent, few.rekey.sent, few.end.sent), (150 * 4, 150 * 4, 150 * 2));
}
