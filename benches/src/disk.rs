//! File systems of the run, for the state of plugins: each an ext4 in a file.
//!
//! The time to create a file depends on the file system, and differs by a factor of a hundred.
//! Without a journal, ext4 does not use an inode again for some minutes after its file was removed,
//! and each creation looks at all of these (`recently_deleted` in fs/ext4/ialloc.c). So there is a
//! fresh file system, and one from which many files were removed a moment ago.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use nix::mount::{MntFlags, umount2};

use crate::process;
use crate::stats::median;

/// The size of each in bytes; only written blocks use space.
const SIZE: u64 = 4 << 30;
/// Enough for all files that the curves make.
const INODES: &str = "400000";
/// How many files are removed from the aged one.
const REMOVED: usize = 8_000;
/// Files of which each creation is timed.
const CREATED: usize = 101;

/// A mounted file system. It is unmounted when this is dropped.
pub struct Disk {
    /// The directory on it for state.
    pub dir: PathBuf,
    mounted: PathBuf,
    what: &'static str,
    /// The time to create a file, in microseconds.
    creation: f64,
}

impl Disk {
    /// A new one with a journal, in a file in `work`.
    ///
    /// # Errors
    /// When the machine has no loop devices.
    pub fn fresh(work: &Path) -> Result<Self> {
        let mut disk = Self::mount(work, "fresh", "has_journal", "ext4, new")?;
        disk.creation = disk.creation()?;
        Ok(disk)
    }

    /// One without a journal, from which many files were removed. It stays so for five minutes.
    ///
    /// # Errors
    /// As [`Disk::fresh`].
    pub fn aged(work: &Path) -> Result<Self> {
        let what = "ext4 without a journal, after the removal of many files";
        let mut disk = Self::mount(work, "aged", "^has_journal", what)?;
        let old = disk.dir.join("old");
        fs::create_dir(&old)?;
        for number in 0..REMOVED {
            File::create_new(old.join(number.to_string()))?;
        }
        fs::remove_dir_all(&old).context("remove many files")?;
        // Before, the kernel uses the inodes again at once.
        sleep(Duration::from_secs(2));
        disk.creation = disk.creation()?;
        Ok(disk)
    }

    fn mount(work: &Path, name: &str, journal: &str, what: &'static str) -> Result<Self> {
        let (image, mounted) = (work.join(format!("{name}.ext4")), work.join(name));
        File::create_new(&image)?.set_len(SIZE)?;
        fs::create_dir(&mounted)?;
        let (image, at) = (image.display().to_string(), mounted.display().to_string());
        let make = [
            "-q", "-F", "-t", "ext4", "-N", INODES, "-O", journal, &image,
        ];
        process::output("/usr/sbin/mke2fs", &make).context("make a file system")?;
        // Without it, the kernel initialises inode tables in the background.
        let mount = ["-o", "loop,noinit_itable", &image, &at];
        process::output("/usr/bin/mount", &mount).context("mount a file system in a file")?;
        // Directories in one that is not the root take their inodes from the same block group.
        let dir = mounted.join("state");
        fs::create_dir(&dir)?;
        Ok(Self {
            dir,
            mounted,
            what,
            creation: 0.0,
        })
    }

    /// Times the creation of files; microseconds.
    fn creation(&self) -> Result<f64> {
        let dir = self.dir.join("new");
        fs::create_dir(&dir)?;
        let mut times = Vec::new();
        for number in 0..CREATED {
            let file = dir.join(number.to_string());
            let start = Instant::now();
            File::create_new(file).context("time a creation")?;
            times.push(start.elapsed().as_secs_f64() * 1e6);
        }
        median(&times).context("no file was created")
    }

    /// Its description with the time to create a file, for the page.
    pub fn describe(&self) -> String {
        format!(
            "{} (a file takes {:.0} µs to create)",
            self.what, self.creation
        )
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        let _ = umount2(&self.mounted, MntFlags::MNT_DETACH);
    }
}
