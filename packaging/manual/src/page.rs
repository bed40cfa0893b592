//! Pages that are made of the project's documents: each key and file is described once.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use roff::{Roff, bold, roman};

use crate::markdown;

/// A page of section 5 or 8.
#[derive(Debug)]
pub struct Page {
    /// Its name, which is also that of the file.
    pub name: String,
    /// 5 or 8.
    pub section: &'static str,
    /// One line for whatis(1); empty: the first sentence of the first part.
    pub about: &'static str,
    /// What it is made of.
    pub parts: Vec<Part>,
}

/// A document, or a section of it.
#[derive(Debug)]
pub struct Part {
    /// Relative to the project.
    pub file: PathBuf,
    /// The heading of the only section that is wanted; empty: the whole document.
    pub heading: &'static str,
    /// The heading in the page.
    pub title: &'static str,
}

impl Part {
    fn whole(file: impl Into<PathBuf>) -> Self {
        Self::section(file, "", "DESCRIPTION")
    }

    fn section(file: impl Into<PathBuf>, heading: &'static str, title: &'static str) -> Self {
        let file = file.into();
        Self {
            file,
            heading,
            title,
        }
    }
}

/// All pages.
///
/// # Errors
/// The folders of plugins cannot be read.
pub fn all(project: &Path) -> Result<Vec<Page>> {
    let mut pages = vec![agent(), settings(), files()];
    for parent in ["plugins", "ipam"] {
        let dir = project.join(parent);
        let what = || format!("list {}", dir.display());
        for entry in fs::read_dir(&dir).with_context(what)? {
            let name = entry.with_context(what)?.file_name();
            pages.push(plugin(parent, &name.to_string_lossy()));
        }
    }
    pages.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(pages)
}

fn agent() -> Page {
    Page {
        name: "podwired".to_owned(),
        section: "8",
        about: "the agent of a node: names, networks across hosts, addresses of a cluster",
        parts: vec![
            Part::section("podwired/src/help.txt", "", "SYNOPSIS"),
            Part::whole("podwired/README.md"),
        ],
    }
}

fn settings() -> Page {
    Page {
        name: "podwired.json".to_owned(),
        section: "5",
        about: "configuration of the agent of a node",
        parts: vec![
            Part::section("podwired/README.md", "Keys", "DESCRIPTION"),
            Part::section("docs/overlay.md", "Keys", "THE KEY OVERLAY"),
            Part::section("docs/cluster-addresses.md", "Set up", "THE KEY IPAM"),
        ],
    }
}

fn files() -> Page {
    Page {
        name: "podwire-files".to_owned(),
        section: "5",
        about: "networks, reservations, journals and other files of podwire",
        parts: vec![Part::whole("docs/files.md")],
    }
}

fn plugin(parent: &str, name: &str) -> Page {
    Page {
        name: format!("podwire-{name}"),
        section: "5",
        about: "",
        parts: vec![Part::whole(Path::new(parent).join(name).join("README.md"))],
    }
}

impl Page {
    /// The file's name.
    pub fn file(&self) -> String {
        format!("{}.{}", self.name, self.section)
    }

    /// The page in the language of man(7). `pages` are those that it may refer to.
    ///
    /// # Errors
    /// A document cannot be read, or lacks the section.
    pub fn render(&self, project: &Path, pages: &[Self], date: &str) -> Result<String> {
        let mut texts = Vec::new();
        for part in &self.parts {
            texts.push(part.read(project)?);
        }
        let mut page = Roff::new();
        let title = self.name.to_uppercase();
        let source = concat!("podwire ", env!("CARGO_PKG_VERSION"));
        page.control(
            "TH",
            [title.as_str(), self.section, date, source, "podwire"],
        );
        markdown::section(&mut page, "name");
        let about = match self.about {
            "" => first_sentence(&texts[0]),
            about => about.to_owned(),
        };
        page.text([roman(format!("{} - {about}", self.name))]);
        let mut links = Vec::new();
        for (part, text) in self.parts.iter().zip(&texts) {
            markdown::section(&mut page, part.title);
            let base = part.file.parent().unwrap_or(Path::new(""));
            let found = markdown::append(&mut page, text);
            links.extend(found.iter().map(|it| resolve(base, it)));
        }
        self.see_also(&mut page, pages, &links);
        Ok(page.render())
    }

    fn see_also(&self, page: &mut Roff, pages: &[Self], links: &[PathBuf]) {
        let is_linked = |it: &&Self| {
            it.name != self.name && it.parts.iter().any(|part| links.contains(&part.file))
        };
        markdown::section(page, "see also");
        let mut line = vec![bold("podwire"), roman("(1)")];
        for other in pages.iter().filter(is_linked) {
            line.push(roman(", "));
            line.push(bold(&other.name));
            line.push(roman(format!("({})", other.section)));
        }
        page.text(line);
    }
}

impl Part {
    /// The Markdown below its heading.
    fn read(&self, project: &Path) -> Result<String> {
        let file = project.join(&self.file);
        let text = fs::read_to_string(&file).with_context(|| format!("read {}", file.display()))?;
        if self.file.extension().is_some_and(|it| it == "txt") {
            return Ok(format!("```\n{text}```\n"));
        }
        match self.heading {
            "" => Ok(below_title(&text)),
            heading => match section(&text, heading) {
                Some(section) => Ok(section.to_owned()),
                None => bail!("{}: no section {heading:?}", file.display()),
            },
        }
    }
}

fn below_title(text: &str) -> String {
    let body = text.split_once('\n').map_or("", |(_, body)| body);
    body.trim_start().to_owned()
}

fn section<'a>(text: &'a str, heading: &str) -> Option<&'a str> {
    let (_, body) = text.split_once(&format!("\n## {heading}\n"))?;
    Some(body.split("\n## ").next().unwrap_or_default())
}

/// In one line, as whatis(1) prints it: "the name - it does this".
fn first_sentence(text: &str) -> String {
    let paragraph = text.split("\n\n").next().unwrap_or_default();
    let line = paragraph.replace('\n', " ");
    let end = line.find(". ").unwrap_or(line.len());
    let sentence = line[..end].trim_end_matches('.').replace('`', "");
    let sentence = sentence.split(": ").next().unwrap_or_default();
    let mut letters = without_links(sentence);
    if let Some(first) = letters.get_mut(..1) {
        first.make_ascii_lowercase();
    }
    letters
}

/// The text with `[words](target)` as `words`.
fn without_links(text: &str) -> String {
    let mut pieces = text.split("](");
    let first = pieces.next().unwrap_or_default().to_owned();
    let joined = pieces.fold(first, |plain, piece| {
        plain + piece.split_once(')').map_or("", |(_, rest)| rest)
    });
    joined.replace('[', "")
}

/// The file that a link in a document of the folder `base` leads to.
fn resolve(base: &Path, link: &str) -> PathBuf {
    let path = link.split('#').next().unwrap_or_default();
    let mut file = base.to_owned();
    for name in path.split('/') {
        match name {
            ".." => drop(file.pop()),
            "" | "." => {}
            name => file.push(name),
        }
    }
    file
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_page_is_about_the_first_sentence() {
        let text = "Limits how fast `a`\n[sends](x.md): well. It is chained.\n\nMore.\n";
        assert_eq!(first_sentence(text), "limits how fast a sends");
    }

    #[test]
    fn a_section_ends_at_the_next_one() {
        let text = "# t\n\n## Keys\n\na\n\n### b\n\n## Life\n\nc\n";
        assert_eq!(section(text, "Keys"), Some("\na\n\n### b\n"));
        assert_eq!(section(text, "Key"), None);
    }

    #[test]
    fn links_lead_to_files() {
        let file = resolve(Path::new("plugins/bridge"), "../../docs/overlay.md#keys");
        assert_eq!(file, Path::new("docs/overlay.md"));
    }

    #[test]
    fn every_plugin_has_a_page_with_its_keys() {
        let project = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
        let pages = all(&project).unwrap();
        let text = |name: &str| {
            let page = pages.iter().find(|it| it.name == name).unwrap();
            page.render(&project, &pages, "2026-11-29").unwrap()
        };
        let bridge = text("podwire-bridge");
        assert!(bridge.contains("\n.SH KEYS\n"), "{bridge}");
        assert!(bridge.contains("\n\\fBisGateway\\fR\n"), "{bridge}");
        let chained = text("podwire-bandwidth");
        assert!(chained.contains(r"\fBpodwire\-bridge\fR(5)"), "{chained}");
    }
}
