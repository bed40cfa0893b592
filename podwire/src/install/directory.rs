//! One directory of the node: files are placed in it, and taken back.

use std::cell::OnceCell;
use std::collections::HashMap;
use std::fs::{self, File, Metadata, Permissions};
use std::io::Write;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::rc::Rc;

use anyhow::{Context, Result, bail};
use cni::lock::{self, Lock};
use tempfile::{Builder, NamedTempFile, TempPath};

use super::record::{self, Record, STATE, digest, sync};

/// Beginning and end of a temporary name. Runtimes read the endings .conf, .conflist and .json.
const UNFINISHED: (&str, &str) = (".installing-podwire-", ".tmp");

/// The content of files: items with the same content are one file with several names.
#[derive(Debug)]
pub(super) struct Content {
    bytes: Vec<u8>,
    /// Of `bytes`, as soon as it is needed.
    digest: OnceCell<String>,
    mode: u32,
}

/// A file to be placed.
#[derive(Debug)]
pub struct Item {
    /// Its name in the directory.
    pub name: String,
    content: Rc<Content>,
}

impl Item {
    /// A file with the content of `source` under each of `names`. With several names it is one
    /// file on the disk (link(2)).
    ///
    /// # Errors
    /// The source cannot be read, or is empty.
    pub fn program(source: &Path, names: &[&str]) -> Result<Vec<Self>> {
        let read = || format!("read {}", source.display());
        let bytes = fs::read(source).with_context(read)?;
        if bytes.is_empty() {
            bail!("{}: the file is empty", read());
        }
        let content = Rc::new(Content::new(bytes, 0o755));
        let item = |name: &&str| Self {
            name: (*name).to_owned(),
            content: content.clone(),
        };
        Ok(names.iter().map(item).collect())
    }

    /// A file that all users may read.
    pub fn text(name: &str, text: Vec<u8>) -> Self {
        Self {
            name: name.to_owned(),
            content: Rc::new(Content::new(text, 0o644)),
        }
    }
}

impl Content {
    fn new(bytes: Vec<u8>, mode: u32) -> Self {
        Self {
            bytes,
            digest: OnceCell::new(),
            mode,
        }
    }

    /// As sha256sum(1) prints it.
    pub(super) fn digest(&self) -> &str {
        self.digest.get_or_init(|| digest(&self.bytes))
    }
}

/// What a run has changed.
#[derive(Debug, Default)]
pub struct Changes {
    /// Files that were placed.
    pub placed: Vec<PathBuf>,
    /// Of these, those in whose place was a file of another program; it is kept.
    pub replaced: Vec<PathBuf>,
    /// Files that were there already.
    pub unchanged: Vec<PathBuf>,
    /// Files of another program that were left in place.
    pub others: Vec<PathBuf>,
}

/// What a run has taken back.
#[derive(Debug, Default)]
pub struct Withdrawn {
    /// Files that were removed.
    pub removed: Vec<PathBuf>,
    /// Files that are again what they were before.
    pub restored: Vec<PathBuf>,
    /// Files that another program has changed since; they stay.
    pub others: Vec<PathBuf>,
}

impl Changes {
    /// Those of a further directory.
    pub fn add(&mut self, other: Self) {
        self.placed.extend(other.placed);
        self.replaced.extend(other.replaced);
        self.unchanged.extend(other.unchanged);
        self.others.extend(other.others);
    }
}

impl Withdrawn {
    /// Those of a further directory.
    pub fn add(&mut self, other: Self) {
        self.removed.extend(other.removed);
        self.restored.extend(other.restored);
        self.others.extend(other.others);
    }
}

/// A file that is in the directory already.
struct Present {
    content: Content,
    metadata: Metadata,
}

/// A locked directory.
#[derive(Debug)]
pub struct Directory {
    path: PathBuf,
    /// Whether there is a record, and what is replaced is kept.
    keeps: bool,
    _lock: Lock,
}

impl Directory {
    /// Makes the directory if necessary, locks it, and removes what killed installers left.
    ///
    /// # Errors
    /// Those of mkdir(2) and flock(2); code 11 while another installer has the lock.
    pub fn open(path: &Path, keeps: bool) -> Result<Self> {
        let shown = path.display();
        fs::create_dir_all(path).with_context(|| format!("make the directory {shown}"))?;
        let file = File::open(path).with_context(|| format!("open {shown}"))?;
        let directory = Self {
            path: path.to_owned(),
            keeps,
            _lock: lock::exclusive(file, path)?,
        };
        directory.sweep()?;
        Ok(directory)
    }

    /// As [`Directory::open`], but only a directory in which podwire has placed something.
    ///
    /// # Errors
    /// As [`Directory::open`].
    pub fn open_used(path: &Path) -> Result<Option<Self>> {
        if path.join(STATE).is_dir() {
            Self::open(path, true).map(Some)
        } else {
            Ok(None)
        }
    }

    /// Temporary names, which only this lock's holder makes.
    fn sweep(&self) -> Result<()> {
        let entries = fs::read_dir(&self.path);
        for entry in entries.with_context(|| format!("list {}", self.path.display()))? {
            let name = entry?.file_name();
            let name = name.to_string_lossy();
            if name.starts_with(UNFINISHED.0) && name.ends_with(UNFINISHED.1) {
                cni::file::remove(&self.path.join(&*name))?;
            }
        }
        Ok(())
    }

    /// Places files. Another program's files stay if `keep_others`. The order of writing is:
    /// what is replaced is kept, then the record has both digests, then the new files get their
    /// names. So a later run knows which files are ours, whenever this one is killed.
    ///
    /// # Errors
    /// The first file that cannot be placed; those before it are.
    pub fn place(&self, items: &[Item], keep_others: bool) -> Result<Changes> {
        let mut changes = Changes::default();
        let mut record = self.record()?;
        let before = record.clone();
        let mut first_names = HashMap::new();
        let mut due = Vec::new();
        for item in items {
            let target = self.path.join(&item.name);
            let present = present(&target)?;
            let is_ours = |it: &Present| {
                it.content.bytes == item.content.bytes || record.has(&item.name, &it.content)
            };
            match &present {
                Some(there) if is_current(there, item, &first_names) => {
                    let first = (there.metadata.ino(), target.clone());
                    first_names
                        .entry(Rc::as_ptr(&item.content))
                        .or_insert(first);
                    changes.unchanged.push(target);
                }
                Some(there) if !is_ours(there) && keep_others => {
                    changes.others.push(target);
                    continue;
                }
                Some(there) if !is_ours(there) => {
                    self.keep(&item.name)?;
                    changes.replaced.push(target);
                    due.push(item);
                }
                _ => due.push(item),
            }
            if self.keeps {
                record.add(&item.name, item.content.digest());
            }
        }
        self.write(&record, &before)?;
        for item in due {
            let first = first_names.get(&Rc::as_ptr(&item.content));
            let target = self.put(item, first.map(|(_, name)| name.as_path()))?;
            let first = (fs::metadata(&target)?.ino(), target.clone());
            first_names
                .entry(Rc::as_ptr(&item.content))
                .or_insert(first);
            changes.placed.push(target);
        }
        if !changes.placed.is_empty() {
            sync(&self.path)?;
        }
        let with_both = record.clone();
        let is_other = |item: &Item| changes.others.contains(&self.path.join(&item.name));
        for item in items.iter().filter(|it| self.keeps && !is_other(it)) {
            record.settle(&item.name, item.content.digest());
        }
        self.write(&record, &with_both)?;
        Ok(changes)
    }

    /// Gives a file its name, and returns the path. `first` is a file with the same content.
    fn put(&self, item: &Item, first: Option<&Path>) -> Result<PathBuf> {
        let target = self.path.join(&item.name);
        let linked = first.and_then(|first| self.link(first).ok());
        let put = || -> Result<()> {
            let new = match linked {
                Some(new) => new,
                None => self.write_new(&item.content)?,
            };
            Ok(new.persist(&target)?)
        };
        put().with_context(|| format!("place {}", target.display()))?;
        Ok(target)
    }

    /// A further, temporary name of a file.
    fn link(&self, file: &Path) -> Result<TempPath> {
        let new = temporary().make_in(&self.path, |name| fs::hard_link(file, name))?;
        Ok(new.into_temp_path())
    }

    /// A new file with a temporary name, whose content is on the disk.
    fn write_new(&self, content: &Content) -> Result<TempPath> {
        let mut new: NamedTempFile = temporary().tempfile_in(&self.path)?;
        new.write_all(&content.bytes)?;
        let file = new.as_file();
        file.set_permissions(Permissions::from_mode(content.mode))?;
        file.sync_all()?;
        // Closed here: a file that is open for writing cannot be executed (ETXTBSY).
        Ok(new.into_temp_path())
    }

    /// Keeps the file `name`, which is about to be replaced.
    fn keep(&self, name: &str) -> Result<()> {
        if !self.keeps {
            return Ok(());
        }
        let (file, kept) = (self.path.join(name), record::replaced(&self.path, name));
        let keep = || -> Result<()> {
            let dir = kept.parent().unwrap_or(&self.path);
            fs::create_dir_all(dir)?;
            let new = temporary().make_in(dir, |new| match fs::hard_link(&file, new) {
                // A file system without links, or with a limit on them.
                Err(_) => fs::copy(&file, new).and_then(|_| File::open(new)?.sync_all()),
                linked => linked,
            })?;
            new.into_temp_path().persist(&kept)?;
            sync(dir)
        };
        keep().with_context(|| format!("keep {} in {}", file.display(), kept.display()))
    }

    /// Takes back what [`Directory::place`] has placed: what was there before is restored, the
    /// rest is removed. What another program has changed since stays.
    ///
    /// # Errors
    /// The first file that cannot be restored or removed. A repeated call does the rest.
    pub fn withdraw(self) -> Result<Withdrawn> {
        let mut withdrawn = Withdrawn::default();
        let record = self.record()?;
        for name in record.names() {
            let target = self.path.join(name);
            let kept = record::replaced(&self.path, name);
            let present = present(&target)?;
            let is_ours = |it: &Present| record.has(name, &it.content);
            if present.as_ref().is_some_and(|it| !is_ours(it)) {
                withdrawn.others.push(target);
            } else if fs::symlink_metadata(&kept).is_ok() {
                let restored = fs::rename(&kept, &target);
                restored.with_context(|| format!("restore {}", target.display()))?;
                withdrawn.restored.push(target);
            } else if present.is_some() {
                let removed = cni::file::remove(&target);
                removed.with_context(|| format!("remove {}", target.display()))?;
                withdrawn.removed.push(target);
            }
        }
        sync(&self.path)?;
        let state = self.path.join(STATE);
        fs::remove_dir_all(&state).with_context(|| format!("remove {}", state.display()))?;
        sync(&self.path)?;
        Ok(withdrawn)
    }

    fn record(&self) -> Result<Record> {
        if self.keeps {
            Record::read(&self.path)
        } else {
            Ok(Record::default())
        }
    }

    fn write(&self, record: &Record, before: &Record) -> Result<()> {
        if self.keeps && record != before {
            record.write(&self.path)?;
        }
        Ok(())
    }
}

fn temporary() -> Builder<'static, 'static> {
    let mut builder = Builder::new();
    builder.prefix(UNFINISHED.0).suffix(UNFINISHED.1);
    builder
}

/// The first name of each content in the directory, with its inode.
type FirstNames = HashMap<*const Content, (u64, PathBuf)>;

/// Whether the file is as it shall be: names of one content are one file.
fn is_current(there: &Present, item: &Item, first_names: &FirstNames) -> bool {
    let first = first_names.get(&Rc::as_ptr(&item.content));
    there.content.bytes == item.content.bytes
        && there.metadata.is_file()
        && there.content.mode == item.content.mode
        && first.is_none_or(|(inode, _)| *inode == there.metadata.ino())
}

/// The file in this place. A symbolic link, as of update-alternatives(1), is known by where it
/// leads.
fn present(file: &Path) -> Result<Option<Present>> {
    let look = || format!("look at {}", file.display());
    let metadata = match fs::symlink_metadata(file) {
        Err(error) if cni::file::is_absent(&error) => return Ok(None),
        metadata => metadata.with_context(look)?,
    };
    let bytes = match metadata.file_type() {
        kind if kind.is_file() => fs::read(file).with_context(look)?,
        kind if kind.is_symlink() => {
            let target = fs::read_link(file).with_context(look)?;
            target.into_os_string().into_encoded_bytes()
        }
        _ => bail!("{}: it is not a regular file", look()),
    };
    let content = Content::new(bytes, metadata.mode() & 0o7777);
    Ok(Some(Present { content, metadata }))
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Lab(tempfile::TempDir);

    impl Lab {
        fn new() -> Self {
            Self(tempfile::tempdir().unwrap())
        }

        fn bin(&self) -> PathBuf {
            self.0.path().join("bin")
        }

        fn items(&self, content: &str, names: &[&str]) -> Vec<Item> {
            let source = self.0.path().join("source");
            fs::write(&source, content).unwrap();
            Item::program(&source, names).unwrap()
        }

        fn place(&self, items: &[Item], keep_others: bool) -> Changes {
            let directory = Directory::open(&self.bin(), true).unwrap();
            directory.place(items, keep_others).unwrap()
        }

        fn withdraw(&self) -> Option<Withdrawn> {
            let directory = Directory::open_used(&self.bin()).unwrap();
            directory.map(|it| it.withdraw().unwrap())
        }

        fn content(&self, name: &str) -> String {
            fs::read_to_string(self.bin().join(name)).unwrap_or_default()
        }

        fn names(&self) -> Vec<String> {
            let entries = fs::read_dir(self.bin()).unwrap();
            let name = |it: std::io::Result<fs::DirEntry>| it.unwrap().file_name();
            let mut names: Vec<_> = entries.map(name).collect();
            names.sort();
            names.iter().map(|it| it.display().to_string()).collect()
        }
    }

    #[test]
    fn names_of_one_program_are_one_file_and_a_second_run_changes_nothing() {
        let lab = Lab::new();
        let items = lab.items("new", &["a", "b", "c"]);
        assert_eq!(lab.place(&items, false).placed.len(), 3);
        assert_eq!(fs::metadata(lab.bin().join("a")).unwrap().nlink(), 3);
        let second = lab.place(&items, false);
        assert_eq!((second.placed.len(), second.unchanged.len()), (0, 3));
        // A copy in place of the link is mended.
        fs::copy(lab.bin().join("a"), lab.bin().join("x")).unwrap();
        fs::rename(lab.bin().join("x"), lab.bin().join("b")).unwrap();
        assert_eq!(lab.place(&items, false).placed.len(), 1);
        assert_eq!(fs::metadata(lab.bin().join("a")).unwrap().nlink(), 3);
    }

    #[test]
    fn what_is_replaced_comes_back_and_the_rest_goes() {
        let lab = Lab::new();
        fs::create_dir(lab.bin()).unwrap();
        fs::write(lab.bin().join("a"), "other").unwrap();
        std::os::unix::fs::symlink("elsewhere", lab.bin().join("l")).unwrap();
        let first = lab.place(&lab.items("1", &["a", "b", "l"]), false);
        assert_eq!((first.placed.len(), first.replaced.len()), (3, 2));
        // An upgrade keeps nothing of ours.
        let second = lab.place(&lab.items("2", &["a", "b", "l"]), false);
        assert_eq!((second.placed.len(), second.replaced.len()), (3, 0));
        let withdrawn = lab.withdraw().unwrap();
        assert_eq!((withdrawn.restored.len(), withdrawn.removed.len()), (2, 1));
        assert_eq!(lab.content("a"), "other");
        let link = fs::read_link(lab.bin().join("l")).unwrap();
        assert_eq!(link, Path::new("elsewhere"));
        assert_eq!(lab.names(), ["a", "l"]);
        assert!(lab.withdraw().is_none());
    }

    #[test]
    fn files_of_others_stay_where_asked_and_where_they_came_later() {
        let lab = Lab::new();
        fs::create_dir(lab.bin()).unwrap();
        fs::write(lab.bin().join("a"), "other").unwrap();
        let changes = lab.place(&lab.items("1", &["a", "b", "c"]), true);
        assert_eq!((changes.placed.len(), changes.others.len()), (2, 1));
        assert_eq!(lab.content("a"), "other");
        // A package replaces one plugin and removes another.
        fs::write(lab.bin().join("x"), "later").unwrap();
        fs::rename(lab.bin().join("x"), lab.bin().join("b")).unwrap();
        fs::remove_file(lab.bin().join("c")).unwrap();
        let withdrawn = lab.withdraw().unwrap();
        assert_eq!((withdrawn.others.len(), withdrawn.removed.len()), (1, 0));
        assert_eq!(lab.content("b"), "later");
        assert_eq!(lab.names(), ["a", "b"]);
    }

    #[test]
    fn a_run_completes_what_a_killed_one_has_begun() {
        let lab = Lab::new();
        fs::create_dir(lab.bin()).unwrap();
        fs::write(lab.bin().join("a"), "other").unwrap();
        // Killed after the record was written and before the names: nothing of ours is there.
        let directory = Directory::open(&lab.bin(), true).unwrap();
        directory.keep("a").unwrap();
        let mut record = Record::default();
        record.add("a", &digest(b"new"));
        record.add("b", &digest(b"new"));
        record.write(&lab.bin()).unwrap();
        fs::write(lab.bin().join(".installing-podwire-x.tmp"), "ne").unwrap();
        drop(directory);
        lab.place(&lab.items("new", &["a", "b"]), false);
        assert_eq!(
            (lab.content("a"), lab.content("b")),
            ("new".into(), "new".into())
        );
        assert_eq!(lab.names(), [STATE, "a", "b"]);
        // Killed in the middle of the way back.
        fs::rename(record::replaced(&lab.bin(), "a"), lab.bin().join("a")).unwrap();
        lab.withdraw();
        assert_eq!(lab.content("a"), "other");
        assert_eq!(lab.names(), ["a"]);
    }

    #[test]
    fn a_directory_in_the_place_of_a_file_is_an_error() {
        let lab = Lab::new();
        fs::create_dir_all(lab.bin().join("a")).unwrap();
        let directory = Directory::open(&lab.bin(), true).unwrap();
        let error = directory.place(&lab.items("1", &["a"]), false).unwrap_err();
        let error = format!("{error:#}");
        assert!(
            error.ends_with("bin/a: it is not a regular file"),
            "{error}"
        );
        let empty = lab.0.path().join("empty");
        fs::write(&empty, "").unwrap();
        let error = Item::program(&empty, &["a"]).unwrap_err().to_string();
        assert!(error.ends_with("empty: the file is empty"), "{error}");
    }
}
