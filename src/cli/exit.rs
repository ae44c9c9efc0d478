//! Exit codes: one table for the commands, their help, the manual and the documentation.

/// The enumeration, the list of its values and what they mean, from one table.
macro_rules! exits {
    ($($(#[$doc:meta])* $name:ident = $code:literal: $meaning:literal,)*) => {
        /// How a command ended; after sysexits.h where that says something.
        #[derive(Clone, Copy, PartialEq, Eq, Debug)]
        #[repr(u8)]
        pub enum Exit {
            $($(#[$doc])* $name = $code,)*
        }

        impl Exit {
            /// All of them, in the order of their numbers.
            pub const ALL: &[Self] = &[$(Self::$name),*];

            /// What it says, for people.
            pub const fn meaning(self) -> &'static str {
                match self {
                    $(Self::$name => $meaning,)*
                }
            }
        }
    };
}

exits! {
    /// What was asked for is done.
    Done = 0: "done, or healthy",
    /// It failed, or something is not as it should be.
    Failed = 1: "failed, or not healthy: a tunnel that should be up is not, a cause was found",
    /// There is something to change.
    Changes = 2: "plan --detailed-exitcode: there is something to change",
    /// The command line makes no sense.
    Usage = 64: "wrong usage, or there is no object of that name",
    /// Nobody answers.
    Unavailable = 69: "the daemon is not reachable or about to end, or what it needs is in use",
    /// The system gives no more.
    Software = 70: "the system did not give what is needed; cygnet doctor shows what it offers",
    /// A file is at fault.
    Io = 74: "a file cannot be read or written",
    /// Later, perhaps.
    Temporary = 75: "not done in time, or too many clients; the daemon goes on, and it may be tried again",
    /// The daemon speaks something else.
    Protocol = 76: "the daemon gave no usable answer; it has perhaps another version",
    /// Not for this user.
    Permission = 77: "no permission",
    /// The configuration is at fault.
    Config = 78: "the configuration has errors",
}

impl Exit {
    /// The number.
    pub const fn code(self) -> u8 {
        self as u8
    }
}

/// The table as `--help` shows it.
pub fn help() -> String {
    let mut text = String::from("Exit codes:\n");
    for exit in Exit::ALL {
        text.push_str(&format!("  {:<3} {}\n", exit.code(), exit.meaning()));
    }
    text
}

/// The table as a section of a manual page.
pub fn roff() -> String {
    let mut text = String::from(".SH \"EXIT STATUS\"\n");
    for exit in Exit::ALL {
        text.push_str(&format!(".TP\n\\fB{}\\fR\n{}\n", exit.code(), exit.meaning().replace('-', "\\-")));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Scripts rely on the numbers: they stay, and the documentation says the same.
    #[test]
    fn exit_codes_are_those_of_the_documentation() {
        let codes: Vec<u8> = Exit::ALL.iter().map(|e| e.code()).collect();
        assert_eq!(codes, [0, 1, 2, 64, 69, 70, 74, 75, 76, 77, 78]);
        let rows: Vec<String> =
            Exit::ALL.iter().map(|e| format!("| {} | {} |", e.code(), e.meaning())).collect();
        let text = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/docs/commands.md")).unwrap();
        let told: Vec<&str> = (text.lines())
            .skip_while(|l| !l.starts_with("| Code |"))
            .skip(2)
            .take_while(|l| l.starts_with('|'))
            .collect();
        assert_eq!(told, rows);
    }
}
