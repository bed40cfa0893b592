//! `podwire completion`: print the script with which a shell completes podwire's commands.

use anyhow::Result;
use clap::Args;

use super::Verdict;
use crate::completion::Shell;
use crate::output::{Output, print};

/// Print the script with which a shell completes commands.
///
/// It completes commands, options, and names of networks and containers. The script asks podwire
/// for the words that may follow, so it stays valid when podwire is replaced.
#[derive(Debug, Args)]
#[command(after_long_help = OUTCOME)]
pub struct Completion {
    /// The shell
    #[arg(value_enum)]
    shell: Shell,
}

const OUTCOME: &str = "\
Exit status: 0, or 2 for a wrong command line.

Examples:
  source <(podwire completion bash)
  podwire completion zsh > /usr/share/zsh/vendor-completions/_podwire
  podwire completion fish > /usr/share/fish/vendor_completions.d/podwire.fish
";

impl Completion {
    pub fn run(&self, _: &Output) -> Result<Verdict> {
        print(self.shell.script())?;
        Ok(Verdict::Good)
    }
}
