use super::*;
use crate::graph::model::Edge;
use crate::graph::scene::Placed;
use crate::graph::svg::{self, Colours};

/// A node with a bridge of `count` pods, an overlay with three peers, pods with a macvlan, one with
/// two interfaces, and a bridge without pods.
pub fn node(count: usize) -> Graph {
    let mut nodes = vec![
        Node::new("node", Kind::Namespace, "worker-1").fact("host", true),
        interface("node", "eth0", "").fact("addresses", ["192.0.2.11/24"].as_slice()),
        interface("node", "cni0", "bridge")
            .fact("addresses", ["10.1.0.1/16", "fd00:1::1/64"].as_slice()),
        interface("node", "docker0", "bridge").fact("addresses", ["172.17.0.1/16"].as_slice()),
        interface("node", "ov0", "bridge").fact("addresses", ["10.9.1.1/24"].as_slice()),
        interface("node", "vxlan.7", "vxlan")
            .fact("vni", 7)
            .fact("port", 4789),
        Node::new("rule:1", Kind::Rule, "masquerade 10.1.0.0/16"),
    ];
    let mut edges = vec![
        Edge::new("node/vxlan.7", Link::Port, "node/ov0"),
        Edge::new("node/vxlan.7", Link::Parent, "node/eth0"),
        Edge::new("rule:1", Link::Applies, "node/cni0"),
    ];
    for peer in ["192.0.2.12", "192.0.2.13", "192.0.2.14"] {
        nodes.push(Node::new(format!("peer:{peer}"), Kind::Peer, peer));
        edges.push(Edge::new(
            "node/vxlan.7",
            Link::Peer,
            format!("peer:{peer}"),
        ));
    }
    for number in 0..count {
        let pod = format!("web-{number}-<b>&\"'");
        wire(
            &mut nodes,
            &mut edges,
            &pod,
            "cni0",
            &format!("10.1.{}.{}/16", number / 250, number % 250 + 2),
        );
    }
    for number in 0..3 {
        wire(
            &mut nodes,
            &mut edges,
            &format!("db-{number}"),
            "ov0",
            &format!("10.9.1.{}/24", number + 2),
        );
    }
    nodes.push(interface("pod:db-0", "net1", "macvlan"));
    edges.push(Edge::new("pod:db-0/net1", Link::Parent, "node/eth0"));
    nodes.push(Node::new("port:1", Kind::Port, "8080/tcp → 80"));
    edges.push(Edge::new("port:1", Link::Publishes, "pod:db-1/eth0"));
    Graph {
        view: View::Host,
        nodes,
        edges,
    }
}

fn interface(namespace: &str, name: &str, kind: &str) -> Node {
    Node::new(format!("{namespace}/{name}"), Kind::Interface, name)
        .within(namespace)
        .fact("type", kind)
}

fn wire(nodes: &mut Vec<Node>, edges: &mut Vec<Edge>, pod: &str, bridge: &str, address: &str) {
    let namespace = format!("pod:{pod}");
    let veth = format!("veth{:08x}", nodes.len());
    nodes.push(Node::new(&namespace, Kind::Namespace, pod));
    nodes.push(interface(&namespace, "eth0", "veth").fact("addresses", [address].as_slice()));
    nodes.push(interface("node", &veth, "veth"));
    edges.push(Edge::new(
        format!("{namespace}/eth0"),
        Link::Veth,
        format!("node/{veth}"),
    ));
    edges.push(Edge::new(
        format!("node/{veth}"),
        Link::Port,
        format!("node/{bridge}"),
    ));
}

/// The same as its user sees it.
pub fn networks(count: usize) -> Graph {
    let mut nodes = vec![
        Node::new("outside", Kind::Outside, "outside"),
        Node::new("network:web", Kind::Network, "web").fact("driver", "bridge"),
        Node::new("network:db", Kind::Network, "db").fact("driver", "vxlan"),
    ];
    let mut edges = vec![Edge::new("network:web", Link::Reaches, "outside")];
    for number in 0..count {
        let pod = format!("pod:{number}");
        nodes.push(Node::new(&pod, Kind::Pod, format!("web-{number}")));
        let attached = Edge::new(&pod, Link::Attached, "network:web");
        let address = format!("10.1.0.{}/16", number + 2);
        edges.push(
            attached
                .fact("interface", "eth0")
                .fact("addresses", [address].as_slice()),
        );
        if number % 3 == 0 {
            let port = format!("port:{number}");
            nodes.push(Node::new(
                &port,
                Kind::Port,
                format!("{}/tcp → 80", 8000 + number),
            ));
            edges.push(Edge::new(&port, Link::Publishes, &pod));
            if number == 3 {
                edges.push(Edge::new(&pod, Link::Attached, "network:db").fact("interface", "eth1"));
            }
        }
    }
    Graph {
        view: View::User,
        nodes,
        edges,
    }
}

fn frame(it: &Placed) -> bool {
    matches!(it.look, Look::Host | Look::Pod | Look::Group)
}

fn inside(inner: &Placed, outer: &Placed) -> bool {
    let (a, b) = (&inner.rect, &outer.rect);
    a.x >= b.x && a.y >= b.y && a.right() <= b.right() && a.bottom() <= b.bottom()
}

fn apart(one: &Placed, other: &Placed) -> bool {
    let (a, b) = (&one.rect, &other.rect);
    a.right() <= b.x || b.right() <= a.x || a.bottom() <= b.y || b.bottom() <= a.y
}

#[test]
fn no_two_boxes_overlap_and_text_is_inside_its_box() {
    for count in [0, 1, 5, 11, 60, 200, 1000] {
        for graph in [node(count), networks(count)] {
            let scene = picture(&graph);
            for (number, one) in scene.boxes.iter().enumerate() {
                for other in &scene.boxes[number + 1..] {
                    let nested = frame(one) && inside(other, one);
                    assert!(nested || apart(one, other), "{one:?} {other:?}");
                }
                assert_eq!(one.label.clone().cut_to(one.rect.width), one.label);
                assert!(one.label.height() <= one.rect.height, "{one:?}");
                assert!(one.rect.right() <= scene.width && one.rect.bottom() <= scene.height);
            }
        }
    }
}

#[test]
fn every_object_has_its_box_or_is_in_one() {
    let graph = node(5);
    let scene = picture(&graph);
    let boxes: HashSet<_> = scene
        .boxes
        .iter()
        .filter_map(|it| it.label.node.as_deref())
        .collect();
    for node in &graph.nodes {
        let in_text = matches!(node.kind, Kind::Rule | Kind::Port);
        assert!(in_text || boxes.contains(node.id.as_str()), "{}", node.id);
        let name = visible(&node.name);
        assert!(
            !in_text || scene.boxes.iter().any(|it| it.label.lines.contains(&name)),
            "{name}"
        );
    }
    let joined = |from: &str, to: &str| {
        let id = |place: usize| scene.boxes[place].label.node.as_deref();
        scene.lines.iter().any(|it| {
            [id(it.from), id(it.to)] == [Some(from), Some(to)]
                || [id(it.to), id(it.from)] == [Some(from), Some(to)]
        })
    };
    let drawn = |it: &&Edge| !matches!(it.kind, Link::Applies | Link::Publishes);
    for edge in graph.edges.iter().filter(drawn) {
        assert!(joined(&edge.from, &edge.to), "{edge:?}");
    }
}

#[test]
fn text_is_escaped() {
    let svg = svg::document(&picture(&node(5)), "<t>", Colours::Auto);
    assert!(svg.contains("web-0-&lt;b&gt;&amp;&quot;&#39;") && !svg.contains("<b>"));
}

#[test]
fn names_are_in_the_order_of_their_numbers() {
    let mut names = ["net10", "net2", "net", "a9b2", "a9b10"];
    names.sort_by_cached_key(|it| natural(it));
    assert_eq!(names, ["a9b2", "a9b10", "net", "net2", "net10"]);
}

/// Writes the pictures of these tests: `PICTURES=DIR cargo test -p podwire pictures`.
#[test]
fn pictures() {
    let Some(dir) = std::env::var_os("PICTURES") else {
        return;
    };
    for count in [5, 200] {
        for (name, graph) in [("host", node(count)), ("user", networks(count))] {
            for (colours, word) in [(Colours::Light, "light"), (Colours::Dark, "dark")] {
                let svg = svg::document(&picture(&graph), "test", colours);
                let file = std::path::Path::new(&dir).join(format!("{name}-{count}-{word}.svg"));
                std::fs::write(file, svg).unwrap();
            }
        }
    }
}
