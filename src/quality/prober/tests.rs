//! One tunnel's probes on a path whose answers are laid down beforehand.

use std::cell::Cell;

use proptest::prelude::*;

use super::super::health::Cause;
use super::*;

const fn at(millis: u64) -> Timestamp {
    Timestamp::from_nanos(millis * 1_000_000)
}

/// What a path does with the probe that leaves at a moment: the round trip in milliseconds, or nothing.
type Path<'a> = &'a dyn Fn(u64) -> Option<u64>;

/// Runs a prober for some time, in steps of 10 ms. Gives the changes with their time in milliseconds, and how many probes
/// were sent.
fn run(prober: &mut Prober, millis: std::ops::Range<u64>, path: Path<'_>) -> (Vec<(u64, Change)>, u32) {
    let (mut changes, mut sent) = (Vec::new(), 0);
    let mut answers: Vec<(u64, u32)> = Vec::new();
    for ms in millis.step_by(10) {
        let (due, rest): (Vec<_>, Vec<_>) = answers.into_iter().partition(|(when, _)| *when <= ms);
        answers = rest;
        for (_, seq) in due {
            changes.extend(prober.on_answer(at(ms), seq, None).map(|change| (ms, change)));
        }
        let due = prober.on_tick(at(ms));
        changes.extend(due.change.map(|change| (ms, change)));
        if let Some(seq) = due.send {
            sent += 1;
            answers.extend(path(ms).map(|delay| (ms + delay, seq)));
        }
    }
    (changes, sent)
}

fn prober(failures: u32) -> Prober {
    Prober::new(Settings { failures, ..Settings::default() }, at(0))
}

#[test]
fn a_path_that_answers_is_good_and_costs_one_probe_a_second() {
    let mut p = prober(3);
    let (changes, sent) = run(&mut p, 0..60_000, &|_| Some(20));
    assert_eq!((changes, sent), (vec![], 60));
    assert_eq!(p.health(), Health::Good);
    let figures = p.figures(at(60_000));
    assert_eq!((figures.probes, figures.lost, figures.loss_ratio()), (60, 0, Some(0.0)));
    let delay = figures.delay.unwrap();
    assert_eq!([delay.min, delay.mean, delay.max], [Duration::from_millis(20); 3]);
    assert_eq!(figures.jitter, Duration::ZERO);
}

/// The bound that backups are promised, whenever in the rhythm the path dies.
#[test]
fn a_dead_path_is_known_within_two_seconds() {
    for failures in 1..=4 {
        for dies in (10_000..11_000).step_by(70) {
            let mut p = prober(failures);
            let (changes, _) = run(&mut p, 0..20_000, &|ms| (ms < dies).then_some(20));
            assert_eq!(changes.len(), 1, "failures {failures}, at {dies}: {changes:?}");
            let (when, change) = changes[0];
            assert_eq!(change, Change::Degraded(Cause::NoAnswer));
            assert!(when - dies <= 2_000, "failures {failures}: dead at {dies}, known at {when}");
        }
    }
}

#[test]
fn a_path_that_never_answers_is_known_too() {
    let mut p = prober(3);
    let (changes, _) = run(&mut p, 0..10_000, &|_| None);
    assert_eq!(changes, [(3_000, Change::Degraded(Cause::NoAnswer))]);
}

#[test]
fn it_recovers_after_as_many_answers_as_are_asked_for_and_more_after_a_relapse() {
    let mut p = prober(2);
    let alive = |ms: u64| !(10_000..20_000).contains(&ms) && !(40_000..50_000).contains(&ms);
    let (changes, _) = run(&mut p, 0..80_000, &|ms| alive(ms).then_some(20));
    let kinds: Vec<Change> = changes.iter().map(|(_, change)| *change).collect();
    let (down, up) = (Change::Degraded(Cause::NoAnswer), Change::Recovered);
    assert_eq!(kinds, [down, up, down, up]);
    let took = |n: usize, from: u64| (changes[n].0 - from) / 1_000;
    assert!((4..=5).contains(&took(1, 20_000)), "five answers: {changes:?}");
    assert!((9..=10).contains(&took(3, 50_000)), "ten answers: {changes:?}");
}

/// A path that comes and goes every few seconds does not take the traffic with it each time.
#[test]
fn a_path_that_flaps_is_left_alone() {
    let mut p = prober(2);
    let (changes, _) = run(&mut p, 0..600_000, &|ms| (ms / 4_000 % 2 == 0).then_some(20));
    assert_eq!(changes.len(), 1, "{changes:?}");
}

#[test]
fn late_answers_are_not_lost_and_a_longer_path_is_no_dead_one() {
    let mut p = prober(3);
    let (changes, _) = run(&mut p, 0..120_000, &|ms| Some(if ms < 30_000 { 20 } else { 900 }));
    assert_eq!(changes, []);
    let figures = p.figures(at(120_000));
    assert_eq!(figures.lost, 0);
    assert_eq!(figures.delay.unwrap().mean, Duration::from_millis(900));
}

#[test]
fn loss_and_delay_degrade_and_must_go_well_below_before_it_recovers() {
    let mut p = prober(5);
    // One probe of four, one of six, none.
    let number = Cell::new(0);
    let lost = |ms: u64| {
        number.set(number.get() + 1);
        match ms {
            20_000..80_000 => number.get() % 4 == 0,
            80_000..160_000 => number.get() % 6 == 0,
            _ => false,
        }
    };
    let (changes, _) = run(&mut p, 0..240_000, &|ms| (!lost(ms)).then_some(20));
    assert_eq!(changes.len(), 2, "{changes:?}");
    assert_eq!(changes[0].1, Change::Degraded(Cause::Loss));
    assert!((20_000..50_000).contains(&changes[0].0));
    assert_eq!(changes[1].1, Change::Recovered);
    assert!((160_000..190_000).contains(&changes[1].0), "one of six is not calm: {changes:?}");

    let settings = Settings { delay: Some(Duration::from_millis(100)), ..Settings::default() };
    let mut p = Prober::new(settings, at(0));
    let delay = |ms: u64| match ms {
        30_000..90_000 => 150,
        90_000..150_000 => 90,
        _ => 20,
    };
    let (changes, _) = run(&mut p, 0..240_000, &|ms| Some(delay(ms)));
    let kinds: Vec<Change> = changes.iter().map(|(_, change)| *change).collect();
    assert_eq!(kinds, [Change::Degraded(Cause::Delay), Change::Recovered]);
    assert!(changes[1].0 >= 150_000, "90 ms are not well below 100: {changes:?}");
}

#[test]
fn what_never_got_there_is_told_from_what_never_came_back() {
    let mut p = prober(10);
    // The other end counts what it receives; of ten probes two do not get there, and one answer gets lost.
    let mut count = 0;
    for n in 0..100u64 {
        let now = at(n * 1_000);
        let mut seq = p.on_tick(now).send;
        if seq.is_none() {
            seq = p.on_tick(now).send;
        }
        let Some(seq) = seq else { continue };
        if n % 10 == 3 || n % 10 == 6 {
            continue;
        }
        count += 1;
        if n % 10 != 8 {
            p.on_answer(now + Duration::from_millis(10), seq, Some(count));
        }
    }
    let figures = p.figures(at(100_000));
    assert!((16..=19).contains(&figures.lost), "{figures:?}");
    let there = figures.lost_there.unwrap();
    assert!((10..=13).contains(&there), "{figures:?}");
}

#[test]
fn a_tunnel_that_is_down_is_not_judged_and_minutes_are_kept() {
    let mut p = prober(2);
    run(&mut p, 0..10_000, &|_| Some(20));
    p.on_tick(at(11_000));
    p.on_pause();
    let (changes, _) = run(&mut p, 60_000..130_000, &|_| Some(40));
    assert_eq!(changes, []);
    let minutes: Vec<_> = p.history().since(at(0)).collect();
    assert_eq!(minutes.iter().map(|m| m.minute).collect::<Vec<_>>(), [0, 1, 2]);
    assert_eq!((minutes[0].probes, minutes[0].lost, minutes[0].delay_us), (10, 0, [20_000; 3]));
    assert_eq!(minutes[1].delay_us, [40_000; 3]);
    assert_eq!(p.history().since(at(60_000)).count(), 2);
}

proptest! {
    /// Whatever the path does: every probe is counted once, little is on its way, nothing is asked for in the past, and a
    /// change is told when and only when there is one.
    #[test]
    fn every_probe_is_counted_once(
        fates in proptest::collection::vec(proptest::option::weighted(0.7, 1u64..3_000), 1..200),
        failures in 1u32..10,
        gaps in proptest::collection::vec(1u64..1_500, 50..400),
    ) {
        let mut p = Prober::new(Settings { failures, successes: 2, ..Settings::default() }, at(0));
        let (mut now, mut sent, mut answered) = (0, 0u32, 0u32);
        let mut answers: Vec<(u64, u32)> = Vec::new();
        let mut degraded = false;
        let mut told = |change: Option<Change>, p: &Prober| {
            match change {
                Some(Change::Degraded(_)) => { assert!(!degraded); degraded = true; }
                Some(Change::Turned(_)) => assert!(degraded),
                Some(Change::Recovered) => { assert!(degraded); degraded = false; }
                None => {}
            }
            assert_eq!(degraded, matches!(p.health(), Health::Degraded(_)));
        };
        for gap in &gaps {
            now += gap;
            answers.retain(|(when, seq)| {
                if *when > now { return true; }
                let before = p.figures(at(now)).probes;
                let change = p.on_answer(at(now), *seq, None);
                told(change, &p);
                // A second time nobody waits for it.
                let after = p.figures(at(now)).probes;
                answered += u32::from(after != before || change.is_some());
                assert_eq!(p.on_answer(at(now), *seq, None), None);
                false
            });
            let due = p.on_tick(at(now));
            told(due.change, &p);
            if let Some(seq) = due.send {
                sent += 1;
                if let Some(delay) = fates[seq as usize % fates.len()] {
                    answers.push((now + delay, seq));
                }
            }
            prop_assert!(p.next_wakeup() > at(now), "at {now}");
            prop_assert!(p.on_the_way.len() <= ON_THE_WAY);
        }
        // When nothing comes any more, all that is on its way is lost.
        let mut lost = 0;
        for minute in p.history().since(at(0)) {
            lost += u32::from(minute.lost);
            prop_assert!(minute.lost <= minute.probes);
            prop_assert!(minute.delay_us[0] <= minute.delay_us[1] && minute.delay_us[1] <= minute.delay_us[2]);
        }
        let counted: u32 = p.history().since(at(0)).map(|m| u32::from(m.probes)).sum();
        prop_assert_eq!(counted + p.on_the_way.len() as u32, sent);
        prop_assert!(answered + lost <= sent);
    }

    #[test]
    fn a_history_keeps_the_newest_minutes(minutes in 1u64..200, room in 1usize..100) {
        let mut history = History::default();
        history.set_room(room);
        for minute in 0..minutes {
            history.note(at(minute * 60_000), Outcome::Lost);
        }
        let kept: Vec<u32> = history.since(at(0)).map(|m| m.minute).collect();
        let expected = (room + 1).min(minutes as usize);
        prop_assert_eq!(kept.len(), expected, "the open one and the room");
        prop_assert_eq!(*kept.last().unwrap(), minutes as u32 - 1);
        prop_assert!(kept.is_sorted());
    }
}
