//! The executable of host-local.

// SAFETY: `link_section` only chooses the section of a constant. The section holds whole ELF
// notes, and the constant is one.
#![allow(
    unsafe_code,
    reason = "the section of the note can be chosen in no other way"
)]

/// Names the build, so that a plugin with host-local linked in can recognise this executable.
#[used]
#[unsafe(link_section = ".note.podwire")]
static NOTE: cni::linked::Note = cni::linked::Note::new(host_local::BUILD);

fn main() -> std::process::ExitCode {
    cni::run::<host_local::HostLocal>()
}
