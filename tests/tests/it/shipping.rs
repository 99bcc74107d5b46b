//! What is shipped beside the programs (deploy/, .github/, docs/), judged by the tools that will read it: scripts/test-deploy.sh
//! says what each suite is.

use std::path::{Path, PathBuf};
use std::process::Command;

/// The folder of the programs, which are built by then.
fn binaries() -> PathBuf {
    let paths = crate::BINARIES.map(voiceai_testkit::binary);
    paths[0].parent().expect("a folder").to_owned()
}

fn runs(script: &str, argument: &str, proof: &str) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../scripts").join(script);
    let mut command = Command::new("bash");
    if ["Compose", "Kubernetes", "Systemd", "Commands", "Install", "Rights"].contains(&argument) {
        command.env("BINARIES", binaries());
    }
    let output = command.arg(path).arg(argument).output().expect("run a script");
    let told = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "scripts/{script} {argument}: {}\n{told}", output.status);
    assert!(told.contains(proof), "it ran no test: {told}");
}

macro_rules! suites {
    ($($name:ident => $suite:literal),+ $(,)?) => {
        $(#[test] fn $name() { runs("test-deploy.sh", $suite, "Ran "); })+
    };
}

suites! {
    compose_files_are_read_and_accepted => "Compose",
    the_chart_and_the_base_fit_kubernetes => "Kubernetes",
    systemd_accepts_the_units => "Systemd",
    the_proxy_lets_out_what_it_should => "Squid",
    kamailio_accepts_its_configuration => "Kamailio",
    the_collector_is_whole => "Collector",
    alerts_fire_when_they_should => "Alerts",
    dashboards_show_metrics_that_exist => "Dashboards",
    terraform_is_formatted_and_refers_to_what_is_declared => "Terraform",
    workflows_are_sound_and_pinned => "Workflows",
    dockerfiles_are_sound => "Dockerfiles",
    the_book_builds_and_its_links_lead_somewhere => "Book",
    commands_in_the_book_are_known => "Commands",
    the_install_page_does_what_it_says => "Install",
    the_accounts_of_the_security_page_are_enough => "Rights",
}

#[test]
#[ignore = "long"]
fn images_are_built_and_run_without_a_registry() {
    let folder = binaries();
    runs("test-containers.sh", folder.to_str().expect("a plain path"), " passed, 0 failed");
}
