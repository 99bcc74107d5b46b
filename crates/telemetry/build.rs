//! Fixes the source revision that the start line reports.

use std::process::Command;

fn main() {
    println!("cargo:rerun-if-env-changed=VOICEAI_REVISION");
    println!("cargo:rerun-if-changed=build.rs");
    let release = std::env::var("PROFILE").is_ok_and(|profile| profile == "release");
    if release {
        // A release must never carry an older commit's name; a development build may, which saves
        // recompiling every dependent crate after each commit.
        for name in ["HEAD", "logs/HEAD"] {
            if let Some(path) = git(&["rev-parse", "--git-path", name]) {
                println!("cargo:rerun-if-changed={path}");
            }
        }
    }
    let given = std::env::var("VOICEAI_REVISION").ok().filter(|value| is_plain(value));
    let revision = given
        .or_else(|| git(&["rev-parse", "--short=12", "HEAD"]).filter(|value| is_plain(value)))
        .unwrap_or_else(|| "unknown".to_owned());
    println!("cargo:rustc-env=VOICEAI_BUILD_REVISION={revision}");
}

/// One line of a git command's output; nothing outside a repository or without git.
fn git(arguments: &[&str]) -> Option<String> {
    let output = Command::new("git").args(arguments).output().ok()?;
    let text = String::from_utf8(output.stdout).ok()?;
    output.status.success().then(|| text.trim().to_owned())
}

/// True for what may stand in a log line and on a `cargo:` line without quoting.
fn is_plain(value: &str) -> bool {
    !value.is_empty()
        && value.len() <= 64
        && value.chars().all(|c| c.is_ascii_alphanumeric() || "._-+/".contains(c))
}
