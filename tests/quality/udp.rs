//! UDP probes: of a host's Echo service, and of a gateway that answers itself.

use super::*;

/// An Echo service (RFC 862) of a host until it is stopped; then it tells what it got.
struct Echo {
    stop: Arc<AtomicBool>,
    service: JoinHandle<Vec<Vec<u8>>>,
}

impl Echo {
    fn open(host: &Host, at: &'static str) -> Self {
        let stop = Arc::<AtomicBool>::default();
        let stopped = Arc::clone(&stop);
        let (ready, is_ready) = mpsc::channel();
        let service = host.thread(move || {
            let socket = UdpSocket::bind(at).unwrap();
            socket.set_read_timeout(Some(Duration::from_millis(200))).unwrap();
            ready.send(()).unwrap();
            let (mut taken, mut buffer) = (Vec::new(), [0; 1500]);
            while !stopped.load(Relaxed) {
                if let Ok((len, from)) = socket.recv_from(&mut buffer) {
                    taken.push(buffer[..len].to_vec());
                    socket.send_to(&buffer[..len], from).unwrap();
                }
            }
            taken
        });
        is_ready.recv().unwrap();
        Self { stop, service }
    }

    fn close(self) -> Vec<Vec<u8>> {
        self.stop.store(true, Relaxed);
        self.service.join().unwrap()
    }
}

/// A host behind the other gateway drops pings, and has an Echo service.
#[test]
fn udp_probes_pass_where_pings_do_not() {
    let Some(mut pair) = Pair::new("udp_probes_pass_where_pings_do_not") else { return };
    let behind = Host::new("udp_probes_pass_where_pings_do_not").unwrap();
    let (gateway, host) = (pair.hosts[1].holder.id(), behind.holder.id());
    let make = format!("ip link add lan netns {gateway} type veth peer name lan netns {host}");
    assert!(Command::new("sh").args(["-c", &make]).status().unwrap().success());
    pair.hosts[1]
        .sh("ip address add 10.2.9.1/24 dev lan; ip link set lan up; sysctl -qw net.ipv4.ip_forward=1");
    let rules = "ip address add 10.2.9.2/24 dev lan; ip link set lan up; ip route add default via 10.2.9.1
        nft add table ip wall && nft 'add chain ip wall in { type filter hook input priority 0; }' && \
        nft add rule ip wall in icmp type echo-request drop && echo made";
    assert_eq!(behind.sh(rules), "made\n");
    let echo = Echo::open(&behind, "10.2.9.2:4007");

    let daemon = "metrics: { listen: \"127.0.0.1:9180\" }";
    let text = pair.text(1, &[""], daemon);
    pair.start(1, &text);
    let by = |probe: &str| format!("health_check: {{ target: 10.2.9.2, {probe} {QUICK} }},");
    let text = pair.text(0, &[&by("probe: udp, port: 4007,")], daemon);
    pair.start(0, &text);
    until(|| pair.health(0, "t0") == "good");
    let quality = &pair.tunnel(0, "t0")["quality"];
    assert_eq!((quality["probe"].as_str(), quality["port"].as_u64()), (Some("udp"), Some(4007)));
    assert_eq!(quality["lost_there"], Value::Null, "a service does not count");
    let text = String::from_utf8(pair.hosts[0].ask("x", &["status", "t0"]).stdout).unwrap();
    assert!(text.contains("UDP port 4007 of 10.2.9.2: "), "{text}");
    let metrics = pair.hosts[0].metrics("x");
    assert!(
        metrics.contains("cygnet_probe_loss_ratio{gateway=\"g0\",tunnel=\"t0\",probe=\"udp\"} 0"),
        "{metrics}"
    );
    assert!(!metrics.contains("probe=\"icmp\""), "{metrics}");

    let apply = |pair: &Pair, probe: &str| {
        pair.write(0, &pair.text(0, &[&by(probe)], daemon));
        let o = pair.hosts[0].ask("x", &["apply"]);
        assert_eq!(o.status.code(), Some(0), "{:?}", told(&o));
    };
    apply(&pair, "");
    until(|| pair.health(0, "t0") == "degraded");
    apply(&pair, "probe: udp, port: 4007,");
    until(|| pair.health(0, "t0") == "good");
    assert!(echo.close().iter().all(|data| data.len() == 32), "nothing but probes");
    // From here on the host says that nobody listens, by ICMP: that is no answer.
    until(|| pair.health(0, "t0") == "degraded");
    assert_eq!(pair.tunnel(0, "t0")["quality"]["cause"], "no_answer");
}

/// Nobody listens at the port of the probes: the gateway answers them itself, each by the tunnel by which it came.
#[test]
fn a_gateway_answers_udp_probes_and_leaves_other_datagrams_to_the_host() {
    let Some(mut pair) = Pair::new("a_gateway_answers_udp_probes_and_leaves_other_datagrams_to_the_host")
    else {
        return;
    };
    for side in [1, 0] {
        let check =
            format!("health_check: {{ target: {}, probe: udp, {QUICK} }},", pair.inner.address(1 - side));
        let text = pair.text(side, &[&check, &check], "metrics: { listen: off }");
        pair.start(side, &text);
    }
    let all = [(0, "t0"), (0, "t1"), (1, "t0"), (1, "t1")];
    for (side, name) in all {
        until(|| pair.health(side, name) == "good");
        assert_eq!(pair.tunnel(side, name)["quality"]["port"], 7);
    }
    // The host has an Echo service, too.
    let echo = Echo::open(&pair.hosts[1], "10.2.0.1:7");
    let ask = pair.hosts[0].thread(|| {
        let socket = UdpSocket::bind(("10.1.0.1", 0)).unwrap();
        socket.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
        let mut buffer = [0; 100];
        // As long as a probe.
        let asked = [0x63; 32];
        let answered = (0..4).any(|_| {
            socket.send_to(&asked, ("10.2.0.1", 7)).unwrap();
            socket.recv(&mut buffer).is_ok_and(|len| buffer[..len] == asked)
        });
        assert!(answered);
    });
    ask.join().unwrap();
    pair.lose(&[0, 1], "wire0", 1);
    for side in [0, 1] {
        until(|| pair.health(side, "t0") == "degraded");
        let quality = &pair.tunnel(side, "t1")["quality"];
        assert_eq!(
            (quality["health"].as_str(), quality["lost_there"].as_u64()),
            (Some("good"), Some(0)),
            "{quality:#}"
        );
    }
    pair.lose_nothing();
    for (side, name) in all {
        until(|| pair.health(side, name) == "good");
    }
    assert!(echo.close().iter().all(|data| *data == [0x63; 32]), "no probe comes to the host");
}
