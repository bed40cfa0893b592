//! The manual of a command: what `podwire COMMAND --help` prints.

use super::Command;
use crate::arguments::Flag;

/// An option of a command, with its text in the manual.
pub struct Opt {
    /// The option.
    pub flag: Flag,
    /// Broken into lines when printed.
    text: &'static str,
}

impl Opt {
    /// Where configurations are.
    pub const CONF_DIR: Self = Self::new(
        Flag::ConfDir,
        "where the configurations are (NETCONFPATH; /etc/cni/net.d)",
    );
    /// Where plugins are.
    pub const PLUGIN_DIR: Self = Self::new(
        Flag::PluginDir,
        "where the plugins are, separated by colons (CNI_PATH; /opt/cni/bin)",
    );
    /// Where the cache is.
    pub const CACHE_DIR: Self = Self::new(
        Flag::CacheDir,
        "where the cache of attachments is (/var/lib/cni)",
    );
    /// The interface of an attachment.
    pub const IFNAME: Self = Self::new(
        Flag::IfName,
        "name of the interface in the container (CNI_IFNAME; eth0)",
    );
    /// The container of an attachment.
    pub const CONTAINER_ID: Self = Self::new(
        Flag::ContainerId,
        "the container's id (cnitool- and 20 hex digits derived from the path of NETNS)",
    );
    /// Which cnitool accepts for every command.
    pub const IFNAME_UNREAD: Self = Self::new(Flag::IfName, "accepted as in cnitool, and ignored");
    /// For commands without a result.
    pub const JSON_ERROR: Self = Self::new(
        Flag::Json,
        "print an error as an object with code, msg and details, on standard output",
    );

    /// An option with a text for this command.
    pub const fn new(flag: Flag, text: &'static str) -> Self {
        Self { flag, text }
    }
}

/// The columns of a terminal.
const WIDTH: usize = 80;
/// The column in which texts of options begin.
const MARGIN: usize = 25;

impl Command {
    /// The manual.
    pub fn manual(&self) -> String {
        let mut options = String::new();
        for option in self.options {
            options += &entry(&option.flag.usage(), option.text);
        }
        options += &entry(&Flag::Help.usage(), "print this text");
        format!(
            "podwire {} - {}\n\
             \n\
             {}\n\
             Options:\n\
             {options}\n\
             In parentheses: the variable that is used without the option; the default.\n\
             \n\
             {}",
            self.name, self.summary, self.about, self.outcome
        )
    }
}

/// An option and its text, in lines that end.
fn entry(usage: &str, text: &str) -> String {
    let mut lines = String::new();
    let mut line = format!("{usage:<MARGIN$}");
    for (index, word) in text.split(' ').enumerate() {
        if line.len() + 1 + word.len() > WIDTH {
            lines += line.trim_end();
            lines.push('\n');
            line = " ".repeat(MARGIN);
        } else if index > 0 {
            line.push(' ');
        }
        line += word;
    }
    lines + &line + "\n"
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_are_two_columns_in_eighty() {
        assert_eq!(
            entry(&Opt::IFNAME.flag.usage(), Opt::IFNAME.text),
            "  -i, --ifname NAME      name of the interface in the container (CNI_IFNAME;\n\
             \u{20}                        eth0)\n"
        );
        assert_eq!(
            entry(&Flag::Help.usage(), "print this text"),
            "  -h, --help             print this text\n"
        );
        assert_eq!(
            entry(&Flag::DryRun.usage(), "change nothing"),
            "      --dry-run          change nothing\n"
        );
    }
}
