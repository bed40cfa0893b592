//! Changes of the directory of configurations, one at a time. nerdctl takes the same lock.
//!
//! A file is written whole or not at all: into a file whose name no runtime reads, which gets its
//! name when it is on the disk. What a killed process leaves is found by the next one that takes
//! the lock.

use std::ffi::OsString;
use std::fs::{self, File, Permissions};
use std::io::{self, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use cni::file;
use cni::lock::{self, Lock};
use serde_json::{Map, Value};

use super::{Catalogue, Network, catalogue};
use crate::list;

/// The beginning of our files' names: a runtime takes the first file in the directory for the
/// node's network.
const PREFIX: &str = "zz-podwire-";
const SUFFIX: &str = ".conflist";
/// The names of files that are not complete, and of networks that are being removed. Runtimes
/// read only names that end in `.conf`, `.conflist` or `.json`.
const HIDDEN: &str = ".podwire-";
const UNFINISHED: &str = ".tmp";
const REMOVING: &str = ".removing";

/// The directory of configurations, locked.
#[derive(Debug)]
pub struct Store {
    dir: PathBuf,
    _lock: Lock,
}

impl Store {
    /// Creates the directory if it is missing, and locks it. Removes unfinished files.
    ///
    /// # Errors
    /// The directory cannot be made, read or locked; code 11 if another program holds the lock
    /// for 20 s.
    pub fn open(dir: &Path) -> Result<Self> {
        fs::create_dir_all(dir).with_context(|| format!("create {}", dir.display()))?;
        let opened = File::open(dir).with_context(|| format!("open {}", dir.display()))?;
        let store = Self {
            _lock: lock::exclusive(opened, dir)?,
            dir: dir.to_owned(),
        };
        for unfinished in store.hidden(UNFINISHED)? {
            store.remove(&unfinished)?;
        }
        Ok(store)
    }

    /// The networks, which do not change as long as this value lives.
    ///
    /// # Errors
    /// The directory cannot be read.
    pub fn catalogue(&self) -> Result<Catalogue> {
        Catalogue::read(&self.dir)
    }

    /// Writes the configuration of the new network `name`, and returns its file.
    ///
    /// # Errors
    /// The file cannot be written, or exists.
    pub fn create(&self, name: &str, document: &Map<String, Value>) -> Result<PathBuf> {
        let files = list::files(&self.dir, &[".conf", ".conflist", ".json"])?;
        let names = files.iter().filter_map(|it| it.file_name()?.to_str());
        let first = names.filter(|it| !it.starts_with(PREFIX)).min();
        let file = self.dir.join(file_name(name, first));
        self.write(&file, document, |it| {
            it.persist_noclobber(&file).map_err(|error| error.error)
        })?;
        Ok(file)
    }

    /// Replaces the configuration in `file`.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn replace(&self, file: &Path, document: &Map<String, Value>) -> Result<()> {
        self.write(file, document, |it| {
            it.persist(file).map_err(|error| error.error)
        })
    }

    /// Hides the configuration of `network` from runtimes. Whatever ends this process,
    /// [`Store::being_removed`] has it until [`Store::remove`].
    ///
    /// # Errors
    /// The file cannot be renamed.
    pub fn hide(&self, network: &Network, file: &Path) -> Result<PathBuf> {
        let hidden = self.dir.join(format!("{HIDDEN}{}{REMOVING}", network.name));
        self.rename(file, &hidden)?;
        Ok(hidden)
    }

    /// Undoes [`Store::hide`].
    ///
    /// # Errors
    /// The file cannot be renamed.
    pub fn show(&self, hidden: &Path, file: &Path) -> Result<()> {
        self.rename(hidden, file)
    }

    /// The networks whose removal was begun and not completed, with their files.
    ///
    /// # Errors
    /// The directory cannot be read.
    pub fn being_removed(&self) -> Result<Vec<Network>> {
        let mut networks = Vec::new();
        for file in self.hidden(REMOVING)? {
            match catalogue::read_list(&file) {
                Ok(network) => networks.push(network),
                // Nothing tells what it was.
                Err(_) => self.remove(&file)?,
            }
        }
        Ok(networks)
    }

    /// Removes a file; it may be absent.
    ///
    /// # Errors
    /// The file cannot be removed.
    pub fn remove(&self, file: &Path) -> Result<()> {
        let removed = file::remove(file).and_then(|()| self.sync());
        removed.with_context(|| format!("remove {}", file.display()))
    }

    fn rename(&self, from: &Path, to: &Path) -> Result<()> {
        let renamed = fs::rename(from, to).and_then(|()| self.sync());
        renamed.with_context(|| format!("rename {} to {}", from.display(), to.display()))
    }

    fn write(
        &self,
        file: &Path,
        document: &Map<String, Value>,
        persist: impl FnOnce(tempfile::NamedTempFile) -> io::Result<File>,
    ) -> Result<()> {
        let mut text = serde_json::to_vec_pretty(document)?;
        text.push(b'\n');
        let write = || -> io::Result<()> {
            let mut temporary = tempfile::Builder::new()
                .prefix(HIDDEN)
                .suffix(UNFINISHED)
                .permissions(Permissions::from_mode(0o644))
                .tempfile_in(&self.dir)?;
            temporary.write_all(&text)?;
            temporary.as_file().sync_all()?;
            persist(temporary)?;
            self.sync()
        };
        write().with_context(|| format!("write {}", file.display()))
    }

    /// A new name is on the disk when its directory is.
    fn sync(&self) -> io::Result<()> {
        File::open(&self.dir)?.sync_all()
    }

    fn hidden(&self, ending: &str) -> Result<Vec<PathBuf>> {
        let mut files = list::files(&self.dir, &[ending])?;
        files.retain(|it| {
            let name = it.file_name().map(OsString::from).unwrap_or_default();
            name.as_encoded_bytes().starts_with(HIDDEN.as_bytes())
        });
        Ok(files)
    }
}

/// The name of the file of the network `name`, after `first` in the order of names, the first
/// configuration of another program.
fn file_name(name: &str, first: Option<&str>) -> String {
    let usual = format!("{PREFIX}{name}{SUFFIX}");
    match first {
        Some(first) if *first > *usual => format!("{first}-{usual}"),
        _ => usual,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn document(name: &str) -> Map<String, Value> {
        let document = json!({"cniVersion": "1.0.0", "name": name, "plugins": [{"type": "x"}]});
        document.as_object().unwrap().clone()
    }

    #[test]
    fn a_network_is_never_the_first_file_beside_others() {
        assert_eq!(file_name("n", None), "zz-podwire-n.conflist");
        assert_eq!(file_name("n", Some("10-a.conf")), "zz-podwire-n.conflist");
        for first in ["zzz.conf", "~a.json"] {
            let name = file_name("n", Some(first));
            assert!(*name > *first && name.ends_with(SUFFIX), "{name}");
        }
    }

    #[test]
    fn what_a_killed_process_left_is_no_network() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("net.d");
        let store = Store::open(&path).unwrap();
        let file = store.create("n", &document("n")).unwrap();
        let network = store.catalogue().unwrap().find("n").unwrap().clone();
        assert!(store.create("n", &document("n")).is_err());
        let hidden = store.hide(&network, &file).unwrap();
        fs::write(path.join(".podwire-x.tmp"), "{").unwrap();
        drop(store);
        let store = Store::open(&path).unwrap();
        assert!(store.catalogue().unwrap().find("n").is_err());
        assert_eq!(store.being_removed().unwrap()[0].name, "n");
        store.show(&hidden, &file).unwrap();
        assert!(store.catalogue().unwrap().find("n").is_ok());
        store.remove(&file).unwrap();
        assert_eq!(fs::read_dir(&path).unwrap().count(), 0);
    }
}
