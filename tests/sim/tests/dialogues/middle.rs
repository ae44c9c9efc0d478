//! A man in the middle of IKE_SA_INIT, and floods from strangers: what they get, and what they cost.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::rc::Rc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use cygnet_ike::policy::Start;
use cygnet_ike::wire::{
    Exchange, HEADER_LEN, Header, KeyExchange, Notify, NotifyType, PayloadType, Payloads, Transform,
    TransformType, Writer,
};
use cygnet_ike::{Command, Event, TunnelPolicy};
use cygnet_sim::{Lab, Link, TUNNEL, policy};

use crate::attacks::forged_init;
use crate::{Log, record, secs};

/// Both ends allow a strong suite and a weaker one, so that there is something to win for whoever edits.
fn policies() -> [TunnelPolicy; 2] {
    let mut both = [policy(0, 1), policy(1, 1)];
    for p in &mut both {
        p.proposals =
            ["aes256gcm16-prfsha384-x25519-ecp384", "aes256-aes128-sha384-sha256-prfsha256-ecp384-modp2048"]
                .map(|text| text.parse().unwrap())
                .into();
    }
    both
}

fn decoded(bytes: &[u8]) -> Option<(Header, Payloads)> {
    let (header, chain) = Header::decode(bytes).ok()?;
    let init = header.exchange == Exchange::IKE_SA_INIT;
    Some((header, Payloads::decode(header.next, chain).ok().filter(|_| init)?))
}

fn encoded(header: &Header, payloads: &Payloads) -> Vec<u8> {
    let mut w = Writer::message(&Header { next: PayloadType::NONE, ..*header });
    payloads.encode(&mut w);
    w.finish()
}

/// One change of an IKE_SA_INIT message.
type Edit = Rc<dyn Fn(&mut Header, &mut Payloads)>;

/// Every edit that a message of this shape offers a handle for.
fn edits(like: &Payloads) -> Vec<(String, Edit)> {
    let mut all: Vec<(String, Edit)> = Vec::new();
    let mut add = |name: String, f: Edit| all.push((name, f));
    for (n, notify) in like.notifies.iter().enumerate() {
        let kind = notify.kind;
        add(format!("{kind} stripped"), Rc::new(move |_, p| drop(remove(&mut p.notifies, n))));
        add(
            format!("{kind} renamed"),
            Rc::new(move |_, p| p.notifies.iter_mut().skip(n).take(1).for_each(|x| x.kind.0 ^= 0x0100)),
        );
        add(
            format!("{kind} with other data"),
            Rc::new(move |_, p| {
                for x in p.notifies.iter_mut().skip(n).take(1) {
                    match x.data.first_mut() {
                        Some(octet) => *octet ^= 1,
                        None => x.data.push(1),
                    }
                }
            }),
        );
    }
    for kind in [NotifyType::COOKIE, NotifyType::INITIAL_CONTACT, NotifyType(16_404), NotifyType(16_438)] {
        add(
            format!("{kind} added"),
            Rc::new(move |_, p| p.notifies.push(Notify::new(kind, vec![0, 20, 7, 7]))),
        );
    }
    for (n, proposal) in like.sa.iter().flatten().enumerate() {
        add(format!("proposal {n} stripped"), Rc::new(move |_, p| drop(remove(p.sa.as_mut().unwrap(), n))));
        for (t, transform) in proposal.transforms.iter().enumerate() {
            let name = format!("{:?} {} of proposal {n}", transform.kind, transform.id);
            let at = move |p: &mut Payloads, f: &dyn Fn(&mut Vec<Transform>, usize)| {
                if let Some(x) = p.sa.iter_mut().flatten().nth(n)
                    && t < x.transforms.len()
                {
                    f(&mut x.transforms, t);
                }
            };
            add(
                format!("{name} stripped"),
                Rc::new(move |_, p| {
                    at(p, &|all, t| {
                        all.remove(t);
                    })
                }),
            );
            for id in [1, 2, 3, 5, 12, 14, 19, 20, 31] {
                add(format!("{name} made {id}"), Rc::new(move |_, p| at(p, &|all, t| all[t].id = id)));
            }
            for bits in [None, Some(128), Some(192)] {
                add(
                    format!("{name} of {bits:?} bits"),
                    Rc::new(move |_, p| at(p, &|all, t| all[t].key_bits = bits)),
                );
            }
            add(
                format!("MODP-1024 beside {name}"),
                Rc::new(move |_, p| at(p, &|all, _| all.push(Transform::plain(TransformType::KE, 2)))),
            );
        }
    }
    for group in [2, 14, 20] {
        let name = format!("key exchange group made {group}");
        add(name, Rc::new(move |_, p| p.ke.iter_mut().for_each(|ke| ke.group = group)));
    }
    add("other key exchange value".into(), Rc::new(|_, p| p.ke.iter_mut().for_each(|ke| ke.data[3] ^= 1)));
    add("zero key exchange value".into(), Rc::new(|_, p| p.ke.iter_mut().for_each(|ke| ke.data.fill(0))));
    add("no key exchange".into(), Rc::new(|_, p| p.ke = None));
    add("other nonce".into(), Rc::new(|_, p| p.nonce.iter_mut().for_each(|n| n[0] ^= 1)));
    add("short nonce".into(), Rc::new(|_, p| p.nonce.iter_mut().for_each(|n| n.truncate(16))));
    add("no nonce".into(), Rc::new(|_, p| p.nonce = None));
    add("no SA".into(), Rc::new(|_, p| p.sa = None));
    add("other responder SPI".into(), Rc::new(|h, _| h.spi_r ^= 1));
    all
}

fn remove<T>(all: &mut Vec<T>, at: usize) -> Option<T> {
    (at < all.len()).then(|| all.remove(at))
}

/// The suites of IKE SAs that came up.
fn suites(lab: &Lab) -> Vec<String> {
    let events = lab.gateways.iter().flat_map(|g| g.events.iter());
    events
        .filter_map(|(_, e)| match e {
            Event::IkeUp { suite, .. } => Some(format!("{suite:?}")),
            _ => None,
        })
        .collect()
}

#[test]
fn t37_whatever_is_edited_in_ike_sa_init_no_other_ike_sa_comes_of_it() {
    // Undisturbed.
    let mut lab = Lab::new(50, Link::GOOD, policies());
    let log = record(&mut lab);
    lab.run(secs(1));
    let wanted = suites(&lab);
    assert_eq!(wanted.len(), 2);
    let shapes: Vec<Payloads> =
        log.borrow().iter().take(2).map(|(_, bytes)| decoded(bytes).unwrap().1).collect();

    for (direction, shape) in shapes.iter().enumerate() {
        let edits = edits(shape);
        assert!(edits.len() > 40, "{}", edits.len());
        for (name, edit) in edits {
            let run = format!("from gateway {direction}: {name}");
            let mut lab = Lab::new(50, Link::GOOD, policies());
            let changed = Rc::new(RefCell::new(0u32));
            let count = Rc::clone(&changed);
            // What says COOKIE or INVALID_KE_PAYLOAD passes.
            lab.tap = Some(Box::new(move |side, bytes| {
                let Some((header, payloads)) = decoded(&bytes) else { return Some(bytes) };
                if side != direction || payloads.sa.is_none() {
                    return Some(bytes);
                }
                let (mut other_header, mut other) = (header, payloads);
                edit(&mut other_header, &mut other);
                let edited = encoded(&other_header, &other);
                *count.borrow_mut() += u32::from(edited != bytes);
                Some(edited)
            }));
            lab.run(secs(8));
            if *changed.borrow() > 0 {
                // The responder believes an initiator whose own message arrived as it was; the initiator, who sees that
                // the answer was not what the responder said, ends it at once.
                let up = suites(&lab);
                assert!(up.iter().all(|s| direction == 1 && *s == wanted[0]), "{run}: {up:?}");
                assert!(lab.view(0).ike.is_none() && lab.view(0).children.is_empty(), "{run}");
                assert!(lab.gateways.iter().all(|g| g.plane.sas.is_empty()), "{run}");
            }
            let told = suites(&lab).len();
            // He goes.
            lab.tap = None;
            lab.run(secs(200));
            lab.assert_settled(1);
            let up = suites(&lab).len() - told;
            assert!(up == 2 || up == 3 || *changed.borrow() == 0, "{run}");
            assert!(suites(&lab).iter().all(|s| *s == wanted[0]), "{run}");
        }
    }
}

#[test]
fn t37_a_forged_invalid_ke_payload_leads_to_no_group_that_the_two_ends_do_not_both_allow() {
    for group in 0..64u16 {
        let mut lab = Lab::new(51, Link { loss: 1000, ..Link::GOOD }, policies());
        lab.run(Duration::from_millis(1));
        lab.link = Link::GOOD;
        let notify = Notify::new(NotifyType::INVALID_KE_PAYLOAD, group.to_be_bytes().to_vec());
        let payloads = Payloads { notifies: vec![notify], ..Payloads::default() };
        let bytes = forged_init(&lab, 0, &payloads);
        lab.inject(0, lab.flow(0), &bytes);
        lab.run(secs(20));
        lab.assert_settled(1);
        let (groups, suites) = (["X25519", "Ecp384", "Modp2048"], suites(&lab));
        assert!(suites.iter().all(|s| groups.iter().any(|g| s.contains(g))), "{suites:?}");
    }
}

/// The IKE_SA_INIT requests of gateway 0 so far.
fn requests(log: &Log) -> Vec<Payloads> {
    let log = log.borrow();
    let sent = log.iter().filter(|(side, _)| *side == 0);
    sent.filter_map(|(_, bytes)| decoded(bytes)).map(|(_, payloads)| payloads).collect()
}

#[test]
fn t33_a_peer_that_wants_one_group_after_the_other_is_given_up() {
    let mut lab = Lab::new(52, Link { loss: 1000, ..Link::GOOD }, policies());
    let log = record(&mut lab);
    lab.run(Duration::from_millis(1));
    for group in [20u16, 31, 20, 31, 20, 31, 20, 31] {
        // I -> R  IKE_SA_INIT { SA, KEi, Ni }, I <- R  { N(INVALID_KE_PAYLOAD) }
        let notify = Notify::new(NotifyType::INVALID_KE_PAYLOAD, group.to_be_bytes().to_vec());
        let bytes = forged_init(&lab, 0, &Payloads { notifies: vec![notify], ..Payloads::default() });
        lab.inject(0, lab.flow(0), &bytes);
    }
    let requests = requests(&log);
    // The answer to any of them has a few seconds yet.
    assert!(lab.failures(0).is_empty());
    lab.run(secs(4));
    assert_eq!(lab.failures(0), ["invalid_ke_payload"]);
    assert_eq!(requests.len(), 5);
    // The whole offer each time: what refuses is not authenticated (RFC 7296 §2.7).
    assert!(requests.iter().all(|r| r.sa == requests[0].sa && r.nonce == requests[0].nonce));
}

#[test]
fn t33_a_cookie_and_another_group_may_come_in_either_order() {
    for cookie_first in [true, false] {
        let mut both = [policy(0, 1), policy(1, 1)];
        both[1].proposals = vec!["aes256gcm16-prfsha384-ecp384".parse().unwrap()];
        let mut lab = Lab::new(53, Link::GOOD, both);
        let log = record(&mut lab);
        lab.run(Duration::from_millis(if cookie_first { 1 } else { 6 }));
        // Strangers fill the table, so that R wants cookies from here on.
        let genuine = log.borrow()[0].1.clone();
        let (header, mut payloads) = decoded(&genuine).unwrap();
        payloads.ke = Some(KeyExchange { group: 20, data: vec![1; 96] });
        for n in 1..=32 {
            let bytes = encoded(&Header { spi_i: n, ..header }, &payloads);
            lab.inject(1, lab.flow(1), &bytes);
        }
        // I -> R  IKE_SA_INIT three times: as it was, with the cookie or the group, with both
        lab.run(Duration::from_millis(100));
        assert!(lab.is_up(), "cookie first: {cookie_first}");
        let requests = requests(&log);
        assert_eq!(requests.len(), 3);
        assert!(requests[2].notify(NotifyType::COOKIE).is_some());
        assert_eq!(requests[2].ke.as_ref().unwrap().group, 20);
        assert!(requests.iter().all(|r| r.nonce == requests[0].nonce));
    }
    // One that forgets the cookie when it asks for another group, and makes another one (RFC 7296 §2.6.1).
    let mut lab = Lab::pair(54, Link { loss: 1000, ..Link::GOOD });
    lab.run(Duration::from_millis(1));
    let group = || Notify::new(NotifyType::INVALID_KE_PAYLOAD, 20u16.to_be_bytes().to_vec());
    for notify in
        [Notify::new(NotifyType::COOKIE, vec![1; 8]), group(), Notify::new(NotifyType::COOKIE, vec![2; 8])]
    {
        lab.link.loss = 1000;
        if notify.data == [2; 8] {
            lab.link = Link::GOOD;
        }
        let bytes = forged_init(&lab, 0, &Payloads { notifies: vec![notify], ..Payloads::default() });
        lab.inject(0, lab.flow(0), &bytes);
    }
    lab.run(Duration::from_millis(100));
    lab.assert_settled(1);
}

#[test]
fn t41_ten_thousand_forged_ike_auths_cost_one_key_exchange_and_the_true_one_succeeds() {
    let mut lab = Lab::pair(55, Link::GOOD);
    // I -> R  IKE_SA_INIT, I <- R; IKE_AUTH is lost
    lab.run(Duration::from_millis(8));
    lab.link.loss = 1000;
    lab.run(Duration::from_millis(8));
    let spi = lab.gateways[1].endpoint.spis()[0];
    let (spi_i, spi_r) = lab.gateways[1].endpoint.header_spis(spi).unwrap();
    let before = lab.sent[1];
    for n in 0..10_000 {
        // ? -> R  IKE_AUTH SK { octets at random }, whole or in fragments
        let fragment = n % 4 == 3;
        let next = if fragment { PayloadType::SKF } else { PayloadType::SK };
        let exchange = Exchange::IKE_AUTH;
        let header =
            Header { spi_i, spi_r, next, exchange, from_initiator: true, response: false, message_id: 1 };
        let mut bytes = Vec::new();
        header.encode(&mut bytes);
        let len = 24 + lab.below(400) as usize;
        bytes.extend_from_slice(&[PayloadType::IDI.0, 0]);
        bytes.extend_from_slice(&(len as u16 + 4).to_be_bytes());
        bytes.extend((0..len).map(|_| lab.below(256) as u8));
        if fragment {
            bytes[HEADER_LEN + 4..HEADER_LEN + 8].copy_from_slice(&[0, 1, 0, 2]);
        }
        let total = (bytes.len() as u32).to_be_bytes();
        bytes[24..28].copy_from_slice(&total);
        lab.inject(1, lab.flow(1), &bytes);
    }
    assert_eq!(lab.gateways[1].secrets.load(Ordering::Relaxed), 1);
    assert_eq!(lab.gateways[1].drops.values().sum::<u64>(), 10_000, "{:?}", lab.gateways[1].drops);
    assert_eq!((lab.sent[1], lab.gateways[1].endpoint.half_open()), (before, 1));
    // I -> R  IKE_AUTH again
    lab.link = Link::GOOD;
    lab.run(secs(1));
    lab.assert_settled(1);
    assert_eq!(lab.gateways[1].secrets.load(Ordering::Relaxed), 1);
}

/// What a datagram weighs on the wire: with IPv4 and UDP headers.
fn octets(ike: usize) -> usize {
    ike + 20 + 8
}

#[test]
fn t42_strangers_get_no_more_octets_than_they_send_and_nothing_twice() {
    let genuine = {
        let mut lab = Lab::pair(56, Link::GOOD);
        let log = record(&mut lab);
        lab.run(Duration::from_millis(1));
        log.borrow()[0].1.clone()
    };
    let (header, full) = decoded(&genuine).unwrap();
    let mut asked = vec![genuine.clone()];
    // The least that is answered with an IKE SA.
    let mut least = Payloads { notifies: vec![], nonce: Some(vec![1; 16]), ..full.clone() };
    for p in least.sa.iter_mut().flatten() {
        p.transforms.retain(|t| t.kind != TransformType::KE || t.id == 31);
    }
    asked.push(encoded(&header, &least));
    for (_, edit) in edits(&full) {
        let (mut h, mut p) = (header, full.clone());
        edit(&mut h, &mut p);
        asked.push(encoded(&h, &p));
    }
    // Nothing at all; each payload alone; a critical payload of no known type; another version.
    asked.push(encoded(&header, &Payloads::default()));
    asked.push(encoded(&header, &Payloads { nonce: Some(vec![1; 16]), ..Payloads::default() }));
    asked.push(encoded(&header, &Payloads { sa: full.sa.clone(), ..Payloads::default() }));
    let mut critical = encoded(&header, &Payloads::default());
    critical[16] = 200;
    critical.extend_from_slice(&[0, 0x80, 0, 4]);
    critical[27] += 4;
    asked.push(critical);
    let mut version = asked[asked.len() - 4].clone();
    version[17] = 0x30;
    asked.push(version);

    for flood in [false, true] {
        let mut quiet = [policy(0, 1), policy(1, 1)];
        quiet[0].start = Start::Passive;
        let mut lab = Lab::new(56, Link::GOOD, quiet);
        lab.link.loss = 1000;
        if flood {
            for n in 1..=32 {
                lab.inject(1, lab.flow(1), &encoded(&Header { spi_i: n, ..header }, &full));
            }
        }
        let log = record(&mut lab);
        for (n, bytes) in asked.iter().enumerate() {
            for _ in 0..3 {
                log.borrow_mut().clear();
                let mut bytes = bytes.clone();
                bytes[..8].copy_from_slice(&(1000 + n as u64).to_be_bytes());
                lab.inject(1, lab.flow(1), &bytes);
                let answered: usize = log.borrow().iter().map(|(_, b)| octets(b.len())).sum();
                assert!(log.borrow().len() <= 1);

                let (answer, ask) = (answered * 10, octets(bytes.len()) * 12);
                assert!(answer <= ask, "case {n}, flood {flood}: {answered} for {}", octets(bytes.len()));
            }
        }
        log.borrow_mut().clear();
        lab.run(secs(120));
        assert!(log.borrow().iter().all(|(side, _)| *side != 1), "it repeats nothing by itself");
        lab.assert_gone(1);
    }
}

#[test]
fn t84_no_iv_is_used_twice_under_one_key() {
    /// By both SPIs and direction, hence by key: the message under each IV.
    type Seen = BTreeMap<(u64, u64, bool), BTreeMap<[u8; 8], Vec<u8>>>;
    let seen: Rc<RefCell<Seen>> = Rc::default();
    let tapped = Rc::clone(&seen);
    let link = Link { loss: 30, duplication: 30, ..Link::GOOD };
    let mut lab = Lab::new(57, link, [policy(0, 2), policy(1, 2)]);
    lab.tap = Some(Box::new(move |_, bytes| {
        let (h, _) = Header::decode(&bytes).unwrap();
        let at = match h.next {
            PayloadType::SK => HEADER_LEN + 4,
            PayloadType::SKF => HEADER_LEN + 8,
            _ => return Some(bytes),
        };
        let iv: [u8; 8] = bytes[at..at + 8].try_into().unwrap();
        let mut seen = tapped.borrow_mut();
        let of_key = seen.entry((h.spi_i, h.spi_r, h.from_initiator)).or_default();
        let first = of_key.entry(iv).or_insert_with(|| bytes.clone());
        // A repetition is the same octets.
        assert_eq!(*first, bytes, "IV {iv:?} of {:016x}/{:016x} twice", h.spi_i, h.spi_r);
        Some(bytes)
    }));
    let sealed = || seen.borrow().values().map(BTreeMap::len).sum::<usize>();
    while sealed() < 10_000 {
        let side = lab.below(2) as usize;
        match lab.below(40) {
            0 => lab.restart(side, policy(side, 2)),
            1..=4 => lab.command(side, Command::RekeyIke(TUNNEL)),
            _ => lab.command(side, Command::RekeyChildren(TUNNEL)),
        }
        let pause = 20 + lab.below(2000);
        lab.run(Duration::from_millis(pause));
    }
    assert!(seen.borrow().len() > 50, "{} keys", seen.borrow().len());
}
