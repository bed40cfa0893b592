//! The reservations of a network on disk, exactly as the Go plugin keeps them:
//! `<dataDir>/<network>/<address>` holds the owner, `last_reserved_ip.<n>` the
//! address that range set `n` gave last, and who works there holds a flock(2)
//! on `lock`.
//!
//! Nothing is synced to the disk: what a power failure takes are reservations
//! of containers that it took as well.

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
use crate::file::{self, failed};
use crate::index::{Boot, DIRECTORY, Found, Index, Reservation, Since};
use crate::owner::Owner;

/// After so many addresses in a row that somebody holds, the names of all are
/// read: that costs about as much as the questions before it did.
const PATIENCE: u32 = 1024;

/// The file that is locked.
const LOCK: &str = "lock";

/// For file systems without nameless files: see [`file::create_whole`].
const SPARE: &str = ".reservation";

/// Where a network's reservations are, and when we look at them.
#[derive(Clone, Debug)]
pub struct Place {
    data_dir: PathBuf,
    network: String,
    boot: Boot,
}

impl Place {
    /// The directory of `network` under `data_dir`, now.
    pub fn new(data_dir: &Path, network: &str) -> Self {
        Self::at_boot(data_dir, network, Boot::current())
    }

    /// The same during `boot`.
    pub fn at_boot(data_dir: &Path, network: &str, boot: Boot) -> Self {
        Self {
            data_dir: data_dir.to_owned(),
            network: network.to_owned(),
            boot,
        }
    }

    /// `<dataDir>/<network>`
    pub fn dir(&self) -> PathBuf {
        self.data_dir.join(&self.network)
    }

    fn refuse_links(&self) -> Result<()> {
        let indexes = self.data_dir.join(DIRECTORY);
        let all = [self.dir(), indexes.join(&self.network), indexes];
        all.iter().try_for_each(|dir| file::refuse_link(dir))
    }
}

/// Fails where [`Network::create`] would, as far as can be told without a change and
/// without waiting for the lock.
pub fn probe(place: &Place) -> Result<()> {
    place.refuse_links()?;
    let dir = place.dir();
    // The nearest that is there stands for those that ADD would make.
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

/// The addresses that have a file in the directory `dir` of a network; none where there is
/// no such directory.
pub fn names(dir: &Path) -> Result<Vec<IpAddr>> {
    let entries = match std::fs::read_dir(dir) {
        Err(error) if file::is_absent(&error) => return Ok(Vec::new()),
        entries => entries.map_err(failed("read directory", dir))?,
    };
    let mut names = Vec::new();
    for entry in entries {
        let entry = entry.map_err(failed("read directory", dir))?;
        let name = entry.file_name();
        // Only the text that we would write: `010.0.0.1` or `FD00::1` is no reservation.
        let ip = name.to_str().and_then(|name| name.parse::<IpAddr>().ok());
        names.extend(ip.filter(|ip| *ip.to_string() == *name));
    }
    Ok(names)
}

/// The reservations of a network; nobody else touches them before this is dropped.
#[derive(Debug)]
pub struct Network {
    dir: PathBuf,
    index: Index,
    changed: bool,
    /// A reservation is there, or may be, that the index could not be told of.
    torn: bool,
    asked: u32,
    names: Option<HashSet<IpAddr>>,
    // Last, because fields are dropped in order: what follows is no longer alone.
    _lock: Lock,
}

impl Network {
    /// Locks the network, which is made if it is not there.
    pub fn create(place: &Place) -> Result<Self> {
        loop {
            if let Some(network) = Self::find(place)? {
                return Ok(network);
            }
            file::make_private(&place.data_dir)?;
            file::make_private(&place.dir())?;
        }
    }

    /// Locks the network, if it is there.
    pub fn find(place: &Place) -> Result<Option<Self>> {
        let dir = place.dir();
        place.refuse_links()?;
        let Some(lock) = lock(&dir)? else {
            return Ok(None);
        };
        let boot = place.boot.clone();
        let mut network = Self {
            index: Index::open(&place.data_dir, &place.network, boot),
            dir,
            changed: false,
            torn: false,
            asked: 0,
            names: None,
            _lock: lock,
        };
        let modified = std::fs::metadata(&network.dir).and_then(|dir| dir.modified());
        let modified = modified.map_err(failed("read directory", &network.dir))?;
        if !network.index.is_complete(modified) {
            network.rebuild()?;
        }
        Ok(Some(network))
    }

    /// What `owner` holds.
    pub fn held_by(&mut self, owner: &Owner) -> Result<Vec<Reservation>> {
        if let Ok(held) = self.index.held_by(owner).map(<[_]>::to_vec) {
            let mut right = true;
            for reservation in &held {
                let holder = self.owner_of(reservation.ip);
                right &= matches!(holder, Ok(Some(holder)) if holder == *owner);
            }
            if right {
                return Ok(held);
            }
        }
        // Somebody changed a file without the lock, or the index cannot be read.
        self.rebuild()?;
        let held = self.index.held_by(owner);
        Ok(held.map_err(failed("read index of", &self.dir))?.to_vec())
    }

    /// Removes the reservation of `ip`, if it is still `owner`'s.
    pub fn release(&mut self, owner: &Owner, ip: IpAddr) -> Result<()> {
        if self.owner_of(ip)?.as_ref() == Some(owner) {
            self.remove(ip)?;
        }
        self.index.remove(owner, ip);
        self.changed = true;
        Ok(())
    }

    /// Removes all reservations but those that `keep` is told to keep.
    pub fn retain(&mut self, keep: impl Fn(&Owner) -> bool) -> Result<()> {
        let (kept, unused) = self
            .read_all()?
            .into_iter()
            .partition(|found| found.owner.as_ref().is_some_and(&keep));
        self.remove_all(kept, unused)
    }

    /// Removes what is certain to be of no use to anybody; returns how many.
    fn remove_leftovers(&mut self) -> Result<usize> {
        // Nothing becomes a leftover while we look: the count can only be too high.
        if self.index.leftovers() == 0 {
            return Ok(0);
        }
        let found = self.read_all()?;
        let (leftovers, kept): (Vec<_>, Vec<_>) = found
            .into_iter()
            .partition(|found| self.index.is_leftover(found));
        let count = leftovers.len();
        self.remove_all(kept, leftovers)?;
        Ok(count)
    }

    /// The address that range set `set` gave last. It only says where the round
    /// goes on: what cannot be read is as good as none.
    pub fn last_reserved(&self, set: usize) -> Option<IpAddr> {
        let (text, _) = file::read(&self.last_reserved_path(set)).ok()??;
        cni::address::parse_ip(text.trim()).ok()
    }

    /// Whether nobody holds `ip`.
    pub fn is_free(&mut self, ip: IpAddr) -> Result<bool> {
        self.asked += 1;
        if self.asked > PATIENCE {
            return Ok(!self.names()?.contains(&ip));
        }
        let path = self.path(ip);
        match std::fs::symlink_metadata(&path) {
            // Under the lock nobody is about to write: it was killed before it could.
            Ok(file) => Ok(file.is_file() && file.len() == 0),
            Err(error) if file::is_absent(&error) => Ok(true),
            Err(error) => Err(failed("read reservation", &path)(error)),
        }
    }

    /// Reserves `ip` for `owner`; false if it is held. The round of `set` goes on there.
    fn reserve(&mut self, owner: &Owner, ip: IpAddr, set: Option<usize>) -> Result<bool> {
        let path = self.path(ip);
        let spare = self.dir.join(SPARE);
        let create = || file::create_whole(&path, owner.as_str(), &spare);
        let failed_to_reserve = failed("write reservation", &path);
        let mut file = create().map_err(&failed_to_reserve)?;
        if file.is_none() && self.is_empty(ip) {
            self.remove(ip)?;
            file = create().map_err(&failed_to_reserve)?;
        }
        let Some(file) = file else {
            return Ok(false);
        };
        self.changed = true;
        let reserved = set
            .map_or(Ok(()), |set| self.remember_last(ip, set))
            .and_then(|()| file.metadata().map_err(failed("read reservation", &path)));
        match reserved {
            Ok(metadata) => self.index.add(owner, ip, Since::of(&metadata)),
            Err(error) => {
                self.torn = self.remove(ip).is_err();
                return Err(error);
            }
        }
        Ok(true)
    }

    /// Writes down where the round goes on. That is a hint: what lies in its place, and is
    /// not ours, is named and left alone.
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

    /// Who holds `ip`; `None` also where its file is not ours.
    fn owner_of(&self, ip: IpAddr) -> Result<Option<Owner>> {
        let path = self.path(ip);
        match file::read(&path) {
            Ok(content) => Ok(content.map(|(content, _)| Owner::parse(&content))),
            Err(error) if cni::file::is_foreign(&error) => Ok(None),
            Err(error) => Err(failed("read reservation", &path)(error)),
        }
    }

    fn is_empty(&self, ip: IpAddr) -> bool {
        let read = file::read(&self.path(ip));
        matches!(read, Ok(Some((content, _))) if content.is_empty())
    }

    fn remove(&mut self, ip: IpAddr) -> Result<()> {
        let path = self.path(ip);
        self.changed = true;
        file::remove(&path).map_err(failed("remove reservation", &path))
    }

    fn remove_all(&mut self, mut kept: Vec<Found>, unused: Vec<Found>) -> Result<()> {
        let mut all = BestEffort::new();
        for found in unused {
            if all
                .step("release address", || self.remove(found.ip))
                .is_none()
            {
                kept.push(found);
            }
        }
        self.index.rebuild(&kept);
        self.changed = true;
        self.names = None;
        all.finish()
    }

    /// Makes the index anew from the reservations.
    fn rebuild(&mut self) -> Result<()> {
        let spare = self.dir.join(SPARE);
        file::remove(&spare).map_err(failed("remove", &spare))?;
        let found = self.read_all()?;
        self.index.rebuild(&found);
        self.changed = true;
        Ok(())
    }

    /// Every reservation, in no order. What cannot be read is named and stays as it is: its
    /// address is in use.
    fn read_all(&mut self) -> Result<Vec<Found>> {
        let mut all = Vec::new();
        for ip in names(&self.dir)? {
            let path = self.path(ip);
            // What fails for a moment must not lose a reservation: so it is read twice.
            let (content, metadata) = match file::read(&path).or_else(|_| file::read(&path)) {
                Ok(Some(read)) => read,
                Ok(None) => continue,
                Err(error) if !is_spoilt(&error) => {
                    return Err(failed("read reservation", &path)(error));
                }
                Err(error) => {
                    // One that can be read later is an index entry that is missing now.
                    self.torn |= !cni::file::is_foreign(&error);
                    pass_over("read reservation", &path, error);
                    continue;
                }
            };
            let owner = (!content.is_empty()).then(|| Owner::parse(&content));
            let since = Since::of(&metadata);
            all.push(Found { ip, owner, since });
        }
        Ok(all)
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

/// Whether something that is not ours, or may not be changed, is in a file's place.
fn is_in_the_way(error: &io::Error) -> bool {
    cni::file::is_foreign(error) || error.kind() == io::ErrorKind::PermissionDenied
}

/// Whether a file cannot be read because of the file, rather than of a lack of descriptors
/// or memory.
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
        // As the Go plugin opens it: a lock that is there needs no write access.
        let flags = OFlag::O_RDONLY | OFlag::O_CREAT;
        let (file, ours) = match cni::file::open(&path, flags) {
            Ok(opened) => opened,
            Err(error) if file::is_absent(&error) => return Ok(None),
            Err(error) => return Err(failed("open lock", &path)(error)),
        };
        let lock = cni::lock::exclusive(file, &path)?;
        // While we waited, an operator may have removed the directory: who
        // comes after us locks another file then.
        let identity = |file: std::fs::Metadata| (file.dev(), file.ino());
        if std::fs::symlink_metadata(&path).is_ok_and(|now| identity(now) == identity(ours)) {
            return Ok(Some(lock));
        }
    }
}

/// A network as one owner sees it.
pub struct Holder<'a> {
    network: &'a mut Network,
    owner: Owner,
    container_id: String,
    held: Vec<IpAddr>,
}

impl<'a> Holder<'a> {
    /// What `attachment` holds of an earlier boot is released: that container
    /// is gone, even if its successor has the same name.
    pub fn new(network: &'a mut Network, attachment: &Attachment) -> Result<Self> {
        let mut held = Vec::new();
        for owner in Owner::both(attachment) {
            for reservation in network.held_by(&owner)? {
                match network.index.is_of_earlier_boot(&reservation) {
                    true => network.release(&owner, reservation.ip)?,
                    false => held.push(reservation.ip),
                }
            }
        }
        Ok(Self {
            network,
            owner: Owner::of(attachment),
            container_id: attachment.container_id.to_string(),
            held,
        })
    }

    /// Who holds.
    pub fn owner(&self) -> &Owner {
        &self.owner
    }
}

impl Store for Holder<'_> {
    fn container_id(&self) -> &str {
        &self.container_id
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
