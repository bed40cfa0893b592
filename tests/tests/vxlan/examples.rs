//! What people copy: the configurations of netconf-examples/ with the commands to try them.

use std::path::Path;

use sandbox::{Sandbox, Suite, beyond_peer};

use crate::traffic::WHY;

/// Runs the commands under a heading of the examples' page.
fn tried(heading: &str) -> String {
    let project = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let page = project.join("netconf-examples/README.md");
    let page = std::fs::read_to_string(page).expect("the examples' page");
    let start = page.find(heading).expect("the heading");
    let body = page[start..].split("```\n").nth(1).expect("commands");
    let bin = Suite::Ours.dir().display();
    let script = format!(
        "export PATH={bin}:$PATH CNI_PATH={bin}\ncd {}\n{body}",
        project.display()
    );
    let done = Sandbox::new().host().run(&["sh", "-euc", &script]);
    assert_eq!(done.code, 0, "{done:?}");
    done.stdout
}

#[test]
fn three_routed_hosts_are_tried_as_the_page_says() {
    beyond_peer(WHY, || {
        let output = tried("## 85-vxlan-l3.conflist");
        assert_eq!(output.matches(" 0% packet loss").count(), 9, "{output}");
        assert!(output.contains("10.85.3.0/24"), "{output}");
    });
}

#[test]
fn a_segment_of_two_hosts_is_tried_as_the_page_says() {
    beyond_peer(WHY, || {
        let output = tried("## 86-vxlan-l2.conflist");
        assert!(output.contains(" 0% packet loss"), "{output}");
    });
}
