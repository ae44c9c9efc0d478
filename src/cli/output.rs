//! Words for people: colours, tables, units. Whatever came from elsewhere is escaped before it reaches a terminal.

use std::io::{self, BufWriter, IsTerminal, Stdout, Write};

use super::Color;

/// Standard output.
pub struct Out {
    to: BufWriter<Stdout>,
    color: bool,
    /// Lines that a page has room for, and those that found none.
    page: Option<(usize, usize)>,
}

/// A meaning that a colour can underline.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Tone {
    /// As it is.
    Plain,
    /// Headings.
    Bold,
    /// Well.
    Good,
    /// Look at it.
    Odd,
    /// Act.
    Bad,
}

impl Out {
    /// Standard output with or without colours.
    pub fn new(color: Color) -> Self {
        let stdout = io::stdout();
        let color = match color {
            Color::Always => true,
            Color::Never => false,
            Color::Auto => crate::colors::wanted(stdout.is_terminal()),
        };
        Self { to: BufWriter::new(stdout), color, page: None }
    }

    /// `text` in a tone. The text must be safe for a terminal.
    pub fn paint(&self, tone: Tone, text: &str) -> String {
        let code = match tone {
            _ if !self.color => return text.to_owned(),
            Tone::Plain => return text.to_owned(),
            Tone::Bold => "1",
            Tone::Good => "32",
            Tone::Odd => "33",
            Tone::Bad => "31",
        };
        format!("\x1b[{code}m{text}\x1b[0m")
    }

    /// Writes a line.
    pub fn line(&mut self, text: &str) -> io::Result<()> {
        if self.page.is_some() {
            return text.split('\n').try_for_each(|line| self.page_line(line));
        }
        self.to.write_all(text.as_bytes())?;
        self.to.write_all(b"\n")
    }

    /// Begins to draw over what the terminal shows, which has so many lines. What is too long is cut.
    pub fn begin_page(&mut self, rows: usize) -> io::Result<()> {
        // One line is for what found no room, one for the cursor.
        self.page = Some((rows.saturating_sub(2), 0));
        // Home, and lines that are too long are not wrapped.
        self.to.write_all(b"\x1b[H\x1b[?7l")
    }

    /// What is left of the old page goes.
    pub fn end_page(&mut self) -> io::Result<()> {
        if let Some((_, hidden @ 1..)) = self.page.take() {
            self.to.write_all(format!("… {hidden} more lines\x1b[K\n").as_bytes())?;
        }
        self.to.write_all(b"\x1b[?7h\x1b[J")
    }

    fn page_line(&mut self, line: &str) -> io::Result<()> {
        match &mut self.page {
            Some((0, hidden)) => {
                *hidden += 1;
                return Ok(());
            }
            Some((room, _)) => *room -= 1,
            None => {}
        }
        self.to.write_all(line.as_bytes())?;
        self.to.write_all(b"\x1b[K\n")
    }

    /// Writes that something is done: the daemon's sentence, or an object with it.
    pub fn done(&mut self, message: &str, json: bool) -> io::Result<()> {
        if json {
            return self.json(&serde_json::json!({ "version": 1, "done": true, "message": message }));
        }
        self.line(&safe(message))
    }

    /// Writes a value as JSON on one line.
    pub fn json_line(&mut self, value: &impl serde::Serialize) -> io::Result<()> {
        serde_json::to_writer(&mut self.to, value).map_err(io::Error::from)?;
        self.to.write_all(b"\n")
    }

    /// Writes a value as indented JSON.
    pub fn json(&mut self, value: &impl serde::Serialize) -> io::Result<()> {
        serde_json::to_writer_pretty(&mut self.to, value).map_err(io::Error::from)?;
        self.to.write_all(b"\n")
    }

    /// Writes a table; columns are as wide as they must be, the last one is not padded.
    pub fn table(&mut self, head: &[&str], rows: &[Vec<(Tone, String)>]) -> io::Result<()> {
        let width = |n: usize| {
            let cells = rows.iter().filter_map(|r| r.get(n)).map(|(_, text)| text.chars().count());
            cells.chain(head.get(n).map(|h| h.chars().count())).max().unwrap_or(0)
        };
        let widths: Vec<usize> = (0..head.len()).map(width).collect();
        let head: Vec<(Tone, String)> = head.iter().map(|h| (Tone::Bold, (*h).to_owned())).collect();
        for row in std::iter::once(&head).chain(rows) {
            let mut line = String::new();
            for (n, ((tone, text), width)) in row.iter().zip(&widths).enumerate() {
                let pad = if n + 1 == row.len() { 0 } else { width.saturating_sub(text.chars().count()) + 2 };
                line.push_str(&self.paint(*tone, text));
                line.extend(std::iter::repeat_n(' ', pad));
            }
            self.line(line.trim_end())?;
        }
        Ok(())
    }

    /// Hands on what was written so far.
    pub fn flush(&mut self) -> io::Result<()> {
        self.to.flush()
    }
}

impl Write for Out {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.to.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.to.flush()
    }
}

/// Text from elsewhere, fit for a terminal.
pub fn safe(text: &str) -> String {
    crate::observe::one_line(text)
}

/// Says on stderr what went wrong and what to do about it.
pub fn complain(message: &str, hint: &str) {
    if message.is_empty() {
        return;
    }
    let mut text = format!("cygnet: {message}\n");
    if !hint.is_empty() {
        text.push_str(&format!("        {hint}\n"));
    }
    // Nothing is left to do if even that fails.
    let _ = io::stderr().write_all(text.as_bytes());
}

/// Bits per second as people say it.
pub fn rate(bps: u64) -> String {
    scaled(bps, 1000, &["bit/s", "kbit/s", "Mbit/s", "Gbit/s", "Tbit/s"])
}

/// Octets as people say it.
pub fn bytes(n: u64) -> String {
    scaled(n, 1024, &["B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB"])
}

fn scaled(n: u64, step: u64, units: &[&str]) -> String {
    let (mut scale, mut unit) = (1u64, 0);
    while n / scale >= step && unit + 1 < units.len() {
        scale *= step;
        unit += 1;
    }
    let name = units.get(unit).copied().unwrap_or_default();
    let tenths = u128::from(n) * 10 / u128::from(scale);
    if unit == 0 || tenths % 10 == 0 || tenths >= 1000 {
        return format!("{} {name}", tenths / 10);
    }
    format!("{}.{} {name}", tenths / 10, tenths % 10)
}

/// A time span as people say it: the two largest units.
pub fn span(seconds: u64) -> String {
    let (d, h, m, s) = (seconds / 86_400, seconds / 3600 % 24, seconds / 60 % 60, seconds % 60);
    match (d, h, m) {
        (0, 0, 0) => format!("{s}s"),
        (0, 0, _) => format!("{m}m{s:02}s"),
        (0, _, _) => format!("{h}h{m:02}m"),
        _ => format!("{d}d{h:02}h"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_are_short() {
        assert_eq!(rate(0), "0 bit/s");
        assert_eq!(rate(1_500_000), "1.5 Mbit/s");
        assert_eq!(rate(100_000_000), "100 Mbit/s");
        assert_eq!(rate(999_999), "999 kbit/s");
        assert_eq!(bytes(1536), "1.5 KiB");
        assert_eq!(bytes(u64::MAX), "15.9 EiB");
        assert_eq!(span(59), "59s");
        assert_eq!(span(3661), "1h01m");
        assert_eq!(span(90_000), "1d01h");
    }
}
