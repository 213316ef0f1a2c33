//! Long runs of tests that are short in CI: the same faults, more of them, from a seed.

use std::path::Path;

use crate::shell;

#[derive(clap::Subcommand)]
pub(crate) enum Options {
    /// Groups that lose ranks at random moments (crates/cli/tests/fleet/group_faults.rs). A round begun is finished.
    Groups {
        /// The same seed makes the same faults, as far as the machine's timing lets it.
        #[arg(long, default_value_t = 1)]
        seed: u64,
        /// How long.
        #[arg(long, default_value_t = 10)]
        minutes: u64,
    },
}

pub(crate) fn run(root: &Path, options: &Options) -> anyhow::Result<()> {
    let Options::Groups { seed, minutes } = options;
    let mut tests = shell::cargo(root);
    let test = "group_faults::random_faults_one_after_the_other";
    tests.args(["test", "--workspace", "--test", "fleet", "--", "--exact", "--nocapture", test]);
    tests.env("PHALANX_SOAK_SEED", seed.to_string());
    tests.env("PHALANX_SOAK_SECONDS", minutes.saturating_mul(60).to_string());
    shell::run(&format!("groups: {minutes} minutes of faults, seed {seed}"), &mut tests)
}
