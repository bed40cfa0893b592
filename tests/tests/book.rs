//! The documents as a book: `docs/SUMMARY.md` has every page, links lead somewhere, the tree that `packaging/book` makes for mdBook is
//! whole, `docs/files.md` knows every file, and manual pages are without faults.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// The project's directory.
fn project() -> PathBuf {
    let tests = Path::new(env!("CARGO_MANIFEST_DIR"));
    tests.parent().expect("the project").to_owned()
}

/// Files below `dir` with one of these endings; neither builds nor hidden directories.
fn files(dir: &Path, endings: &[&str], found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(dir).expect("a directory") {
        let path = entry.expect("an entry").path();
        let name = path
            .file_name()
            .unwrap_or_default()
            .to_string_lossy()
            .into_owned();
        if path.is_symlink() || name.starts_with('.') || matches!(&*name, "target" | "bin") {
            continue;
        }
        if path.is_dir() {
            files(&path, endings, found);
        } else if endings.iter().any(|it| name.ends_with(it)) {
            found.push(path);
        }
    }
}

fn pages() -> Vec<PathBuf> {
    let mut found = Vec::new();
    files(&project(), &[".md"], &mut found);
    found
}

fn read(path: &Path) -> String {
    fs::read_to_string(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// A page without the lines of its examples.
fn prose(text: &str) -> String {
    let parts = text.split("```").step_by(2);
    parts.collect::<Vec<_>>().join("\n")
}

/// Where the links of a page lead within the project: a path and an anchor.
fn links(page: &Path) -> Vec<(PathBuf, String)> {
    let text = prose(&read(page));
    let targets = text
        .split("](")
        .skip(1)
        .filter_map(|it| it.split(')').next());
    let own = targets.filter(|it| !it.contains("://") && !it.starts_with("mailto:"));
    let resolved = own.map(|it| {
        let (path, anchor) = it.split_once('#').unwrap_or((it, ""));
        let dir = page.parent().expect("a directory");
        let path = match path {
            "" => page.to_owned(),
            path => dir.join(path),
        };
        (path, anchor.to_owned())
    });
    resolved.collect()
}

/// The anchors that GitHub and mdBook make of a page's headings.
fn anchors(page: &Path) -> BTreeSet<String> {
    let text = prose(&read(page));
    let headings = text.lines().filter(|it| it.starts_with('#'));
    let letters = |heading: &str| -> String {
        let text = heading.trim_start_matches('#').trim().to_lowercase();
        let kept = text
            .chars()
            .filter(|it| it.is_alphanumeric() || matches!(it, ' ' | '-' | '_'));
        kept.map(|it| if it == ' ' { '-' } else { it }).collect()
    };
    headings.map(letters).collect()
}

#[test]
fn every_page_is_a_chapter() {
    let summary = project().join("docs/SUMMARY.md");
    let real = |path: &Path| {
        path.canonicalize()
            .unwrap_or_else(|error| panic!("{}: {error}", path.display()))
    };
    let listed: Vec<PathBuf> = links(&summary).iter().map(|(path, _)| real(path)).collect();
    let once: BTreeSet<_> = listed.iter().collect();
    assert_eq!(once.len(), listed.len(), "a chapter is there twice");
    let all = pages();
    assert!(all.len() > 40, "{all:?}");
    for page in all {
        let page = real(&page);
        assert!(
            listed.contains(&page) || page == real(&summary),
            "docs/SUMMARY.md lacks {}",
            page.display()
        );
    }
}

#[test]
fn links_between_pages_lead_somewhere() {
    let mut count = 0;
    let mut broken = Vec::new();
    for page in pages() {
        for (target, anchor) in links(&page) {
            count += 1;
            let is_page = target.extension().is_some_and(|it| it == "md");
            let is_there = target.exists()
                && (anchor.is_empty() || !is_page || anchors(&target).contains(&anchor));
            if !is_there {
                broken.push(format!(
                    "{} -> {}#{anchor}",
                    page.display(),
                    target.display()
                ));
            }
        }
    }
    assert!(broken.is_empty(), "{}", broken.join("\n"));
    assert!(count > 150, "{count}");
}

/// The same links, in the tree that mdBook gets. mdBook itself takes minutes to build: a stand-in in its place shows that
/// it is called with that tree.
#[test]
#[allow(clippy::disallowed_methods)] // a script of this project
fn the_book_is_a_whole_tree() {
    let dir = tempfile::tempdir().expect("a directory");
    let program = dir.path().join("mdbook");
    fs::write(&program, "#!/bin/sh\necho \"$@\"\n").expect("a program");
    let made = Command::new("chmod").arg("+x").arg(&program).status();
    assert!(made.expect("chmod").success());
    let path = format!(
        "{}:{}",
        dir.path().display(),
        std::env::var("PATH").expect("PATH")
    );
    let book = dir.path().join("book");
    let mut command = Command::new(project().join("packaging/book"));
    let done = command.arg(&book).env("PATH", path).output().expect("bash");
    assert!(done.status.success(), "{done:?}");
    let output = String::from_utf8_lossy(&done.stdout).into_owned();
    assert_eq!(output.trim(), format!("build {}", book.display()));
    let mut copied = Vec::new();
    files(&book.join("src"), &[".md"], &mut copied);
    assert_eq!(copied.len(), pages().len());
    for page in copied {
        // mdBook would not find it under that name.
        assert!(!page.ends_with("README.md"), "{}", page.display());
        for (target, _) in links(&page) {
            assert!(
                target.exists(),
                "{} -> {}",
                page.display(),
                target.display()
            );
        }
    }
}

/// What a program writes has a row in docs/files.md: paths are constants.
#[test]
fn every_file_of_podwire_has_its_row() {
    let page = read(&project().join("docs/files.md"));
    let mut sources = Vec::new();
    for dir in ["crates", "plugins", "ipam", "podwire", "podwired"] {
        files(&project().join(dir), &[".rs"], &mut sources);
    }
    let beginnings = [
        "/run/podwire",
        "/run/cni",
        "/var/lib/podwire",
        "/var/lib/cni/",
        "/etc/podwire",
        "/etc/cni/",
    ];
    let mut count = 0;
    for source in sources {
        let text = read(&source);
        let is_of_tests = |it: &Path| {
            it.components()
                .any(|it| matches!(it.as_os_str().to_str(), Some("tests" | "sandbox")))
        };
        if is_of_tests(
            source
                .strip_prefix(project())
                .expect("a file of the project"),
        ) {
            continue;
        }
        let code = text.split("#[cfg(test)]").next().unwrap_or_default();
        for line in code
            .lines()
            .filter(|it| it.contains("const ") || it.contains("default_value"))
        {
            for path in line.split('"').skip(1).step_by(2) {
                if beginnings.iter().any(|it| path.starts_with(it)) {
                    count += 1;
                    assert!(
                        page.contains(path),
                        "docs/files.md lacks {path} of {}",
                        source.display()
                    );
                }
            }
        }
    }
    assert!(count > 8, "{count}");
}
