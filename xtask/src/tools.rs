//! The system programs that tests and measurements run.

use tests::process::on_path;

/// A program, and the package that has it.
const NEEDED: &[(&str, &str)] = &[("fusermount3", "fuse3"), ("sqlite3", "sqlite3"), ("git", "git"), ("fio", "fio")];

/// Checks that all are installed.
///
/// # Errors
/// One line that says what to install.
pub(crate) fn check() -> anyhow::Result<String> {
    check_for(NEEDED)
}

/// Checks that these programs are installed, each named with its package.
///
/// # Errors
/// One line that says what to install.
pub(crate) fn check_for(needed: &[(&str, &str)]) -> anyhow::Result<String> {
    let missing: Vec<_> = needed.iter().filter(|(program, _)| !on_path(program)).collect();
    if missing.is_empty() {
        return Ok(needed.iter().map(|(program, _)| *program).collect::<Vec<_>>().join(", "));
    }
    let programs = missing.iter().map(|(program, _)| *program).collect::<Vec<_>>().join(", ");
    let packages = missing.iter().map(|(_, package)| *package).collect::<Vec<_>>().join(" ");
    anyhow::bail!("missing: {programs}; as root: apt-get install -y {packages}");
}
