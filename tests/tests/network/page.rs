//! `docs/networks.md`: its commands, in order, with the output that it shows.

use sandbox::beyond_peer;

use crate::WHY;
use crate::node::{Node, good};

#[test]
fn the_commands_of_the_page_do_what_it_shows() {
    beyond_peer(WHY, || {
        let page = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/networks.md");
        let page = std::fs::read_to_string(page).expect("the page");
        let blocks: Vec<_> = page.split("```").skip(1).step_by(2).collect();
        assert!(blocks.len() >= 6, "{blocks:?}");
        let node = Node::new();
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
