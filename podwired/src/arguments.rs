//! The command line.

use std::path::PathBuf;

use lexopt::prelude::*;

/// Where the configuration is, unless the command line says otherwise.
pub const CONFIGURATION: &str = "/etc/podwire/podwired.json";

const HELP: &str = include_str!("help.txt");

/// What the command line says.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Arguments {
    /// `--config`: the configuration file.
    pub config: Option<PathBuf>,
    /// `--on-demand`: only the resolver, until the last name is gone.
    pub on_demand: bool,
    /// `--check`: only read the configuration.
    pub check: bool,
    help: bool,
    version: bool,
}

impl Arguments {
    /// Reads the arguments.
    ///
    /// # Errors
    /// Which argument is wrong, and why.
    pub fn parse(mut parser: lexopt::Parser) -> Result<Self, lexopt::Error> {
        let mut arguments = Self::default();
        while let Some(argument) = parser.next()? {
            match argument {
                Short('c') | Long("config") => arguments.config = Some(parser.value()?.into()),
                Long("on-demand") => arguments.on_demand = true,
                Long("check") => arguments.check = true,
                Short('h') | Long("help") => arguments.help = true,
                Short('V') | Long("version") => arguments.version = true,
                other => return Err(other.unexpected()),
            }
        }
        Ok(arguments)
    }

    /// What is printed instead of running.
    pub fn text(&self) -> Option<String> {
        match self {
            Self { help: true, .. } => Some(HELP.to_owned()),
            Self { version: true, .. } => Some(format!("podwired {}\n", env!("CARGO_PKG_VERSION"))),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(words: &[&str]) -> Result<Arguments, String> {
        Arguments::parse(lexopt::Parser::from_args(words)).map_err(|it| it.to_string())
    }

    #[test]
    fn options_are_read_and_others_refused() {
        let all = parse(&["--config=/x", "--on-demand", "--check"]).unwrap();
        assert_eq!(all.config, Some("/x".into()));
        assert!(all.on_demand && all.check && all.text().is_none());
        assert!(parse(&["-h"]).unwrap().text().unwrap().contains("--config"));
        assert!(
            parse(&["-V"])
                .unwrap()
                .text()
                .unwrap()
                .starts_with("podwired 2")
        );
        assert!(parse(&["--nothing"]).unwrap_err().contains("--nothing"));
        assert!(parse(&["word"]).is_err());
    }
}
