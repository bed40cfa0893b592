//! The records on disk.

use std::fmt;
use std::fs;
use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};
use std::str::FromStr;

use anyhow::{Context, Result};
use cni::{Attachment, Code, file, names};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

use crate::Record;

/// The directory of the records, which only root can write. A boot clears it.
const PATH: &str = "/run/podwire/names";

/// The limit for a record in bytes. The records of a network with many static names are long.
const LONGEST: u64 = 1024 * 1024;

/// How many times a directory is created that other calls remove at the same time.
const ATTEMPTS: u32 = 100;

/// The file of one attachment: its directory and its name there.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Entry {
    network: String,
    file: String,
}

impl Entry {
    /// Where the record of `attachment` is.
    pub fn of(attachment: &Attachment) -> Self {
        let (id, ifname) = (&attachment.container_id, &attachment.ifname);
        Self {
            network: names::short(&attachment.network),
            // Ids and names of interfaces have no colon.
            file: names::short(&format!("{id}:{ifname}")),
        }
    }

    /// The directory's name: that of the network, unless it is a long one.
    pub fn network(&self) -> &str {
        &self.network
    }

    /// The name of the file in that directory.
    pub fn file(&self) -> &str {
        &self.file
    }
}

impl fmt::Display for Entry {
    /// `<network>/<file>`, as in the protocol.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.network, self.file)
    }
}

impl Serialize for Entry {
    fn serialize<S: Serializer>(&self, serializer: S) -> std::result::Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Entry {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> std::result::Result<Self, D::Error> {
        String::deserialize(deserializer)?
            .parse()
            .map_err(de::Error::custom)
    }
}

impl FromStr for Entry {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> Result<Self> {
        let fault = || anyhow::anyhow!("{text:?} is not the name of a record");
        let (network, file) = text.split_once('/').ok_or_else(fault)?;
        let are_names = [network, file].iter().all(|it| is_name(it));
        let entry = Self {
            network: network.to_owned(),
            file: file.to_owned(),
        };
        are_names.then_some(entry).ok_or_else(fault)
    }
}

/// Whether a directory or a file with this name may be ours.
fn is_name(text: &str) -> bool {
    let is_printable = |c: char| c != '/' && !c.is_control();
    !text.is_empty()
        && !text.starts_with('.')
        && text.len() <= 255
        && text.chars().all(is_printable)
}

/// The directory of all records.
#[derive(Clone, Debug)]
pub struct Directory(PathBuf);

impl Default for Directory {
    /// `/run/podwire/names`
    fn default() -> Self {
        Self::at(PATH)
    }
}

impl Directory {
    /// The directory at `path`, which need not exist.
    pub fn at(path: impl Into<PathBuf>) -> Self {
        Self(path.into())
    }

    /// Its path.
    pub fn path(&self) -> &Path {
        &self.0
    }

    fn path_of(&self, entry: &Entry) -> PathBuf {
        self.0.join(&entry.network).join(&entry.file)
    }

    /// Where the record is written before it gets its name. The name is derived: DEL removes what a
    /// killed ADD has left.
    fn draft_of(&self, entry: &Entry) -> PathBuf {
        self.0.join(&entry.network).join(format!(".{}", entry.file))
    }

    /// Writes a record, and replaces an earlier one of the same attachment.
    ///
    /// # Errors
    /// The file cannot be written. Code 11: other calls remove the directory again and again.
    pub fn write(&self, entry: &Entry, record: &Record) -> Result<()> {
        let describe = || format!("write {}", self.path_of(entry).display());
        let mut document = serde_json::to_vec(record).with_context(describe)?;
        document.push(b'\n');
        for _ in 0..ATTEMPTS {
            match self.try_write(entry, &document) {
                // The DEL of another attachment has removed the directory.
                Err(error) if file::is_absent(&error) => {}
                written => return written.with_context(describe),
            }
        }
        let what = describe();
        let error = Code::TryAgain.err(format!(
            "{what}: other calls remove its directory again and again"
        ));
        Err(error.into())
    }

    fn try_write(&self, entry: &Entry, document: &[u8]) -> io::Result<()> {
        file::make_private_dir(&self.0)?;
        file::make_private_dir(&self.0.join(&entry.network))?;
        let draft = self.draft_of(entry);
        file::replace(&draft, document)?;
        fs::rename(draft, self.path_of(entry))
    }

    /// Reads a record; `None` if there is none.
    ///
    /// # Errors
    /// The file is not a record, or cannot be read.
    pub fn read(&self, entry: &Entry) -> Result<Option<Record>> {
        let path = self.path_of(entry);
        let describe = || format!("read {}", path.display());
        match file::read(&path, LONGEST) {
            Err(error) if is_nothing(&error) => Ok(None),
            Err(error) => Err(error).with_context(describe),
            Ok((document, _)) => serde_json::from_slice(&document)
                .map(Some)
                .with_context(describe),
        }
    }

    /// Removes a record, the draft that a killed ADD has left, and the network's directory with its last
    /// record. Returns whether there was a record.
    ///
    /// # Errors
    /// The file cannot be removed.
    pub fn remove(&self, entry: &Entry) -> Result<bool> {
        let remove = |path: &Path| match fs::remove_file(path) {
            Err(error) if is_nothing(&error) => Ok(false),
            removed => removed
                .map(|()| true)
                .with_context(|| format!("remove {}", path.display())),
        };
        remove(&self.draft_of(entry))?;
        let was_there = remove(&self.path_of(entry))?;
        // The kernel refuses this as long as there are other records.
        let _ = fs::remove_dir(self.0.join(&entry.network));
        Ok(was_there)
    }

    /// The directories of all networks, sorted.
    ///
    /// # Errors
    /// The directory cannot be read; one that does not exist is empty.
    pub fn networks(&self) -> Result<Vec<String>> {
        names_in(&self.0)
    }

    /// The records of the network with this directory, sorted.
    ///
    /// # Errors
    /// As [`Directory::networks`].
    pub fn entries(&self, network: &str) -> Result<Vec<Entry>> {
        let files = names_in(&self.0.join(network))?;
        let entry = |file| Entry {
            network: network.to_owned(),
            file,
        };
        Ok(files.into_iter().map(entry).collect())
    }

    /// Removes all records of the network `name` except those of `valid`. Returns the removed ones.
    ///
    /// # Errors
    /// The directory cannot be read; the first file that cannot be removed, after all others.
    pub fn retain(&self, name: &str, valid: &[Attachment]) -> Result<Vec<Entry>> {
        let directory = names::short(name);
        let kept: Vec<_> = valid.iter().map(Entry::of).collect();
        let mut all = cni::BestEffort::new();
        let mut removed = Vec::new();
        // A killed ADD may have left a draft without a record.
        let drafts = drafts_in(&self.0.join(&directory))?;
        for file in names_in(&self.0.join(&directory))?
            .into_iter()
            .chain(drafts)
        {
            let entry = Entry {
                network: directory.clone(),
                file,
            };
            if !kept.contains(&entry)
                && all.step(&entry.to_string(), || self.remove(&entry)) == Some(true)
            {
                removed.push(entry);
            }
        }
        all.finish()?;
        Ok(removed)
    }
}

/// Whether the error means that nothing exists at the path, or that another program has something in
/// place of our directory.
fn is_nothing(error: &io::Error) -> bool {
    file::is_absent(error) || error.kind() == ErrorKind::NotADirectory
}

fn names_in(directory: &Path) -> Result<Vec<String>> {
    let mut names = all_in(directory)?;
    names.retain(|it| is_name(it));
    Ok(names)
}

/// The files whose drafts are in the directory.
fn drafts_in(directory: &Path) -> Result<Vec<String>> {
    let names = all_in(directory)?.into_iter();
    let drafts = names.filter_map(|it| it.strip_prefix('.').map(str::to_owned));
    Ok(drafts.filter(|it| is_name(it)).collect())
}

fn all_in(directory: &Path) -> Result<Vec<String>> {
    let describe = || format!("read {}", directory.display());
    let found = match fs::read_dir(directory) {
        Err(error) if is_nothing(&error) => return Ok(Vec::new()),
        found => found.with_context(describe)?,
    };
    let mut names = Vec::new();
    for entry in found {
        // Names of ours are text.
        if let Ok(name) = entry.with_context(describe)?.file_name().into_string() {
            names.push(name);
        }
    }
    names.sort();
    Ok(names)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Network;

    fn attachment(network: &str, id: &str) -> Attachment {
        Attachment::parse(network, id, "eth0").unwrap()
    }

    fn record(attachment: &Attachment) -> Record {
        Record {
            network: Network {
                name: attachment.network.clone(),
                ..Network::default()
            },
            container: attachment.container_id.to_string(),
            ifname: attachment.ifname.to_string(),
            namespace: None,
            names: vec!["web".parse().unwrap()],
            addresses: vec!["10.1.0.2".parse().unwrap()],
            servers: Vec::new(),
            asks: Vec::new(),
        }
    }

    fn written(directory: &Directory, network: &str, id: &str) -> Entry {
        let attachment = attachment(network, id);
        let entry = Entry::of(&attachment);
        directory.write(&entry, &record(&attachment)).unwrap();
        entry
    }

    fn directory() -> (tempfile::TempDir, Directory) {
        let root = tempfile::tempdir().unwrap();
        let directory = Directory::at(root.path().join("podwire/names"));
        (root, directory)
    }

    #[test]
    fn a_record_is_whole_or_absent() {
        let (_root, directory) = directory();
        assert!(directory.networks().unwrap().is_empty());
        let entry = written(&directory, "net", "a");
        assert_eq!(entry.to_string(), "net/a:eth0");
        assert_eq!(entry.to_string().parse::<Entry>().unwrap(), entry);
        assert_eq!(
            directory.read(&entry).unwrap(),
            Some(record(&attachment("net", "a")))
        );
        assert_eq!(
            directory.entries("net").unwrap(),
            std::slice::from_ref(&entry)
        );
        let other = written(&directory, "net", "b");
        assert!(directory.remove(&entry).unwrap());
        assert!(!directory.remove(&entry).unwrap());
        assert_eq!(directory.read(&entry).unwrap(), None);
        assert_eq!(directory.networks().unwrap(), ["net"]);
        assert!(directory.remove(&other).unwrap());
        assert!(directory.networks().unwrap().is_empty());
    }

    #[test]
    fn what_a_killed_add_has_left_is_no_record_and_goes_with_del_and_gc() {
        let (_root, directory) = directory();
        let entry = written(&directory, "net", "a");
        let draft = directory.draft_of(&entry);
        fs::rename(directory.path_of(&entry), &draft).unwrap();
        assert!(directory.entries("net").unwrap().is_empty());
        assert!(!directory.remove(&entry).unwrap() && !draft.exists());

        let entry = written(&directory, "net", "a");
        fs::rename(directory.path_of(&entry), &draft).unwrap();
        assert!(directory.retain("net", &[]).unwrap().is_empty());
        assert!(!draft.exists() && directory.networks().unwrap().is_empty());
    }

    #[test]
    fn gc_keeps_valid_attachments_and_other_networks() {
        let (_root, directory) = directory();
        let kept = written(&directory, "net", "a");
        let gone = written(&directory, "net", "b");
        let others = written(&directory, "other", "c");
        let removed = directory.retain("net", &[attachment("net", "a")]).unwrap();
        assert_eq!(removed, [gone]);
        assert!(directory.read(&kept).unwrap().is_some());
        assert!(directory.read(&others).unwrap().is_some());
    }

    #[test]
    fn long_names_have_short_files() {
        let (_root, directory) = directory();
        let (network, id) = ("n".repeat(200), "c".repeat(200));
        let entry = written(&directory, &network, &id);
        assert!(entry.network().len() < 100 && entry.file().len() < 100);
        let found = directory.read(&entry).unwrap().unwrap();
        assert_eq!((found.network.name, found.container), (network, id));
    }

    #[test]
    fn no_request_leads_out_of_the_directory() {
        for text in [
            "",
            "net",
            "net/",
            "/a",
            "../a",
            "net/..",
            "net/.a:eth0",
            ".net/a",
            "net/a/b",
            "net/a\nb",
        ] {
            assert!(text.parse::<Entry>().is_err(), "{text:?}");
        }
    }

    #[test]
    fn another_object_in_a_records_place_is_an_error_that_names_it() {
        let (_root, directory) = directory();
        let entry = written(&directory, "net", "a");
        fs::write(directory.path_of(&entry), "{").unwrap();
        let error = directory.read(&entry).unwrap_err();
        assert!(error.to_string().ends_with("net/a:eth0"), "{error}");
        fs::remove_file(directory.path_of(&entry)).unwrap();
        std::os::unix::fs::symlink("/etc/passwd", directory.path_of(&entry)).unwrap();
        assert!(directory.read(&entry).is_err());
    }
}
