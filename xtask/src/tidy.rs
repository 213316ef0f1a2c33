//! The house's habits, checked: every file says what it is, none grows past its purpose, nothing is left lying about.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use anyhow::Context;

use crate::source::{self, SourceFile};

/// Lines of a file, its tests not counted.
const FILE_LINES_MAX: usize = 500;
/// Lines of a function, from `fn` to its brace.
const FUNCTION_LINES_MAX: usize = 70;
/// What a file's name may not say: it would say nothing.
const EMPTY_NAMES: [&str; 9] =
    ["manager", "helper", "helpers", "util", "utils", "common", "misc", "context", "data"];
/// What may not be left in the code, and what to do instead.
const LEFT_BEHIND: [(&str, &str); 5] = [
    ("#[ignore", "a test that is not run proves nothing: make it fast, or move it to `cargo xtask soak`"),
    ("todo!(", "finish it, or leave it out"),
    ("unimplemented!(", "finish it, or leave it out"),
    ("dbg!(", "take it out"),
    ("thread::sleep(", "wait for an event with a deadline"),
];

/// Every complaint about the tree below `root`.
pub(crate) fn check(root: &Path) -> anyhow::Result<Vec<String>> {
    let tolerated = tolerated(root)?;
    let mut complaints = Vec::new();
    let mut files = source::files(root, "crates", "rs")?;
    files.extend(source::files(root, "xtask", "rs")?);
    for file in &files {
        check_file(file, &tolerated, &mut complaints);
    }
    for (path, _) in tolerated.iter().filter(|(p, _)| !p.contains("::")) {
        if !files.iter().any(|f| f.path == *path) {
            complaints.push(format!("xtask/tidy.toml tolerates {path}, which does not exist"));
        }
    }
    check_manifests(root, &mut complaints)?;
    check_machine_paths(root, &mut complaints)?;
    Ok(complaints)
}

/// Files and functions that are longer than they should be, each with the length that it may not pass: old debts
/// may shrink and never grow.
fn tolerated(root: &Path) -> anyhow::Result<BTreeMap<String, usize>> {
    let path = root.join("xtask/tidy.toml");
    if !path.exists() {
        return Ok(BTreeMap::new());
    }
    let table: toml::Table = fs::read_to_string(&path)?.parse().context("parsing xtask/tidy.toml")?;
    let lines = table.get("lines").and_then(toml::Value::as_table).cloned().unwrap_or_default();
    Ok(lines
        .into_iter()
        .filter_map(|(name, count)| Some((name, usize::try_from(count.as_integer()?).ok()?)))
        .collect())
}

fn check_file(file: &SourceFile, tolerated: &BTreeMap<String, usize>, complaints: &mut Vec<String>) {
    let path = &file.path;
    if !file.text.starts_with("//!") {
        complaints.push(format!("{path}: begin with one `//!` sentence that says what the file is"));
    }
    if path.ends_with("/mod.rs") {
        complaints.push(format!("{path}: foo.rs beside foo/, no mod.rs"));
    }
    let stem = path.rsplit('/').next().unwrap_or_default().trim_end_matches(".rs");
    if EMPTY_NAMES.contains(&stem) {
        complaints.push(format!("{path}: {stem:?} names nothing"));
    }
    let lines = if file.is_test() { file.text.lines().count() } else { file.product_lines().count() };
    let limit = tolerated.get(path).copied().unwrap_or(FILE_LINES_MAX);
    if lines > limit {
        complaints.push(format!("{path}: {lines} lines, at most {limit}: split it by purpose"));
    }
    for (line, name, length) in source::functions(&file.text) {
        let limit = tolerated.get(&format!("{path}::{name}")).copied().unwrap_or(FUNCTION_LINES_MAX);
        if length > limit {
            complaints.push(format!("{path}:{line}: {name} has {length} lines, at most {limit}"));
        }
    }
    // This file spells the words that it looks for.
    if !path.starts_with("xtask/") {
        check_lines(file, complaints);
    }
}

fn check_lines(file: &SourceFile, complaints: &mut Vec<String>) {
    for (index, line) in file.text.lines().enumerate() {
        let at = format!("{}:{}", file.path, index + 1);
        for (word, remedy) in LEFT_BEHIND {
            if line.contains(word) && !line.trim_start().starts_with("//") {
                complaints.push(format!("{at}: {word} is left: {remedy}"));
            }
        }
        if line.ends_with(' ') || line.contains('\t') {
            complaints.push(format!("{at}: blank at the end of the line, or a tab"));
        }
    }
}

fn check_manifests(root: &Path, complaints: &mut Vec<String>) -> anyhow::Result<()> {
    for file in source::files(root, "crates", "toml")?.iter().filter(|f| f.path.ends_with("/Cargo.toml")) {
        for needed in ["[lints]\nworkspace = true", "publish.workspace = true", "license.workspace = true"] {
            if !file.text.contains(needed) {
                complaints.push(format!("{}: {needed:?} is missing", file.path));
            }
        }
        let lib = root.join(&file.path).with_file_name("src").join("lib.rs");
        if let Ok(text) = fs::read_to_string(&lib) {
            let header: String = text.lines().take_while(|l| l.starts_with("//!")).collect();
            if !header.contains("*not*") || !header.contains("Start") {
                complaints.push(format!(
                    "{}: the crate's `//!` must say what it is, what it is *not*, and where to Start",
                    file.path.replace("Cargo.toml", "src/lib.rs")
                ));
            }
        }
    }
    Ok(())
}

fn check_machine_paths(root: &Path, complaints: &mut Vec<String>) -> anyhow::Result<()> {
    // Spelt in two parts, so that this line is not one.
    let roots = [concat!("/wo", "rk/"), concat!("/ro", "ot/"), concat!("/far", "m/")];
    for (folder, extension) in
        [("crates", "rs"), ("xtask", "rs"), ("tools", "py"), ("docs", "md"), ("models", "md"), (".ci", "")]
    {
        for file in source::files(root, folder, extension)? {
            for (index, line) in file.text.lines().enumerate() {
                if roots.iter().any(|r| line.contains(r)) {
                    complaints.push(format!("{}:{}: a machine's own path", file.path, index + 1));
                }
            }
        }
    }
    Ok(())
}

#[cfg(test)]
pub(crate) mod tests {
    use std::path::PathBuf;
    use std::sync::atomic::{AtomicU32, Ordering};

    use super::*;

    /// A tree of files in a folder of its own, gone when dropped.
    pub(crate) struct Tree(PathBuf);

    impl Tree {
        pub(crate) fn new() -> Self {
            static COUNT: AtomicU32 = AtomicU32::new(0);
            let name = format!("xtask-{}-{}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
            let path = std::env::temp_dir().join(name);
            fs::create_dir_all(path.join("crates")).unwrap();
            Self(path)
        }

        pub(crate) fn root(&self) -> &Path {
            &self.0
        }

        pub(crate) fn write(&self, path: &str, text: &str) {
            let path = self.0.join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }
    }

    impl Drop for Tree {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.0);
        }
    }

    #[test]
    fn this_tree_is_tidy() {
        assert_eq!(check(&source::root()).unwrap(), Vec::<String>::new());
    }

    #[test]
    fn each_bad_habit_is_named_with_its_place() {
        let tree = Tree::new();
        let body = "    a();\n".repeat(80);
        tree.write("crates/a/src/helper.rs", &format!("fn long() {{\n{body}}}\n"));
        tree.write("crates/a/src/big.rs", &format!("//! Big.\n{}", "const A: u8 = 1;\n".repeat(501)));
        tree.write("crates/a/tests/t.rs", "//! T.\n#[ignore]\nfn t() { std::thread::sleep(x) } \n");
        let complaints = check(tree.root()).unwrap().join("\n");
        for expected in [
            "helper.rs: begin with one `//!` sentence",
            "\"helper\" names nothing",
            "helper.rs:1: long has 82 lines, at most 70",
            "big.rs: 502 lines, at most 500",
            "t.rs:2: #[ignore is left",
            "t.rs:3: thread::sleep( is left",
            "t.rs:3: blank at the end of the line",
        ] {
            assert!(complaints.contains(expected), "{expected:?} is missing from:\n{complaints}");
        }
    }

    #[test]
    fn an_old_debt_may_shrink_but_not_grow() {
        let tree = Tree::new();
        tree.write("crates/a/src/big.rs", &format!("//! Big.\n{}", "const A: u8 = 1;\n".repeat(600)));
        tree.write("xtask/tidy.toml", "[lines]\n\"crates/a/src/big.rs\" = 601\n");
        assert_eq!(check(tree.root()).unwrap(), Vec::<String>::new());
        tree.write("xtask/tidy.toml", "[lines]\n\"crates/a/src/big.rs\" = 600\n");
        assert_eq!(check(tree.root()).unwrap().len(), 1);
    }
}
