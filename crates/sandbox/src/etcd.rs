//! Real members of etcd, in namespaces of a test.

use crate::{Netns, Running};

/// The only member of a store, which clients reach at `url`.
pub fn alone(netns: &Netns, data: &str, url: &str) -> Running {
    let options = [
        ("listen-client-urls", url),
        ("advertise-client-urls", url),
        ("listen-peer-urls", "http://127.0.0.1:2380"),
    ];
    start(netns, data, &options, &[])
}

/// The member `number` of three, numbered from 1, at these addresses. `more` are options of its own;
/// it runs under the program `under`.
pub fn member(
    netns: &Netns,
    data: &str,
    number: usize,
    addresses: [&str; 3],
    more: &[(&str, &str)],
    under: &[&str],
) -> Running {
    let name = |number: usize| format!("m{number}");
    let peer = |number: usize| format!("http://{}:2380", addresses[number - 1]);
    let all = [1, 2, 3].map(|it| format!("{}={}", name(it), peer(it)));
    let client = format!("http://{}:2379", addresses[number - 1]);
    let (name, peer, all) = (name(number), peer(number), all.join(","));
    let mut options = vec![
        ("name", name.as_str()),
        ("listen-client-urls", &client),
        ("advertise-client-urls", &client),
        ("listen-peer-urls", &peer),
        ("initial-advertise-peer-urls", &peer),
        ("initial-cluster", &all),
    ];
    options.extend(more);
    start(netns, data, &options, under)
}

/// A member with its data in the directory `data`, and these options without their dashes, under the
/// program `under`.
pub fn start(netns: &Netns, data: &str, options: &[(&str, &str)], under: &[&str]) -> Running {
    let mut argv: Vec<String> = under.iter().map(|&it| it.to_owned()).collect();
    argv.push("etcd".to_owned());
    for (option, value) in [("data-dir", data), ("log-level", "error")]
        .iter()
        .chain(options)
    {
        argv.push(format!("--{option}={value}"));
    }
    let argv: Vec<&str> = argv.iter().map(String::as_str).collect();
    netns.start(&argv)
}
