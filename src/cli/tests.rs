//! What holds for every command, whichever comes next.

use clap::{Command, CommandFactory};

use super::Cli;

/// The commands that people see, with their names.
fn visible() -> Vec<Command> {
    let mut all = Cli::command();
    all.build();
    let shown = |c: &&Command| !c.is_hide_set() && c.get_name() != "help";
    all.get_subcommands().filter(shown).cloned().collect()
}

/// The command lines of cygnet in a line of examples; what follows two spaces explains.
fn lines_of(example: &str) -> Vec<Vec<String>> {
    let line = example.trim().split("  ").next().unwrap_or_default();
    // What the shell does with the result is the shell's.
    let parts = line.split(['|', ';', '>', '(', ')']).flat_map(|p| p.split("&&"));
    // Variables may stand before it.
    let words = |part: &str| -> Vec<String> {
        part.split_whitespace().skip_while(|word| word.contains('=')).map(str::to_owned).collect()
    };
    parts.map(words).filter(|words| words.first().is_some_and(|word| word == "cygnet")).collect()
}

fn examples(help: &str) -> Vec<&str> {
    help.lines().skip_while(|l| *l != "Examples:").skip(1).take_while(|l| l.starts_with("  ")).collect()
}

/// A command that is shown without an example, or with one that does not work, fails here.
#[test]
fn every_command_has_examples_and_each_can_be_said() {
    let mut commands = visible();
    commands.push(Cli::command());
    for command in &commands {
        let name = command.get_name();
        let help = command.get_after_help().map(ToString::to_string).unwrap_or_default();
        let examples = examples(&help);
        assert!(!examples.is_empty(), "{name} has no examples");
        for example in examples {
            let lines = lines_of(example);
            assert!(!lines.is_empty(), "{name}: {example}");
            for line in lines {
                let parsed = Cli::command().try_get_matches_from(&line);
                let told = parsed.map(|m| m.subcommand_name().map(str::to_owned));
                assert!(told.is_ok(), "{name}: {line:?}: {}", told.unwrap_err());
            }
        }
        let own = |e: &&&str| e.contains(&format!("cygnet {name}"));
        assert!(name == "cygnet" || help.lines().collect::<Vec<_>>().iter().any(|l| own(&l)), "{name}");
    }
}

/// Commands that answer in something else than JSON, and why.
const WITHOUT_JSON: [(&str, &str); 6] = [
    ("run", "it is the daemon; what it tells is the log and cygnet events"),
    ("bugreport", "it writes an archive"),
    ("export-peer", "it writes the other end's configuration in its own words"),
    ("psk", "it writes a key, for a file"),
    ("completions", "it writes a script for a shell"),
    ("schema", "it is JSON"),
];

#[test]
fn every_command_answers_in_json_but_for_a_reason() {
    for command in visible() {
        let name = command.get_name();
        let json = command.get_arguments().any(|a| a.get_long() == Some("json"));
        let reason = WITHOUT_JSON.iter().find(|(n, _)| *n == name);
        assert!(json != reason.is_some(), "{name}: JSON {json}, reason {reason:?}");
    }
}
