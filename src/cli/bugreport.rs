//! `cygnet bugreport`: what somebody who helps has to see, in one file. Keys are not left out of it: they are never read.

mod anonymous;
mod collect;

use std::io::{IsTerminal, Write};
use std::path::PathBuf;
use std::time::{SystemTime, UNIX_EPOCH};

use clap::Args;
use flate2::Compression;
use flate2::write::GzEncoder;

use super::export::write_private;
use super::output::{self, Out};
use super::progress::Progress;
use super::{CONFIG, Exit, Failure, Global, Outcome};
use crate::observe::rfc3339;
use anonymous::Anonymous;
use collect::Part;

/// Longest part; what is longer is cut.
const MAX_PART: usize = 16 << 20;

#[derive(Args, Debug)]
#[command(after_help = "Examples:
  cygnet bugreport                               cygnet-bugreport-TIME.tar.gz, for its owner's eyes only
  cygnet bugreport --anonymous --output report.tar.gz
  cygnet bugreport --output - | ssh elsewhere 'cat > report.tar.gz'

In it are the versions of cygnet and of the kernel, the resolved configuration, status, events, negotiations, doctor, diagnose,
plan, metrics, what of cygnet's stands in the kernel, and a recording of the headers of the last IKE messages. Files with keys
are not read, the kernel is not asked for them, and the daemon does not tell them. Names of tunnels, gateways and peers stand
in it; --anonymous replaces addresses and host names, the same one by the same one, so that networks still hold what they
held. Where no daemon answers, the rest is packed. Look through it before you hand it on.")]
pub struct BugreportArgs {
    /// Where to write it, a file that must not exist; - is standard output
    #[arg(short, long, value_name = "FILE.tar.gz")]
    output: Option<PathBuf>,
    /// Replace addresses and host names
    #[arg(long)]
    anonymous: bool,
    /// The configuration, where no daemon answers
    #[arg(long, value_name = "FILE", default_value = CONFIG)]
    config: PathBuf,
}

pub fn bugreport(args: &BugreportArgs, g: &Global, out: &mut Out) -> Outcome {
    let to_stdout = args.output.as_ref().is_some_and(|path| path.as_os_str() == "-");
    if to_stdout && std::io::stdout().is_terminal() {
        let hint = "cygnet bugreport --output FILE.tar.gz";
        return Err(Failure::new(Exit::Usage, "an archive is not written to a terminal", hint));
    }
    let progress = Progress::new("collecting");
    let (mut parts, names) = collect::all(args, g);
    if args.anonymous {
        let mut anonymous = Anonymous::new(names)
            .ok_or_else(|| Failure::new(Exit::Software, "the system gives no random numbers", ""))?;
        parts.iter_mut().for_each(|part| part.text = anonymous.text(&part.text));
    }
    parts.iter_mut().for_each(cut);
    let unix = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs());
    let time: String = rfc3339(unix).chars().filter(|c| c.is_ascii_alphanumeric()).collect();
    let name = format!("cygnet-bugreport-{time}");
    let packed = pack(&name, &parts, unix)?;
    drop(progress);
    if to_stdout {
        out.write_all(&packed)?;
        return Ok(Exit::Done);
    }
    let path = args.output.clone().unwrap_or_else(|| PathBuf::from(format!("{name}.tar.gz")));
    write_private(&path, &packed)?;
    out.line(&output::safe(&path.to_string_lossy()))?;
    Ok(Exit::Done)
}

fn cut(part: &mut Part) {
    if part.text.len() > MAX_PART {
        let end = (0..=MAX_PART).rev().find(|n| part.text.is_char_boundary(*n)).unwrap_or(0);
        part.text.truncate(end);
        part.text.push_str("\n(cut)\n");
    }
}

/// An archive of the parts in a directory, and a list of them.
fn pack(name: &str, parts: &[Part], unix: u64) -> std::io::Result<Vec<u8>> {
    let mut archive = tar::Builder::new(GzEncoder::new(Vec::new(), Compression::default()));
    let contents = Part::new("contents.txt", contents(parts));
    for part in std::iter::once(&contents).chain(parts) {
        let mut header = tar::Header::new_gnu();
        header.set_size(part.text.len() as u64);
        header.set_mode(0o600);
        header.set_mtime(unix);
        archive.append_data(&mut header, format!("{name}/{}", part.name), part.text.as_bytes())?;
    }
    archive.into_inner()?.finish()
}

fn contents(parts: &[Part]) -> String {
    let mut text =
        String::from("What is in this report. Keys are not: nothing of this was made from them.\n\n");
    for part in parts {
        text.push_str(&format!("{:<24} {:>9} octets  {}\n", part.name, part.text.len(), part.what));
    }
    text
}
