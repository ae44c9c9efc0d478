//! What a gateway has recorded happens again in the laboratory.

use std::time::Duration;

use cygnet_ike::Command;
use cygnet_ike::recording::{Recorder, Sighting, parse};
use cygnet_ike::wire::Exchange;
use cygnet_sim::{Begun, Lab, Link, TUNNEL, Weather};

/// A quarter of it is lost each way.
const LOSSY: Link = Link { loss: 250, duplication: 0, ..Link::GOOD };

fn recorded(lab: &Lab) -> Vec<Sighting> {
    let (_, recorder) = lab.recording.as_ref().expect("it records");
    let text = recorder.text(lab.now());
    let read = parse(&text).expect("a recording");
    assert_eq!(read.len() + 2, text.lines().count());
    read
}

/// A bring-up and two rekeys.
fn life(lab: &mut Lab) {
    lab.run(Duration::from_secs(20));
    lab.command(0, Command::RekeyChildren(TUNNEL));
    lab.run(Duration::from_secs(20));
    lab.command(1, Command::RekeyChildren(TUNNEL));
    lab.run(Duration::from_secs(20));
}

#[test]
fn what_was_lost_is_lost_again() {
    let (mut replayed, mut lost) = (0, 0);
    for seed in 0..60 {
        let side = usize::from(seed % 2 == 1);
        let mut lab = Lab::pair(seed, LOSSY);
        lab.recording = Some((side, Recorder::default()));
        life(&mut lab);
        let recording = recorded(&lab);
        let Some(auth) = recording.iter().find(|s| s.header.exchange == Exchange::IKE_AUTH) else { continue };
        let spi = auth.header.spi_i;
        let weather = Weather::of(&recording, spi).expect("it is in it");
        assert_eq!(weather.here, side, "gateway 0 initiates");
        // A ring that was filled up has lost its beginning.
        if !weather.from_beginning {
            continue;
        }
        let mut again = Lab::pair(seed + 1000, Link::GOOD);
        again.recording = Some((side, Recorder::default()));
        again.weather = Some(weather.clone());
        life(&mut again);
        let second = recorded(&again);
        let spi = second.first().expect("it recorded").header.spi_i;
        let second = Weather::of(&second, spi).expect("it is in it");
        for begun in [Begun::Here, Begun::There] {
            let (was, is) = (weather.losses(begun), second.losses(begun));
            let common = was.len().min(is.len()).min(3);
            assert_eq!(was[..common], is[..common], "seed {seed}, {begun:?}: {was:?} {is:?}");
            lost += was[..common].iter().sum::<usize>();
        }
        replayed += 1;
    }
    assert!(replayed > 20 && lost > 20, "{replayed} replayed, {lost} messages lost");
}

/// As a support case would have it: the first two requests went nowhere, the answer took two seconds and came twice.
#[test]
fn a_recording_from_the_field_is_weather() {
    let text = "# cygnet-recording 1
# clock 100.000000 is unix 1767225600
00000000000000aa 0000000000000000 10.000000 sent 192.0.2.1:500 192.0.2.2:500 plain 34 Iq 0 400 33,34,40
00000000000000aa 0000000000000000 11.000000 sent 192.0.2.1:500 192.0.2.2:500 plain 34 Iq 0 400 33,34,40
00000000000000aa 0000000000000000 13.000000 sent 192.0.2.1:500 192.0.2.2:500 plain 34 Iq 0 400 33,34,40
00000000000000aa 00000000000000bb 15.000000 received 192.0.2.1:500 192.0.2.2:500 plain 34 Rr 0 400 33,34,40
00000000000000aa 00000000000000bb 15.100000 received 192.0.2.1:500 192.0.2.2:500 plain 34 Rr 0 400 33,34,40
";
    let weather = Weather::of(&parse(text).unwrap(), 0xaa).unwrap();
    assert_eq!((weather.here, weather.losses(Begun::Here)), (0, vec![2]));
    let mut lab = Lab::pair(7, Link::GOOD);
    lab.recording = Some((0, Recorder::default()));
    lab.weather = Some(weather);
    lab.run(Duration::from_secs(60));
    assert!(lab.is_up());
    let seen = recorded(&lab);
    let inits: Vec<&Sighting> = seen.iter().filter(|s| s.header.exchange == Exchange::IKE_SA_INIT).collect();
    let sent: Vec<&&Sighting> = inits.iter().filter(|s| s.sent).collect();
    assert!(sent.len() >= 3, "{inits:?}");
    let answers: Vec<&&Sighting> = inits.iter().filter(|s| !s.sent).collect();
    let took = answers[0].at.since(sent[2].at);
    assert_eq!((answers.len(), took), (2, Duration::from_secs(2)), "{inits:?}");
}

#[test]
fn an_ike_sa_that_is_not_in_it_has_no_weather() {
    assert!(Weather::of(&[], 1).is_none());
}
