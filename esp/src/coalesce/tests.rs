use proptest::prelude::*;

use super::*;
use crate::segment::Superpacket;
use crate::testing::packet;

#[derive(Clone)]
struct Seg {
    port: u8,
    seq: u32,
    len: usize,
    flags: u8,
}

const fn seg(seq: u32, len: usize) -> Seg {
    Seg { port: 1, seq, len, flags: TCP_ACK }
}

fn tcp(v6: bool, s: &Seg) -> Vec<u8> {
    let mut upper = vec![0x12, s.port, 0, 80];
    upper.extend(s.seq.to_be_bytes());
    upper.extend([1, 2, 3, 4, 0x50, s.flags, 0xAA, 0xBB, 0, 0, 0, 0]);
    upper.extend((0..s.len).map(|i| (s.seq as usize + i) as u8));
    let (src, dst) = if v6 { ("fd01::1", "fd02::1") } else { ("10.1.0.1", "10.2.0.1") };
    packet(src, dst, protocol::TCP, &upper, Some(TCP_CHECKSUM_AT))
}

fn udp(len: usize, fill: u8) -> Vec<u8> {
    let total = (8 + len) as u16;
    let mut upper = vec![0x12, 0x34, 0, 53, (total >> 8) as u8, total as u8, 0, 0];
    upper.extend(vec![fill; len]);
    packet("10.1.0.1", "10.2.0.1", protocol::UDP, &upper, Some(UDP_CHECKSUM_AT))
}

/// Packets through a coalescer: each train's header, octets and count.
fn join(coalescer: &mut Coalescer, packets: &[Vec<u8>]) -> Vec<(VnetHeader, Vec<u8>, usize)> {
    let mut arena = Vec::new();
    let mut ranges = Vec::new();
    for packet in packets {
        // Packets do not lie back to back: ESP headers are between them.
        arena.extend([0xEE; 16]);
        ranges.push(arena.len()..arena.len() + packet.len());
        arena.extend(packet);
    }
    for range in ranges {
        let inner = InnerHeader::parse(&arena[range.clone()]).unwrap();
        coalescer.push(&arena, range, &inner);
    }
    let mut out = Vec::new();
    coalescer.flush(&mut arena, |slices, count| {
        let vnet = VnetHeader::from_bytes(slices[0].as_ref().try_into().unwrap()).unwrap();
        out.push((vnet, slices[1..].iter().flat_map(|s| s.to_vec()).collect(), count));
    });
    assert!(coalescer.is_empty());
    out
}

/// What the kernel would make of the superpackets again.
fn cut(trains: &[(VnetHeader, Vec<u8>, usize)]) -> Vec<Vec<u8>> {
    let mut out = Vec::new();
    for (vnet, packet, count) in trains {
        let inner = InnerHeader::parse(packet).unwrap();
        let superpacket = Superpacket::new(vnet, packet, &inner).unwrap();
        assert_eq!(superpacket.count(), *count);
        for i in 0..superpacket.count() {
            let mut segment = vec![0; superpacket.segment_len(i)];
            superpacket.write(i, &mut segment).unwrap();
            // Identification counts in a cut superpacket, here all packets had the same.
            if segment[0] >> 4 == 4 {
                segment[4..6].copy_from_slice(&[0, 7]);
                sum_ipv4_header(&mut segment[..20]);
            }
            out.push(segment);
        }
    }
    out
}

fn sizes(packets: &[Seg]) -> Vec<usize> {
    let packets: Vec<_> = packets.iter().map(|s| tcp(false, s)).collect();
    let trains = join(&mut Coalescer::new(Joins::TcpUdp), &packets);
    assert_eq!(cut(&trains).len(), packets.len());
    trains.into_iter().map(|(_, _, count)| count).collect()
}

#[test]
fn neighbours_are_joined_and_cut_again_to_the_same() {
    for v6 in [false, true] {
        let packets: Vec<_> = (0..40).map(|i| tcp(v6, &seg(i * 1000, 1000))).collect();
        let trains = join(&mut Coalescer::new(Joins::Tcp), &packets);
        assert_eq!(trains.len(), 1);
        assert_eq!(cut(&trains), packets);
    }
}

#[test]
fn gaps_short_packets_and_flags_end_a_train() {
    assert_eq!(sizes(&[seg(0, 100), seg(100, 100), seg(300, 100)]), [2, 1]);
    assert_eq!(sizes(&[seg(0, 100), seg(100, 50), seg(150, 100)]), [2, 1]);
    assert_eq!(sizes(&[seg(0, 100), seg(100, 200)]), [1, 1]);
    assert_eq!(sizes(&[seg(100, 100), seg(0, 100)]), [1, 1]);
    let push = Seg { flags: TCP_ACK | TCP_PSH, ..seg(100, 100) };
    assert_eq!(sizes(&[seg(0, 100), push, seg(200, 100)]), [2, 1]);
    for flags in [0x11, 0x12, 0x14, 0x30, 0x50, 0x90, 0] {
        assert_eq!(
            sizes(&[seg(0, 100), Seg { flags, ..seg(100, 100) }, seg(200, 100)]),
            [1, 1, 1],
            "{flags:x}"
        );
    }
    // Pure acknowledgements pass alone and keep their place.
    assert_eq!(sizes(&[seg(0, 100), seg(100, 0), seg(100, 100)]), [1, 1, 1]);
}

#[test]
fn the_push_flag_survives() {
    let push = Seg { flags: TCP_ACK | TCP_PSH, ..seg(100, 100) };
    let packets = [tcp(false, &seg(0, 100)), tcp(false, &push)];
    assert_eq!(cut(&join(&mut Coalescer::new(Joins::Tcp), &packets)), packets);
}

#[test]
fn damaged_packets_are_not_joined_and_stay_damaged() {
    let good = tcp(false, &seg(0, 100));
    let mut bad = tcp(false, &seg(100, 100));
    *bad.last_mut().unwrap() ^= 1;
    let trains = join(&mut Coalescer::new(Joins::Tcp), &[good.clone(), bad.clone()]);
    assert_eq!(trains, [(VnetHeader::PLAIN, good.clone(), 1), (VnetHeader::PLAIN, bad, 1)]);
    let mut bad_head = good;
    *bad_head.last_mut().unwrap() ^= 1;
    assert_eq!(join(&mut Coalescer::new(Joins::Tcp), &[bad_head, tcp(false, &seg(100, 100))]).len(), 2);
}

#[test]
fn nothing_is_joined_for_a_simple_device() {
    let packets: Vec<_> = (0..4).map(|i| tcp(false, &seg(i * 100, 100))).collect();
    assert_eq!(join(&mut Coalescer::new(Joins::Nothing), &packets).len(), 4);
}

#[test]
fn udp_is_joined_only_where_the_device_takes_it() {
    let packets = [udp(100, 1), udp(100, 2), udp(60, 3), udp(100, 4)];
    assert_eq!(join(&mut Coalescer::new(Joins::Tcp), &packets).len(), 4);
    let trains = join(&mut Coalescer::new(Joins::TcpUdp), &packets);
    assert_eq!(trains.iter().map(|t| t.2).collect::<Vec<_>>(), [3, 1]);
    assert_eq!(cut(&trains), packets);
}

#[test]
fn no_train_exceeds_what_the_kernel_takes() {
    let packets: Vec<_> = (0..200).map(|i| tcp(false, &seg(i * 1400, 1400))).collect();
    for (_, packet, count) in join(&mut Coalescer::new(Joins::Tcp), &packets) {
        assert!(packet.len() <= MAX_LEN && count <= MAX_PARTS);
    }
}

proptest! {
    /// Nothing is lost, changed, or reordered within a flow.
    #[test]
    fn flows_come_out_as_they_went_in(
        v6: bool,
        steps in prop::collection::vec((1u8..5, 0usize..3, prop::sample::select(vec![0x10u8, 0x10, 0x10, 0x18, 0x11])), 1..120),
    ) {
        let mut next = [0u32; 5];
        let mut packets = Vec::new();
        for (port, size, flags) in steps {
            let len = [200, 200, 77][size];
            let seq = next[usize::from(port)];
            next[usize::from(port)] += len as u32;
            packets.push(tcp(v6, &Seg { port, seq, len, flags }));
        }
        let again = cut(&join(&mut Coalescer::new(Joins::TcpUdp), &packets));
        prop_assert_eq!(again.len(), packets.len());
        let port_at = if v6 { 41 } else { 21 };
        for port in 1..5 {
            let of = |list: &[Vec<u8>]| list.iter().filter(|p| p[port_at] == port).cloned().collect::<Vec<_>>();
            prop_assert_eq!(of(&again), of(&packets));
        }
    }
}

#[test]
fn a_damaged_ipv4_header_is_not_made_good_by_joining() {
    let mut packets: Vec<Vec<u8>> = (0..4).map(|i| tcp(false, &seg(i * 100, 100))).collect();
    for damaged in 0..4 {
        let whole = packets.clone();
        // The time to live: nothing but the header checksum covers it.
        packets.iter_mut().for_each(|packet| packet[10] ^= 0x40);
        packets[damaged][10] ^= 0x01;
        let trains = join(&mut Coalescer::new(Joins::TcpUdp), &packets);
        assert_eq!(trains.len(), 4, "each passes alone, as it came");
        assert!(
            trains.iter().zip(&packets).all(|((_, bytes, count), packet)| bytes == packet && *count == 1)
        );
        packets = whole;
    }
    assert_eq!(join(&mut Coalescer::new(Joins::TcpUdp), &packets).len(), 1);
}
