//! The executable of host-local.

// SAFETY: `link_section` only says where a constant lies in the file. It is data of
// that section's kind: a whole ELF note.
#![allow(unsafe_code, reason = "a section can be named in no other way")]

use std::process::ExitCode;

use cni::linked::Note;

/// By this note another plugin knows that the executable is what is linked into itself.
#[used]
#[unsafe(link_section = ".note.podwire")]
static NOTE: Note = Note::new(host_local::BUILD);

fn main() -> ExitCode {
    cni::run::<host_local::HostLocal>()
}
