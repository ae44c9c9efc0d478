//! Whether output is coloured: on terminals, by the environment's habits (no-color.org, bixense.com/clicolors).

/// Whether to colour what goes to a terminal, or to something else.
pub fn wanted(terminal: bool) -> bool {
    decide(terminal, |name| std::env::var(name).ok())
}

fn decide(terminal: bool, env: impl Fn(&str) -> Option<String>) -> bool {
    let says = |name: &str| env(name).filter(|value| !value.is_empty());
    if says("NO_COLOR").is_some() {
        return false;
    }
    if says("CLICOLOR_FORCE").is_some_and(|v| v != "0") {
        return true;
    }
    terminal && says("CLICOLOR").is_none_or(|v| v != "0") && says("TERM").is_none_or(|term| term != "dumb")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_environment_has_its_say() {
        let with = |terminal, set: &[(&str, &str)]| {
            decide(terminal, |name| set.iter().find(|(n, _)| *n == name).map(|(_, v)| (*v).to_owned()))
        };
        assert!(with(true, &[]) && !with(false, &[]));
        assert!(with(true, &[("NO_COLOR", "")]) && !with(true, &[("NO_COLOR", "1")]));
        assert!(!with(true, &[("CLICOLOR", "0")]) && with(true, &[("CLICOLOR", "1")]));
        assert!(with(false, &[("CLICOLOR_FORCE", "1")]) && !with(false, &[("CLICOLOR_FORCE", "0")]));
        assert!(!with(true, &[("CLICOLOR_FORCE", "1"), ("NO_COLOR", "1")]));
        assert!(!with(true, &[("TERM", "dumb")]) && with(true, &[("TERM", "xterm")]));
    }
}
