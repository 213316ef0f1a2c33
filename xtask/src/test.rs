//! `cargo xtask test`: everything that a landing must pass, in the order in which it fails fastest.

use std::path::Path;
use std::process::Command;
use std::time::Instant;

use anyhow::Context;

use crate::{codegen, report, shell, tidy, train, walls};

#[derive(clap::Args)]
pub(crate) struct Options {
    /// Only the fast part: walls, tidy, format, lints, and the tests of Rust.
    #[arg(long)]
    fast: bool,
    /// The candle backend too, on candle's CPU device: it takes some minutes to compile.
    #[arg(long)]
    candle: bool,
}

pub(crate) fn run(root: &Path, options: &Options) -> anyhow::Result<()> {
    let start = Instant::now();
    need_c_compiler()?;
    report("walls", walls::check(root))?;
    report("graph", walls::check_graph(root))?;
    report("tidy", tidy::check(root))?;
    if shell::has("rustfmt") {
        shell::run("format", shell::cargo(root).args(["fmt", "--all", "--check"]))?;
    } else {
        println!("xtask: rustfmt is not installed (rustup component add rustfmt): format is not checked");
    }
    if shell::has("cargo-clippy") {
        let mut clippy = shell::cargo(root);
        clippy.args(["clippy", "--quiet", "--workspace", "--all-targets", "--", "-D", "warnings"]);
        shell::run("lints", &mut clippy)?;
    } else {
        println!("xtask: clippy is not installed (rustup component add clippy): lints are not checked");
    }
    shell::run("tests", shell::cargo(root).args(["test", "--workspace", "--no-fail-fast"]))?;
    codegen::run(root, true)?;
    if options.candle {
        let mut candle = shell::cargo(root);
        candle.args(["test", "-p", "nn", "-p", "engine", "--features", "nn/candle,engine/candle"]);
        shell::run("candle", candle.args(["--test", "candle", "--test", "real_model"]))?;
    }
    if !options.fast {
        foreign_clients(root)?;
        scenarios(root)?;
    }
    println!("\nxtask: everything passed in {:.0} s", start.elapsed().as_secs_f64());
    Ok(())
}

/// Cryptography, SQLite and the allocator are compiled from C.
fn need_c_compiler() -> anyhow::Result<()> {
    if !["cc", "gcc", "clang"].into_iter().any(shell::has) {
        shell::install_debian(&["gcc", "libc6-dev"])?;
    }
    Ok(())
}

/// The official client libraries, unmodified, against a running `phalanx up`.
fn foreign_clients(root: &Path) -> anyhow::Result<()> {
    let folder = root.join("tests/clients/python");
    let python = train::environment(root, "clients", &folder.join("requirements.txt"))?;
    let mut pytest = Command::new(python);
    pytest.current_dir(&folder).args(["-m", "pytest", "-q", "-p", "no:cacheprovider", "."]);
    pytest.env("PHALANX", program(root)).env("PYTHONDONTWRITEBYTECODE", "1");
    // Kept between runs, outside the tree.
    let target = std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| root.join("target"), Into::into);
    pytest.env("PHALANX_NODE", root.join(target).join("node/clients"));
    shell::run("clients: openai, anthropic, ollama (Python, Node), schemathesis", &mut pytest)
}

/// The bench at its smallest size: that it works, not how fast.
fn scenarios(root: &Path) -> anyhow::Result<()> {
    let mut bench = Command::new(program(root));
    bench.args(["bench", "scenarios", "--quick"]);
    shell::run("bench scenarios, smallest size", &mut bench).context("phalanx bench scenarios --quick")?;
    let mut bench = Command::new(program(root));
    bench.args(["bench", "failover", "--quick", "--coordinator"]);
    shell::run("bench failover, smallest size", &mut bench).context("phalanx bench failover --quick")
}

fn program(root: &Path) -> std::path::PathBuf {
    let target = std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| root.join("target"), Into::into);
    root.join(target).join("debug/phalanx")
}
