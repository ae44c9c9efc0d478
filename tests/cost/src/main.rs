//! Two gateways in one thread that do one thing so many times, and nothing that needs a clock or the kernel: protocol,
//! cryptography, what is kept for a restart, tables of our own data plane. `scripts/bench instructions` runs this under
//! callgrind.
//!
//! usage: cygnet-cost WORK TUNNELS TIMES     with so many tunnels established already

mod gateways;

use anyhow::{Context, bail, ensure};
use cygnet_esp::inner::InnerHeader;
use cygnet_ike::Command;
use cygnet_model::TunnelId;

use gateways::{Gateways, SPARE};

/// Octets of an inner packet: what fits an outer one of 1,500.
const PACKET: usize = 1400;

fn main() -> anyhow::Result<()> {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let [work, tunnels, times] = words.as_slice() else { bail!("usage: cygnet-cost WORK TUNNELS TIMES") };
    let (tunnels, times): (u32, u32) = (tunnels.parse()?, times.parse()?);
    ensure!(tunnels > 0 && times <= SPARE && times <= tunnels, "at least one tunnel, and no more times");
    let mut pair = Gateways::with(tunnels)?;
    measured(&mut pair, work, tunnels, times)?;
    let expected = if work == "handshake" { tunnels + times } else { tunnels };
    ensure!(pair.established() == expected, "{} tunnels of {expected} are up", pair.established());
    pair.trouble.map_or(Ok(()), |refused| Err(refused.into()))
}

/// What is counted, by the name of this function.
#[inline(never)]
fn measured(pair: &mut Gateways, work: &str, tunnels: u32, times: u32) -> anyhow::Result<()> {
    match work {
        "handshake" => (tunnels..tunnels + times).for_each(|n| pair.command(Command::Up(TunnelId(n)))),
        "rekey-child" => (0..times).for_each(|n| pair.command(Command::RekeyChildren(TunnelId(n)))),
        "rekey-ike" => (0..times).for_each(|n| pair.command(Command::RekeyIke(TunnelId(n)))),
        "seal" => (0..times).try_for_each(|n| seal(pair, n).map(drop))?,
        "seal-and-open" => (0..times).try_for_each(|n| seal_and_open(pair, n))?,
        other => bail!("unknown work: {other}"),
    }
    pair.settle();
    Ok(())
}

/// A packet from behind gateway 0 to behind gateway 1, by tunnel `n`, as ESP.
fn seal(pair: &Gateways, n: u32) -> anyhow::Result<Vec<u8>> {
    let inner = packet(n);
    let header = InnerHeader::parse(&inner).context("an inner packet")?;
    let tables = pair.engine(0).context("a gateway")?.tables();
    let (admitted, _) = tables.spd.route(&header).map_err(|refusal| anyhow::anyhow!("{refusal:?}"))?;
    let layout = admitted.sa().layout();
    let mut sealed = vec![0; layout.sealed_len(inner.len())];
    sealed
        .get_mut(layout.head_len()..layout.head_len() + inner.len())
        .context("room")?
        .copy_from_slice(&inner);
    admitted.seal(&mut sealed, inner.len()).map_err(|reason| anyhow::anyhow!("{reason:?}"))?;
    Ok(sealed)
}

fn seal_and_open(pair: &Gateways, n: u32) -> anyhow::Result<()> {
    let mut sealed = seal(pair, n)?;
    let spi = sealed.first_chunk().map(|spi| u32::from_be_bytes(*spi)).context("a header")?;
    let tables = pair.engine(1).context("a gateway")?.tables();
    let inbound = tables.inbound(spi).context("an SA")?;
    let opened = inbound.sa.open(&mut sealed, 0).map_err(|reason| anyhow::anyhow!("{reason:?}"))?;
    ensure!(opened.content.is_ok_and(|inner| inner.range.len() == PACKET), "another packet");
    Ok(())
}

/// UDP over IPv4, without checksums: nobody asks for them here.
fn packet(n: u32) -> Vec<u8> {
    let [_, _, high, low] = n.to_be_bytes();
    let mut packet = vec![0; PACKET];
    let [.., len_high, len_low] = PACKET.to_be_bytes();
    let header = [
        0x45, 0, len_high, len_low, 0, 0, 0, 0, 64, 17, 0, 0, 20, high, low, 1, 21, high, low, 1, 0, 9, 0, 9,
    ];
    packet.iter_mut().zip(header).for_each(|(octet, of)| *octet = of);
    packet
}
