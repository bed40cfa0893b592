//! resolv.conf(5), read into the `dns` of a result.

use std::path::Path;

use anyhow::Result;
use cni::result::Dns;

use crate::file::failed;

/// The longest file that is read, in bytes.
const LONGEST: u64 = 1024 * 1024;

/// Reads the file that the key `resolvConf` names.
pub fn read(path: &Path) -> Result<Dns> {
    let text = cni::file::read_chosen(path, LONGEST).map_err(failed("read resolvConf", path))?;
    Ok(parse(&String::from_utf8_lossy(&text)))
}

fn parse(text: &str) -> Dns {
    let mut dns = Dns::default();
    for line in text.lines() {
        let mut words = line.split_whitespace().map(str::to_owned);
        let Some(keyword) = words.next() else {
            continue;
        };
        match keyword.as_str() {
            "nameserver" => dns.nameservers.extend(words.next()),
            "domain" => dns.domain = words.next().unwrap_or(dns.domain),
            "search" => dns.search.extend(words),
            "options" => dns.options.extend(words),
            // Also comments: "#" and ";" start unknown keywords.
            _ => {}
        }
    }
    dns
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_keyword_is_read() {
        let dns = parse(
            "# a comment\n;nameserver 9.9.9.9\n\n nameserver 192.0.2.1 ignored\n\
             nameserver 2001:db8::1\ndomain example.com\ndomain example.net\n\
             search a.example b.example\nsearch c.example\noptions ndots:2\noptions edns0 rotate\n\
             nameserver\nsortlist 192.0.2.0\n",
        );
        assert_eq!(dns.nameservers, ["192.0.2.1", "2001:db8::1"]);
        assert_eq!(dns.domain, "example.net");
        assert_eq!(dns.search, ["a.example", "b.example", "c.example"]);
        assert_eq!(dns.options, ["ndots:2", "edns0", "rotate"]);
    }

    #[test]
    fn an_unreadable_file_is_named() {
        let error = read(Path::new("/nonexistent/resolv.conf")).unwrap_err();
        assert_eq!(
            format!("{error:#}"),
            "read resolvConf /nonexistent/resolv.conf: no such file or directory (2)"
        );
    }
}
