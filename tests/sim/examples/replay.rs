//! Two gateways in the weather of a recording: `cargo run -p cygnet-sim --example replay -- recording.txt [SPI]`. The
//! recording is `recording.txt` of `cygnet bugreport`, SPI the initiator's of an IKE SA in it, else the first one.
//! `docs/recording.md` says what this can tell and what it cannot.

use std::io::{self, Write};
use std::time::Duration;

use cygnet_ike::recording::parse;
use cygnet_sim::{Begun, Lab, Link, Weather};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut args = std::env::args().skip(1);
    let file = args.next().ok_or("usage: replay RECORDING [SPI]")?;
    let sightings = parse(&std::fs::read_to_string(file)?)?;
    let spi = match args.next() {
        Some(text) => u64::from_str_radix(&text, 16)?,
        None => sightings.first().ok_or("the recording is empty")?.header.spi_i,
    };
    let weather = Weather::of(&sightings, spi).ok_or("there is no IKE SA of this SPI in it")?;
    let mut out = io::stdout().lock();
    writeln!(
        out,
        "IKE SA {spi:016x}: gateway {} stands for the one that recorded; lost of its exchanges {:?}, of the peer's {:?}",
        weather.here,
        weather.losses(Begun::Here),
        weather.losses(Begun::There)
    )?;
    let mut lab = Lab::pair(1, Link::GOOD);
    if !weather.from_beginning {
        lab.run(Duration::from_secs(2));
    }
    lab.weather = Some(weather);
    lab.run(Duration::from_secs(600));
    for (side, gateway) in lab.gateways.iter().enumerate() {
        for (at, event) in &gateway.events {
            writeln!(out, "{at:?} gateway {side}: {event:?}")?;
        }
        writeln!(out, "gateway {side}: {:?}", lab.view(side).state)?;
    }
    Ok(())
}
