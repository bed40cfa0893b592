//! A plugin's whole life with other streams, for `fuzz/`.

use std::io::Cursor;

use super::{Plugin, Process};
use crate::env::Environment;

/// How it ended.
#[derive(Clone, Debug)]
pub struct Served {
    /// The exit status.
    pub status: u8,
    /// What it printed on standard output.
    pub stdout: Vec<u8>,
}

/// Runs `P` as if `env` and `stdin` were those of the process.
pub fn serve<P: Plugin>(env: Environment, stdin: &[u8]) -> Served {
    let mut stdout = Vec::new();
    let mut process = Process {
        stdin: &mut Cursor::new(stdin),
        stdout: &mut stdout,
        stderr: &mut std::io::sink(),
        called: false,
    };
    let status = process.run::<P>(env);
    Served { status, stdout }
}
