//! Runs other programs, says what it runs, and installs the Debian packages that a step misses.

use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Instant;

use anyhow::{Context, bail};

/// Runs `command` with its output passed through; fails where it fails.
pub(crate) fn run(title: &str, command: &mut Command) -> anyhow::Result<()> {
    println!("\n=== {title}");
    let start = Instant::now();
    let status = command.stdin(Stdio::null()).status().with_context(|| format!("starting {command:?}"))?;
    if !status.success() {
        bail!("{title}: {status}");
    }
    println!("=== {title}: done in {:.1} s", start.elapsed().as_secs_f64());
    Ok(())
}

/// Runs `command` and returns its standard output.
pub(crate) fn output(command: &mut Command) -> anyhow::Result<String> {
    let output = command.stdin(Stdio::null()).output().with_context(|| format!("starting {command:?}"))?;
    if !output.status.success() {
        bail!("{command:?}: {}\n{}", output.status, String::from_utf8_lossy(&output.stderr));
    }
    String::from_utf8(output.stdout).with_context(|| format!("output of {command:?}"))
}

/// The cargo that runs us.
pub(crate) fn cargo(root: &Path) -> Command {
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.current_dir(root);
    command
}

/// Whether `program --version` can be run.
pub(crate) fn has(program: &str) -> bool {
    Command::new(program)
        .arg("--version")
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status()
        .is_ok_and(|s| s.success())
}

/// Installs Debian packages, saying so.
pub(crate) fn install_debian(packages: &[&str]) -> anyhow::Result<()> {
    let needs_sudo = std::env::var("USER").is_ok_and(|user| user != "root") && has("sudo");
    let apt = |arguments: &[&str]| {
        let mut command = if needs_sudo { Command::new("sudo") } else { Command::new("apt-get") };
        if needs_sudo {
            command.arg("apt-get");
        }
        command.args(arguments).env("DEBIAN_FRONTEND", "noninteractive");
        command
    };
    println!("xtask: installing the Debian packages {} for the tests", packages.join(", "));
    let remedy = || format!("install them by hand: {}", packages.join(" "));
    run("apt-get update", &mut apt(&["-q", "update"])).with_context(remedy)?;
    let mut arguments = vec!["-q", "-y", "--no-install-recommends", "install"];
    arguments.extend_from_slice(packages);
    run("apt-get install", &mut apt(&arguments)).with_context(remedy)
}
