//! Verbs that write something new: `psk`, `completions`, `schema`, `man`, `reference`.

use std::path::{Path, PathBuf};

use clap::{Args, ValueEnum};
use clap_complete::Shell;
use ring::rand::{SecureRandom, SystemRandom};
use zeroize::Zeroizing;

use super::output::Out;
use super::{EXAMPLES, Exit, Failure, Outcome, exit, names};
use crate::config::{reference, schema};

#[derive(Args, Debug)]
#[command(after_help = "Examples:
  (umask 077; cygnet psk > /etc/cygnet/a-b.psk)
  cygnet psk --format hex

The key has 256 bits. In text form it consists of letters and digits, which every vendor's gateway takes as they are;
0x and 0s forms are understood by cygnet, strongSwan and libreswan.")]
pub struct PskArgs {
    /// How to write it
    #[arg(long, value_enum, default_value_t = Form::Text)]
    format: Form,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum, Debug)]
enum Form {
    /// 43 letters and digits
    Text,
    /// 0x and 64 hexadecimal digits
    Hex,
    /// 0s and base64
    Base64,
}

#[derive(Args, Debug)]
#[command(after_help = "Examples:
  cygnet completions bash > /usr/share/bash-completion/completions/cygnet
  cygnet completions zsh > /usr/share/zsh/vendor-completions/_cygnet
  cygnet completions fish > /usr/share/fish/vendor_completions.d/cygnet.fish
  source <(cygnet completions bash)     in this shell only

The script asks cygnet itself, which asks the daemon for the names of tunnels and gateways, and says nothing of it where no
daemon answers.")]
pub struct CompletionsArgs {
    /// The shell
    shell: Shell,
}

#[derive(Args, Debug)]
pub struct ManArgs {
    /// Where the directories man5 and man8 are or are to be, as in /usr/local/share/man
    dir: PathBuf,
}

#[derive(Args, Debug)]
pub struct ReferenceArgs {
    /// The directory, as in docs/reference
    dir: PathBuf,
}

pub fn psk(args: &PskArgs, out: &mut Out) -> Outcome {
    out.line(
        &key(args.format)
            .ok_or_else(|| Failure::new(Exit::Software, "the system gives no random numbers", ""))?,
    )?;
    Ok(Exit::Done)
}

fn random<const N: usize>() -> Option<Zeroizing<[u8; N]>> {
    let mut octets = Zeroizing::new([0; N]);
    SystemRandom::new().fill(octets.as_mut()).ok()?;
    Some(octets)
}

const DIGITS: &[u8; 62] = b"0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz";
const BASE64: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
/// 43 digits of base 62 hold 256 bits.
const TEXT_LEN: usize = 43;

fn key(form: Form) -> Option<Zeroizing<String>> {
    let mut text = Zeroizing::new(String::with_capacity(96));
    match form {
        Form::Text => {
            while text.len() < TEXT_LEN {
                // Octets beyond the last multiple of 62 would favour the first digits.
                let fair = |b: &&u8| **b < 248;
                let octets = random::<64>()?;
                let room = TEXT_LEN - text.len();
                let digits = octets.iter().filter(fair).take(room);
                text.extend(digits.filter_map(|b| DIGITS.get(usize::from(*b) % 62)).map(|d| char::from(*d)));
                // AWS refuses a zero as the first character; 0x and 0s would be decoded.
                if text.starts_with('0') {
                    text.clear();
                }
            }
        }
        Form::Hex => {
            text.push_str("0x");
            random::<32>()?.iter().for_each(|b| text.push_str(&format!("{b:02x}")));
        }
        Form::Base64 => {
            text.push_str("0s");
            // 33 octets need no padding.
            for three in random::<33>()?.chunks(3) {
                let word = three.iter().fold(0u32, |w, b| w << 8 | u32::from(*b));
                let digit = |shift: u32| BASE64.get((word >> shift & 63) as usize).map(|d| char::from(*d));
                text.extend([18, 12, 6, 0].into_iter().filter_map(digit));
            }
        }
    }
    Some(text)
}

pub fn completions(args: &CompletionsArgs, out: &mut Out) -> Outcome {
    let script = names::script(&args.shell.to_string()).map_err(|e| {
        Failure::new(Exit::Usage, e.to_string(), "bash, elvish, fish, powershell and zsh have some")
    })?;
    std::io::Write::write_all(out, &script)?;
    Ok(Exit::Done)
}

pub fn schema(out: &mut Out) -> Outcome {
    out.json(&schema::schema())?;
    Ok(Exit::Done)
}

pub fn man(args: &ManArgs, command: clap::Command) -> Outcome {
    let write = || {
        let (eight, five) = (args.dir.join("man8"), args.dir.join("man5"));
        std::fs::create_dir_all(&eight)?;
        std::fs::create_dir_all(&five)?;
        let mut command = command.disable_help_subcommand(true);
        command.build();
        page(&command, &eight)?;
        std::fs::write(five.join("cygnet.yaml.5"), schema::manual())
    };
    write()
        .map_err(|e| Failure::new(Exit::Io, format!("cannot write to {}: {e}", args.dir.display()), ""))?;
    Ok(Exit::Done)
}

pub fn references(args: &ReferenceArgs, command: clap::Command) -> Outcome {
    let write = || {
        std::fs::create_dir_all(&args.dir)?;
        std::fs::write(args.dir.join("cli.md"), super::reference::markdown(command))?;
        std::fs::write(args.dir.join("configuration.md"), reference::markdown())
    };
    write()
        .map_err(|e| Failure::new(Exit::Io, format!("cannot write to {}: {e}", args.dir.display()), ""))?;
    Ok(Exit::Done)
}

/// The page of a command and those of its subcommands. The program belongs to the administrator: section 8.
fn page(command: &clap::Command, dir: &Path) -> std::io::Result<()> {
    for verb in command.get_subcommands().filter(|v| !v.is_hide_set()) {
        page(verb, dir)?;
    }
    let whole = command.has_subcommands();
    // The table of exit codes is a section of its own here.
    let command = if whole { command.clone().after_help(EXAMPLES) } else { command.clone() };
    let man = clap_mangen::Man::new(command.clone()).section("8");
    let mut text = Vec::new();
    man.render_title(&mut text)?;
    man.render_name_section(&mut text)?;
    man.render_synopsis_section(&mut text)?;
    man.render_description_section(&mut text)?;
    man.render_options_section(&mut text)?;
    if whole {
        man.render_subcommands_section(&mut text)?;
        text.extend_from_slice(exit::roff().as_bytes());
    } else {
        text.extend_from_slice(b".SH \"EXIT STATUS\"\nThat of \\fBcygnet\\fR(8).\n");
    }
    if command.get_after_help().is_some() {
        man.render_extra_section(&mut text)?;
    }
    if command.get_version().is_some() {
        man.render_version_section(&mut text)?;
    }
    std::fs::write(dir.join(man.get_filename()), text)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::secrets;

    #[test]
    fn keys_are_strong_and_readable_by_the_configuration() {
        for form in [Form::Text, Form::Hex, Form::Base64] {
            let mut seen = std::collections::BTreeSet::new();
            for _ in 0..200 {
                let text = key(form).unwrap();
                let read = secrets::psk(text.as_bytes()).unwrap_or_else(|e| panic!("{e:?}"));
                assert!(read.weak.is_none());
                assert!(read.secret.len() >= 32);
                assert!(seen.insert(text.to_string()));
            }
        }
    }

    /// The narrowest rule that a vendor publishes for a key is that of AWS: 8 to 64 letters, digits, "." and "_", no zero first.
    #[test]
    fn keys_in_text_are_what_every_vendor_takes() {
        for _ in 0..2000 {
            let text = key(Form::Text).unwrap();
            assert_eq!(text.len(), TEXT_LEN);
            assert!(text.chars().all(|c| c.is_ascii_alphanumeric()) && !text.starts_with('0'));
        }
    }
}
