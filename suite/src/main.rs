//! All programs of podwire in one file, with a name (link(2)) for each: its own name decides which one runs.
//! `podwire install --layout one` places it. `suite NAME …` runs a program without such a name.
//!
//! - Cost: this page. The DHCP daemon has a fixed address here, as the plugins have
//!   (`ipam/dhcp/build.rs`).
//! - Gain: about 8 MB on disk and in the page cache instead of 48. A plugin starts nearly as
//!   quickly (`start.ld`): `benches/src/bin/startup.rs` compares both.

// SAFETY: `link_section` only chooses the section of a constant. The section holds whole ELF
// notes, and the constant is one.
#![allow(
    unsafe_code,
    reason = "the section of the note can be chosen in no other way"
)]

use std::borrow::Cow;
use std::env::ArgsOs;
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, ExitCode};

/// As in the executable of host-local: that name of this file may be called instead of executed.
#[used]
#[unsafe(link_section = ".note.podwire")]
static NOTE: cni::linked::Note = cni::linked::Note::new(host_local::BUILD);

/// A program: its name and its `main`.
type Program = (Name, fn() -> ExitCode);

/// A name, filled up with zeroes. It is a part of the table, not a reference: referenced texts are spread over the constants of
/// the file, and the first access to each 64 kB of them is a page fault.
type Name = [u8; 16];

const fn named(text: &str) -> Name {
    let mut name = [0; 16];
    let (to, _) = name.split_at_mut(text.len());
    to.copy_from_slice(text.as_bytes());
    name
}

const PROGRAMS: &[Program] = &[
    (named("bandwidth"), cni::run::<bandwidth::Bandwidth>),
    (named("bridge"), cni::run::<bridge::Bridge>),
    (named("cluster"), cni::run::<cluster::Cluster>),
    (named("dhcp"), dhcp::main),
    (named("dnsname"), cni::run::<dnsname::Dnsname>),
    (named("dummy"), cni::run::<dummy::Dummy>),
    (named("firewall"), cni::run::<firewall::Firewall>),
    (named("host-device"), cni::run::<host_device::HostDevice>),
    (named("host-local"), cni::run::<host_local::HostLocal>),
    (named("ipvlan"), cni::run::<ipvlan::Ipvlan>),
    (named("loopback"), cni::run::<loopback::Loopback>),
    (named("macvlan"), cni::run::<macvlan::Macvlan>),
    (named("podwire"), podwire::main),
    (named("portmap"), cni::run::<portmap::Portmap>),
    (named("ptp"), cni::run::<ptp::Ptp>),
    (named("sbr"), cni::run::<sbr::Sbr>),
    (named("static"), cni::run::<static_ipam::Static>),
    (named("tap"), cni::run::<tap::Tap>),
    (named("tuning"), cni::run::<tuning::Tuning>),
    (named("vlan"), cni::run::<vlan::Vlan>),
    (named("vrf"), cni::run::<vrf::Vrf>),
    (named("vxlan"), cni::run::<vxlan::Vxlan>),
];

fn main() -> ExitCode {
    let mut words = std::env::args_os();
    let called = words.next().as_deref().and_then(find);
    // A caller may pass any first word; then the name of the file counts.
    match called.or_else(named_by_file) {
        Some((_, run)) => run(),
        None => execute(words),
    }
}

/// The program whose name ends the path.
fn find(path: &OsStr) -> Option<&'static Program> {
    let text = Path::new(path).file_name()?.as_bytes();
    let mut name = Name::default();
    name.get_mut(..text.len())?.copy_from_slice(text);
    PROGRAMS.iter().find(|(it, _)| name == *it)
}

fn named_by_file() -> Option<&'static Program> {
    find(std::env::current_exe().ok()?.as_os_str())
}

fn text(name: &Name) -> Cow<'_, str> {
    let end = name.iter().position(|byte| *byte == 0);
    String::from_utf8_lossy(&name[..end.unwrap_or(name.len())])
}

/// Called as `suite`: the next word is the name of the program, the rest are its arguments.
#[allow(clippy::disallowed_methods)] // executes itself
fn execute(mut words: ArgsOs) -> ExitCode {
    let Some((name, _)) = words.next().as_deref().and_then(find) else {
        let names: Vec<_> = PROGRAMS.iter().map(|(name, _)| text(name)).collect();
        let names = names.join(", ");
        cni::log(format_args!(
            "suite: expected the name of a program: {names}"
        ));
        return ExitCode::from(2);
    };
    let mut program = Command::new("/proc/self/exe");
    let name = text(name);
    let error = program.arg0(&*name).args(words).exec();
    cni::log(format_args!("suite: execute {name}: {error}"));
    ExitCode::FAILURE
}
