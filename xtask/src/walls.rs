//! The walls between crates: which may name which, what pure code may touch, which libraries may not be linked.
//!
//! The table is data, in the workspace's `Cargo.toml` under `[workspace.metadata.walls]`.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;

use anyhow::Context;
use toml::Value;

use crate::shell;
use crate::source::{self, SourceFile};

/// Libraries that must not be in the graph at all, and why.
const BANNED: [(&str, &str); 5] = [
    ("ring", "one cryptographic library: aws-lc-rs"),
    ("openssl-sys", "one cryptographic library: aws-lc-rs"),
    ("native-tls", "TLS is rustls"),
    ("onig_sys", "a C regex engine; tokenizers runs on fancy-regex"),
    ("async-std", "one runtime: tokio"),
];

/// Libraries that one crate alone may name.
const RESERVED: [(&str, &str); 4] =
    [("aws-lc-rs", "trust"), ("hpke", "trust"), ("rusqlite", "store"), ("memmap2", "kernels")];

/// What only shells may name: it opens sockets or runs tasks.
const SHELL_ONLY: [&str; 8] =
    ["tokio", "axum", "hyper", "hyper-util", "reqwest", "tokio-tungstenite", "sqlx", "tokio-util"];

/// Licences that may be linked.
const LICENCES: [&str; 15] = [
    "MIT",
    "Apache-2.0",
    "Apache-2.0 WITH LLVM-exception",
    "BSD-1-Clause",
    "BSD-2-Clause",
    "BSD-3-Clause",
    "ISC",
    "Zlib",
    "0BSD",
    "Unicode-3.0",
    "CC0-1.0",
    "BSL-1.0",
    "Unlicense",
    "CDLA-Permissive-2.0",
    "OpenSSL",
];

/// A crate as the table and its manifest have it.
struct Member {
    kind: String,
    may: BTreeSet<String>,
    names: BTreeSet<String>,
}

/// Every way in which the tree breaks its walls.
pub(crate) fn check(root: &Path) -> anyhow::Result<Vec<String>> {
    let members = members(root)?;
    let mut complaints = Vec::new();
    for (name, member) in &members {
        check_edges(name, member, &members, &mut complaints);
        check_sources(root, name, member, &mut complaints)?;
    }
    if reaches("coordinator", "kernels", &members) {
        complaints.push("coordinator reaches kernels: the control plane never links the compute leaf".into());
    }
    Ok(complaints)
}

/// Every library of the linked graph that is banned, or under a licence that is not on the list.
pub(crate) fn check_graph(root: &Path) -> anyhow::Result<Vec<String>> {
    let tree = shell::output(shell::cargo(root).args([
        "tree",
        "--workspace",
        "--edges",
        "normal,build",
        "--prefix",
        "none",
        "--no-dedupe",
        "--format",
        "{p}|{l}",
    ]))?;
    let lines: BTreeSet<&str> = tree.lines().collect();
    let mut complaints = Vec::new();
    for line in lines {
        let Some((package, licence)) = line.split_once('|') else { continue };
        let name = package.split(' ').next().unwrap_or_default();
        if let Some((_, why)) = BANNED.iter().find(|(banned, _)| *banned == name) {
            complaints.push(format!("{name} is linked ({why}); find who brings it: cargo tree -i {name}"));
        }
        if !licence_is_free(licence) {
            complaints.push(format!("{package} has licence {licence:?}, which is not on the list"));
        }
    }
    Ok(complaints)
}

/// Whether one side of each `OR` consists of listed licences.
fn licence_is_free(expression: &str) -> bool {
    let flat = expression.replace(['(', ')'], "").replace('/', " OR ");
    if flat.contains(" AND ") && flat.contains(" OR ") {
        // Read `A AND (B OR C)` and its like generously by requiring that some listed licence stands in each part.
        return expression
            .split(" AND ")
            .all(|part| licence_is_free(&part.replace(['(', ')'], "").replace(" AND ", " OR ")));
    }
    flat.split(" OR ").any(|choice| choice.split(" AND ").all(|one| LICENCES.contains(&one.trim())))
}

fn members(root: &Path) -> anyhow::Result<BTreeMap<String, Member>> {
    let workspace = read_toml(&root.join("Cargo.toml"))?;
    let table = workspace
        .get("workspace")
        .and_then(|w| w.get("metadata"))
        .and_then(|m| m.get("walls"))
        .and_then(Value::as_table)
        .context("Cargo.toml has no [workspace.metadata.walls]")?;
    let mut members = BTreeMap::new();
    for (name, row) in table {
        let folder = if name == "xtask" { root.join(name) } else { root.join("crates").join(name) };
        if !folder.is_dir() {
            anyhow::bail!("the walls name {name:?}, which has no folder: take its row out, or build it");
        }
        let manifest = read_toml(&folder.join("Cargo.toml"))?;
        let mut names = BTreeSet::new();
        for section in ["dependencies", "build-dependencies"] {
            if let Some(table) = manifest.get(section).and_then(Value::as_table) {
                names.extend(table.keys().cloned());
            }
        }
        let may = row.get("may").and_then(Value::as_array).into_iter().flatten();
        members.insert(
            name.clone(),
            Member {
                kind: row.get("kind").and_then(Value::as_str).unwrap_or_default().to_owned(),
                may: may.filter_map(Value::as_str).map(str::to_owned).collect(),
                names,
            },
        );
    }
    for entry in fs::read_dir(root.join("crates"))? {
        let name = entry?.file_name().to_string_lossy().into_owned();
        if !members.contains_key(&name) {
            anyhow::bail!(
                "crates/{name} stands outside the walls: give it a row in [workspace.metadata.walls]"
            );
        }
    }
    Ok(members)
}

fn read_toml(path: &Path) -> anyhow::Result<Value> {
    let text = fs::read_to_string(path).with_context(|| format!("reading {}", path.display()))?;
    Ok(Value::Table(text.parse().with_context(|| format!("parsing {}", path.display()))?))
}

fn check_edges(
    name: &str,
    member: &Member,
    members: &BTreeMap<String, Member>,
    complaints: &mut Vec<String>,
) {
    for named in &member.names {
        if members.contains_key(named) {
            if !member.may.contains(named) {
                complaints.push(format!("{name} names {named}, and its row does not allow that"));
            }
            if member.kind == "pure" && members[named].kind != "pure" {
                complaints
                    .push(format!("{name} is pure and names {named}, which is {}", members[named].kind));
            }
        }
        if let Some((_, owner)) = RESERVED.iter().find(|(library, _)| library == named)
            && owner != &name
        {
            complaints.push(format!("{name} names {named}: only {owner} may"));
        }
        let is_shell = matches!(member.kind.as_str(), "tokio" | "dev");
        if SHELL_ONLY.contains(&named.as_str()) && !is_shell {
            complaints.push(format!("{name} is {} and names {named}: only shells may", member.kind));
        }
    }
    for allowed in &member.may {
        if !members.contains_key(allowed) {
            complaints.push(format!("{name}'s row allows {allowed}, which does not exist"));
        }
    }
}

fn check_sources(
    root: &Path,
    name: &str,
    member: &Member,
    complaints: &mut Vec<String>,
) -> anyhow::Result<()> {
    let folder = if name == "xtask" { "xtask/src".to_owned() } else { format!("crates/{name}/src") };
    for file in source::files(root, &folder, "rs")?.iter().filter(|f| !f.is_test()) {
        if member.kind == "pure" {
            check_pure(file, complaints);
        }
        if member.kind != "unsafe" && member.kind != "dev" {
            check_safe(file, complaints);
        }
    }
    Ok(())
}

fn check_pure(file: &SourceFile, complaints: &mut Vec<String>) {
    let touched =
        ["std::fs", "std::net", "std::process", "std::env", "std::thread", "Instant::now", "SystemTime"];
    for (number, line) in file.product_lines().filter(|(_, l)| !l.trim_start().starts_with("//")) {
        if let Some(what) = touched.iter().find(|what| line.contains(*what)) {
            complaints.push(format!("{}:{number}: pure code touches {what}", file.path));
        }
    }
}

fn check_safe(file: &SourceFile, complaints: &mut Vec<String>) {
    for (number, line) in file.product_lines().filter(|(_, l)| !l.trim_start().starts_with("//")) {
        if line.contains("unsafe {") || line.contains("unsafe fn") || line.contains("unsafe impl") {
            complaints.push(format!("{}:{number}: unsafe outside crate kernels", file.path));
        }
    }
}

fn reaches(from: &str, to: &str, members: &BTreeMap<String, Member>) -> bool {
    let mut seen = BTreeSet::new();
    let mut open = vec![from];
    while let Some(name) = open.pop() {
        if name == to {
            return true;
        }
        if let Some(member) = members.get(name)
            && seen.insert(name)
        {
            open.extend(member.names.iter().map(String::as_str));
        }
    }
    false
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tidy::tests::Tree;

    fn tree(rows: &str, manifests: &[(&str, &str)]) -> Tree {
        let tree = Tree::new();
        tree.write("Cargo.toml", &format!("[workspace]\n[workspace.metadata.walls]\n{rows}"));
        for (name, dependencies) in manifests {
            tree.write(&format!("crates/{name}/Cargo.toml"), &format!("[dependencies]\n{dependencies}"));
            tree.write(&format!("crates/{name}/src/lib.rs"), "//! It.\n");
        }
        tree
    }

    #[test]
    fn this_tree_keeps_its_walls() {
        assert_eq!(check(&source::root()).unwrap(), Vec::<String>::new());
    }

    #[test]
    fn this_tree_links_nothing_banned() {
        assert_eq!(check_graph(&source::root()).unwrap(), Vec::<String>::new());
    }

    #[test]
    fn an_edge_outside_the_table_is_named() {
        let tree = tree(
            "base = { kind = \"pure\", may = [] }\nnn = { kind = \"compute\", may = [] }",
            &[("base", "nn = {}\n"), ("nn", "tokio = {}\naws-lc-rs = {}\n")],
        );
        let complaints = check(tree.root()).unwrap().join("\n");
        assert!(complaints.contains("base names nn, and its row does not allow that"), "{complaints}");
        assert!(complaints.contains("base is pure and names nn, which is compute"), "{complaints}");
        assert!(complaints.contains("nn is compute and names tokio"), "{complaints}");
        assert!(complaints.contains("nn names aws-lc-rs: only trust may"), "{complaints}");
    }

    #[test]
    fn pure_code_that_touches_the_clock_or_a_file_is_named_and_its_tests_may() {
        let tree = tree("base = { kind = \"pure\", may = [] }", &[("base", "")]);
        tree.write(
            "crates/base/src/lib.rs",
            "//! It.\nuse std::fs;\nfn f() { unsafe { g() } }\n#[cfg(test)]\nuse std::env;\n",
        );
        let complaints = check(tree.root()).unwrap();
        assert_eq!(
            complaints,
            [
                "crates/base/src/lib.rs:2: pure code touches std::fs",
                "crates/base/src/lib.rs:3: unsafe outside crate kernels"
            ]
        );
    }

    #[test]
    fn a_crate_without_a_row_is_refused() {
        let tree = tree("base = { kind = \"pure\", may = [] }", &[("base", ""), ("extra", "")]);
        assert!(
            check(tree.root()).unwrap_err().to_string().contains("crates/extra stands outside the walls")
        );
    }

    #[test]
    fn licences_are_read_as_choices_and_sums() {
        assert!(licence_is_free("MIT OR GPL-3.0"));
        assert!(licence_is_free("ISC AND (Apache-2.0 OR ISC)"));
        assert!(licence_is_free("MIT/Apache-2.0"));
        assert!(!licence_is_free("GPL-3.0"));
        assert!(!licence_is_free("MIT AND LGPL-3.0"));
    }
}
