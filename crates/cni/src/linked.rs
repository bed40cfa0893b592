//! A plugin that is linked into another plugin's program. If the executable in `CNI_PATH`
//! is the same build, it is called instead of executed: with the same environment, the same
//! standard input, and its output is read in the same way. That saves a process.
//!
//! The executable is the same build if its ELF note names it. A wrapper script, a plugin of
//! another suite, an older or a patched one of ours: all are executed.
//!
//! - Cost: this file, `serve` in `run.rs`, the note in host-local's `main.rs`, and its `build.rs`.
//! - Gain: one process less. An ADD of bridge takes 11.8 ms instead of 17.7 ms (median of 60 on
//!   a busy machine).
//! - The only entry point: [`Linked::find`], called by `delegate`. To switch it off, for one plugin
//!   remove its const `LINKED`; in a test, put a wrapper script into `CNI_PATH`, as
//!   `tests/tests/linked.rs` does to compare both.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::Output;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::env::{Environment, Verb};

/// Bytes of the name of a build.
pub const BUILD: usize = 32;

/// A plugin that can be called instead of executed.
#[derive(Clone, Copy, Debug)]
pub struct Linked {
    pub(crate) name: &'static str,
    pub(crate) build: [u8; BUILD],
    pub(crate) serve: fn(Environment, &[u8]) -> Output,
}

impl Linked {
    /// The plugin of `all` that has the name `name` and is the same build as `executable`.
    pub(crate) fn find(
        all: &'static [Self],
        name: &str,
        executable: &Path,
    ) -> Option<&'static Self> {
        let linked = all.iter().find(|linked| linked.name == name)?;
        (may_execute(executable) && build_of(executable)? == linked.build).then_some(linked)
    }

    /// Calls the plugin. The output is that of a process with `env` and `stdin`.
    pub(crate) fn run(&self, verb: Verb, env: &Environment, stdin: &[u8]) -> Output {
        CALLED.store(true, Ordering::Relaxed);
        (self.serve)(env.with("CNI_COMMAND", verb.as_str()), stdin)
    }
}

static CALLED: AtomicBool = AtomicBool::new(false);

/// Whether this process has called a linked plugin: then its IPAM plugin is the same build.
pub fn was_called() -> bool {
    CALLED.load(Ordering::Relaxed)
}

/// Whether the file's mode and its mount allow its execution.
fn may_execute(file: &Path) -> bool {
    nix::unistd::access(file, nix::unistd::AccessFlags::X_OK).is_ok()
}

/// An ELF note (elf(5)) that names a build, for the section `.note.podwire`.
#[derive(Debug)]
#[repr(C, align(4))]
pub struct Note {
    name_length: u32,
    content_length: u32,
    kind: u32,
    name: [u8; NAME.len()],
    build: [u8; BUILD],
}

const NAME: [u8; 8] = *b"podwire\0";
/// The type of our note; it has a meaning only together with [`NAME`].
const KIND: u32 = 1;

impl Note {
    /// Names `build`.
    pub const fn new(build: [u8; BUILD]) -> Self {
        Self {
            name_length: NAME.len() as u32,
            content_length: BUILD as u32,
            kind: KIND,
            name: NAME,
            build,
        }
    }
}

/// `PT_NOTE` (elf(5)).
const SEGMENT_OF_NOTES: u32 = 4;

/// Bytes that are read first: linkers put the notes right after the headers.
const BEGINNING: usize = 4096;

/// The build that the note of an executable names, if it has such a note.
fn build_of(executable: &Path) -> Option<[u8; BUILD]> {
    let file = File::open(executable).ok()?;
    let mut beginning = [0; BEGINNING];
    let length = file.read_at(&mut beginning, 0).ok()?;
    let beginning = beginning.get(..length)?;
    segments_of_notes(beginning)?.find_map(|(offset, size)| {
        let end = offset.checked_add(size)?;
        if let Some(notes) = beginning.get(offset..end) {
            return build_in(notes);
        }
        let mut notes = vec![0; size.min(BEGINNING)];
        file.read_exact_at(&mut notes, offset as u64).ok()?;
        build_in(&notes)
    })
}

/// Offset and size of each segment of notes in a 64-bit ELF file of our own byte order that
/// begins with `beginning`; `None` for any other file.
fn segments_of_notes(beginning: &[u8]) -> Option<impl Iterator<Item = (usize, usize)>> {
    const CLASS_64: u8 = 2;
    const ORDER: u8 = if cfg!(target_endian = "little") { 1 } else { 2 };
    if !beginning.starts_with(&[0x7f, b'E', b'L', b'F', CLASS_64, ORDER]) {
        return None;
    }
    let offset = usize::try_from(u64::from_ne_bytes(bytes(beginning, 32)?)).ok()?;
    let size = usize::from(u16::from_ne_bytes(bytes(beginning, 54)?));
    let count = usize::from(u16::from_ne_bytes(bytes(beginning, 56)?));
    let header = move |number: usize| {
        let header = beginning.get(offset.checked_add(number * size)?..)?;
        let at = |offset| {
            let number = u64::from_ne_bytes(bytes(header, offset)?);
            usize::try_from(number).ok()
        };
        let is_notes = u32::from_ne_bytes(bytes(header, 0)?) == SEGMENT_OF_NOTES;
        is_notes.then_some((at(8)?, at(32)?))
    };
    Some((0..count).filter_map(header))
}

/// The build that one of `notes` names.
fn build_in(mut notes: &[u8]) -> Option<[u8; BUILD]> {
    loop {
        let length = |at| Some(u32::from_ne_bytes(bytes(notes, at)?) as usize);
        let (name, content) = (length(0)?, length(4)?);
        let kind = u32::from_ne_bytes(bytes(notes, 8)?);
        let content_at = 12usize.checked_add(name)?.checked_next_multiple_of(4)?;
        if kind == KIND
            && content == BUILD
            && notes.get(12..)?.starts_with(&NAME)
            && name == NAME.len()
        {
            return bytes(notes, content_at);
        }
        let next = content_at
            .checked_add(content)?
            .checked_next_multiple_of(4)?;
        notes = notes.get(next..)?;
    }
}

fn bytes<const N: usize>(all: &[u8], at: usize) -> Option<[u8; N]> {
    all.get(at..)?.first_chunk().copied()
}

#[cfg(test)]
mod tests {
    use super::*;

    const OURS: [u8; BUILD] = [7; BUILD];

    fn note(name: &[u8], kind: u32, content: &[u8]) -> Vec<u8> {
        let mut note = Vec::new();
        for number in [name.len() as u32, content.len() as u32, kind] {
            note.extend(number.to_ne_bytes());
        }
        for part in [name, content] {
            note.extend(part);
            note.resize(note.len().next_multiple_of(4), 0);
        }
        note
    }

    /// An ELF file with one segment of notes at `at`.
    fn elf(notes: &[u8], at: usize) -> Vec<u8> {
        let mut file = vec![0; 64 + 56];
        file[..6].copy_from_slice(&[0x7f, b'E', b'L', b'F', 2, 1]);
        file[32] = 64;
        file[54] = 56;
        file[56] = 1;
        file[64] = 4;
        file[64 + 8..64 + 16].copy_from_slice(&(at as u64).to_ne_bytes());
        file[64 + 32..64 + 40].copy_from_slice(&(notes.len() as u64).to_ne_bytes());
        file.resize(at.max(file.len()), 0);
        file.extend(notes);
        file
    }

    fn read(content: &[u8]) -> Option<[u8; BUILD]> {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(&file, content).unwrap();
        build_of(file.path())
    }

    #[test]
    fn the_note_is_what_elf_says_a_note_is() {
        let Note {
            name_length,
            content_length,
            kind,
            name,
            build,
        } = Note::new(OURS);
        assert_eq!((name_length, content_length, kind), (8, 32, 1));
        assert_eq!((&name, build), (b"podwire\0", OURS));
        assert_eq!(size_of::<Note>(), 12 + 8 + 32);
    }

    #[test]
    fn a_build_is_found_among_other_notes_wherever_they_are() {
        let mut notes = note(b"GNU\0", 3, &[1; 20]);
        notes.extend(note(b"x\0", 1, &[2; 5]));
        notes.extend(note(&NAME, KIND, &OURS));
        for at in [120, 128, 4090, 100_000] {
            assert_eq!(read(&elf(&notes, at)), Some(OURS), "{at}");
        }
    }

    #[test]
    fn anything_else_has_none() {
        let ours = note(&NAME, KIND, &OURS);
        for (what, content) in [
            ("nothing", Vec::new()),
            ("a script", b"#!/bin/sh\nexec host-local\n".to_vec()),
            (
                "a script with our bytes",
                [b"#!/bin/sh\n".as_slice(), &ours].concat(),
            ),
            ("no such note", elf(&note(b"GNU\0", 3, &OURS), 120)),
            ("another kind", elf(&note(&NAME, 2, &OURS), 120)),
            ("another name", elf(&note(b"podwirf\0", KIND, &OURS), 120)),
            ("no note at all", elf(&[], 120)),
            (
                "ours behind the end",
                elf(&[], 120).into_iter().chain(ours.clone()).collect(),
            ),
            ("a cut note", elf(&ours, 120)[..150].to_vec()),
            ("lengths beyond the end", elf(&[0xff; 64], 120)),
            ("32 bits", {
                let mut it = elf(&ours, 120);
                it[4] = 1;
                it
            }),
        ] {
            assert_eq!(read(&content), None, "{what}");
        }
    }
}
