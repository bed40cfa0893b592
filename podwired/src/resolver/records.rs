//! The records on disk: read at the start, when a plugin asks for it, and when a file changes; and
//! removed when the container has ended without DEL.

use std::collections::{HashMap, HashSet};
use std::path::Path;
use std::rc::Rc;

use anyhow::{Context, Result};
use cni::file;
use names::{Directory, Entry};
use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify, InotifyEvent, WatchDescriptor};
use tokio::io::unix::AsyncFd;
use tokio::task::yield_now;

use super::readable::{Source, watched};
use super::service::Service;
use crate::log;

/// How many namespaces are looked at before other tasks have their turn.
const SLICE: usize = 200;
/// Each sweep looks at no fewer records, and at a tenth of them.
const AT_LEAST: usize = 1000;

/// The files, and what changes in them.
pub struct Records {
    directory: Directory,
    service: Rc<Service>,
    inotify: Option<AsyncFd<Source<Inotify>>>,
    root: Option<WatchDescriptor>,
    watched: HashMap<WatchDescriptor, String>,
    /// Where the next sweep begins.
    next: usize,
}

impl Records {
    /// Reads all records.
    ///
    /// # Errors
    /// The directory cannot be made or read.
    pub fn open(service: Rc<Service>) -> Result<Self> {
        let directory = Directory::default();
        let describe = || format!("make {}", directory.path().display());
        file::make_private_dir(directory.path()).with_context(describe)?;
        let inotify = Inotify::init(InitFlags::IN_CLOEXEC | InitFlags::IN_NONBLOCK);
        let inotify = inotify.map_err(std::io::Error::from);
        let inotify = inotify.and_then(watched);
        if let Err(error) = &inotify {
            // Plugins say what they change.
            log::warn(format_args!(
                "inotify: {error}: only plugins' changes are seen"
            ));
        }
        let mut records = Self {
            directory,
            service,
            inotify: inotify.ok(),
            root: None,
            watched: HashMap::new(),
            next: 0,
        };
        records.read_all()?;
        Ok(records)
    }

    /// Reads all files, and forgets what has none.
    fn read_all(&mut self) -> Result<()> {
        self.root = self.watch_root();
        self.watched.clear();
        let mut found = Vec::new();
        for network in self.directory.networks()? {
            self.watch(&network);
            for entry in self.directory.entries(&network)? {
                let path = self.directory.path().join(entry.to_string());
                let time = std::fs::metadata(path).and_then(|it| it.modified()).ok();
                found.push((time, entry));
            }
        }
        // The newest record of a network holds.
        found.sort();
        let known = self.service.index.borrow().entries();
        let kept: HashSet<&Entry> = found.iter().map(|(_, it)| it).collect();
        for gone in known.iter().filter(|it| !kept.contains(it)) {
            self.service.index.borrow_mut().remove(gone);
            self.service.tell_others(gone);
        }
        for (_, entry) in &found {
            self.read(entry);
        }
        self.service.listen(false);
        Ok(())
    }

    fn watch_root(&self) -> Option<WatchDescriptor> {
        let flags =
            AddWatchFlags::IN_CREATE | AddWatchFlags::IN_DELETE_SELF | AddWatchFlags::IN_ONLYDIR;
        let Source(inotify) = self.inotify.as_ref()?.get_ref();
        inotify.add_watch(self.directory.path(), flags).ok()
    }

    fn watch(&mut self, network: &str) {
        let flags = AddWatchFlags::IN_MOVED_TO
            | AddWatchFlags::IN_MOVED_FROM
            | AddWatchFlags::IN_DELETE
            | AddWatchFlags::IN_CLOSE_WRITE
            | AddWatchFlags::IN_ONLYDIR;
        let path = self.directory.path().join(network);
        let inotify = self.inotify.as_ref().map(AsyncFd::get_ref);
        if let Some(Ok(watch)) = inotify.map(|it| it.0.add_watch(&path, flags)) {
            self.watched.insert(watch, network.to_owned());
        }
    }

    /// Takes over the present state of a record. Returns what is wrong with its file.
    pub fn read(&self, entry: &Entry) -> Option<String> {
        let mut index = self.service.index.borrow_mut();
        self.service.counters.borrow_mut().changes += 1;
        self.service.tell_others(entry);
        match self.directory.read(entry) {
            Ok(Some(record)) => {
                index.put(entry, record);
                None
            }
            Ok(None) => {
                index.remove(entry);
                None
            }
            Err(error) => {
                index.remove(entry);
                let why = format!("{error:#}");
                log::warn(format_args!("{why}"));
                Some(why)
            }
        }
    }

    /// Waits for changes in the files, and takes them over. Without inotify it waits for ever.
    pub async fn changed(&mut self) {
        let events = match &self.inotify {
            None => std::future::pending().await,
            Some(inotify) => {
                let Ok(mut ready) = inotify.readable().await else {
                    return;
                };
                match inotify.get_ref().0.read_events() {
                    Ok(events) => events,
                    Err(_) => {
                        ready.clear_ready();
                        return;
                    }
                }
            }
        };
        let mut whole = false;
        for event in events {
            whole |= self.take(event);
        }
        if whole && let Err(error) = self.read_all() {
            log::error(format_args!("{error:#}"));
        }
        self.service.listen(false);
    }

    /// Takes over what an event says. Whether everything is to be read again.
    fn take(&mut self, event: InotifyEvent) -> bool {
        if event.mask.contains(AddWatchFlags::IN_Q_OVERFLOW) {
            return true;
        }
        let is_root = Some(event.wd) == self.root;
        if is_root && event.mask.contains(AddWatchFlags::IN_DELETE_SELF) {
            return file::make_private_dir(self.directory.path()).is_ok();
        }
        if event.mask.contains(AddWatchFlags::IN_IGNORED) {
            self.watched.remove(&event.wd);
            return false;
        }
        let Some(name) = event.name.as_ref().and_then(|it| it.to_str()) else {
            return false;
        };
        if is_root {
            self.watch(name);
            // Files that came before the watch.
            for entry in self.directory.entries(name).unwrap_or_default() {
                self.read(&entry);
            }
        } else if let Some(network) = self.watched.get(&event.wd)
            && let Ok(entry) = format!("{network}/{name}").parse()
        {
            self.read(&entry);
        }
        false
    }

    /// Removes records whose containers have ended without DEL: some of them are looked at each time,
    /// and all within ten times.
    pub async fn sweep(&mut self) {
        let mut left = AT_LEAST.max(self.service.index.borrow().len().div_ceil(10));
        let mut removed = 0;
        while left > 0 {
            let found = self.service.index.borrow().namespaces(self.next, SLICE);
            let (namespaces, next) = found;
            for (entry, namespace) in namespaces {
                if namespace.is_gone() && self.is_left(&entry) {
                    removed += 1;
                    let _ = self.directory.remove(&entry);
                    self.read(&entry);
                    log::info(format_args!(
                        "removed {entry}: its container has ended without DEL"
                    ));
                }
            }
            self.next = next;
            if next == 0 {
                break;
            }
            left = left.saturating_sub(SLICE);
            yield_now().await;
        }
        if removed > 0 {
            self.service.counters.borrow_mut().swept += removed;
            self.service.listen(false);
        }
    }

    /// Whether the file, too, is of a container that has ended: another ADD may have replaced it.
    fn is_left(&self, entry: &Entry) -> bool {
        let record = self.directory.read(entry).ok().flatten();
        let namespace = record.and_then(|it| it.namespace);
        namespace.is_some_and(|it| it.is_gone())
    }

    /// Whether there is no record, on disk either.
    pub fn is_idle(&mut self) -> bool {
        if let Err(error) = self.read_all() {
            log::error(format_args!("{error:#}"));
        }
        self.service.index.borrow().is_empty()
    }

    /// Where the files are.
    pub fn path(&self) -> &Path {
        self.directory.path()
    }
}
