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

/// A test a part, so that they run beside each other: they wait for processes more than they compute.
macro_rules! parts {
    ($($name:ident: $part:literal),* $(,)?) => {
        $(
            #[test]
            fn $name() {
                passes($part);
            }
        )*

        #[test]
        fn no_part_is_left_out() {
            let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("providers");
            let mut written = Vec::new();
            for file in ["test_hetzner", "test_aws"] {
                let text = std::fs::read_to_string(folder.join(format!("{file}.py"))).expect("a file");
                let classes = text.lines().filter_map(|line| line.strip_prefix("class ")?.split('(').next());
                // The others of the file derive from it.
                written.extend(classes.filter(|class| !class.ends_with("Test")).map(|class| format!("{file}.{class}")));
            }
            written.extend(["test_conformance", "test_custom"].map(str::to_owned));
            let run = [$($part),*].map(|part| if part == "moto" { "test_aws.Moto" } else { part });
            for part in &written {
                assert!(run.contains(&part.as_str()), "{part} is run by no test");
            }
        }
    };
}

parts! {
    hetzner_creating: "test_hetzner.Creating",
    hetzner_refusals: "test_hetzner.Refusals",
    hetzner_hostile: "test_hetzner.Hostile",
    hetzner_looking: "test_hetzner.Looking",
    hetzner_deleting: "test_hetzner.Deleting",
    hetzner_listing: "test_hetzner.Listing",
    hetzner_routing: "test_hetzner.Routing",
    hetzner_double_conforms: "test_conformance",
    aws_with_a_stand_in: "test_aws.StandIn",
    aws_with_the_real_command_line: "moto",
    example_of_an_own_provider: "test_custom",
}
