//! A plugin's whole life with other streams, for `fuzz/`.

use std::process::Output;

use super::Plugin;
use crate::env::Environment;

/// Runs `P` as if `env` and `stdin` were those of the process.
pub fn serve<P: Plugin>(env: Environment, stdin: &[u8]) -> Output {
    super::serve::<P>(env, stdin, false)
}
