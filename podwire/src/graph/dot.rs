//! A graph in the language of Graphviz.

use std::fmt::Write;

use super::model::{Graph, Index, Kind, Node};
use super::picture::details;
use super::scene::visible;

/// The document: a cluster for each namespace.
pub fn document(graph: &Graph) -> String {
    let index = Index::of(graph);
    let mut dot =
        String::from("graph node {\n  rankdir=LR;\n  node [shape=box, fontname=monospace];\n");
    for (number, namespace) in index.all(Kind::Namespace).enumerate() {
        let _ = writeln!(
            dot,
            "  subgraph cluster_{number} {{\n    label={};",
            quoted(&namespace.name)
        );
        // Without an interface, it would not be drawn.
        let _ = writeln!(dot, "    {} [style=invis];", quoted(&namespace.id));
        let inside = graph
            .nodes
            .iter()
            .filter(|it| it.within.as_ref() == Some(&namespace.id));
        inside.for_each(|it| object(&mut dot, &index, it));
        dot.push_str("  }\n");
    }
    let free = graph
        .nodes
        .iter()
        .filter(|it| it.within.is_none() && it.kind != Kind::Namespace);
    free.for_each(|it| object(&mut dot, &index, it));
    for edge in &graph.edges {
        let kind = serde_json::to_value(edge.kind).unwrap_or_default();
        let kind = quoted(kind.as_str().unwrap_or_default());
        let (from, to) = (quoted(&edge.from), quoted(&edge.to));
        let _ = writeln!(dot, "  {from} -- {to} [label={kind}];");
    }
    dot + "}\n"
}

fn object(dot: &mut String, index: &Index<'_>, node: &Node) {
    let mut lines = vec![node.name.clone()];
    lines.extend(details(index, node));
    let label = quoted(&lines.join("\n"));
    let _ = writeln!(dot, "    {} [label={label}];", quoted(&node.id));
}

/// A text in quotes: of backslashes and quotes, none has a meaning.
fn quoted(text: &str) -> String {
    let lines = text
        .split('\n')
        .map(|it| visible(it).replace('\\', "\\\\").replace('"', "\\\""));
    format!("\"{}\"", lines.collect::<Vec<_>>().join("\\n"))
}
