//! Which addresses an owner holds, without a look at all reservations.
//!
//! Beside the networks' directories, in `<dataDir>/.podwire/<network>/`, lies
//! one small file for each owner, named by a hash of it; no network can have
//! that name, and the Go plugin does not look there. Each line is an address,
//! the time at which its file was made, and the boot during which we first saw it.
//!
//! The index is only ever a faster way to know what the reservations say. It
//! is believed as long as nobody else wrote: after every change we give the
//! network's directory and our file `stamp` the same modification time, one
//! that the kernel would not give them any more. Whoever makes or removes a
//! file changes the directory's, and so do we until the index is complete, so
//! that neither the Go plugin, nor an operator's `rm`, nor a kill between two
//! steps can leave an index that is believed and wrong. The boot is in the stamp, too:
//! what a power failure left is read anew.
//!
//! An index that cannot be written costs time, never an address.

use std::collections::{HashMap, HashSet};
use std::fs::{DirBuilder, File, FileTimes, Metadata, OpenOptions};
use std::io;
use std::net::IpAddr;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::{Duration, SystemTime};

use nix::fcntl::OFlag;

use crate::file;
use crate::owner::Owner;

/// The directory that holds the index of every network.
pub const DIRECTORY: &str = ".podwire";

/// No hash is written like this.
const STAMP: &str = "stamp";

/// One run of the kernel.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Boot(String);

impl Boot {
    /// The one that we are in; `random(4)`.
    pub fn current() -> Self {
        Self::new(&std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default())
    }

    /// The first half of the id tells boots apart, and keeps the files short.
    pub fn new(id: &str) -> Self {
        let digits = id.chars().filter(char::is_ascii_hexdigit);
        let id: String = digits.take(16).collect();
        Self(if id.is_empty() { "unknown".into() } else { id })
    }

    /// Whether this is certain to be another boot than `now`. Clocks say
    /// nothing about it: many a node has a wrong one until it finds its time server.
    fn is_before(&self, now: &Self) -> bool {
        self != now && self.0 != "unknown" && now.0 != "unknown"
    }
}

/// When a file was made or last changed (its ctime), to the nanosecond:
/// nobody can set it, so it tells a file from a later one of the same name and content.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Since(i64, i64);

impl Since {
    /// That of a file.
    pub fn of(file: &Metadata) -> Self {
        Self(file.ctime(), file.ctime_nsec())
    }
}

/// An address that somebody holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reservation {
    /// The address.
    pub ip: IpAddr,
    /// The time of its file.
    pub since: Since,
    /// The boot during which we first saw that file.
    pub boot: Boot,
}

/// A reservation as a reading of the whole directory finds it.
#[derive(Clone, Debug)]
pub struct Found {
    /// The address.
    pub ip: IpAddr,
    /// Who holds it; `None` for an empty file, which a killed Go plugin left.
    pub owner: Option<Owner>,
    /// The time of its file.
    pub since: Since,
}

/// The index of one network, in the hands of who holds the network's lock.
#[derive(Debug)]
pub struct Index {
    dir: PathBuf,
    boot: Boot,
    entries: HashMap<Owner, Entry>,
    stamp: Option<Stamp>,
    leftovers: usize,
}

/// What an owner holds.
#[derive(Debug)]
struct Entry {
    path: PathBuf,
    held: Vec<Reservation>,
    changed: bool,
}

/// What the file `stamp` says.
#[derive(Debug)]
struct Stamp {
    boot: Boot,
    leftovers: usize,
    modified: SystemTime,
}

impl Index {
    /// The index of `network` under `data_dir`, as far as there is one.
    pub fn open(data_dir: &Path, network: &str, boot: Boot) -> Self {
        let dir = data_dir.join(DIRECTORY).join(network);
        let stamp = Stamp::read(&dir.join(STAMP));
        Self {
            leftovers: stamp.as_ref().map_or(0, |stamp| stamp.leftovers),
            entries: HashMap::new(),
            stamp,
            boot,
            dir,
        }
    }

    /// Whether the index knows all that is in the network's directory, which
    /// was `modified` then.
    pub fn is_complete(&self, modified: SystemTime) -> bool {
        let complete = |stamp: &Stamp| stamp.boot == self.boot && stamp.modified == modified;
        self.stamp.as_ref().is_some_and(complete)
    }

    /// What `owner` holds.
    pub fn held_by(&mut self, owner: &Owner) -> &[Reservation] {
        &self.entry(owner).held
    }

    /// Adds an address that was just reserved.
    pub fn add(&mut self, owner: &Owner, ip: IpAddr, since: Since) {
        let boot = self.boot.clone();
        let entry = self.entry(owner);
        entry.held.push(Reservation { ip, since, boot });
        entry.changed = true;
    }

    /// Removes an address that was just released.
    pub fn remove(&mut self, owner: &Owner, ip: IpAddr) {
        let entry = self.entry(owner);
        entry.held.retain(|reservation| reservation.ip != ip);
        entry.changed = true;
    }

    /// Whether a reservation is certain to be of an earlier boot.
    pub fn is_of_earlier_boot(&self, reservation: &Reservation) -> bool {
        reservation.boot.is_before(&self.boot)
    }

    /// Whether nobody needs what was found: it is empty, or of an earlier
    /// boot, which no container has survived.
    pub fn is_leftover(&mut self, found: &Found) -> bool {
        let Some(owner) = &found.owner else {
            return true;
        };
        let known = self.known(owner, found);
        known.is_some_and(|known| self.is_of_earlier_boot(&known))
    }

    /// What we knew before about a file.
    fn known(&mut self, owner: &Owner, found: &Found) -> Option<Reservation> {
        let same = |held: &&Reservation| held.ip == found.ip && held.since == found.since;
        self.entry(owner).held.iter().find(same).cloned()
    }

    /// How many leftovers there are at most.
    pub fn leftovers(&self) -> usize {
        self.leftovers
    }

    /// Makes the index say what was `found` in the whole directory. What it
    /// knew before about the same files, it keeps.
    pub fn rebuild(&mut self, found: &[Found]) {
        self.leftovers = 0;
        let mut now: HashMap<&Owner, Vec<Reservation>> = HashMap::new();
        for found in found {
            let Some(owner) = &found.owner else {
                self.leftovers += 1;
                continue;
            };
            let reservation = self.known(owner, found).unwrap_or(Reservation {
                ip: found.ip,
                since: found.since,
                boot: self.boot.clone(),
            });
            self.leftovers += usize::from(self.is_of_earlier_boot(&reservation));
            now.entry(owner).or_default().push(reservation);
        }
        self.entries.retain(|owner, _| now.contains_key(owner));
        for (owner, mut held) in now {
            let entry = self.entry(owner);
            held.sort_by_key(|reservation| reservation.ip);
            entry.held.sort_by_key(|reservation| reservation.ip);
            entry.changed |= entry.held != held;
            entry.held = held;
        }
        self.remove_others();
    }

    /// Writes what changed, and marks it as complete with the directory `network`.
    /// If that fails, the marks stay apart and the next call reads everything.
    pub fn save(&mut self, network: &Path) {
        if let Err(error) = self.write(network) {
            let error = file::failed("write index", &self.dir)(error);
            eprintln!("{error:#}; the next call will read all reservations");
        }
    }

    fn write(&mut self, network: &Path) -> io::Result<()> {
        DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(&self.dir)?;
        for Entry { path, held, .. } in self.entries.values().filter(|entry| entry.changed) {
            // A new file rather than new content: a link is not followed, and
            // ext4 does not write a file to the disk because it was emptied.
            file::remove(path)?;
            if !held.is_empty() {
                file::overwrite(path, &lines(held))?;
            }
        }
        let path = self.dir.join(STAMP);
        let says = |stamp: &Stamp| stamp.boot == self.boot && stamp.leftovers == self.leftovers;
        if !self.stamp.as_ref().is_some_and(says) {
            file::overwrite(&path, &format!("{} {}\n", self.boot.0, self.leftovers))?;
        }
        mark(network, &path)
    }

    fn entry(&mut self, owner: &Owner) -> &mut Entry {
        let dir = &self.dir;
        let entry = self.entries.entry(owner.clone());
        entry.or_insert_with(|| Entry::read(dir, owner))
    }

    /// Removes the files of owners who hold nothing any more. One that stays is
    /// found out by its address, which is free or another's.
    fn remove_others(&self) {
        let known: HashSet<&Path> = self.entries.values().map(|entry| &*entry.path).collect();
        let Ok(entries) = std::fs::read_dir(&self.dir) else {
            return;
        };
        for path in entries.flatten().map(|entry| entry.path()) {
            if !known.contains(&*path) && !path.ends_with(STAMP) {
                let _ = file::remove(&path);
            }
        }
    }
}

impl Entry {
    fn read(dir: &Path, owner: &Owner) -> Self {
        // Hashed, because a container id may be longer than a file's name.
        let path = dir.join(cni::names::prefixed(40, "", owner.as_str()));
        let text = file::read(&path).ok().flatten().map(|(text, _)| text);
        let lines = text.iter().flat_map(|text| text.lines());
        Self {
            held: lines.filter_map(|line| line.parse().ok()).collect(),
            changed: false,
            path,
        }
    }
}

/// Gives both the same time, a nanosecond before that of the last change: with
/// the kernel's clock, which may stand still for 10 ms, the next change would
/// otherwise leave the directory's time as it is.
fn mark(network: &Path, stamp: &Path) -> io::Result<()> {
    let dir = File::open(network)?;
    let time = dir.metadata()?.modified()? - Duration::from_nanos(1);
    let times = FileTimes::new().set_modified(time);
    dir.set_times(times)?;
    let stamp = OpenOptions::new()
        .write(true)
        .custom_flags(OFlag::O_NOFOLLOW.bits())
        .open(stamp)?;
    stamp.set_times(times)
}

impl Stamp {
    fn read(path: &Path) -> Option<Self> {
        let (text, metadata) = file::read(path).ok()??;
        let (boot, leftovers) = text.trim().split_once(' ')?;
        Some(Self {
            boot: Boot(boot.to_owned()),
            leftovers: leftovers.parse().ok()?,
            modified: metadata.modified().ok()?,
        })
    }
}

fn lines(held: &[Reservation]) -> String {
    let line = |Reservation { ip, since, boot }: &Reservation| {
        format!("{ip} {}.{:09} {}\n", since.0, since.1, boot.0)
    };
    held.iter().map(line).collect()
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
                nanoseconds.parse().map_err(drop)?,
            ),
            boot: Boot(boot.to_owned()),
        })
    }
}
