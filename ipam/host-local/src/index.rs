//! The index by container: finds the addresses of a container without reading all reservations.
//!
//! - Cost: this file, `index/page.rs` and, in `network.rs`, the calls of [`Index`].
//! - Gain: the time of ADD and DEL does not depend on the number of reservations. Per call,
//!   index on and off (whole process): 1.3 and 3.0 ms with 250 reservations, 1.4 and 39 ms with
//!   5,000, 1.0 and 300 ms with 50,000 (quieter machine).
//! - The one door: [`Index`], used only by [`crate::network::Network`].
//! - To switch it off in a test: put a plain file at `<dataDir>/.podwire`. Every call then
//!   reads all reservations.
//!
//! The index is the file `<dataDir>/.podwire/<network>/index`: no network can have the name
//! `.podwire`, and the Go plugin ignores it. It has pages of text: a header, and pages of
//! records. The hash of a container's id selects the page with its records, so an ADD reads and
//! writes one of these pages, and creates no file.
//!
//! The reservations are the truth: each record that is used is compared with the file that it
//! names. That there are no further records is believed only while the index is *complete*: its
//! header has the modification time of the network's directory. At its end, a call sets that
//! time to one that the kernel does not assign any more ([`Time::unused`]), so each creation and
//! removal of a file after that changes it, also within the same tick of the kernel's clock: by
//! the Go plugin, by a podwire with another index, by an operator. While a call makes changes,
//! the header has the container, too: after a kill, the next call knows whose changes they were.
//! After a boot all is read again, because a power failure may have lost any part of the files.
//!
//! An index that cannot be read or written costs time, never an address.

pub mod page;

use std::collections::HashMap;
use std::fmt;
use std::fs::{DirBuilder, File};
use std::io;
use std::net::IpAddr;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use nix::fcntl::{AT_FDCWD, OFlag};
use nix::sys::stat::{UtimensatFlags, utimensat};
use nix::sys::time::TimeSpec;

use crate::boot::{Boot, Time};
use crate::file;
use crate::owner::Owner;

/// The directory that holds the index of every network.
pub const DIRECTORY: &str = ".podwire";

/// The file with the index of one network.
pub const FILE: &str = "index";

/// The first word of the header. An index of another form needs another word.
const FORM: &str = "podwire-index-1";

/// Digits of the hash of a container's id.
const HASH: usize = 32;

/// In the place of a hash: no call is making changes; changes of several containers.
const NONE: &str = "-";
const SEVERAL: &str = "*";

/// A new file has a page for so many records, and some more. A page has room for 36 of the
/// longest records.
const RECORDS_PER_PAGE: usize = 16;
const FEWEST_PAGES: usize = 8;

/// The limit: half a million addresses on one node.
const MOST_PAGES: usize = 16 * 1024;

/// What the index has of a reservation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record {
    /// The hash of the container's id.
    hash: String,
    /// The address.
    pub ip: IpAddr,
    /// When its file was created: distinguishes it from a later one with the same content.
    since: Time,
    /// The boot during which the file was first seen.
    boot: Boot,
}

/// The index of one network. Its user holds the network's lock.
#[derive(Debug)]
pub struct Index {
    path: PathBuf,
    boot: Boot,
    /// `None` if there is none, or its header is damaged.
    stored: Option<Stored>,
    /// Whether `stored` has a record of every reservation.
    complete: bool,
}

/// The file.
#[derive(Debug)]
struct Stored {
    file: File,
    /// The number of pages with records.
    pages: usize,
    header: Header,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Header {
    boot: Boot,
    /// The number of records of earlier boots, or more.
    leftovers: usize,
    /// The modification time of the directory for which the index was complete.
    mark: Time,
    /// The hash of the container whose reservations a call changes.
    changing: String,
}

impl Index {
    /// Opens the index of `network` in `data_dir`. It is complete if it was so in this boot and
    /// the network's directory has not been `modified` since.
    pub fn open(data_dir: &Path, network: &str, boot: Boot, modified: Time) -> Self {
        let path = data_dir.join(DIRECTORY).join(network).join(FILE);
        let stored = Stored::open(&path);
        let header = stored.as_ref().map(|stored| &stored.header);
        let complete =
            header.is_some_and(|it| it.boot == boot && it.changing == NONE && it.mark == modified);
        Self {
            path,
            boot,
            stored,
            complete,
        }
    }

    /// The records of a container; `None` if [`Self::rewrite`] has to repair the index first.
    pub fn find(&self, container: &str) -> Option<Vec<Record>> {
        let stored = self.stored.as_ref().filter(|_| self.complete)?;
        let hash = hash(container);
        let mut records = stored.read(page_of(&hash, stored.pages))?;
        records.retain(|record| record.hash == hash);
        Some(records)
    }

    /// The number of reservations of earlier boots, or more; `None` if it is unknown.
    pub fn leftovers(&self) -> Option<usize> {
        let stored = self.stored.as_ref().filter(|_| self.complete);
        stored.map(|stored| stored.header.leftovers)
    }

    /// Whether a reservation is certainly of an earlier boot.
    pub fn is_leftover(&self, record: &Record) -> bool {
        record.boot.is_before(&self.boot)
    }

    /// A record of a file that is seen for the first time.
    pub fn record(&self, owner: &Owner, ip: IpAddr, since: Time) -> Record {
        Record {
            hash: hash(owner.container()),
            ip,
            since,
            boot: self.boot.clone(),
        }
    }

    /// Sets the boots of those of `all` records that the file has, whether it is complete or
    /// not. Returns whether another program has changed the directory, last `modified` at that
    /// time, since the index was complete.
    pub fn recognise<'a>(&self, all: impl Iterator<Item = &'a mut Record>, modified: Time) -> bool {
        let Some(stored) = &self.stored else {
            return true;
        };
        let Header { changing, mark, .. } = &stored.header;
        let records = stored.all().flatten().flatten();
        let known: HashMap<_, _> = records
            .map(|it| ((it.hash, it.ip, it.since), it.boot))
            .collect();
        let mut foreign = false;
        for record in all {
            match known.get(&(record.hash.clone(), record.ip, record.since)) {
                Some(boot) => record.boot = boot.clone(),
                None => foreign |= record.hash != *changing,
            }
        }
        foreign || (changing == NONE && *mark != modified)
    }

    /// Precedes changes of the network's directory for the container of `owner`.
    pub fn begin(&mut self, owner: &Owner) {
        self.attempt(|index| index.write_header(None, &hash(owner.container())));
    }

    /// Adds the record of a new reservation.
    pub fn add(&mut self, record: &Record) {
        self.attempt(|index| index.change(&record.hash, |all| all.push(record.clone())));
    }

    /// Removes the record of a reservation.
    pub fn remove(&mut self, record: &Record) {
        let is_other = |it: &Record| (&it.hash, it.ip) != (&record.hash, record.ip);
        self.attempt(|index| index.change(&record.hash, |all| all.retain(is_other)));
    }

    /// Replaces the index by one of `all` these reservations.
    pub fn rewrite(&mut self, all: &[Record]) {
        let header = Header {
            boot: self.boot.clone(),
            leftovers: all.iter().filter(|it| self.is_leftover(it)).count(),
            mark: Time::default(),
            changing: SEVERAL.to_owned(),
        };
        self.complete = true;
        self.attempt(|index| index.replace(all, header));
    }

    /// Ends the changes: marks the index as complete for the directory `network`.
    pub fn save(&mut self, network: &Path) {
        self.attempt(|index| {
            let mark = Time::modified(&std::fs::symlink_metadata(network)?).unused();
            let (omitted, time) = (TimeSpec::UTIME_OMIT, mark.to_timespec());
            let follow = UtimensatFlags::NoFollowSymlink;
            utimensat(AT_FDCWD, network, &omitted, &time, follow)?;
            index.write_header(Some(mark), NONE)
        });
    }

    /// Makes a change of a complete index. After a failed one it is not complete any more.
    fn attempt(&mut self, change: impl FnOnce(&mut Self) -> io::Result<()>) {
        if !self.complete {
            return;
        }
        if let Err(error) = change(self) {
            self.complete = false;
            let error = file::failed("write index", &self.path)(error);
            cni::log(format_args!(
                "{error:#}; the next call will read all reservations"
            ));
        }
    }

    fn write_header(&mut self, mark: Option<Time>, changing: &str) -> io::Result<()> {
        let Stored {
            file,
            pages,
            header,
        } = self.stored.as_mut().ok_or_else(damaged)?;
        if mark.is_none() && header.changing == changing {
            return Ok(());
        }
        header.mark = mark.unwrap_or(header.mark);
        changing.clone_into(&mut header.changing);
        page::write(file, 0, &header.text(*pages)).map(drop)
    }

    fn change(&mut self, hash: &str, change: impl Fn(&mut Vec<Record>)) -> io::Result<()> {
        let stored = self.stored.as_ref().ok_or_else(damaged)?;
        let page = page_of(hash, stored.pages);
        let mut records = stored.read(page).ok_or_else(damaged)?;
        change(&mut records);
        let text: String = records.iter().map(ToString::to_string).collect();
        if page::write(&stored.file, page, &text)? {
            return Ok(());
        }
        // The page is full: a new file has more of them.
        let all: Option<Vec<_>> = stored.all().collect();
        let mut all = all.ok_or_else(damaged)?.concat();
        change(&mut all);
        let header = stored.header.clone();
        self.replace(&all, header)
    }

    /// Writes a new file and renames it, so that a kill leaves the old one with its boots.
    fn replace(&mut self, records: &[Record], header: Header) -> io::Result<()> {
        let dir = self.path.parent().unwrap_or(Path::new("."));
        DirBuilder::new().recursive(true).mode(0o700).create(dir)?;
        // The index of earlier releases. Without its stamp, they do not use it.
        let _ = file::remove(&dir.join("stamp"));
        for entry in std::fs::read_dir(dir)?.flatten() {
            if entry.file_name() != FILE {
                let _ = file::remove(&entry.path());
            }
        }
        let content = encode(records, &header);
        let content = content.ok_or_else(|| io::Error::other("too many reservations"))?;
        let beside = self.path.with_extension("new");
        file::replace(&beside, &content)?;
        std::fs::rename(&beside, &self.path)?;
        self.stored = Some(Stored::open(&self.path).ok_or_else(damaged)?);
        Ok(())
    }
}

impl Stored {
    fn open(path: &Path) -> Option<Self> {
        let (file, metadata) = cni::file::open(path, OFlag::O_RDWR).ok()?;
        let text = page::read(&file, 0)?;
        let words: Vec<_> = text.trim_end().split(' ').collect();
        let [FORM, pages, boot, leftovers, mark, changing] = words[..] else {
            return None;
        };
        let pages = pages.parse().ok()?;
        let header = Header {
            boot: Boot::new(boot),
            leftovers: leftovers.parse().ok()?,
            mark: mark.parse().ok()?,
            changing: changing.to_owned(),
        };
        let is_whole = metadata.len() == ((pages + 1) * page::SIZE) as u64;
        is_whole.then_some(Self {
            file,
            pages,
            header,
        })
    }

    /// The records of a page; `None` if it is damaged.
    fn read(&self, page: usize) -> Option<Vec<Record>> {
        let text = page::read(&self.file, page)?;
        text.lines().map(Record::parse).collect()
    }

    fn all(&self) -> impl Iterator<Item = Option<Vec<Record>>> {
        (1..=self.pages).map(|page| self.read(page))
    }
}

impl Header {
    fn text(&self, pages: usize) -> String {
        let Self {
            boot,
            leftovers,
            mark,
            changing,
        } = self;
        format!("{FORM} {pages} {boot} {leftovers} {mark} {changing}\n")
    }
}

impl Record {
    fn parse(line: &str) -> Option<Self> {
        let words: Vec<_> = line.split(' ').collect();
        let [hash, ip, since, boot] = words[..] else {
            return None;
        };
        Some(Self {
            hash: hash.to_owned(),
            ip: ip.parse().ok()?,
            since: since.parse().ok()?,
            boot: Boot::new(boot),
        })
    }
}

impl fmt::Display for Record {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            hash,
            ip,
            since,
            boot,
        } = self;
        writeln!(f, "{hash} {ip} {since} {boot}")
    }
}

/// The content of a file with so many pages that each has room for its records.
fn encode(records: &[Record], header: &Header) -> Option<Vec<u8>> {
    let mut pages = records.len() / RECORDS_PER_PAGE + FEWEST_PAGES;
    while pages <= MOST_PAGES {
        let mut texts = vec![String::new(); pages + 1];
        texts[0] = header.text(pages);
        for record in records {
            texts[page_of(&record.hash, pages)] += &record.to_string();
        }
        let texts = texts.iter().enumerate();
        let encoded = texts.map(|(number, text)| page::encode(number, text));
        if let Some(encoded) = encoded.collect::<Option<Vec<_>>>() {
            return Some(encoded.concat());
        }
        pages *= 2;
    }
    None
}

/// The page, of so many with records, of the containers with `hash`.
fn page_of(hash: &str, pages: usize) -> usize {
    let number = hash
        .get(..8)
        .and_then(|it| u32::from_str_radix(it, 16).ok());
    number.unwrap_or_default() as usize % pages + 1
}

fn hash(container: &str) -> String {
    cni::names::prefixed(HASH, "", container)
}

/// Another program or a disk fault has changed the index.
fn damaged() -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, "not an index")
}
