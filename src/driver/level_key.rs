//! Which bandwidth level: whose, and of which direction. Its text is how it is kept over restarts.

use std::fmt;

use cygnet_model::tunnel::Direction;

use crate::config::bandwidth::Bandwidth;
use crate::config::model::Config;

/// Whose level.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(super) enum Owner {
    /// A gateway's.
    Gateway(String),
    /// A tunnel's.
    Tunnel(String),
}

/// Which level. Its text is how it is kept: `vpc-a`, `tunnel:a-b`, `in:vpc-a`, `in:tunnel:a-b`; names have no colon.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(super) struct LevelKey {
    pub owner: Owner,
    pub inward: bool,
}

impl LevelKey {
    /// What a gateway sends.
    pub fn gateway(name: &str) -> Self {
        Self { owner: Owner::Gateway(name.to_owned()), inward: false }
    }

    /// What a tunnel sends.
    pub fn tunnel(name: &str) -> Self {
        Self { owner: Owner::Tunnel(name.to_owned()), inward: false }
    }

    /// The other direction of it.
    pub fn inward(self) -> Self {
        Self { inward: true, ..self }
    }

    /// From its text, whether there is such an owner or not.
    pub fn parse(text: &str) -> Self {
        let (inward, rest) = text.strip_prefix("in:").map_or((false, text), |rest| (true, rest));
        let owner = match rest.strip_prefix("tunnel:") {
            Some(name) => Owner::Tunnel(name.to_owned()),
            None => Owner::Gateway(rest.to_owned()),
        };
        Self { owner, inward }
    }

    pub const fn direction(&self) -> Direction {
        if self.inward { Direction::In } else { Direction::Out }
    }

    /// All that a configuration says of the two directions.
    pub fn bandwidth(&self, config: &Config) -> Option<Bandwidth> {
        match &self.owner {
            Owner::Gateway(name) => config.gateway(name).map(|g| g.bandwidth),
            Owner::Tunnel(name) => config.tunnel(name).map(|t| t.bandwidth),
        }
    }

    /// What a configuration says of it; `None`: it has no such gateway or tunnel.
    pub fn configured(&self, config: &Config) -> Option<Option<u64>> {
        self.bandwidth(config).map(|b| b.of(self.direction()))
    }

    /// In a sentence: `bandwidth of vpc-a`, `bandwidth of tunnel a-b inwards`.
    pub fn words(&self) -> String {
        let (kind, name) = match &self.owner {
            Owner::Gateway(name) => ("", name),
            Owner::Tunnel(name) => ("tunnel ", name),
        };
        format!("bandwidth of {kind}{name}{}", if self.inward { " inwards" } else { "" })
    }
}

impl fmt::Display for LevelKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.inward { "in:" } else { "" })?;
        match &self.owner {
            Owner::Gateway(name) => f.write_str(name),
            Owner::Tunnel(name) => write!(f, "tunnel:{name}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn a_level_is_kept_by_a_name_that_reads_back() {
        let keys = [LevelKey::gateway("vpc-a"), LevelKey::tunnel("vpc-a")];
        let all = keys.iter().flat_map(|key| [key.clone(), key.clone().inward()]);
        let names: BTreeSet<String> = all
            .inspect(|key| assert_eq!(LevelKey::parse(&key.to_string()), *key))
            .map(|k| k.to_string())
            .collect();
        let known = ["in:tunnel:vpc-a", "in:vpc-a", "tunnel:vpc-a", "vpc-a"].map(str::to_owned);
        assert_eq!(names, BTreeSet::from(known), "files of other versions have these");
    }
}
