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
const STYLE: &str = include_str!("page.css");
const SCRIPT: &str = include_str!("page.js");

/// The page.
///
/// # Errors
/// The graph cannot be written as JSON.
pub fn document(graph: &Graph, title: &str) -> Result<String> {
    let scene = picture(graph);
    let digest = BASE64_STANDARD.encode(Sha256::digest(SCRIPT.as_bytes()));
    let parts = [
        ("digest", digest),
        ("title", escaped(title)),
        ("style", svg::style(Colours::Auto) + STYLE),
        ("width", scene.width.to_string()),
        ("height", scene.height.to_string()),
        ("drawing", svg::drawing(&scene)),
        ("json", inert(&serde_json::to_string(graph)?)),
        ("script", SCRIPT.to_owned()),
    ];
    Ok(filled(PAGE, &parts))
}

/// JSON that cannot end the element that it is in.
fn inert(json: &str) -> String {
    json.replace('<', "\\u003c")
        .replace('\u{2028}', "\\u2028")
        .replace('\u{2029}', "\\u2029")
}

/// The template with its parts. What is filled in is not looked at again.
fn filled(template: &str, parts: &[(&str, String)]) -> String {
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
