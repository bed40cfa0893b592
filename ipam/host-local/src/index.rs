//! The index by owner: finds the addresses of an owner without reading all reservations.
//!
//! - Cost: this file, and in `network.rs` the calls of [`Index`].
//! - Gain: the time of ADD and DEL does not depend on the number of reservations. Per call,
//!   index on and off (busy machine, whole process): 5.5 and 11 ms with 250 reservations, 5.5
//!   and 135 ms with 5,000.
//! - The one door: [`Index`], used only by [`crate::network::Network`].
//! - To switch it off in a test: put a plain file at `<dataDir>/.podwire`. Every call then
//!   reads all reservations.
//!
//! The index is in `<dataDir>/.podwire/<network>/`: no network can have that name, and the Go
//! plugin ignores it. An owner is the hash of its reservation's content.
//!
//! - `all` has the records of all owners, sorted, from the last reading of the whole directory.
//! - Each owner that got or released an address since then has a small file, which overrides
//!   its records in `all`.
//! - An owner without addresses has neither: its records are removed from `all`. If `all` is
//!   long, the owner has an empty file until many owners are removed together.
//! - A record has the address, the time at which its file was created, and the boot during
//!   which the file was first seen.
//! - `stamp` marks the index as complete.
//!
//! The index is valid as long as no other program has written to the network's directory.
//! After each change, the directory and `stamp` get the same modification time, one that the
//! kernel does not assign any more. Creating or removing a file changes the directory's time,
//! also during our own calls until the index is complete. So the Go plugin, an operator's
//! `rm`, or a kill between two steps invalidate the index. The boot is in the stamp, too: after
//! a power failure all reservations are read again.
//!
//! An index that cannot be written costs time, never an address.

use std::cell::OnceCell;
use std::collections::{HashMap, HashSet};
use std::fs::{DirBuilder, File, FileTimes, Metadata};
use std::io::{self, Read};
use std::net::IpAddr;
use std::os::unix::fs::{DirBuilderExt, FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::{Duration, SystemTime};

use nix::fcntl::OFlag;

use crate::file;
use crate::owner::Owner;

/// The directory that holds the index of every network.
pub const DIRECTORY: &str = ".podwire";

/// File names that no hash can have.
const STAMP: &str = "stamp";
const ALL: &str = "all";

/// Characters of a hash. Owners are hashed because a container id may be too long for a file
/// name.
const HASH: usize = 40;

/// Bytes of a line of `all`: hash, address, time and boot with their greatest lengths. All
/// lines have the same length, for a binary search.
const RECORD: usize = HASH + 1 + 39 + 1 + 31 + 1 + BOOT + 1;

/// Up to so many lines, `all` is rewritten at once: that takes as long as a few system calls.
const SHORT: u64 = 256;

/// The limit for `all` in bytes: half a million addresses on one node.
const LONGEST_ALL: u64 = 64 * 1024 * 1024;

/// Digits of a boot.
const BOOT: usize = 16;

/// One run of the kernel.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Boot(String);

impl Boot {
    /// The current boot; `random(4)`.
    pub fn current() -> Self {
        // One read(2) returns its 37 bytes.
        let mut id = [0; 64];
        let read =
            File::open("/proc/sys/kernel/random/boot_id").and_then(|mut it| it.read(&mut id));
        Self::new(&String::from_utf8_lossy(&id[..read.unwrap_or(0)]))
    }

    /// Keeps the first half of the id: it is unique enough, and the files stay short.
    pub fn new(id: &str) -> Self {
        let digits = id.chars().filter(char::is_ascii_hexdigit);
        let id: String = digits.take(BOOT).collect();
        Self(if id.is_empty() { "unknown".into() } else { id })
    }

    /// Whether this is certainly another boot than `now`. Clocks are not compared: a node may
    /// have a wrong time until it reaches its time server.
    fn is_before(&self, now: &Self) -> bool {
        self != now && self.0 != "unknown" && now.0 != "unknown"
    }
}

/// When a file was created or last changed (its ctime), in nanoseconds. It cannot be set, so it
/// distinguishes a file from a later one with the same name and content.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Since(i64, i64);

impl Since {
    /// The ctime of a file.
    pub fn of(file: &Metadata) -> Self {
        Self(file.ctime(), file.ctime_nsec())
    }
}

/// A reserved address.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reservation {
    /// The address.
    pub ip: IpAddr,
    /// The ctime of its file.
    pub since: Since,
    /// The boot during which the file was first seen.
    pub boot: Boot,
}

/// A reservation that a reading of the whole directory has found.
#[derive(Clone, Debug)]
pub struct Found {
    /// The address.
    pub ip: IpAddr,
    /// Its owner; `None` for an empty file, which a killed Go plugin has left.
    pub owner: Option<Owner>,
    /// The ctime of its file.
    pub since: Since,
}

/// The index of one network. Its user holds the network's lock.
#[derive(Debug)]
pub struct Index {
    dir: PathBuf,
    boot: Boot,
    /// The entries that were read, by hash of the owner.
    entries: HashMap<String, Entry>,
    all: OnceCell<Option<File>>,
    /// All entries were read.
    loaded: bool,
    /// `all` has to be rewritten.
    rebuilt: bool,
    /// It could not be read for a change: the next call rebuilds it.
    unreadable: bool,
    stamp: Option<Stamp>,
    leftovers: usize,
    /// The number of owners in `all` that have an empty file.
    gone: u64,
}

/// The reservations of an owner.
#[derive(Debug, Default)]
struct Entry {
    held: Vec<Reservation>,
    changed: bool,
}

/// The content of the file `stamp`.
#[derive(Debug)]
struct Stamp {
    boot: Boot,
    leftovers: usize,
    gone: u64,
    modified: SystemTime,
}

impl Index {
    /// Opens the index of `network` in `data_dir`, if there is one.
    pub fn open(data_dir: &Path, network: &str, boot: Boot) -> Self {
        let dir = data_dir.join(DIRECTORY).join(network);
        let stamp = Stamp::read(&dir.join(STAMP));
        Self {
            leftovers: stamp.as_ref().map_or(0, |stamp| stamp.leftovers),
            gone: stamp.as_ref().map_or(0, |stamp| stamp.gone),
            entries: HashMap::new(),
            all: OnceCell::new(),
            loaded: false,
            rebuilt: false,
            unreadable: false,
            stamp,
            boot,
            dir,
        }
    }

    /// Whether the index is valid for the network's directory, whose modification time is
    /// `modified`.
    pub fn is_complete(&self, modified: SystemTime) -> bool {
        let complete = |stamp: &Stamp| stamp.boot == self.boot && stamp.modified == modified;
        self.stamp.as_ref().is_some_and(complete)
    }

    /// The reservations of `owner`.
    ///
    /// # Errors
    /// The index cannot be read or is damaged. [`Self::rebuild`] repairs it.
    pub fn held_by(&mut self, owner: &Owner) -> io::Result<&[Reservation]> {
        Ok(&self.entry(owner)?.held)
    }

    /// Adds a new reservation.
    pub fn add(&mut self, owner: &Owner, ip: IpAddr, since: Since) {
        let boot = self.boot.clone();
        self.change(owner, |held| held.push(Reservation { ip, since, boot }));
    }

    /// Removes a reservation.
    pub fn remove(&mut self, owner: &Owner, ip: IpAddr) {
        self.change(owner, |held| {
            held.retain(|reservation| reservation.ip != ip)
        });
    }

    fn change(&mut self, owner: &Owner, change: impl FnOnce(&mut Vec<Reservation>)) {
        match self.entry(owner) {
            Ok(entry) => {
                change(&mut entry.held);
                entry.changed = true;
            }
            // Without the owner's earlier reservations its file would be incomplete.
            Err(_) => self.unreadable = true,
        }
    }

    /// Whether a reservation is certainly of an earlier boot.
    pub fn is_of_earlier_boot(&self, reservation: &Reservation) -> bool {
        reservation.boot.is_before(&self.boot)
    }

    /// Whether a reservation has no container any more: its file is empty, or it is of an
    /// earlier boot.
    pub fn is_leftover(&mut self, found: &Found) -> bool {
        let Some(owner) = &found.owner else {
            return true;
        };
        self.load();
        let known = self.known(&hash(owner), found);
        known.is_some_and(|known| self.is_of_earlier_boot(known))
    }

    /// The entry for the same file, if there is one.
    fn known(&self, hash: &str, found: &Found) -> Option<&Reservation> {
        let same = |held: &&Reservation| held.ip == found.ip && held.since == found.since;
        self.entries.get(hash)?.held.iter().find(same)
    }

    /// The greatest possible number of leftovers.
    pub fn leftovers(&self) -> usize {
        self.leftovers
    }

    /// Replaces the index by what was `found` in the whole directory. Entries for the same
    /// files are kept.
    pub fn rebuild(&mut self, found: &[Found]) {
        self.load();
        self.leftovers = 0;
        let mut entries: HashMap<String, Entry> = HashMap::new();
        for found in found {
            let Some(owner) = &found.owner else {
                self.leftovers += 1;
                continue;
            };
            let hash = hash(owner);
            let first_seen = || Reservation {
                ip: found.ip,
                since: found.since,
                boot: self.boot.clone(),
            };
            let known = self.known(&hash, found).cloned();
            let reservation = known.unwrap_or_else(first_seen);
            self.leftovers += usize::from(self.is_of_earlier_boot(&reservation));
            entries.entry(hash).or_default().held.push(reservation);
        }
        self.entries = entries;
        self.gone = 0;
        self.rebuilt = true;
        self.unreadable = false;
    }

    /// Writes the changes and marks the index as valid for the directory `network`. If that
    /// fails, the modification times differ, and the next call reads all reservations.
    pub fn save(&mut self, network: &Path) {
        if self.unreadable {
            return;
        }
        if let Err(error) = self.write(network) {
            let error = file::failed("write index", &self.dir)(error);
            cni::log(format_args!(
                "{error:#}; the next call will read all reservations"
            ));
        }
    }

    fn write(&mut self, network: &Path) -> io::Result<()> {
        if self.stamp.is_none() {
            DirBuilder::new()
                .recursive(true)
                .mode(0o700)
                .create(&self.dir)?;
        }
        if self.rebuilt {
            self.write_all()?;
        }
        self.write_changed()?;
        let path = self.dir.join(STAMP);
        let says = |stamp: &Stamp| {
            (&stamp.boot, stamp.leftovers, stamp.gone) == (&self.boot, self.leftovers, self.gone)
        };
        if !self.stamp.as_ref().is_some_and(says) {
            let text = format!("{} {} {}\n", self.boot.0, self.leftovers, self.gone);
            write_own(&path, &text)?;
        }
        mark(network, &path)
    }

    /// Writes a new `all` and renames it, so that a kill leaves the old one and the files that
    /// override it. Owners changed by this call get their own files afterwards.
    fn write_all(&mut self) -> io::Result<()> {
        let mut records = Vec::new();
        for (hash, entry) in self.entries.iter().filter(|(_, entry)| !entry.changed) {
            records.extend(entry.held.iter().map(|held| record(hash, held)));
        }
        records.sort_unstable();
        self.replace_all(&records.concat())?;
        for name in self.own_files() {
            file::remove(&self.dir.join(name))?;
        }
        Ok(())
    }

    fn replace_all(&mut self, text: &str) -> io::Result<()> {
        self.all.take();
        let (path, beside) = (self.dir.join(ALL), self.dir.join("all.new"));
        file::remove(&beside)?;
        if text.is_empty() {
            return file::remove(&path);
        }
        file::overwrite(&beside, text.as_bytes())?;
        std::fs::rename(&beside, &path)
    }

    fn write_changed(&mut self) -> io::Result<()> {
        let mut gone = Vec::new();
        for (hash, entry) in self.entries.iter().filter(|(_, entry)| entry.changed) {
            let path = self.dir.join(hash);
            if !entry.held.is_empty() {
                let lines: Vec<_> = entry.held.iter().map(line).collect();
                file::replace(&path, lines.concat().as_bytes())?;
                continue;
            }
            file::remove(&path)?;
            if self.find_in_all(hash).map_or(true, |held| !held.is_empty()) {
                gone.push(hash.clone());
            }
        }
        self.forget(gone)
    }

    /// Records that these owners of `all` hold no addresses any more: by empty files while they
    /// are fewer than half of a long `all`, or else by rewriting `all` without them.
    fn forget(&mut self, owners: Vec<String>) -> io::Result<()> {
        if owners.is_empty() {
            return Ok(());
        }
        let before = self.gone;
        self.gone += owners.len() as u64;
        let all = std::fs::symlink_metadata(self.dir.join(ALL));
        let lines = all.map_or(0, |all| all.len()) / RECORD as u64;
        if lines > SHORT && self.gone * 2 < lines {
            return owners
                .iter()
                .try_for_each(|hash| write_own(&self.dir.join(hash), ""));
        }
        let mut gone: HashSet<String> = owners.into_iter().collect();
        if before > 0 {
            let is_empty = |name: &String| {
                std::fs::symlink_metadata(self.dir.join(name)).is_ok_and(|file| file.len() == 0)
            };
            gone.extend(self.own_files().into_iter().filter(is_empty));
        }
        if let Some((text, _)) = file::read_at_most(&self.dir.join(ALL), LONGEST_ALL)? {
            let of_others = |line: &&str| !line.get(..HASH).is_some_and(|it| gone.contains(it));
            let kept: String = text.split_inclusive('\n').filter(of_others).collect();
            self.replace_all(&kept)?;
        }
        for hash in gone {
            file::remove(&self.dir.join(hash))?;
        }
        self.gone = 0;
        Ok(())
    }

    fn entry(&mut self, owner: &Owner) -> io::Result<&mut Entry> {
        let hash = hash(owner);
        if !self.loaded && !self.entries.contains_key(&hash) {
            let held = match read_lines(&self.dir.join(&hash))? {
                Some(own) => own,
                None => self.find_in_all(&hash)?,
            };
            let changed = false;
            self.entries.insert(hash.clone(), Entry { held, changed });
        }
        Ok(self.entries.entry(hash).or_default())
    }

    /// Reads all entries. Entries changed by this call are newer than the files.
    fn load(&mut self) {
        if self.loaded {
            return;
        }
        let mut entries: HashMap<String, Entry> = HashMap::new();
        let all = file::read_at_most(&self.dir.join(ALL), LONGEST_ALL);
        let all = all.ok().flatten();
        for text in all.iter().flat_map(|(text, _)| text.lines()) {
            if let Some((hash, held)) = parse_record(text) {
                entries.entry(hash.to_owned()).or_default().held.push(held);
            }
        }
        for hash in self.own_files() {
            let own = read_lines(&self.dir.join(&hash));
            let held = own.ok().flatten().unwrap_or_default();
            let changed = false;
            entries.insert(hash, Entry { held, changed });
        }
        entries.extend(self.entries.drain());
        self.entries = entries;
        self.loaded = true;
    }

    /// The names of the owners' files.
    fn own_files(&self) -> Vec<String> {
        let entries = std::fs::read_dir(&self.dir).into_iter().flatten().flatten();
        let names = entries.filter_map(|entry| entry.file_name().into_string().ok());
        names.filter(|name| name.len() == HASH).collect()
    }

    fn find_in_all(&self, hash: &str) -> io::Result<Vec<Reservation>> {
        match self.all()? {
            Some(all) => find_records(all, hash),
            None => Ok(Vec::new()),
        }
    }

    /// The file `all`, if there is one, opened at the first call.
    fn all(&self) -> io::Result<Option<&File>> {
        if let Some(opened) = self.all.get() {
            return Ok(opened.as_ref());
        }
        let opened = match cni::file::open(&self.dir.join(ALL), OFlag::O_RDONLY) {
            Ok((_, metadata)) if metadata.len() > LONGEST_ALL => return Err(garbled()),
            Ok((all, _)) => Some(all),
            Err(error) if file::is_absent(&error) => None,
            Err(error) => return Err(error),
        };
        Ok(self.all.get_or_init(|| opened).as_ref())
    }
}

/// Finds the records of `hash` in the file `all` by a binary search.
fn find_records(all: &File, hash: &str) -> io::Result<Vec<Reservation>> {
    let read = |number: u64| -> io::Result<String> {
        let mut bytes = [0; RECORD];
        all.read_exact_at(&mut bytes, number * RECORD as u64)?;
        Ok(String::from_utf8_lossy(&bytes).into_owned())
    };
    let count = all.metadata()?.len() / RECORD as u64;
    let (mut low, mut high) = (0, count);
    while low < high {
        let middle = low + (high - low) / 2;
        let text = read(middle)?;
        let (found, _) = parse_record(&text).ok_or_else(garbled)?;
        if found < hash {
            low = middle + 1;
        } else {
            high = middle;
        }
    }
    let mut held = Vec::new();
    for number in low..count {
        let text = read(number)?;
        let (found, reservation) = parse_record(&text).ok_or_else(garbled)?;
        if found != hash {
            break;
        }
        held.push(reservation);
    }
    Ok(held)
}

fn hash(owner: &Owner) -> String {
    cni::names::prefixed(HASH, "", owner.as_str())
}

/// Sets both modification times to a nanosecond before the last change. The kernel's clock for
/// files may stand still for 10 ms, so without that a further change might not change the
/// directory's time.
fn mark(network: &Path, stamp: &Path) -> io::Result<()> {
    let dir = File::open(network)?;
    let time = dir.metadata()?.modified()? - Duration::from_nanos(1);
    let times = FileTimes::new().set_modified(time);
    dir.set_times(times)?;
    let (stamp, _) = cni::file::open(stamp, OFlag::O_WRONLY)?;
    stamp.set_times(times)
}

/// Writes a file of the index, in place if possible. A foreign object in its place is removed:
/// the index's directory belongs to us alone.
fn write_own(path: &Path, content: &str) -> io::Result<()> {
    match file::overwrite(path, content.as_bytes()) {
        Err(error) if cni::file::is_foreign(&error) => file::replace(path, content.as_bytes()),
        written => written,
    }
}

impl Stamp {
    fn read(path: &Path) -> Option<Self> {
        let (text, metadata) = file::read(path).ok()??;
        let (boot, counts) = text.trim().split_once(' ')?;
        let (leftovers, gone) = counts.split_once(' ')?;
        Some(Self {
            boot: Boot(boot.to_owned()),
            leftovers: leftovers.parse().ok()?,
            gone: gone.parse().ok()?,
            modified: metadata.modified().ok()?,
        })
    }
}

fn line(Reservation { ip, since, boot }: &Reservation) -> String {
    format!("{ip} {}.{:09} {}\n", since.0, since.1, boot.0)
}

/// A line of `all`; all have the same length.
fn record(hash: &str, held: &Reservation) -> String {
    let line = line(held);
    let width = RECORD - HASH - 2;
    format!("{hash} {:<width$}\n", line.trim_end())
}

fn parse_record(text: &str) -> Option<(&str, Reservation)> {
    let (hash, line) = text.trim_end().split_once(' ')?;
    Some((hash, line.parse().ok()?))
}

/// `None` if there is no such file.
fn read_lines(path: &Path) -> io::Result<Option<Vec<Reservation>>> {
    let Some((text, _)) = file::read(path)? else {
        return Ok(None);
    };
    let lines = text
        .lines()
        .map(|line| line.parse().map_err(|()| garbled()));
    lines.collect::<io::Result<_>>().map(Some)
}

/// Another program or a disk fault has changed the index.
fn garbled() -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, "not an index")
}

impl FromStr for Reservation {
    type Err = ();

    fn from_str(line: &str) -> Result<Self, ()> {
        let mut words = line.split(' ');
        let mut word = || words.next().ok_or(());
        let (ip, since, boot) = (word()?, word()?, word()?);
        let (seconds, nanoseconds) = since.split_once('.').ok_or(())?;
        Ok(Self {
            ip: ip.parse().map_err(drop)?,
            since: Since(
                seconds.parse().map_err(drop)?,
                nanoseconds.parse::<u32>().map_err(drop)?.into(),
            ),
            boot: Boot::new(boot),
        })
    }
}
