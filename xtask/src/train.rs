//! Trains the bundled model: prepares a Python environment outside the tree and runs tools/bundled-model in it.

use std::path::{Path, PathBuf};
use std::process::Command;

use crate::shell;

#[derive(clap::Args)]
pub(crate) struct Options {
    /// Everything follows from it.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Training steps; the tool's own default where absent.
    #[arg(long)]
    steps: Option<u64>,
    /// Where the model goes.
    #[arg(long, default_value = "models/bundled")]
    out: PathBuf,
}

pub(crate) fn run(root: &Path, options: &Options) -> anyhow::Result<()> {
    let python = environment(root, "train", &root.join("tools/bundled-model/requirements.txt"))?;
    let mut command = Command::new(python);
    command.current_dir(root).arg("tools/bundled-model/train.py");
    command.args(["--seed", &options.seed.to_string()]).arg("--out").arg(&options.out);
    if let Some(steps) = options.steps {
        command.args(["--steps", &steps.to_string()]);
    }
    shell::run("train the bundled model", &mut command)
}

/// A virtual environment with `requirements` in it, kept between runs below the target folder; its python.
pub(crate) fn environment(root: &Path, name: &str, requirements: &Path) -> anyhow::Result<PathBuf> {
    let target = std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| root.join("target"), PathBuf::from);
    let folder = target.join("python").join(name);
    let python = folder.join("bin/python");
    if !shell::has("python3") {
        shell::install_debian(&["python3", "python3-venv"])?;
    }
    if !python.exists() {
        let mut venv = Command::new("python3");
        venv.args(["-m", "venv"]).arg(&folder);
        if shell::run("python3 -m venv", &mut venv).is_err() {
            shell::install_debian(&["python3-venv"])?;
            shell::run("python3 -m venv", &mut venv)?;
        }
    }
    let mut pip = Command::new(&python);
    pip.args(["-m", "pip", "install", "--quiet", "--disable-pip-version-check", "-r"]).arg(requirements);
    shell::run(&format!("pip install for {name}"), &mut pip)?;
    Ok(python)
}
