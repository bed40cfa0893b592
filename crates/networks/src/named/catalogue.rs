//! All networks of a node, and how a word on a command line names one.

use std::fmt;
use std::path::{Path, PathBuf};

use anyhow::Result;
use serde_json::{Map, Value};

use super::{BRIDGE, HOST, Kind, Listed, NONE, Network, Origin};
use crate::list::{self, NetworkList, PluginConf};

/// The networks of a node: the configurations in a directory, and the predefined ones.
#[derive(Clone, Debug)]
pub struct Catalogue {
    /// Each name once. Of several configurations with one name, the one that libcni uses.
    pub networks: Vec<Network>,
    /// The files that are no network, or not the one that is used, and why.
    pub ignored: Vec<(PathBuf, String)>,
}

/// Why a word does not name a network.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LookupError {
    /// There is no such network.
    Missing(String),
    /// The first digits of the ids of several.
    Ambiguous(String, usize),
}

impl fmt::Display for LookupError {
    /// The texts are Docker's.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Missing(word) => write!(f, "network {word} not found"),
            Self::Ambiguous(word, count) => write!(
                f,
                "network {word} is ambiguous ({count} matches found based on ID prefix)"
            ),
        }
    }
}

impl std::error::Error for LookupError {}

impl Catalogue {
    /// Reads the configurations in `dir`. A file that cannot be read does not hide the others.
    ///
    /// # Errors
    /// The directory cannot be read.
    pub fn read(dir: &Path) -> Result<Self> {
        let mut all = Self {
            networks: Vec::new(),
            ignored: Vec::new(),
        };
        // The order of libcni: lists first.
        for endings in [&[".conflist"][..], &[".conf", ".json"]] {
            for file in list::files(dir, endings)? {
                match read(&file) {
                    Ok(network) => all.add(network),
                    Err(error) => all.ignored.push((file, format!("{error:#}"))),
                }
            }
        }
        for (name, kind) in [
            (NONE, Kind::None),
            (HOST, Kind::Host),
            (BRIDGE, Kind::Unmade),
        ] {
            if all.named(name).is_none() {
                all.networks.push(Network::unlisted(name, kind));
            }
        }
        Ok(all)
    }

    fn add(&mut self, network: Network) {
        let ignore = |all: &mut Self, network: &Network, why: String| {
            let file = network.listed().map(|it| it.file.clone());
            all.ignored.extend(file.map(|file| (file, why)));
        };
        let name = &network.name;
        if [NONE, HOST].contains(&name.as_str()) {
            let why = format!("{name} is a predefined network, which has no configuration");
            return ignore(self, &network, why);
        }
        if let Some(first) = self.named(name).and_then(Network::listed) {
            let why = format!("network {name} is already in {}", first.file.display());
            return ignore(self, &network, why);
        }
        self.networks.push(network);
    }

    /// The network with exactly this name.
    pub fn named(&self, name: &str) -> Option<&Network> {
        self.networks.iter().find(|it| it.name == name)
    }

    /// The network that `word` names: its whole id, its name, or the first digits of its id, in
    /// this order.
    ///
    /// # Errors
    /// None, or several.
    pub fn find(&self, word: &str) -> Result<&Network, LookupError> {
        let has_id = |it: &&Network| it.id == word;
        if let Some(network) = self.networks.iter().find(has_id).or(self.named(word)) {
            return Ok(network);
        }
        let begins = |it: &&Network| !word.is_empty() && it.id.starts_with(word);
        let matches: Vec<_> = self.networks.iter().filter(begins).collect();
        match matches[..] {
            [network] => Ok(network),
            [] => Err(LookupError::Missing(word.to_owned())),
            _ => Err(LookupError::Ambiguous(word.to_owned(), matches.len())),
        }
    }
}

/// The network in a file.
fn read(file: &Path) -> Result<Network> {
    let list = match file.extension().and_then(|it| it.to_str()) {
        Some("conflist") => NetworkList::from_file(file)?,
        _ => PluginConf::from_file(file)?.into_list()?,
    };
    network(file, list)
}

/// The network in a file that is a list, whatever its name.
pub(super) fn read_list(file: &Path) -> Result<Network> {
    network(file, NetworkList::from_file(file)?)
}

fn network(file: &Path, list: NetworkList) -> Result<Network> {
    list::check_name(&list.name)?;
    let document: Map<String, Value> = serde_json::from_slice(&list.bytes)?;
    let (origin, record) = Origin::read(&list.name, &document);
    Ok(Network {
        id: record.id.clone(),
        name: list.name.clone(),
        kind: Kind::Listed(Box::new(Listed {
            file: file.to_owned(),
            list,
            document,
            origin,
            record,
        })),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn dir(files: &[(&str, Value)]) -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        for (name, content) in files {
            std::fs::write(dir.path().join(name), content.to_string()).unwrap();
        }
        dir
    }

    fn list(name: &str, id: &str) -> Value {
        json!({"cniVersion": "1.0.0", "name": name, "plugins": [{"type": "bridge"}],
            "podwire": {"id": id}})
    }

    #[test]
    fn a_word_is_an_id_a_name_or_the_beginning_of_an_id() {
        let (one, two) = ("ab".repeat(32), "ac".repeat(32));
        let dir = dir(&[
            ("1.conflist", list("one", &one)),
            ("2.conflist", list("ac", &two)),
        ]);
        let all = Catalogue::read(dir.path()).unwrap();
        let name = |word: &str| all.find(word).map(|it| it.name.clone());
        assert_eq!(name("one").unwrap(), "one");
        assert_eq!(name(&one).unwrap(), "one");
        assert_eq!(name("aba").unwrap(), "one");
        assert_eq!(name("ac").unwrap(), "ac", "a name wins over an id");
        assert_eq!(name("a"), Err(LookupError::Ambiguous("a".into(), 2)));
        for word in ["", "x", "One"] {
            assert_eq!(name(word), Err(LookupError::Missing(word.into())));
        }
    }

    #[test]
    fn predefined_networks_are_always_there() {
        let dir = dir(&[("1.conflist", list("host", &"ab".repeat(32)))]);
        let all = Catalogue::read(dir.path()).unwrap();
        let names: Vec<_> = all
            .networks
            .iter()
            .map(|it| (it.name.as_str(), it.driver()))
            .collect();
        assert_eq!(
            names,
            [("none", "null"), ("host", "host"), ("bridge", "bridge")]
        );
        assert!(all.ignored[0].1.contains("predefined"), "{:?}", all.ignored);
        let missing = Catalogue::read(&dir.path().join("missing")).unwrap();
        assert_eq!(missing.networks.len(), 3);
    }

    #[test]
    fn a_broken_file_and_a_second_one_of_a_name_are_named() {
        let dir = dir(&[
            ("1.conflist", list("n", &"ab".repeat(32))),
            ("2.conflist", list("n", &"ac".repeat(32))),
            ("3.conflist", json!([])),
            (
                "4.conf",
                json!({"cniVersion": "1.0.0", "name": "n", "type": "ptp"}),
            ),
            (
                "5.conf",
                json!({"cniVersion": "1.0.0", "name": "single", "type": "ptp"}),
            ),
        ]);
        let all = Catalogue::read(dir.path()).unwrap();
        assert!(all.named("n").unwrap().id.starts_with("ab"));
        assert_eq!(all.named("single").unwrap().driver(), "ptp");
        let ignored: Vec<_> = all
            .ignored
            .iter()
            .map(|it| it.0.file_name().unwrap())
            .collect();
        assert_eq!(ignored, ["2.conflist", "3.conflist", "4.conf"]);
    }
}
