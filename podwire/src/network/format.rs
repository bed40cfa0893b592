//! `--format`: tables, JSON and templates in the language of Go's text/template, with the
//! functions that Docker adds to it.

use std::collections::BTreeMap;

use anyhow::{Context, Result, anyhow};
use gotmpl::{MissingKey, Template, Value as Data};
use serde_json::Value;

/// What a command lists, and how it is written without `--format`.
#[derive(Debug)]
pub struct Columns {
    /// The template of a row; columns are separated by tabs.
    pub usual: &'static str,
    /// The template of `raw`.
    pub raw: &'static str,
    /// The fields, with their headings.
    pub headings: &'static [(&'static str, &'static str)],
}

/// Writes rows as `format` says: `table`, `table TEMPLATE`, `json` (an object in each line),
/// `raw`, or a template for each row. An empty text is `table`. The result ends with a newline
/// unless it is empty.
///
/// # Errors
/// A template is wrong, or names a field that the rows do not have.
pub fn rows(format: &str, columns: &Columns, rows: &[Value]) -> Result<String> {
    let format = format.trim();
    match format.split_once(char::is_whitespace) {
        _ if format.is_empty() || format == "table" => table(columns.usual, columns, rows),
        Some(("table", template)) => table(&unescaped(template.trim()), columns, rows),
        _ if format == "json" => Ok(rows.iter().map(json_line).collect()),
        _ if format == "raw" => lines(columns.raw, rows),
        _ => lines(&unescaped(format), rows),
    }
}

fn json_line(row: &Value) -> String {
    format!("{}\n", without_label_map(row.clone()))
}

/// A row without what only templates can ask for.
fn without_label_map(mut row: Value) -> Value {
    if let Value::Object(members) = &mut row {
        members.remove(LABEL_MAP);
    }
    row
}

/// The labels of a row as an object, for `.Label "KEY"`.
const LABEL_MAP: &str = "LabelMap";

/// What a template makes of a document.
///
/// # Errors
/// The template is wrong, or names a field that the document does not have.
pub fn fill(template: &str, document: &Value) -> Result<String> {
    filled(&parsed(template)?, document)
}

/// In a shell a tab and a newline are hard to write.
fn unescaped(template: &str) -> String {
    template.replace("\\t", "\t").replace("\\n", "\n")
}

fn lines(template: &str, rows: &[Value]) -> Result<String> {
    let template = parsed(template)?;
    let line = |row| Ok(filled(&template, row)? + "\n");
    rows.iter().map(line).collect()
}

fn table(template: &str, columns: &Columns, rows: &[Value]) -> Result<String> {
    let template = parsed(template)?;
    let headings = columns.headings.iter();
    let headings = headings.map(|(field, heading)| (field.to_string(), Value::from(*heading)));
    let headings = Value::Object(headings.collect());
    let lines = [&headings].into_iter().chain(rows);
    let lines = lines.map(|row| filled(&template, row));
    Ok(aligned(&lines.collect::<Result<Vec<_>>>()?))
}

/// Pads every cell that a tab ends, as Go's tabwriter does for Docker: at least ten wide, three
/// spaces between columns.
fn aligned(lines: &[String]) -> String {
    let lines: Vec<Vec<&str>> = lines
        .iter()
        .map(|line| line.split('\t').collect())
        .collect();
    let mut widths = BTreeMap::new();
    for line in &lines {
        let ended = line.len() - 1;
        for (column, cell) in line[..ended].iter().enumerate() {
            let width = widths.entry(column).or_insert(10);
            *width = (cell.chars().count() + 3).max(*width);
        }
    }
    let mut text = String::new();
    for line in &lines {
        let (last, padded) = line.split_last().unwrap_or((&"", &[]));
        for (column, cell) in padded.iter().enumerate() {
            let width = widths.get(&column).copied().unwrap_or_default();
            text.push_str(&format!("{cell:<width$}"));
        }
        text.push_str(last);
        text.push('\n');
    }
    text
}

fn parsed(template: &str) -> Result<Template> {
    // Go calls a method here; rows are data.
    let template = template
        .replace(".Label \"", "label . \"")
        .replace(".Label `", "label . `");
    let parsed = Template::new("")
        .missing_key(MissingKey::Error)
        .func("json", |args| Ok(json(argument(args, 0)).into_data()))
        .func("upper", |args| Ok(text(args, 0).to_uppercase().into_data()))
        .func("lower", |args| Ok(text(args, 0).to_lowercase().into_data()))
        .func("title", |args| Ok(title(&text(args, 0)).into_data()))
        .func("split", |args| {
            let (text, separator) = (text(args, 0), text(args, 1));
            let parts = text.split(&*separator).map(|it| it.to_owned().into_data());
            Ok(Data::List(parts.collect()))
        })
        .func("join", |args| {
            Ok(joined(argument(args, 0), &text(args, 1)).into_data())
        })
        .func("pad", |args| Ok(padded(args).into_data()))
        .func("truncate", |args| {
            let length = argument(args, 1).as_int().unwrap_or_default().max(0);
            let cut: String = text(args, 0).chars().take(length as usize).collect();
            Ok(cut.into_data())
        })
        .func("label", |args| {
            let labels = argument(args, 0).field(LABEL_MAP).cloned();
            let label = labels.and_then(|it| it.field(&text(args, 1)).cloned());
            Ok(label.unwrap_or_else(|| String::new().into_data()))
        })
        .parse(&template);
    parsed.map_err(|error| anyhow!("template parsing error: {error}"))
}

fn filled(template: &Template, document: &Value) -> Result<String> {
    let data = gotmpl::to_value(document).context("read the document")?;
    let filled = template.execute_to_string(&data);
    filled.map_err(|error| anyhow!("template parsing error: template: {error}"))
}

trait IntoData {
    fn into_data(self) -> Data;
}

impl IntoData for String {
    fn into_data(self) -> Data {
        Data::String(self.into())
    }
}

fn argument(args: &[Data], index: usize) -> &Data {
    args.get(index).unwrap_or(&Data::Nil)
}

fn text(args: &[Data], index: usize) -> String {
    argument(args, index).to_string()
}

fn title(text: &str) -> String {
    let mut begins = true;
    let letter = |letter: char| {
        let first = std::mem::replace(&mut begins, letter.is_whitespace());
        if first {
            letter.to_uppercase().to_string()
        } else {
            letter.to_string()
        }
    };
    text.chars().map(letter).collect()
}

fn joined(list: &Data, separator: &str) -> String {
    let Data::List(items) = list else {
        return list.to_string();
    };
    let items: Vec<_> = items.iter().map(ToString::to_string).collect();
    items.join(separator)
}

/// `pad TEXT BEFORE AFTER`, except for an empty text.
fn padded(args: &[Data]) -> String {
    let spaces = |index| {
        let count = argument(args, index).as_int().unwrap_or_default();
        " ".repeat(count.clamp(0, 1000) as usize)
    };
    match text(args, 0) {
        text if text.is_empty() => text,
        text => format!("{}{text}{}", spaces(1), spaces(2)),
    }
}

fn json(data: &Data) -> String {
    without_label_map(as_json(data)).to_string()
}

fn as_json(data: &Data) -> Value {
    match data {
        Data::Nil | Data::Function(_) => Value::Null,
        Data::Bool(it) => (*it).into(),
        Data::Int(it) => (*it).into(),
        Data::Uint(it) => (*it).into(),
        Data::Float(it) => (*it).into(),
        Data::String(it) => it.to_string().into(),
        Data::List(items) => items.iter().map(as_json).collect(),
        Data::Map(members) => {
            let members = members.iter();
            Value::Object(members.map(|(k, v)| (k.to_string(), as_json(v))).collect())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    const COLUMNS: Columns = Columns {
        usual: "{{.ID}}\t{{.Name}}",
        raw: "id: {{.ID}}\nname: {{.Name}}\n",
        headings: &[("ID", "NETWORK ID"), ("Name", "NAME")],
    };

    fn written(format: &str) -> String {
        let data = [
            json!({"ID": "0123456789ab", "Name": "n"}),
            json!({"ID": "1", "Name": "long"}),
        ];
        rows(format, &COLUMNS, &data).unwrap()
    }

    #[test]
    fn rows_have_dockers_forms() {
        let table = "NETWORK ID     NAME\n0123456789ab   n\n1              long\n";
        assert_eq!(written(""), table);
        assert_eq!(written("table"), table);
        assert_eq!(
            written("table {{.Name}}\\t{{.ID}}"),
            "NAME      NETWORK ID\nn         0123456789ab\nlong      1\n"
        );
        assert_eq!(
            written("{{.Name}}:\\t{{.ID}}"),
            "n:\t0123456789ab\nlong:\t1\n"
        );
        assert_eq!(
            written("json").lines().next(),
            Some(r#"{"ID":"0123456789ab","Name":"n"}"#)
        );
        assert_eq!(
            written("raw"),
            "id: 0123456789ab\nname: n\n\nid: 1\nname: long\n\n"
        );
        assert_eq!(rows("table", &COLUMNS, &[]).unwrap(), "NETWORK ID   NAME\n");
    }

    #[test]
    fn templates_are_gos() {
        let document = json!({"Name": "n", "IPAM": {"Config": [{"Subnet": "10.1.0.0/24"}]},
            "Containers": {"b": {"Name": "two"}, "a": {"Name": "one"}}, "Labels": {},
            "Free": u64::MAX, "LabelMap": {"k": "v"}});
        for (template, expected) in [
            ("{{.Name}}", "n"),
            ("{{range .IPAM.Config}}{{.Subnet}}{{end}}", "10.1.0.0/24"),
            ("{{(index .IPAM.Config 0).Subnet}}", "10.1.0.0/24"),
            (
                "{{range $k, $v := .Containers}}{{$k}}={{$v.Name}} {{end}}",
                "a=one b=two ",
            ),
            ("{{json .IPAM.Config}}", r#"[{"Subnet":"10.1.0.0/24"}]"#),
            (
                "{{len .Containers}} {{if .Labels}}yes{{else}}no{{end}}",
                "2 no",
            ),
            (
                "{{.Name | upper | printf \"<%s>\"}} {{.Free}}",
                "<N> 18446744073709551615",
            ),
            (
                "{{join (split \"a,b\" \",\") \"-\"}}{{pad \"x\" 1 2}}|{{truncate \"abc\" 2}}",
                "a-b x  |ab",
            ),
            ("{{.Labels}} {{title \"a b\"}}", "map[] A B"),
            ("{{.Label \"k\"}}{{.Label \"x\"}}", "v"),
        ] {
            assert_eq!(fill(template, &document).unwrap(), expected, "{template}");
        }
    }

    #[test]
    fn wrong_templates_are_errors() {
        for template in ["{{", "{{.Nme}}", "{{nosuch .Name}}", "{{if}}"] {
            assert!(fill(template, &json!({"Name": "n"})).is_err(), "{template}");
        }
    }
}
