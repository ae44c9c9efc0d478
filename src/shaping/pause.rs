//! Lets the thread that sends stand still for a moment: while the root qdisc of an interface is exchanged the kernel throws
//! away what is sent there (`dev_deactivate` in `net/sched/sch_generic.c`), so that nobody should.
//!
//! Neither side waits for the other for long: who changes the qdisc may itself wait for a lock of the kernel, and who sends may
//! be busy. Then packets may be lost, as they are without it.

use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::time::{Duration, Instant};

/// How long the sender may take to come to a stop: many batches on a machine with other work.
const PATIENCE: Duration = Duration::from_millis(250);
/// How long the sender stands still at most. Packets wait in the TUN device meanwhile, which has room for 500; what is sent
/// before the root stands is lost for certain, and on a machine with much other work that takes the kernel half a second.
const LONGEST: Duration = Duration::from_secs(1);
/// How often either looks.
const LOOK: Duration = Duration::from_micros(100);

/// See the [module](self). Both flags are stored before the other one is read, so that never both sides go on.
#[derive(Default, Debug)]
pub struct Pause {
    /// Somebody wants quiet.
    asked: AtomicBool,
    /// The sender sends nothing.
    still: AtomicBool,
}

impl Pause {
    /// Asks for quiet and waits for it. It ends with the value that is returned.
    pub fn hold(&self) -> Held<'_> {
        self.asked.store(true, SeqCst);
        let began = Instant::now();
        while !self.still.load(SeqCst) && began.elapsed() < PATIENCE {
            std::thread::sleep(LOOK);
        }
        Held(self)
    }

    /// The sender's: what it does while it sends nothing. It sends nothing afterwards either while somebody wants quiet.
    pub fn rest(&self, rest: impl FnOnce()) {
        self.still.store(true, SeqCst);
        rest();
        self.still.store(false, SeqCst);
        self.obey();
    }

    /// The sender's, between two batches: stands still if somebody wants it.
    pub fn obey(&self) {
        while self.asked.load(SeqCst) {
            self.still.store(true, SeqCst);
            let began = Instant::now();
            while self.asked.load(SeqCst) {
                if began.elapsed() > LONGEST {
                    self.asked.store(false, SeqCst);
                }
                std::thread::sleep(LOOK);
            }
            self.still.store(false, SeqCst);
        }
    }

    /// The sender's: it has ended.
    pub fn end(&self) {
        self.still.store(true, SeqCst);
    }
}

/// Quiet, as long as it is there.
#[derive(Debug)]
pub struct Held<'a>(&'a Pause);

impl Drop for Held<'_> {
    fn drop(&mut self) {
        self.0.asked.store(false, SeqCst);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicU64;

    use super::*;

    #[test]
    fn nothing_is_sent_while_somebody_wants_quiet() {
        let (pause, sent, stop) = (Pause::default(), AtomicU64::new(0), AtomicBool::new(false));
        std::thread::scope(|scope| {
            scope.spawn(|| {
                while !stop.load(SeqCst) {
                    sent.fetch_add(1, SeqCst);
                    pause.obey();
                    pause.rest(|| std::thread::sleep(LOOK));
                }
                pause.end();
            });
            for _ in 0..20 {
                let held = pause.hold();
                // A machine on which the sender did not come to a stop in time shows nothing.
                if pause.still.load(SeqCst) {
                    let before = sent.load(SeqCst);
                    std::thread::sleep(LOOK * 20);
                    let after = sent.load(SeqCst);
                    assert!(after == before || !pause.asked.load(SeqCst), "{before} {after}");
                }
                drop(held);
            }
            let before = sent.load(SeqCst);
            while sent.load(SeqCst) == before {
                std::thread::sleep(LOOK);
            }
            stop.store(true, SeqCst);
        });
    }

    #[test]
    fn a_sender_goes_on_although_nobody_lets_it() {
        let pause = Pause::default();
        pause.asked.store(true, SeqCst);
        pause.obey();
        assert!(!pause.asked.load(SeqCst) && !pause.still.load(SeqCst));
    }
}
