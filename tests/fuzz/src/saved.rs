//! What is kept of SAs: a file that may be anybody's by the time it is read.

use std::collections::BTreeSet;
use std::time::Duration;

use cygnet_ike::saved::{Saved, parse_sa, show_sa};
use cygnet_ike::{Action, Config, Endpoint, Input as Told};
use cygnet_model::tunnel::{Direction, SaId};
use cygnet_model::{ChildId, Now, Spi, Timestamp};
use cygnet_sim::{Seeded, policy};

/// A record of an ESP SA or of an IKE SA: it is refused, or it means itself. An IKE SA goes on by itself then, whatever it
/// holds: in bounds, and what is kept of it in turn is read.
pub fn ike_saved(data: &[u8]) {
    if let Ok(spec) = parse_sa(data) {
        assert_eq!(show_sa(&spec).expose(), data);
    }
    let Ok(saved) = Saved::parse(data) else { return };
    let (tunnel, spi) = (saved.tunnel(), saved.spi());
    let mut at = Timestamp::from_nanos(1_010_000_000_000);
    let now = Now { mono: at, unix: 0 };
    let mut endpoint = Endpoint::new(Config::default(), now, Box::new(Seeded::new(7)));
    let mut random = Seeded::new(8);
    let mut configured = policy(0, 2);
    configured.id = tunnel;
    // SAs are there whose SPIs stand in the record, some of them as such.
    let windows = data.windows(4).step_by(1 + data.len() / 256);
    let spis = windows.filter_map(|w| Spi::new(u32::from_be_bytes(w.try_into().expect("four octets"))));
    let id = |spi, direction| SaId { child: ChildId { tunnel, index: 0 }, direction, spi };
    let present: BTreeSet<SaId> =
        spis.flat_map(|spi| [id(spi, Direction::In), id(spi, Direction::Out)]).collect();
    let mut out = Vec::new();
    let refused =
        endpoint.restore(Now { mono: at, unix: 0 }, vec![configured], vec![saved], &present, false, &mut out);
    assert!(refused.iter().all(|r| (r.tunnel, r.spi) == (tunnel, spi)));
    for _ in 0..200 {
        for change in endpoint.take_changes() {
            if let Some(kept) = change.saved {
                assert!(Saved::parse(kept.expose()).is_ok(), "what is kept of it is not read");
            }
        }
        let Some(next) = endpoint.next_wakeup().filter(|next| *next < at + Duration::from_secs(1_000_000))
        else {
            break;
        };
        at = at.max(next);
        let from = out.len();
        endpoint.handle(Now { mono: at, unix: 0 }, Told::Tick, &mut out);
        for action in out.split_off(from) {
            match action {
                Action::Run(id, job) => {
                    let done = Told::Done(id, job.run_toy(&mut random));
                    endpoint.handle(Now { mono: at, unix: 0 }, done, &mut out);
                }
                other => out.push(other),
            }
        }
    }
    let sent: usize =
        out.iter().map(|a| if let Action::Send { bytes, .. } = a { bytes.len() } else { 0 }).sum();
    assert!(sent <= 200 * (data.len() + 8192), "{sent} octets were sent");
    assert!(endpoint.sa_count() <= 8);
}
