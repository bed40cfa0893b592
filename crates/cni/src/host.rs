//! The machine that this program runs on.

use std::io;

/// The node's name, as uname(2) has it.
///
/// # Errors
/// As open(2) and read(2).
pub fn name() -> io::Result<String> {
    let name = std::fs::read_to_string("/proc/sys/kernel/hostname")?;
    Ok(name.trim().to_owned())
}
