//! The provider scripts' own tests, so that `make test` runs them: scripts/test-providers.sh says what they are.

use std::path::Path;
use std::process::Command;

fn passes(suite: &str) {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../scripts/test-providers.sh");
    let output = Command::new("bash").arg(script).arg(suite).output().expect("run scripts/test-providers.sh");
    let told = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "scripts/test-providers.sh {suite}: {}\n{told}", output.status);
    assert!(told.contains("Ran "), "it ran no test: {told}");
}

#[test]
fn the_scripts_for_hetzner_keep_the_contract() {
    passes("hetzner");
}

#[test]
fn the_scripts_for_aws_keep_the_contract() {
    passes("aws");
}

#[test]
fn the_scripts_for_aws_drive_the_real_command_line() {
    passes("moto");
}

#[test]
fn the_example_of_an_own_provider_keeps_the_contract() {
    passes("custom");
}
