//! The webhook over TLS, with authorities that the test made: the daemon sees them where a host keeps its own.

use super::*;

/// Keys and certificates below `$1`: `known` is an authority that the daemon will trust, `other` one that it will not.
/// `good` is for 127.0.0.1 by the one, `stranger` by the other; `elsewhere` is for another host.
const CERTIFICATES: &str = r#"
set -e
cd "$1"
authority() {
    openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 30 -subj "/CN=$1" -keyout "$1.key" -out "$1.pem"
}
server() { # NAME AUTHORITY ALTERNATIVE-NAME
    printf 'subjectAltName=%s\n' "$3" >extensions
    openssl req -new -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -subj "/CN=$1" -keyout key -out request
    openssl x509 -req -in request -CA "$2.pem" -CAkey "$2.key" -CAcreateserial -days 30 -extfile extensions -out certificate
    cat certificate key >"$1.both"
}
authority known
authority other
server good known IP:127.0.0.1
server stranger other IP:127.0.0.1
server elsewhere known DNS:elsewhere.example
"#;

/// Serves TLS with what the file `served` holds at that moment. A line of JSON for each connection: why it came to nothing, or
/// what was posted.
const SERVER: &str = r#"
import json, socket, ssl, sys
listener = socket.create_server(("127.0.0.1", 0))
say = lambda **what: print(json.dumps(what), flush=True)
say(port=listener.getsockname()[1])
while True:
    raw, _ = listener.accept()
    raw.settimeout(20)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(sys.argv[1])
    try:
        with context.wrap_socket(raw, server_side=True) as tls, tls.makefile("rb") as stream:
            first, headers = stream.readline().decode(), {}
            while line := stream.readline().decode().strip():
                name, _, value = line.partition(":")
                headers[name.lower()] = value.strip()
            body = stream.read(int(headers["content-length"])).decode()
            tls.sendall(b"HTTP/1.1 204 No Content\r\nConnection: close\r\n\r\n")
            say(version=tls.version(), line=first, type=headers.get("content-type"),
                signature=headers.get("x-cygnet-signature"), body=body)
    except OSError as e:
        say(refused=str(e))
"#;

/// Has a program see `$1` as the authorities of its host.
const TRUSTING: &str = r#"
set -e
mount -t tmpfs none /etc/ssl
mkdir /etc/ssl/certs
cp "$1" /etc/ssl/certs/ca-certificates.crt
shift
exec "$@"
"#;

struct Server {
    process: std::process::Child,
    lines: mpsc::Receiver<Value>,
    port: u64,
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

impl Server {
    fn start(host: &Host) -> Self {
        let mut process = host
            .inside("python3")
            .args(["-c", SERVER])
            .arg(host.path("served"))
            .stdout(std::process::Stdio::piped())
            .spawn()
            .unwrap();
        let (tx, lines) = mpsc::channel();
        let out = BufReader::new(process.stdout.take().unwrap());
        std::thread::spawn(move || {
            for line in out.lines().map_while(Result::ok) {
                if tx.send(serde_json::from_str(&line).unwrap()).is_err() {
                    return;
                }
            }
        });
        let port = Self::wait(&lines)["port"].as_u64().unwrap();
        Self { process, lines, port }
    }

    fn wait(lines: &mpsc::Receiver<Value>) -> Value {
        lines.recv_timeout(Duration::from_secs(40)).unwrap()
    }

    /// What comes of the next connection.
    fn next(&self) -> Value {
        Self::wait(&self.lines)
    }
}

/// From now on the server has this certificate.
fn serve_as(host: &Host, name: &str) {
    // In one step: it may be read at this moment.
    fs::copy(host.path(&format!("{name}.both")), host.path("next")).unwrap();
    fs::rename(host.path("next"), host.path("served")).unwrap();
}

fn start_trusting(pair: &mut Pair, text: &str) {
    pair.write(0, text);
    let host = &pair.hosts[0];
    let log = fs::File::options().create(true).append(true).open(host.path("log")).unwrap();
    let mut command = host.inside("unshare");
    command.args(["--mount", "sh", "-c", TRUSTING, "sh"]).arg(host.path("known.pem"));
    command.arg(env!("CARGO_BIN_EXE_cygnet")).arg("run").arg("--config").arg(host.path("x.yaml"));
    let daemon = Daemon(command.stderr(log).spawn().unwrap());
    until(|| host.ask("x", &["status"]).status.code() != Some(69));
    pair.daemons.push(daemon);
}

#[test]
fn an_event_goes_by_tls_to_whom_the_hosts_authorities_vouch_for_and_to_nobody_else() {
    let test = "an_event_goes_by_tls_to_whom_the_hosts_authorities_vouch_for_and_to_nobody_else";
    let Some(mut pair) = Pair::new(test) else { return };
    for program in ["openssl", "python3"] {
        let look = format!("command -v {program} >/dev/null");
        if !Command::new("sh").args(["-c", &look]).status().unwrap().success() {
            println!("{test} is skipped: there is no {program}");
            return;
        }
    }
    let made =
        Command::new("sh").args(["-c", CERTIFICATES, "sh"]).arg(pair.hosts[0].dir.path()).output().unwrap();
    assert!(made.status.success(), "{}", told(&made).1);
    serve_as(&pair.hosts[0], "stranger");
    let server = Server::start(&pair.hosts[0]);
    let text = |pair: &Pair, path: &str| {
        let daemon = format!(
            "metrics: {{ listen: \"127.0.0.1:9180\" }}, alerts: {{ webhook: {{ url: \"https://127.0.0.1:{}/{path}\", \
             secret_file: hook.secret }}, events: [started, config_applied] }}",
            server.port
        );
        pair.text(0, &[""], &daemon)
    };
    let first = text(&pair, "hook");
    start_trusting(&mut pair, &first);
    let count = |pair: &Pair, result: &str| {
        let page = pair.hosts[0].metrics("x");
        let series = format!("cygnet_alerts_total{{channel=\"webhook\",result=\"{result}\"}} ");
        page.lines().find_map(|line| line.strip_prefix(&series)?.parse::<u64>().ok()).unwrap()
    };

    // Nobody knows who made this certificate: nothing is posted, and it is tried again.
    for _ in 0..2 {
        let tried = server.next();
        assert!(tried["refused"].is_string(), "{tried}");
    }
    assert_eq!((count(&pair, "delivered"), count(&pair, "failed")), (0, 0), "it is not given up yet");

    // With the right one the same event arrives.
    serve_as(&pair.hosts[0], "good");
    let posted = loop {
        let next = server.next();
        if next["refused"].is_null() {
            break next;
        }
    };
    let body = posted["body"].as_str().unwrap();
    let secret = SecretBytes::copy_of(SECRET.as_bytes());
    assert_eq!(posted["signature"], cygnet::alerts::signature(&secret, body.as_bytes()));
    assert_eq!(posted["version"], "TLSv1.3");
    assert_eq!(posted["type"], "application/json");
    assert_eq!(posted["line"], "POST /hook HTTP/1.1\r\n");
    assert_eq!(serde_json::from_str::<Value>(body).unwrap()["event"], "started");
    until(|| count(&pair, "delivered") == 1);

    // A certificate by the right authority for another host is none for this one; the event is counted when it is given up,
    // as it is with the webhook that it was for.
    serve_as(&pair.hosts[0], "elsewhere");
    let o = pair.hosts[0].ask("x", &["apply"]);
    assert_eq!(o.status.code(), Some(0), "{:?}", told(&o));
    let tried = server.next();
    assert!(tried["refused"].is_string(), "{tried}");
    pair.write(0, &text(&pair, "another"));
    let o = pair.hosts[0].ask("x", &["apply"]);
    assert_eq!(o.status.code(), Some(0), "{:?}", told(&o));
    until(|| count(&pair, "failed") == 1);
    assert_eq!(count(&pair, "delivered"), 1);
    let log = fs::read_to_string(pair.hosts[0].path("log")).unwrap();
    let line = log.lines().find(|line| line.contains("is given up")).unwrap();
    assert!(line.contains("certificate"), "{line}");
    assert!(!log.contains(SECRET), "the log has the secret");
}
