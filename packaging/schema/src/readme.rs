//! What the README of a plugin says about its keys: the first table below "Keys", which a test of
//! podwire compares with the keys that the plugin reads.

use std::collections::BTreeMap;

/// The description of each key, in one line.
pub fn descriptions(readme: &str) -> BTreeMap<String, String> {
    let section = readme.split("\n## Keys\n").nth(1).unwrap_or_default();
    let is_row = |line: &&str| line.starts_with('|');
    let rows = section.lines().skip_while(|line| !is_row(line));
    let mut all = BTreeMap::new();
    for row in rows.take_while(is_row) {
        let cells: Vec<_> = row.trim_matches('|').split('|').map(str::trim).collect();
        let [keys, kind, default, meaning] = cells[..] else {
            continue;
        };
        let mut text = without_links(meaning);
        for (word, cell) in [("Type", kind), ("Default", default)] {
            if !cell.is_empty() {
                text += &format!(". {word}: {}", without_links(cell));
            }
        }
        // Every second piece is between backticks.
        let names = keys.split('`').skip(1).step_by(2);
        all.extend(names.map(|name| (name.to_owned(), text.clone())));
    }
    all
}

/// The text with `[words](target)` as `words`.
fn without_links(text: &str) -> String {
    let mut pieces = text.split("](");
    let mut plain = pieces.next().unwrap_or_default().to_owned();
    for piece in pieces {
        if let Some(at) = plain.rfind('[') {
            plain.remove(at);
        }
        plain += piece.split_once(')').map_or("", |(_, rest)| rest);
    }
    plain
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_row_describes_each_of_its_keys() {
        let readme = "# p\n\n## Keys\n\n| key | type | default | meaning |\n|---|---|---|---|\n\
                      | `a`, `b` | string | `x` | as [there](../x.md#y), or not |\n\n| `c` | | | no |\n";
        let text = "as there, or not. Type: string. Default: `x`".to_owned();
        let expected = [("a".to_owned(), text.clone()), ("b".to_owned(), text)];
        assert_eq!(descriptions(readme), BTreeMap::from(expected));
    }
}
