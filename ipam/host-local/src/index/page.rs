//! A page of the index: a checksum, lines of text, and zeros up to its length.
//!
//! A page is written at once, and is a page of the kernel's cache, too. So a kill leaves the old
//! text or the new one. The checksum finds what a disk or another program has damaged.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

/// Bytes of a page.
pub const SIZE: usize = 4096;

/// The text of page `number`; `None` if it is damaged or cannot be read.
pub fn read(file: &File, number: usize) -> Option<String> {
    let mut page = [0; SIZE];
    file.read_exact_at(&mut page, (number * SIZE) as u64).ok()?;
    let content = page.split(|byte| *byte == 0).next()?;
    let (sum, text) = std::str::from_utf8(content).ok()?.split_once('\n')?;
    (sum == checksum(number, text)).then(|| text.to_owned())
}

/// Page `number` with `text`; `None` if it has no room for the text.
pub fn encode(number: usize, text: &str) -> Option<[u8; SIZE]> {
    let content = format!("{}\n{text}", checksum(number, text));
    let mut page = [0; SIZE];
    page.get_mut(..content.len())?
        .copy_from_slice(content.as_bytes());
    Some(page)
}

/// Writes page `number`; false if it has no room for `text`.
///
/// # Errors
/// Those of write(2).
pub fn write(file: &File, number: usize, text: &str) -> io::Result<bool> {
    let Some(page) = encode(number, text) else {
        return Ok(false);
    };
    file.write_all_at(&page, (number * SIZE) as u64)?;
    Ok(true)
}

/// FNV-1a of the number and the text.
fn checksum(number: usize, text: &str) -> String {
    let number = number.to_le_bytes();
    let mut sum = 0xcbf2_9ce4_8422_2325_u64;
    for byte in number.iter().chain(text.as_bytes()) {
        sum = (sum ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01b3);
    }
    format!("{sum:016x}")
}
