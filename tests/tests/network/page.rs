//! Pages of `docs/`: their commands, in order, with the output that they show.

use sandbox::beyond_peer;

use crate::WHY;
use crate::node::{Node, good};

#[test]
fn the_commands_of_networks_do_what_the_page_shows() {
    follow("networks.md");
}

#[test]
fn the_commands_of_names_do_what_the_page_shows() {
    follow("names.md");
}

#[test]
fn the_commands_of_moving_do_what_the_page_says() {
    follow("moving.md");
}

fn follow(page: &str) {
    beyond_peer(WHY, || {
        let project = concat!(env!("CARGO_MANIFEST_DIR"), "/..");
        let page = std::fs::read_to_string(format!("{project}/docs/{page}")).expect("the page");
        let node = Node::new();
        // Places of the machine are places of the sandbox.
        let dir = node.sandbox.dir().display().to_string();
        let page = page
            .replace("/opt/cni/bin", &format!("{dir}/opt/cni/bin"))
            .replace("/etc/cni/net.d", &format!("{dir}/net.d"))
            .replace("netconf-examples/", &format!("{project}/netconf-examples/"));
        let blocks: Vec<_> = page.split("```").skip(1).step_by(2).collect();
        assert!(blocks.len() >= 5, "{blocks:?}");
        for block in blocks {
            match block.trim_start().strip_prefix("$ ") {
                Some(block) => {
                    let (command, expected) =
                        block.split_once('\n').expect("a command and its output");
                    assert_eq!(good(&node.sh(command)), expected, "{command}");
                }
                None => {
                    let done = node.sh(&format!("set -e\n{block}"));
                    assert_eq!(done.code, 0, "{block}: {done:?}");
                }
            }
        }
        assert_eq!(node.files(), [""; 0], "the page ends with an empty node");
    });
}
