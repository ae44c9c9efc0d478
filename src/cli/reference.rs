//! The reference of the command line in Markdown, made from the descriptions that its help and its manual pages are made from.

use std::fmt::Write;

use clap::{Arg, Command};

const BEGINNING: &str = "# Commands

Made from the program itself by `cygnet reference`; do not edit. `cygnet help COMMAND` says the same, and so do the manual pages.
";

/// The whole page.
pub fn markdown(command: Command) -> String {
    let mut command = command.disable_help_subcommand(true);
    command.build();
    let mut out = BEGINNING.to_owned();
    let globals: Vec<&Arg> = command.get_arguments().filter(|a| a.is_global_set()).collect();
    let _ = write!(out, "\n## Options of all commands\n\n");
    arguments(&mut out, &globals);
    if let Some(after) = command.get_after_help() {
        let _ = write!(out, "\n```text\n{}\n```\n", after.to_string().trim_end());
    }
    for verb in command.get_subcommands().filter(|v| !v.is_hide_set()) {
        describe(&mut out, verb.clone());
    }
    out
}

fn describe(out: &mut String, mut verb: Command) {
    let _ = write!(out, "\n## `cygnet {}`\n\n", verb.get_name());
    if let Some(about) = verb.get_about() {
        let _ = write!(out, "{}.\n\n", sentence(&about.to_string()));
    }
    let usage = verb.render_usage().to_string();
    let _ = write!(out, "```text\n{}\n```\n", usage.strip_prefix("Usage: ").unwrap_or(&usage).trim());
    let own: Vec<&Arg> = verb
        .get_arguments()
        .filter(|a| !a.is_global_set() && !a.is_hide_set() && a.get_id() != "help")
        .collect();
    if !own.is_empty() {
        out.push('\n');
        arguments(out, &own);
    }
    if let Some(after) = verb.get_after_help() {
        let _ = write!(out, "\n```text\n{}\n```\n", after.to_string().trim_end());
    }
}

fn arguments(out: &mut String, all: &[&Arg]) {
    out.push_str("| option | default | meaning |\n|---|---|---|\n");
    for arg in all {
        let mut meaning = arg.get_help().map(|h| sentence(&h.to_string())).unwrap_or_default();
        let takes_value = arg.get_action().takes_values();
        if takes_value {
            let words = arg.get_possible_values().into_iter().filter(|v| !v.is_hide_set());
            let words: Vec<String> = words
                .map(|v| match v.get_help() {
                    Some(help) => format!("`{}` ({help})", v.get_name()),
                    None => format!("`{}`", v.get_name()),
                })
                .collect();
            if !words.is_empty() {
                let _ = write!(meaning, ": {}", words.join(", "));
            }
        }
        let default: Vec<String> = arg
            .get_default_values()
            .iter()
            .filter(|_| takes_value)
            .map(|v| format!("`{}`", v.to_string_lossy()))
            .collect();
        let cells = [format!("`{}`", name(arg)), default.join(", "), meaning];
        let _ = writeln!(out, "| {} |", cells.map(|c| c.replace('|', "\\|").replace('\n', " ")).join(" | "));
    }
}

/// As in `-c, --config FILE`, or `TUNNEL` of what has no dash.
fn name(arg: &Arg) -> String {
    let dashes = [arg.get_short().map(|c| format!("-{c}")), arg.get_long().map(|l| format!("--{l}"))];
    let mut name = dashes.into_iter().flatten().collect::<Vec<_>>().join(", ");
    if arg.is_positional() || arg.get_action().takes_values() {
        let value = arg.get_value_names().map(|v| v.join(" ")).unwrap_or_default();
        if !name.is_empty() {
            name.push(' ');
        }
        name.push_str(&value);
    }
    name
}

fn sentence(text: &str) -> String {
    text.trim().trim_end_matches('.').to_owned()
}
