//! A graph as one page, with search, zoom, and details on a click. Nothing is fetched: the page has the
//! picture, the graph as JSON, and a script. Its policy lets no other script run.

use anyhow::Result;
use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use sha2::{Digest, Sha256};

use super::model::Graph;
use super::picture::picture;
use super::svg::{self, Colours, escaped};

const PAGE: &str = include_str!("page.html");
/// The style sheet of a page with a drawing.
pub const STYLE: &str = include_str!("page.css");
/// The script of a drawing: search, zoom, details.
pub const VIEWER: &str = include_str!("viewer.js");
/// The page.
///
/// # Errors
/// The graph cannot be written as JSON.
pub fn document(graph: &Graph, title: &str) -> Result<String> {
    let scene = picture(graph);
    let style = svg::style(Colours::Auto) + STYLE;
    let script =
        format!("{VIEWER}load(JSON.parse(document.getElementById(\"graph\").textContent));\n");
    let parts = [
        ("policy", policy(&style, &script)),
        ("title", escaped(title)),
        ("style", style),
        ("width", scene.width.to_string()),
        ("height", scene.height.to_string()),
        ("drawing", svg::drawing(&scene)),
        ("json", inert(&serde_json::to_string(graph)?)),
        ("script", script),
    ];
    Ok(filled(PAGE, &parts))
}

/// The Content-Security-Policy of a page with this style sheet and this script: nothing else applies,
/// runs or is fetched.
pub fn policy(style: &str, script: &str) -> String {
    let digest = |text: &str| BASE64_STANDARD.encode(Sha256::digest(text.as_bytes()));
    let (style, script) = (digest(style), digest(script));
    format!("default-src 'none'; style-src 'sha256-{style}'; script-src 'sha256-{script}'")
}

/// JSON that cannot end the element that it is in.
fn inert(json: &str) -> String {
    json.replace('<', "\\u003c")
        .replace('\u{2028}', "\\u2028")
        .replace('\u{2029}', "\\u2029")
}

/// A template with its parts. What is filled in is not looked at again.
pub fn filled(template: &str, parts: &[(&str, String)]) -> String {
    let (mut page, mut rest) = (String::new(), template);
    while let Some((before, after)) = rest.split_once("{{") {
        page.push_str(before);
        let (name, after) = after.split_once("}}").unwrap_or((after, ""));
        let part = parts.iter().find(|it| it.0 == name);
        page.push_str(part.map(|it| it.1.as_str()).unwrap_or_default());
        rest = after;
    }
    page + rest
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_filled_in_is_text() {
        let parts = [("a", "{{b}}".to_owned()), ("b", "x".to_owned())];
        assert_eq!(filled("1{{a}}2{{b}}3{{c}}", &parts), "1{{b}}2x3");
        assert_eq!(inert("\"</script><!--\""), "\"\\u003c/script>\\u003c!--\"");
    }
}
