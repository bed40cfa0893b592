//! Findings: what is wrong, what shows it, why it matters, and what to do.

use serde::Serialize;
use survey::Namespace;

/// How bad a finding is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Severity {
    /// Packets are lost, or pods cannot start.
    Error,
    /// It works now, and may not later.
    Warning,
}

/// A kind of finding.
#[derive(Debug, PartialEq, Eq)]
pub struct Check {
    /// Its name for programs. It never changes its meaning.
    pub id: &'static str,
    /// How bad it is.
    pub severity: Severity,
    /// What is looked for, in a few words.
    pub title: &'static str,
    /// Why it matters.
    pub why: &'static str,
}

/// Something that is wrong.
#[derive(Clone, Debug)]
pub struct Finding {
    /// Of which kind.
    pub check: &'static Check,
    /// What it is about.
    pub about: About,
    /// What is wrong.
    pub what: String,
    /// A command that shows it.
    pub evidence: Evidence,
    /// What to do.
    pub remedy: Remedy,
    /// Whether `--fix` has done it.
    pub fixed: bool,
}

/// What a finding is about.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum About {
    /// The node.
    Node,
    /// A network.
    Network(String),
    /// An attachment.
    Pod {
        /// Its network.
        network: String,
        /// Its container.
        container_id: String,
    },
}

/// A command of another program, and what it prints.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Evidence {
    /// The command.
    pub command: String,
    /// The part of its output that shows it.
    pub shows: String,
}

/// What to do about a finding.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Remedy {
    /// A command of podwire that repairs what is podwire's, without the name of the program.
    Ours(Vec<String>),
    /// A command for a shell.
    Command(String),
    /// A decision that a command cannot take.
    Advice(String),
}

impl Finding {
    /// A finding; the parts follow from the check that makes it.
    pub fn new(check: &'static Check, about: About, what: impl Into<String>) -> Self {
        let (command, shows) = (String::new(), String::new());
        Self {
            check,
            about,
            what: what.into(),
            evidence: Evidence { command, shows },
            remedy: Remedy::Advice(String::new()),
            fixed: false,
        }
    }

    /// With the command that shows it.
    #[must_use]
    pub fn shown_by(mut self, command: impl Into<String>, shows: impl Into<String>) -> Self {
        self.evidence = Evidence {
            command: command.into(),
            shows: shows.into(),
        };
        self
    }

    /// With a command of podwire as remedy.
    #[must_use]
    pub fn ours(mut self, words: &[&str]) -> Self {
        self.remedy = Remedy::Ours(words.iter().map(|it| (*it).to_owned()).collect());
        self
    }

    /// With a DEL of the attachment as remedy.
    #[must_use]
    pub fn delete(self, network: &str, container_id: &str, ifname: &str) -> Self {
        self.ours(&["del", "--container-id", container_id, "-i", ifname, network])
    }

    /// With a command as remedy.
    #[must_use]
    pub fn command(mut self, command: impl Into<String>) -> Self {
        self.remedy = Remedy::Command(command.into());
        self
    }

    /// With an advice as remedy.
    #[must_use]
    pub fn advice(mut self, text: impl Into<String>) -> Self {
        self.remedy = Remedy::Advice(text.into());
        self
    }

    /// The document of a finding.
    pub fn document(&self) -> Document<'_> {
        let (network, container) = match &self.about {
            About::Node => (None, None),
            About::Network(network) => (Some(network.as_str()), None),
            About::Pod {
                network,
                container_id,
            } => (Some(network.as_str()), Some(container_id.as_str())),
        };
        let (remedy, command) = self.remedy.parts();
        Document {
            id: self.check.id,
            severity: self.check.severity,
            network,
            container,
            what: &self.what,
            evidence: &self.evidence,
            why: self.check.why,
            remedy,
            command,
            ours: matches!(self.remedy, Remedy::Ours(_)),
            fixed: self.fixed,
        }
    }
}

/// A finding as `--json` prints it.
#[derive(Serialize)]
pub struct Document<'a> {
    id: &'static str,
    severity: Severity,
    #[serde(skip_serializing_if = "Option::is_none")]
    network: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    container: Option<&'a str>,
    what: &'a str,
    evidence: &'a Evidence,
    why: &'static str,
    remedy: String,
    /// Whether the remedy is a command.
    command: bool,
    /// Whether `--fix` carries it out.
    ours: bool,
    fixed: bool,
}

impl Remedy {
    /// The text, and whether it is a command.
    pub fn parts(&self) -> (String, bool) {
        match self {
            Self::Ours(words) => {
                let words: Vec<_> = words.iter().map(|it| quoted(it)).collect();
                (format!("podwire {}", words.join(" ")), true)
            }
            Self::Command(command) => (command.clone(), true),
            Self::Advice(text) => (text.clone(), false),
        }
    }
}

impl About {
    /// What a person reads: `node`, `mynet`, `mynet/web`.
    pub fn text(&self) -> String {
        match self {
            Self::Node => "node".into(),
            Self::Network(network) => network.clone(),
            Self::Pod {
                network,
                container_id,
            } => format!(
                "{network}/{}",
                container_id.get(..12).unwrap_or(container_id)
            ),
        }
    }
}

/// A word of a shell command. A pod chooses the names of its interfaces, and the kernel allows
/// `$(reboot)` as one: it must stay a name when a user pastes the command.
pub fn quoted(word: &str) -> String {
    let plain = |it: char| it.is_ascii_alphanumeric() || "-_.,:/@%+=[]".contains(it);
    if !word.is_empty() && word.chars().all(plain) {
        word.to_owned()
    } else {
        format!("'{}'", word.replace('\'', "'\\''"))
    }
}

/// How `ip` is executed in a namespace: by the name that it has in /run/netns, or by its path.
pub fn ip_in(namespace: &Namespace) -> String {
    let named = |dir: &str| {
        let mut paths = namespace.paths.iter();
        paths.find_map(|it| it.strip_prefix(dir).ok()?.to_str())
    };
    let path = namespace.paths.first();
    match (named("/run/netns"), named("/var/run/netns"), path) {
        (Some(name), _, _) | (_, Some(name), _) => format!("ip -n {}", quoted(name)),
        (.., Some(path)) => format!("nsenter --net={} ip", quoted(&path.display().to_string())),
        // The node's own.
        _ => "ip".to_owned(),
    }
}

/// Joins the first few of many, and says how many more there are.
pub fn first_of(all: &[String]) -> String {
    const SHOWN: usize = 5;
    match all.len().checked_sub(SHOWN) {
        None | Some(0) => all.join(", "),
        Some(more) => format!("{} and {more} more", all[..SHOWN].join(", ")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_words_of_a_shell() {
        for (name, expected) in [
            ("eth0.5", "eth0.5"),
            ("$(reboot)", "'$(reboot)'"),
            ("a'b", "'a'\\''b'"),
            ("", "''"),
        ] {
            assert_eq!(quoted(name), expected);
        }
        let words = ["del", "-i", "`id`"].map(str::to_owned).to_vec();
        assert_eq!(Remedy::Ours(words).parts().0, "podwire del -i '`id`'");
    }

    #[test]
    fn a_namespace_without_a_name_is_entered_by_its_path() {
        let ip = |paths: &[&str]| {
            let paths = paths.iter().map(Into::into).collect();
            ip_in(&Namespace {
                paths,
                ..Namespace::default()
            })
        };
        assert_eq!(ip(&["/proc/1/ns/net", "/run/netns/a b"]), "ip -n 'a b'");
        let docker = "/run/docker/netns/0123";
        assert_eq!(ip(&[docker]), format!("nsenter --net={docker} ip"));
        assert_eq!(ip(&[]), "ip");
    }

    #[test]
    fn a_long_list_is_cut() {
        let all: Vec<_> = (1..=7).map(|it| it.to_string()).collect();
        assert_eq!(first_of(&all[..5]), "1, 2, 3, 4, 5");
        assert_eq!(first_of(&all), "1, 2, 3, 4, 5 and 2 more");
        assert_eq!(first_of(&[]), "");
    }
}
