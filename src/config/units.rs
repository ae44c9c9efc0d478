//! Quantities with units: rates, durations, sizes.

use std::time::Duration;

use super::error::{Wrong, quoted, wrong};

/// Splits `12.5mbit` into number and unit.
fn split(text: &str) -> (&str, &str) {
    let end = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let (number, unit) = text.split_at(end);
    (number, unit.trim_start_matches(' '))
}

/// A decimal number times `scale`, rounded down; `None` if it is no number or too large.
fn scaled(number: &str, scale: u64) -> Option<u64> {
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    if whole.is_empty() || fraction.len() > 9 || (number.contains('.') && fraction.is_empty()) {
        return None;
    }
    let mut value = u128::from(whole.parse::<u64>().ok()?) * u128::from(scale);
    if !fraction.is_empty() {
        let places = 10u128.pow(u32::try_from(fraction.len()).ok()?);
        value += u128::from(fraction.parse::<u64>().ok()?) * u128::from(scale) / places;
    }
    u64::try_from(value).ok()
}

/// The lowest rate that is accepted, in bits per second.
pub const MIN_RATE: u64 = 1_000;
/// The highest: more is no cap on any host that runs this.
pub const MAX_RATE: u64 = 100_000_000_000;

/// A rate in bits per second: `100mbit`, `1.5gbit`. Units are decimal and not case-sensitive, as in `tc`.
pub fn rate(text: &str) -> Result<u64, Wrong> {
    let fix = "write a number and bit, kbit, mbit or gbit, as in 100mbit";
    let (number, unit) = split(text);
    let scale = match unit.to_ascii_lowercase().as_str() {
        "bit" => 1,
        "kbit" => 1_000,
        "mbit" => 1_000_000,
        "gbit" => 1_000_000_000,
        "tbit" => 1_000_000_000_000,
        "bps" | "kbps" | "mbps" | "gbps" | "tbps" => {
            let bits = unit.to_ascii_lowercase().replace("bps", "bit");
            return Err(wrong(
                format!("unit {} is ambiguous (tc reads it as bytes)", quoted(unit)),
                format!("write {number}{bits}"),
            ));
        }
        "" => return Err(wrong(format!("rate {} has no unit", quoted(text)), fix)),
        _ => return Err(wrong(format!("{} is not a rate", quoted(text)), fix)),
    };
    let bps = scaled(number, scale).ok_or_else(|| wrong(format!("{} is not a rate", quoted(text)), fix))?;
    if !(MIN_RATE..=MAX_RATE).contains(&bps) {
        return Err(wrong(format!("rate {} is out of range", quoted(text)), "write 1kbit to 100gbit"));
    }
    Ok(bps)
}

/// A rate as [`rate`] reads it.
pub fn show_rate(bps: u64) -> String {
    for (scale, unit) in [(1_000_000_000, "gbit"), (1_000_000, "mbit"), (1_000, "kbit")] {
        if bps >= scale && bps.is_multiple_of(scale) {
            return format!("{}{unit}", bps / scale);
        }
    }
    format!("{bps}bit")
}

/// A duration: `30s`, `5m`, `1h`, `7d`, `500ms`.
pub fn duration(text: &str) -> Result<Duration, Wrong> {
    let fix = "write a whole number and ms, s, m, h or d, as in 30s";
    let (number, unit) = split(text);
    let scale = match unit {
        "ms" => 1,
        "s" => 1_000,
        "m" => 60_000,
        "h" => 3_600_000,
        "d" => 86_400_000,
        "" => return Err(wrong(format!("duration {} has no unit", quoted(text)), fix)),
        _ => return Err(wrong(format!("{} is not a duration", quoted(text)), fix)),
    };
    (number.parse::<u64>().ok())
        .and_then(|n| n.checked_mul(scale))
        .map(Duration::from_millis)
        .ok_or_else(|| wrong(format!("{} is not a duration", quoted(text)), fix))
}

/// A duration within limits.
pub fn duration_within(min: Duration, max: Duration) -> impl Fn(&str) -> Result<Duration, Wrong> {
    move |text| {
        let d = duration(text)?;
        let fix = || format!("write {} to {}", show_duration(min), show_duration(max));
        match d {
            d if d < min => Err(wrong(format!("{} is too short", quoted(text)), fix())),
            d if d > max => Err(wrong(format!("{} is too long", quoted(text)), fix())),
            d => Ok(d),
        }
    }
}

/// A duration as [`duration`] reads it.
pub fn show_duration(d: Duration) -> String {
    let ms = d.as_millis();
    for (scale, unit) in [(86_400_000, "d"), (3_600_000, "h"), (60_000, "m"), (1_000, "s")] {
        if ms >= scale && ms.is_multiple_of(scale) {
            return format!("{}{unit}", ms / scale);
        }
    }
    format!("{ms}ms")
}

/// A size in octets: `KB`, `MB`, `GB`, `TB` are decimal, `KiB`, `MiB`, `GiB`, `TiB` binary.
pub fn size(text: &str) -> Result<u64, Wrong> {
    const UNITS: [(&str, u64); 9] = [
        ("B", 1),
        ("KB", 1_000),
        ("MB", 1_000_000),
        ("GB", 1_000_000_000),
        ("TB", 1_000_000_000_000),
        ("KiB", 1 << 10),
        ("MiB", 1 << 20),
        ("GiB", 1 << 30),
        ("TiB", 1 << 40),
    ];
    let fix = "write a whole number and KB, MB, GB, KiB, MiB or GiB, as in 2GiB";
    let (number, unit) = split(text);
    let Some((_, scale)) = UNITS.iter().find(|(name, _)| *name == unit) else {
        if unit.is_empty() {
            return Err(wrong(format!("size {} has no unit", quoted(text)), fix));
        }
        return Err(match UNITS.iter().find(|(name, _)| name.eq_ignore_ascii_case(unit)) {
            Some((name, _)) => {
                wrong(format!("unknown unit {}", quoted(unit)), format!("did you mean {name}?"))
            }
            None => wrong(format!("{} is not a size", quoted(text)), fix),
        });
    };
    (number.parse::<u64>().ok())
        .and_then(|n| n.checked_mul(*scale))
        .ok_or_else(|| wrong(format!("{} is not a size", quoted(text)), fix))
}

/// A size as [`size`] reads it.
pub fn show_size(bytes: u64) -> String {
    let units = [
        (1_000_000_000_000, "TB"),
        (1 << 40, "TiB"),
        (1_000_000_000, "GB"),
        (1 << 30, "GiB"),
        (1_000_000, "MB"),
        (1 << 20, "MiB"),
        (1_000, "KB"),
        (1 << 10, "KiB"),
    ];
    for (scale, unit) in units {
        if bytes >= scale && bytes.is_multiple_of(scale) {
            return format!("{}{unit}", bytes / scale);
        }
    }
    format!("{bytes}B")
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn rates_are_decimal_and_bits() {
        assert_eq!(rate("100mbit"), Ok(100_000_000));
        assert_eq!(rate("1.5Gbit"), Ok(1_500_000_000));
        assert_eq!(rate("64kbit"), Ok(64_000));
        for bad in
            ["", "100", "100mbps", "-1mbit", "1e3mbit", ".5mbit", "1.mbit", "99999999999999999999bit", "1bit"]
        {
            assert!(rate(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn sizes_know_decimal_from_binary() {
        assert_eq!(size("2560KB"), Ok(2_560_000));
        assert_eq!(size("2GiB"), Ok(2 << 30));
        assert!(size("1gb").unwrap_err().fix.contains("GB"));
        assert!(size("1").is_err());
    }

    proptest! {
        #[test]
        fn what_is_shown_can_be_read(ms in 1u64..1 << 50, bps in MIN_RATE..MAX_RATE, bytes in 1u64..1 << 60) {
            prop_assert_eq!(duration(&show_duration(Duration::from_millis(ms))), Ok(Duration::from_millis(ms)));
            prop_assert_eq!(rate(&show_rate(bps)), Ok(bps));
            prop_assert_eq!(size(&show_size(bytes)), Ok(bytes));
        }

        #[test]
        fn no_text_panics(text in "\\PC{0,20}") {
            let _ = (rate(&text), duration(&text), size(&text));
        }
    }
}
