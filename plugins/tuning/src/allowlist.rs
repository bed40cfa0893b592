//! The kernel settings that the node's administrator allows configurations to change.

use std::path::Path;

use anyhow::{Context, Result};
use cni::{Code, file};
use regex_lite::Regex;

use crate::plan::Sysctl;

/// The administrator's file. Without it everything is allowed.
const FILE: &str = "/etc/cni/tuning/allowlist.conf";

/// The longest file that is read, in bytes.
const LONGEST: u64 = 1024 * 1024;

/// Whether the file allows all `sysctls`.
///
/// # Errors
/// Code 7: a setting that it does not allow; the file cannot be read, or has an invalid expression.
pub fn permit(sysctls: &[Sysctl]) -> Result<()> {
    if sysctls.is_empty() {
        return Ok(());
    }
    let content = match file::read_chosen(Path::new(FILE), LONGEST) {
        Err(error) if file::is_absent(&error) => return Ok(()),
        other => other.with_context(|| format!("read {FILE}"))?,
    };
    Allowlist::parse(&String::from_utf8_lossy(&content)).permit(sysctls)
}

/// One regular expression per line. It may match any part of a key.
struct Allowlist<'a>(Vec<&'a str>);

impl<'a> Allowlist<'a> {
    fn parse(content: &'a str) -> Self {
        let lines = content.lines().map(str::trim);
        Self(lines.filter(|line| !line.is_empty()).collect())
    }

    fn permit(&self, sysctls: &[Sysctl]) -> Result<()> {
        // Compiled once, and as in the Go plugin only up to the line that matches.
        let mut compiled: Vec<Regex> = Vec::new();
        for Sysctl { name, .. } in sysctls {
            if compiled.iter().any(|it| it.is_match(name)) {
                continue;
            }
            let mut allowed = false;
            for line in &self.0[compiled.len()..] {
                let expression = Regex::new(line);
                let expression =
                    expression.with_context(|| format!("expression {line:?} of {FILE}"))?;
                allowed = expression.is_match(name);
                compiled.push(expression);
                if allowed {
                    break;
                }
            }
            if !allowed {
                let list = self.0.join(" ");
                let msg = format!(
                    "Sysctl {name} is not allowed. Only the following sysctls are allowed: [{list}]"
                );
                return Err(Code::InvalidConfig.err(msg).into());
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn permit(content: &str, names: &[&str]) -> Result<(), String> {
        let sysctl = |name: &&str| Sysctl {
            name: (*name).to_owned(),
            value: "1".into(),
        };
        let sysctls: Vec<_> = names.iter().map(sysctl).collect();
        let permitted = Allowlist::parse(content).permit(&sysctls);
        permitted.map_err(|error| format!("{error:#}"))
    }

    #[test]
    fn every_key_has_to_match_one_line() {
        let content = "^net\\.ipv4\\.conf\\.all\\.[a-z_]*$\n\n  somaxconn \n";
        let all = ["net.core.somaxconn", "net.ipv4.conf.all.log_martians"];
        assert_eq!(permit(content, &all), Ok(()));
        assert_eq!(
            permit(content, &["net.core.somaxconn", "net.ipv6.x"]),
            Err(
                "Sysctl net.ipv6.x is not allowed. Only the following sysctls are allowed: \
                 [^net\\.ipv4\\.conf\\.all\\.[a-z_]*$ somaxconn]"
                    .to_owned()
            )
        );
    }

    #[test]
    fn an_empty_file_allows_nothing() {
        assert_eq!(permit("", &[]), Ok(()));
        assert!(permit("\n \n", &["net.a"]).is_err());
    }

    #[test]
    fn an_invalid_expression_is_an_error_only_if_no_earlier_one_matches() {
        assert_eq!(permit("net\n(", &["net.a"]), Ok(()));
        let error = permit("x\n(", &["net.a"]).unwrap_err();
        assert!(error.starts_with("expression \"(\" of /etc/cni/tuning/allowlist.conf: "));
    }

    #[test]
    fn expressions_of_the_go_plugin_are_understood() {
        for expression in [
            r"^net\.ipv4\.(tcp|udp)_[a-z]+$",
            r"(?i)NET\.IPV4\.TCP",
            r"\Anet[.]ipv4[.]tcp_[[:alpha:]]{2,}\z",
            r"^(?P<family>net\.ipv4)\..*?$",
            r"^net\.\w+\.[^/]*",
        ] {
            assert_eq!(
                permit(expression, &["net.ipv4.tcp_sack"]),
                Ok(()),
                "{expression}"
            );
        }
    }
}
