//! What podwire has placed in a directory: the hidden directory `.podwire` in it has the record
//! and what was replaced.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File, Permissions};
use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::directory::Content;

/// The name of the hidden directory.
pub const STATE: &str = ".podwire";
const FILE: &str = "installed.json";
const REPLACED: &str = "replaced";

/// The record of a directory.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    /// For each file the digests that are ours. While a file is replaced there are two: a kill
    /// leaves either.
    files: BTreeMap<String, BTreeSet<String>>,
}

/// The digest of a file, as sha256sum(1) prints it.
pub fn digest(content: &[u8]) -> String {
    let hex = |byte: &u8| format!("{byte:02x}");
    Sha256::digest(content).iter().map(hex).collect()
}

impl Record {
    /// The record in `dir`; empty if there is none.
    ///
    /// # Errors
    /// The file cannot be read, or is not a record.
    pub fn read(dir: &Path) -> Result<Self> {
        let file = dir.join(STATE).join(FILE);
        match cni::file::read(&file, cni::file::LONGEST) {
            Ok((text, _)) => serde_json::from_slice(&text)
                .with_context(|| format!("read {}: it is no record of podwire", file.display())),
            Err(error) if cni::file::is_absent(&error) => Ok(Self::default()),
            Err(error) => Err(error).with_context(|| format!("read {}", file.display())),
        }
    }

    /// Replaces the record in `dir`.
    ///
    /// # Errors
    /// It cannot be written.
    pub fn write(&self, dir: &Path) -> Result<()> {
        let state = dir.join(STATE);
        let file = state.join(FILE);
        let write = || -> Result<()> {
            fs::create_dir_all(&state)?;
            let mut new = tempfile::NamedTempFile::new_in(&state)?;
            new.write_all(&serde_json::to_vec_pretty(self)?)?;
            let file = new.as_file();
            file.set_permissions(Permissions::from_mode(0o644))?;
            file.sync_all()?;
            new.persist(state.join(FILE))?;
            sync(&state)?;
            sync(dir)
        };
        write().with_context(|| format!("write {}", file.display()))
    }

    /// Whether podwire has placed the file `name` with this content.
    pub fn has(&self, name: &str, content: &Content) -> bool {
        let ours = self.files.get(name);
        ours.is_some_and(|all| all.contains(content.digest()))
    }

    /// A file with this digest is ours from now on, too.
    pub fn add(&mut self, name: &str, digest: &str) {
        let all = self.files.entry(name.to_owned()).or_default();
        all.insert(digest.to_owned());
    }

    /// Only a file with this digest is ours from now on.
    pub fn settle(&mut self, name: &str, digest: &str) {
        let only = BTreeSet::from([digest.to_owned()]);
        self.files.insert(name.to_owned(), only);
    }

    /// The files.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.files.keys().map(String::as_str)
    }
}

/// Where the file `name` of `dir` is kept that podwire has replaced.
pub fn replaced(dir: &Path, name: &str) -> PathBuf {
    dir.join(STATE).join(REPLACED).join(name)
}

/// Brings the names in a directory to the disk.
///
/// # Errors
/// Those of open(2) and fsync(2).
pub fn sync(dir: &Path) -> Result<()> {
    let synced = File::open(dir).and_then(|it| it.sync_all());
    synced.with_context(|| format!("write {} to the disk", dir.display()))
}
