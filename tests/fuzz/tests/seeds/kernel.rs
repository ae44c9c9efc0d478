//! Seeds of what the kernel says, made by our own writers in the kernel's words.

use cygnet_fuzz::fixed::{sa, suites};
use cygnet_model::Spi;
use cygnet_model::tunnel::{Direction, Mark, UdpEncap};
use cygnet_xfrm::codec::Writer;
use cygnet_xfrm::policy::{Policy, PolicyAction, PolicyDirection, PolicyKey, PolicySelector, PortMask};
use cygnet_xfrm::tc::{ClassSpec, FilterSpec, Handle, HtbRates, Traffic};
use cygnet_xfrm::testing;

use super::seed;

pub fn attributes() {
    let a = |name: &str, octets: &[u8]| seed("netlink_attributes", name, octets);
    let mut w = Writer::new();
    w.attr(1, &[0xAA]);
    w.nest(2, |w| w.attr_u32(3, 7));
    w.attr_text(4, "eth0");
    w.attr_u64(0x8005, 9);
    a("nested", w.bytes());
    for len in [0u8, 1, 3, 4, 5, 0xFF] {
        a(&format!("length-{len}"), &[len, 0, 1, 0, 1, 2, 3, 4, 8, 0, 2, 0, 1, 2, 3, 4]);
    }
    a("length-65535", &[0xFF, 0xFF, 1, 0, 1, 2, 3, 4]);
    a("unpadded-end", &[5, 0, 1, 0, 9]);
    a("three-octets", &[4, 0, 1]);
    a("text", b"line\x1b[31m\nnext\xff\xc2\x85");
    a("same-type-twice", &[8, 0, 1, 0, 1, 2, 3, 4, 8, 0, 1, 0, 5, 6, 7, 8]);
}

/// A message with its header.
fn message(kind: u16, flags: u16, payload: &[u8]) -> Vec<u8> {
    let mut out = ((16 + payload.len()) as u32).to_ne_bytes().to_vec();
    out.extend(kind.to_ne_bytes());
    out.extend(flags.to_ne_bytes());
    out.extend([1, 0, 0, 0, 0, 0, 0, 0]);
    out.extend(payload);
    out.resize(out.len().next_multiple_of(4), 0);
    out
}

pub fn xfrm() {
    let mut states = Vec::new();
    for (i, suite) in suites().into_iter().enumerate().step_by(3) {
        for direction in [Direction::In, Direction::Out] {
            let mut spec = sa(suite, direction);
            if i % 2 == 0 {
                spec.encap = Some(UdpEncap { local_port: 4500, remote_port: 61_234 });
                spec.mark = Some(Mark { value: 0x42, mask: 0xFF });
            }
            if i % 4 == 0 {
                spec.local = "2001:db8::1".parse().unwrap();
                spec.remote = "2001:db8::2".parse().unwrap();
                spec.replay_window = 32;
            }
            let state = testing::write_state(&spec).unwrap();
            let name = format!("suite-{i:02}-{}", if direction == Direction::In { "in" } else { "out" });
            seed("xfrm_state", &name, &state);
            states.push(state);
        }
    }
    let mut other = states[0].clone();
    other[76] = 51;
    seed("xfrm_state", "ah", &other);
    seed("xfrm_state", "cut", &states[0][..223]);
    seed("xfrm_state", "no-attributes", &states[0][..224]);
    let mut family = states[0].clone();
    let at = family_at(&family);
    family[at..at + 2].copy_from_slice(&99u16.to_ne_bytes());
    seed("xfrm_state", "family-99", &family);
    // More attributes than any message of ours has room for.
    let mut many = states[1].clone();
    (0..700).for_each(|_| many.extend([8, 0, 99, 0, 1, 2, 3, 4]));
    seed("xfrm_state", "five-thousand-octets-of-attributes", many);

    let selector = |v6: bool| PolicySelector {
        source: if v6 { ("2001:db8:1::".parse().unwrap(), 48) } else { ([10, 1, 0, 0].into(), 16) },
        destination: if v6 { ("2001:db8:2::".parse().unwrap(), 48) } else { ([10, 2, 0, 0].into(), 16) },
        protocol: if v6 { 58 } else { 6 },
        source_port: PortMask { value: 128, mask: 0xFFFF },
        destination_port: PortMask::ANY,
    };
    let protect = |spi| PolicyAction::Protect {
        source: [192, 0, 2, 1].into(),
        destination: [192, 0, 2, 2].into(),
        spi,
    };
    for (i, action) in
        [PolicyAction::Block, PolicyAction::Allow, protect(None), protect(Spi::new(0xC0FF_EE00))]
            .into_iter()
            .enumerate()
    {
        for (direction, name) in [(PolicyDirection::In, "in"), (PolicyDirection::Out, "out")] {
            let key = PolicyKey {
                direction,
                selector: selector(i % 2 == 1),
                mark: (i % 2 == 0).then_some(Mark { value: 5, mask: 0xFF }),
            };
            let policy = Policy { key, priority: 1234, reqid: 0xC900_0040, action };
            let octets = testing::write_policy(&policy);
            seed("xfrm_policy", &format!("action-{i}-{name}"), &octets);
            if i == 2 {
                seed("xfrm_policy", &format!("cut-{name}"), &octets[..167]);
                seed("xfrm_policy", &format!("half-a-template-{name}"), &octets[..168 + 36]);
                let two = [&octets[..168], &[132, 0, 5, 0], &octets[172..236], &octets[172..236]].concat();
                seed("xfrm_policy", &format!("two-templates-{name}"), two);
                seed("netlink_messages", &format!("policy-{name}"), message(0x13, 2, &octets));
            }
        }
    }

    let event = |name: &str, kind: u16, octets: &[u8]| {
        seed("xfrm_event", name, [&kind.to_be_bytes(), octets].concat());
        seed("netlink_messages", name, message(kind, 0, octets));
    };
    for (hard, name) in [(0u8, "soft"), (1, "hard")] {
        let expire = [&states[0][..224], &[hard, 0, 0, 0, 0, 0, 0, 0], &states[0][224..]].concat();
        event(&format!("expire-{name}"), 0x18, &expire);
    }
    // An acquire has its template among the attributes; where is all that matters.
    let mut template = vec![0u8; 64];
    template[44..48].copy_from_slice(&0xC900_0040u32.to_ne_bytes());
    let mut w = Writer::new();
    w.attr(5, &template);
    event("acquire", 0x17, &[&[0; 280], w.bytes()].concat());
    event("acquire-without-template", 0x17, &[0; 280]);
    // struct xfrm_user_mapping: id (destination, SPI, family, protocol), reqid, old and new source, ports.
    let mut mapping = vec![192, 0, 2, 1];
    mapping.resize(16, 0);
    mapping.extend([0xC0, 0xFF, 0xEE, 0, 2, 0, 50, 0]);
    mapping.extend(0xC900_0040u32.to_ne_bytes());
    mapping.resize(28 + 16, 0);
    mapping.extend([203, 0, 113, 9]);
    mapping.resize(60, 0);
    mapping.extend([0x11, 0x94, 0xEE, 0xEE]);
    event("mapping", 0x1A, &mapping);
    event("unknown", 0x29, &[1; 400]);

    let m = |name: &str, octets: &[u8]| seed("netlink_messages", name, octets);
    m(
        "states",
        &[message(0x10, 2, &states[0]), message(0x10, 2, &states[1]), message(3, 2, &[0; 4])].concat(),
    );
    m("acknowledged", &message(2, 0x100, &[0; 20]));
    let mut w = Writer::new();
    w.raw(&(-38i32).to_ne_bytes());
    w.raw(&[0; 16]);
    w.attr_text(1, "Requested AEAD algorithm not found\n\x1b[31m");
    m("refused", &message(2, 0x300, w.bytes()));
    m("refused-uncapped", &message(2, 0x200, &[&w.bytes()[..4], &[0xFF; 4], &w.bytes()[8..]].concat()));
    m("overrun", &message(4, 0, &[]));
    let mut wrong = message(2, 0, &[0; 4]);
    for length in [0u32, 15, 16, 21, u32::MAX] {
        wrong[..4].copy_from_slice(&length.to_ne_bytes());
        m(&format!("length-{length}"), &wrong);
    }
    m("fifteen-octets", &wrong[..15]);
}

/// Where the family stands: IPv4 here, found by changing it until the state is no longer read.
fn family_at(state: &[u8]) -> usize {
    (0..223)
        .find(|at| {
            let mut changed = state.to_vec();
            changed[*at..*at + 2].copy_from_slice(&99u16.to_ne_bytes());
            testing::read_state(0x10, state).is_some()
                && testing::read_state(0x10, &changed).is_none()
                && *at > 200
        })
        .unwrap()
}

pub fn tc() {
    for (i, bps) in [1_000u64, 100_000_000, 50_000_000_000].into_iter().enumerate() {
        let spec = ClassSpec { handle: Handle::class(0x1A2B), rates: HtbRates::cap(bps) };
        let mut octets = testing::write_class(3, &spec);
        seed("tc_class", &format!("rate-{i}"), &octets);
        // Counters: TCA_STATS2 with basic, queue and 64 bit packets.
        let mut w = Writer::new();
        w.nest(7, |w| {
            w.attr(1, &[1; 12]);
            w.attr(3, &[2; 20]);
            w.attr_u64(8, 77);
        });
        octets.extend(w.bytes());
        seed("tc_class", &format!("rate-{i}-counted"), &octets);
        seed("tc_qdisc", &format!("class-{i}"), &octets);
        seed("netlink_messages", &format!("class-{i}"), message(40, 2, &octets));
        // Without the 64 bit rates, as old kernels have it.
        let narrow = octets.windows(4).position(|w| w == [12, 0, 6, 0]).unwrap();
        octets[narrow + 2] = 60;
        seed("tc_class", &format!("rate-{i}-narrow"), &octets);
    }
    for source in ["192.0.2.1", "2001:db8::1"] {
        let spec = |traffic| FilterSpec { source: source.parse().unwrap(), traffic, class: Handle::class(7) };
        let octets = testing::write_filter(3, &spec(Traffic::All));
        let name = if source.contains(':') { "v6" } else { "v4" };
        seed("tc_filter", name, &octets);
        seed("tc_filter", &format!("{name}-ike"), testing::write_filter(3, &spec(Traffic::Ike)));
        seed("tc_filter", &format!("{name}-natt"), testing::write_filter(3, &spec(Traffic::IkeBesideEsp)));
        seed("tc_filter", &format!("{name}-cut"), &octets[..octets.len() - 20]);
        let mut foreign = octets.clone();
        foreign[12] ^= 1;
        seed("tc_filter", &format!("{name}-other-parent"), foreign);
    }
    let qdisc = |kind: &str, handle: u32, parent: u32| {
        let mut w = Writer::new();
        w.raw(&[0; 4]);
        [3, handle, parent, 2].iter().for_each(|field: &u32| w.raw(&field.to_ne_bytes()));
        w.attr_text(1, kind);
        w.bytes().to_vec()
    };
    seed("tc_qdisc", "ours", qdisc("htb", 0xC960_0000, u32::MAX));
    seed("tc_qdisc", "default", qdisc("noqueue", 0, u32::MAX));
    seed("tc_qdisc", "foreign", qdisc("fq_codel", 0x8001_0000, u32::MAX));
    seed("tc_qdisc", "control-characters", qdisc("a\nb\x1b[31m", 1, 1));
    seed("tc_qdisc", "nineteen-octets", [0; 19]);
    for target in ["tc_class", "tc_filter"] {
        seed(target, "nineteen-octets", [0; 19]);
        seed(target, "no-attributes", [0; 20]);
    }
}
