//! The reservations of a network on disk, exactly as the Go plugin stores them:
//! `<dataDir>/<network>/<address>` contains the owner, `last_reserved_ip.<n>` the last address
//! of range set `n`, and every reader and writer holds a flock(2) on `lock`.
//!
//! Nothing is synced to the disk: a power failure may lose reservations, but their containers
//! are gone as well.

use std::collections::HashSet;
use std::io;
use std::net::IpAddr;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use anyhow::Result;
use cni::lock::Lock;
use cni::{Attachment, BestEffort};
use nix::errno::Errno;
use nix::fcntl::OFlag;

use crate::allocator::Store;
use crate::boot::{Boot, Time};
use crate::file::{self, failed};
use crate::index::{DIRECTORY, Index, Record};
use crate::owner::Owner;

/// After so many lstat(2) of single addresses, the whole directory is listed: that takes about
/// as long as the calls before it.
const MOST_LOOKUPS: u32 = 1024;

/// The file that is locked.
const LOCK: &str = "lock";

/// A temporary name that releases up to 2.0 used on file systems without O_TMPFILE.
const SPARE: &str = ".reservation";

/// The directory of a network's reservations, and the current boot.
#[derive(Clone, Debug)]
pub struct Place {
    data_dir: PathBuf,
    network: String,
    boot: Boot,
    /// Called with the network's name if another program hands out its addresses.
    foreign: fn(&str),
}

impl Place {
    /// The directory of `network` in `data_dir`, in the current boot.
    pub fn new(data_dir: &Path, network: &str) -> Self {
        Self {
            foreign: cni::foreign::note,
            ..Self::at_boot(data_dir, network, Boot::current())
        }
    }

    /// The same in `boot`, for tests: other programs are not noted.
    pub fn at_boot(data_dir: &Path, network: &str, boot: Boot) -> Self {
        Self {
            data_dir: data_dir.to_owned(),
            network: network.to_owned(),
            boot,
            foreign: |_| {},
        }
    }

    /// `<dataDir>/<network>`
    pub fn dir(&self) -> PathBuf {
        self.data_dir.join(&self.network)
    }

    /// `<dataDir>/.podwire/<network>`
    pub fn index_dir(&self) -> PathBuf {
        self.data_dir.join(DIRECTORY).join(&self.network)
    }

    fn refuse_links(&self) -> Result<()> {
        let indexes = self.data_dir.join(DIRECTORY);
        let all = [self.dir(), indexes.join(&self.network), indexes];
        all.iter().try_for_each(|dir| file::refuse_link(dir))
    }
}

/// Fails if [`Network::create`] would fail, as far as this can be checked without a change and
/// without the lock.
pub fn probe(place: &Place) -> Result<()> {
    place.refuse_links()?;
    let dir = place.dir();
    // The nearest existing directory, in which ADD would create the missing ones.
    let is_there = |path: &&Path| std::fs::symlink_metadata(path).is_ok();
    if let Some(nearest) = dir.ancestors().find(is_there) {
        file::try_write(nearest)?;
    }
    let lock = dir.join(LOCK);
    match cni::file::open(&lock, OFlag::O_RDONLY) {
        Err(error) if !file::is_absent(&error) => Err(failed("open lock", &lock)(error)),
        _ => Ok(()),
    }
}

/// The addresses that have a file in the directory `dir` of a network; none if there is no
/// such directory.
pub fn names(dir: &Path) -> Result<Vec<IpAddr>> {
    let entries = match std::fs::read_dir(dir) {
        Err(error) if file::is_absent(&error) => return Ok(Vec::new()),
        entries => entries.map_err(failed("read directory", dir))?,
    };
    let mut names = Vec::new();
    for entry in entries {
        let entry = entry.map_err(failed("read directory", dir))?;
        let name = entry.file_name();
        // Only in the form in which they are written: `010.0.0.1` is not a reservation.
        let ip = name.to_str().and_then(|name| name.parse::<IpAddr>().ok());
        names.extend(ip.filter(|ip| *ip.to_string() == *name));
    }
    Ok(names)
}

/// A reservation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reservation {
    /// The content of its file.
    pub owner: Owner,
    /// Its address and age.
    pub record: Record,
}

/// The locked reservations of a network.
#[derive(Debug)]
pub struct Network {
    place: Place,
    dir: PathBuf,
    /// The modification time of the directory before this call's changes.
    modified: Time,
    index: Index,
    changed: bool,
    /// A reservation exists, or may exist, that is not in the index.
    torn: bool,
    lookups: u32,
    names: Option<HashSet<IpAddr>>,
    // The last field, because fields are dropped in order.
    _lock: Lock,
}

impl Network {
    /// Locks the network and creates it if it does not exist.
    pub fn create(place: &Place) -> Result<Self> {
        loop {
            if let Some(network) = Self::find(place)? {
                return Ok(network);
            }
            file::make_private(&place.data_dir)?;
            file::make_private(&place.dir())?;
        }
    }

    /// Locks the network, if it exists.
    pub fn find(place: &Place) -> Result<Option<Self>> {
        let dir = place.dir();
        place.refuse_links()?;
        let Some(lock) = lock(&dir)? else {
            return Ok(None);
        };
        let metadata = std::fs::metadata(&dir).map_err(failed("read directory", &dir))?;
        let modified = Time::modified(&metadata);
        let boot = place.boot.clone();
        Ok(Some(Self {
            index: Index::open(&place.data_dir, &place.network, boot, modified),
            place: place.clone(),
            dir,
            modified,
            changed: false,
            torn: false,
            lookups: 0,
            names: None,
            _lock: lock,
        }))
    }

    /// The reservations of a container.
    pub fn held_by(&mut self, container: &str) -> Result<Vec<Reservation>> {
        if let Some(records) = self.index.find(container) {
            let held = records.into_iter().map(|it| self.confirm(it, container));
            if let Some(held) = held.collect() {
                return Ok(held);
            }
        }
        // The index is incomplete, or a file was changed without the lock.
        let mut all = self.rebuild()?;
        all.retain(|reservation| reservation.owner.container() == container);
        Ok(all)
    }

    /// The reservation of which the index has `record`; `None` if its file says otherwise.
    fn confirm(&self, record: Record, container: &str) -> Option<Reservation> {
        let (content, _) = file::read(&self.path(record.ip)).ok()??;
        let owner = Owner::parse(&content);
        (owner.container() == container).then_some(Reservation { owner, record })
    }

    /// Removes a reservation that was found in this call.
    pub fn release(&mut self, held: &Reservation) -> Result<()> {
        self.begin(&held.owner);
        self.remove(held.record.ip)?;
        self.index.remove(&held.record);
        Ok(())
    }

    /// Removes all reservations except those of owners for which `keep` is true.
    pub fn retain(&mut self, keep: impl Fn(&Owner) -> bool) -> Result<()> {
        let all = self.read_all()?;
        self.remove_unless(all, |_, it| keep(&it.owner))?;
        Ok(())
    }

    /// Removes the reservations that certainly have no container; returns their number.
    fn remove_leftovers(&mut self) -> Result<usize> {
        if self.index.leftovers() == Some(0) {
            return Ok(0);
        }
        let all = self.read_all()?;
        self.remove_unless(all, |index, it| !index.is_leftover(&it.record))
    }

    /// The last address of range set `set`. It is only a hint for the next one: a file that
    /// cannot be read counts as missing.
    pub fn last_reserved(&self, set: usize) -> Option<IpAddr> {
        let (text, _) = file::read(&self.last_reserved_path(set)).ok()??;
        cni::address::parse_ip(text.trim()).ok()
    }

    /// Whether `ip` is not reserved.
    pub fn is_free(&mut self, ip: IpAddr) -> Result<bool> {
        self.lookups += 1;
        if self.lookups > MOST_LOOKUPS {
            return Ok(!self.names()?.contains(&ip));
        }
        let path = self.path(ip);
        match std::fs::symlink_metadata(&path) {
            // We hold the lock, so an empty file is of a plugin that was killed.
            Ok(file) => Ok(file.is_file() && file.len() == 0),
            Err(error) if file::is_absent(&error) => Ok(true),
            Err(error) => Err(failed("read reservation", &path)(error)),
        }
    }

    /// Reserves `ip` for `owner`; false if it is already reserved. It becomes the last address
    /// of `set`.
    fn reserve(&mut self, owner: &Owner, ip: IpAddr, set: Option<usize>) -> Result<bool> {
        self.begin(owner);
        let path = self.path(ip);
        let create = || file::create(&path, owner.as_str());
        let failed_to_reserve = failed("write reservation", &path);
        let mut file = create().map_err(&failed_to_reserve)?;
        if file.is_none() && self.is_empty(ip) {
            self.remove(ip)?;
            file = create().map_err(&failed_to_reserve)?;
        }
        let Some(file) = file else {
            return Ok(false);
        };
        let reserved = set
            .map_or(Ok(()), |set| self.remember_last(ip, set))
            .and_then(|()| file.metadata().map_err(failed("read reservation", &path)));
        match reserved {
            Ok(metadata) => {
                let since = Time::changed(&metadata);
                self.index.add(&self.index.record(owner, ip, since));
                Ok(true)
            }
            Err(error) => {
                self.torn = self.remove(ip).is_err();
                Err(error)
            }
        }
    }

    /// Writes the last address of `set`. It is only a hint: a foreign object in its place is
    /// logged and kept.
    fn remember_last(&self, ip: IpAddr, set: usize) -> Result<()> {
        let path = self.last_reserved_path(set);
        match file::overwrite(&path, ip.to_string().as_bytes()) {
            Err(error) if is_in_the_way(&error) => {
                pass_over("write", &path, error);
                Ok(())
            }
            written => written.map_err(failed("write", &path)),
        }
    }

    fn is_empty(&self, ip: IpAddr) -> bool {
        let read = file::read(&self.path(ip));
        matches!(read, Ok(Some((content, _))) if content.is_empty())
    }

    /// Precedes a change for `owner`.
    fn begin(&mut self, owner: &Owner) {
        self.index.begin(owner);
        self.changed = true;
    }

    fn remove(&self, ip: IpAddr) -> Result<()> {
        let path = self.path(ip);
        file::remove(&path).map_err(failed("remove reservation", &path))
    }

    /// Removes the reservations in `all` that are not to `keep`; returns their number. The
    /// index then has those that are left.
    fn remove_unless(
        &mut self,
        all: Vec<Reservation>,
        keep: impl Fn(&Index, &Reservation) -> bool,
    ) -> Result<usize> {
        let (mut kept, unused): (Vec<_>, Vec<_>) =
            all.into_iter().partition(|it| keep(&self.index, it));
        let count = unused.len();
        let mut steps = BestEffort::new();
        for unused in unused {
            self.begin(&unused.owner);
            let remove = || self.remove(unused.record.ip);
            if steps.step("release address", remove).is_none() {
                kept.push(unused);
            }
        }
        self.rewrite_index(&kept);
        self.names = None;
        steps.finish()?;
        Ok(count)
    }

    fn rewrite_index(&mut self, all: &[Reservation]) {
        let records: Vec<_> = all.iter().map(|it| it.record.clone()).collect();
        self.index.rewrite(&records);
        self.changed = true;
    }

    /// Rebuilds the index from the reservations, which it returns.
    fn rebuild(&mut self) -> Result<Vec<Reservation>> {
        let spare = self.dir.join(SPARE);
        file::remove(&spare).map_err(failed("remove", &spare))?;
        let all = self.read_all()?;
        self.rewrite_index(&all);
        Ok(all)
    }

    /// All reservations, unsorted. One that cannot be read is logged and kept: its address is
    /// in use. An empty one, which a killed Go plugin leaves, is removed.
    fn read_all(&mut self) -> Result<Vec<Reservation>> {
        let mut all = Vec::new();
        for ip in names(&self.dir)? {
            let path = self.path(ip);
            // Read twice, so that a temporary fault does not lose a reservation.
            let (content, metadata) = match file::read(&path).or_else(|_| file::read(&path)) {
                Ok(Some(read)) => read,
                Ok(None) => continue,
                Err(error) if !is_spoilt(&error) => {
                    return Err(failed("read reservation", &path)(error));
                }
                Err(error) => {
                    // If it can be read later, the index lacks it now.
                    self.torn |= !cni::file::is_foreign(&error);
                    pass_over("read reservation", &path, error);
                    continue;
                }
            };
            if content.is_empty() {
                if let Err(error) = file::remove(&path) {
                    pass_over("remove reservation", &path, error);
                }
                continue;
            }
            let (owner, since) = (Owner::parse(&content), Time::changed(&metadata));
            let record = self.index.record(&owner, ip, since);
            all.push(Reservation { owner, record });
        }
        self.recognise(&mut all);
        Ok(all)
    }

    /// Dates the reservations that the index knows, and notes whether another program has
    /// changed the directory in this boot. One without reservations and last address is new.
    fn recognise(&self, all: &mut [Reservation]) {
        let is_new = all.is_empty() && !self.last_reserved_path(0).exists();
        let records = all.iter_mut().map(|it| &mut it.record);
        let is_foreign = self.index.recognise(records, self.modified);
        if is_foreign && !is_new && self.modified >= Time::of_boot() {
            (self.place.foreign)(&self.place.network);
        }
    }

    fn names(&mut self) -> Result<&HashSet<IpAddr>> {
        let names = match self.names.take() {
            Some(names) => names,
            None => names(&self.dir)?.into_iter().collect(),
        };
        Ok(self.names.insert(names))
    }

    fn path(&self, ip: IpAddr) -> PathBuf {
        self.dir.join(ip.to_string())
    }

    fn last_reserved_path(&self, set: usize) -> PathBuf {
        self.dir.join(format!("last_reserved_ip.{set}"))
    }
}

impl Drop for Network {
    fn drop(&mut self) {
        if self.changed && !self.torn && !std::thread::panicking() {
            self.index.save(&self.dir);
        }
    }
}

/// Whether a foreign object, or a file that may not be changed, is in a file's place.
fn is_in_the_way(error: &io::Error) -> bool {
    cni::file::is_foreign(error) || error.kind() == io::ErrorKind::PermissionDenied
}

/// Whether the file itself is the reason why it cannot be read, not a lack of descriptors or
/// memory.
fn is_spoilt(error: &io::Error) -> bool {
    let is_errno = |errno: &Errno| error.raw_os_error() == Some(*errno as i32);
    let damaged = [Errno::EIO, Errno::EUCLEAN, Errno::ENODATA];
    is_in_the_way(error) || damaged.iter().any(is_errno)
}

fn pass_over(action: &str, path: &Path, error: io::Error) {
    cni::log(format_args!(
        "{:#}; passed over",
        failed(action, path)(error)
    ));
}

/// Takes the lock of the network in `dir`; `None` if there is no such directory.
fn lock(dir: &Path) -> Result<Option<Lock>> {
    let path = dir.join(LOCK);
    loop {
        // As in the Go plugin: an existing lock needs no write access.
        let flags = OFlag::O_RDONLY | OFlag::O_CREAT;
        let (file, ours) = match cni::file::open(&path, flags) {
            Ok(opened) => opened,
            Err(error) if file::is_absent(&error) => return Ok(None),
            Err(error) => return Err(failed("open lock", &path)(error)),
        };
        let lock = cni::lock::exclusive(file, &path)?;
        // An operator may have removed the directory while we waited. The next plugin then
        // locks another file.
        let identity = |file: std::fs::Metadata| (file.dev(), file.ino());
        if std::fs::symlink_metadata(&path).is_ok_and(|now| identity(now) == identity(ours)) {
            return Ok(Some(lock));
        }
    }
}

/// A network from the view of one owner.
pub struct Holder<'a> {
    network: &'a mut Network,
    owner: Owner,
    held: Vec<IpAddr>,
}

impl<'a> Holder<'a> {
    /// Releases the reservations of `attachment` of an earlier boot: that container is gone,
    /// even if a new one has the same name.
    pub fn new(network: &'a mut Network, attachment: &Attachment) -> Result<Self> {
        let mut held = Vec::new();
        for reservation in network.held_by(attachment.container_id.as_str())? {
            if !Owner::both(attachment).contains(&reservation.owner) {
                continue;
            }
            if network.index.is_leftover(&reservation.record) {
                network.release(&reservation)?;
            } else {
                held.push(reservation.record.ip);
            }
        }
        Ok(Self {
            network,
            owner: Owner::of(attachment),
            held,
        })
    }

    /// The owner.
    pub fn owner(&self) -> &Owner {
        &self.owner
    }
}

impl Store for Holder<'_> {
    fn container_id(&self) -> &str {
        self.owner.container()
    }

    fn held(&self) -> &[IpAddr] {
        &self.held
    }

    fn last_reserved(&self, set: usize) -> Option<IpAddr> {
        self.network.last_reserved(set)
    }

    fn is_free(&mut self, ip: IpAddr) -> Result<bool> {
        self.network.is_free(ip)
    }

    fn reserve(&mut self, ip: IpAddr, set: Option<usize>) -> Result<bool> {
        self.network.reserve(&self.owner, ip, set)
    }

    fn reclaim(&mut self) -> Result<bool> {
        Ok(self.network.remove_leftovers()? > 0)
    }
}

#[cfg(test)]
mod properties;
#[cfg(test)]
mod tests;
