//! Computes the name of the build: a hash of every source that decides what host-local does.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use sha2::{Digest, Sha512};

fn main() -> io::Result<()> {
    let root = Path::new("../..");
    let mut files = vec![root.join("Cargo.lock")];
    for dir in [Path::new("src"), &root.join("crates/cni/src")] {
        list(dir, &mut files)?;
    }
    files.sort();
    let mut hash = Sha512::new();
    for file in &files {
        println!("cargo::rerun-if-changed={}", file.display());
        let content = fs::read(file)?;
        hash.update((content.len() as u64).to_le_bytes());
        hash.update(content);
    }
    let name: String = hash
        .finalize()
        .iter()
        .take(16)
        .map(|byte| format!("{byte:02x}"))
        .collect();
    let out = std::env::var_os("OUT_DIR").map(PathBuf::from);
    fs::write(out.unwrap_or_default().join("build"), name)
}

fn list(dir: &Path, files: &mut Vec<PathBuf>) -> io::Result<()> {
    // A file that is added or removed changes its directory.
    println!("cargo::rerun-if-changed={}", dir.display());
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            list(&entry.path(), files)?;
        } else {
            files.push(entry.path());
        }
    }
    Ok(())
}
