//! The conventions as a process keeps them: the example `tool`, run with real pipes and a real terminal.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "helpers of tests assert too")]

use std::fs::File;
use std::io::{Read, Write};
use std::path::PathBuf;
use std::process::{Command, Output, Stdio};

use serde_json::Value;

fn tool() -> Command {
    let test = std::env::current_exe().unwrap();
    let path: PathBuf = test.parent().unwrap().parent().unwrap().join("examples/tool");
    assert!(
        path.exists(),
        "{} is built by `cargo test -p voiceai-cli`, not by `--test it` alone",
        path.display()
    );
    let mut command = Command::new(path);
    command.env_clear().stdin(Stdio::null());
    command
}

fn run(arguments: &[&str], variables: &[(&str, &str)]) -> Output {
    tool().args(arguments).envs(variables.iter().copied()).output().unwrap()
}

fn stdout(output: &Output) -> &str {
    std::str::from_utf8(&output.stdout).unwrap()
}

fn json(bytes: &[u8]) -> Value {
    serde_json::from_slice(bytes)
        .unwrap_or_else(|error| unreachable!("{error}: {}", String::from_utf8_lossy(bytes)))
}

#[test]
fn a_list_is_a_table_or_one_document() {
    let table = run(&["numbers"], &[]);
    assert_eq!(table.status.code(), Some(0));
    assert_eq!(stdout(&table).lines().count(), 4, "a heading and three rows: {}", stdout(&table));
    assert!(
        String::from_utf8_lossy(&table.stderr).contains("--cursor c2"),
        "how to go on stands beside the data"
    );
    let list = run(&["numbers", "--json"], &[]);
    let document = json(&list.stdout);
    assert_eq!(document["numbers"][2]["text"], "number 2");
    assert_eq!(document["next"], "c2");
    assert!(list.stderr.is_empty());
}

#[test]
fn errors_go_to_stderr_with_their_code_and_as_json_when_asked() {
    let text = run(&["discard", "10", "--as", "ada"], &[]);
    assert_eq!((text.status.code(), stdout(&text)), (Some(3), ""));
    assert!(String::from_utf8_lossy(&text.stderr).starts_with("error: there is no 10\n"));
    let failure = run(&["--json", "discard", "10", "--as", "ada"], &[]);
    assert_eq!(failure.status.code(), Some(3));
    let error = json(&failure.stderr);
    assert_eq!((&error["code"], &error["remedy"]), (&"number_not_found".into(), &"Run `numbers`.".into()));
    for arguments in
        [&["numbers", "--limit", "many"][..], &["nonsense"], &[], &["discard", "1", "--older-than", "5"]]
    {
        assert_eq!(run(arguments, &[]).status.code(), Some(2), "{arguments:?}");
        let mut with_json = arguments.to_vec();
        with_json.push("--json");
        let output = run(&with_json, &[]);
        assert_eq!((output.status.code(), stdout(&output)), (Some(2), ""), "{arguments:?}");
        assert_eq!(json(&output.stderr)["code"], "usage");
    }
}

#[test]
fn a_cut_pipe_ends_it_without_a_panic() {
    for mode in [&[][..], &["--json"]] {
        let mut child = tool()
            .args(["numbers", "--limit", "200000"])
            .args(mode)
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut first = [0; 1];
        let mut pipe = child.stdout.take().unwrap();
        pipe.read_exact(&mut first).unwrap();
        drop(pipe);
        let output = child.wait_with_output().unwrap();
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(0), "{stderr}");
        assert!(!stderr.contains("panicked"), "{stderr}");
    }
}

#[test]
fn without_a_terminal_a_mutation_needs_yes() {
    let refused = run(&["discard", "1", "--as", "ada"], &[]);
    assert_eq!((refused.status.code(), stdout(&refused)), (Some(2), ""));
    assert!(String::from_utf8_lossy(&refused.stderr).contains("--yes"));
    for arguments in [&["--yes"][..], &["--dry-run"]] {
        let done = tool().args(["discard", "1", "--as", "ada"]).args(arguments).output().unwrap();
        assert_eq!((done.status.code(), stdout(&done)), (Some(0), "discarded by ada\n"), "{arguments:?}");
    }
    let named = run(&["discard", "1", "--yes"], &[("VOICEAI_OPERATOR", "bob")]);
    assert_eq!(stdout(&named), "discarded by bob\n");
    let nobody = run(&["discard", "1", "--yes"], &[("container", "podman")]);
    assert_eq!(nobody.status.code(), Some(2), "in a container somebody must be named");
}

#[test]
fn on_a_terminal_it_asks_on_stderr_and_obeys_the_answer() {
    for (answer, code, data) in [("y\n", 0, "discarded by ada\n"), ("n\n", 1, ""), ("\n", 1, "")] {
        let terminal = nix::pty::openpty(None, None).unwrap();
        let side = || Stdio::from(terminal.slave.try_clone().unwrap());
        let mut command = tool();
        command.args(["discard", "7", "--as", "ada"]).stdin(side()).stderr(side()).stdout(Stdio::piped());
        let child = command.spawn().unwrap();
        let mut person = File::from(terminal.master);
        let mut asked = String::new();
        let mut byte = [0];
        while !asked.ends_with("[y/N] ") {
            person.read_exact(&mut byte).unwrap();
            asked.push(char::from(byte[0]));
        }
        assert!(asked.starts_with("Discard number 7? "), "{asked}");
        person.write_all(answer.as_bytes()).unwrap();
        let output = child.wait_with_output().unwrap();
        assert_eq!((output.status.code(), stdout(&output)), (Some(code), data), "{answer:?}");
    }
}

#[test]
fn config_check_reports_everything_and_exits_4() {
    let valid = [("REDIS_URL", "redis://h"), ("DATABASE_URL", "postgres://h/d")];
    let fine = run(&["config", "check"], &valid);
    assert_eq!((fine.status.code(), stdout(&fine)), (Some(0), "the settings are valid\n"));
    let wrong = [("LOG_LEVEL", "loud"), ("REDIS_URL", "canary"), ("LEADER_LOCK_TLL_MS", "1")];
    let text = run(&["config", "check"], &wrong);
    assert_eq!(text.status.code(), Some(4));
    for part in ["LOG_LEVEL", "REDIS_URL", "DATABASE_URL", "did you mean LEADER_LOCK_TTL_MS"] {
        assert!(stdout(&text).contains(part), "{part}: {}", stdout(&text));
    }
    let output = run(&["config", "check", "--json"], &wrong);
    assert_eq!(output.status.code(), Some(4));
    let document = json(&output.stdout);
    assert_eq!((&document["valid"], document["violations"].as_array().unwrap().len()), (&false.into(), 3));
    assert_eq!(document["warnings"][0]["nearest"], "LEADER_LOCK_TTL_MS");
    assert_eq!(json(&output.stderr)["code"], "invalid_configuration");
    assert!(
        !String::from_utf8_lossy(&[output.stdout, output.stderr, text.stdout].concat()).contains("canary")
    );
}

#[test]
fn config_print_and_manifest() {
    let variables = [("REDIS_URL", "redis://:canary@h:1"), ("MAIL_SHUTDOWN_TIMEOUT", "9s")];
    let table = run(&["config", "print"], &variables);
    assert_eq!(table.status.code(), Some(0));
    let line = stdout(&table).lines().find(|line| line.starts_with("SHUTDOWN_TIMEOUT")).unwrap();
    assert!(line.contains("9s") && line.contains("environment (MAIL_SHUTDOWN_TIMEOUT)"), "{line}");
    let document = json(&run(&["config", "print", "--json"], &variables).stdout);
    let settings = document["settings"].as_array().unwrap();
    let url = settings.iter().find(|row| row["name"] == "REDIS_URL").unwrap();
    assert_eq!((&url["value"], &url["layer"]), (&"redis://***@h:1".into(), &"environment".into()));
    assert!(stdout(&table).contains("(the host's name)"), "a computed default is no value");
    assert!(!stdout(&table).contains("canary"));
    assert!(stdout(&run(&["config", "manifest"], &[])).starts_with("service: ops\n"));
    assert_eq!(json(&run(&["config", "manifest", "--json"], &[]).stdout)["service"], "ops");
}

#[test]
fn healthcheck_without_a_running_service_is_7() {
    let folder = tempfile::tempdir().unwrap();
    let variables = [("RUNTIME_DIR", folder.path().to_str().unwrap()), ("LOG_LEVEL", "broken")];
    let output = run(&["healthcheck", "--json"], &variables);
    assert_eq!(output.status.code(), Some(7));
    assert_eq!(json(&output.stderr)["code"], "not_running");
}

#[test]
fn completions_for_every_shell() {
    for shell in ["bash", "zsh", "fish", "powershell", "elvish"] {
        let output = run(&["completions", shell], &[]);
        assert!(output.status.success() && stdout(&output).contains("healthcheck"), "{shell}");
    }
    let help = run(&["--help"], &[]);
    assert_eq!(help.status.code(), Some(0));
    assert!(stdout(&help).contains("Usage:") && help.stderr.is_empty());
}
