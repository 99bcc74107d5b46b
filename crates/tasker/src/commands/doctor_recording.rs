//! `doctor` on what follows a call.

use std::time::Duration;

use voiceai_aws::{ObjectStore, S3ErrorKind};
use voiceai_cli::doctor::Finding;
use voiceai_cli::human_duration;
use voiceai_doctor::Stores;
use voiceai_recording::{PROGRAMS, RecordingSettings, Standing};

/// A recording that waits for longer has used up the attempts that its job has, or has none.
const OLD: Duration = Duration::from_secs(6 * 60 * 60);

/// Whether recordings are processed as they come.
pub(super) async fn backlog(stores: Stores, settings: RecordingSettings) -> Finding {
    let Some(store) = &settings.store else { return Finding::skipped("RECORDING_ENABLED is false") };
    let pool = match stores.pool().await {
        Ok(pool) => pool,
        Err(finding) => return finding,
    };
    match voiceai_recording::standing(&pool, &store.bucket).await {
        Ok(standing) => judge(standing),
        Err(error) => Finding::failed(format!("recordings cannot be read: {error}"), "Run `migrate` once."),
    }
}

fn judge(standing: Standing) -> Finding {
    let Standing { waiting, oldest_seconds, given_up } = standing;
    let oldest = Duration::from_secs(oldest_seconds);
    if oldest > OLD {
        return Finding::warning(
            format!("{waiting} recordings wait, the oldest for {}", human_duration(oldest)),
            "See `jobs list --kind recording.process --state dead`, and `jobs replay --missing --kind recording.process --since 30d`.",
        );
    }
    if given_up > 0 {
        return Finding::warning(
            format!("{given_up} recordings were given up within a day, {waiting} wait"),
            "See `jobs list --kind recording.process --state dead`; docs/recordings.md says what is refused.",
        );
    }
    Finding::ok(format!("{waiting} recordings wait, none was given up within a day"))
}

/// Whether the programs are there that recordings are processed with.
pub(super) async fn tools(enabled: bool) -> Finding {
    if !enabled {
        return Finding::skipped("RECORDING_ENABLED is false");
    }
    let folders: Vec<_> = std::env::var_os("PATH").iter().flat_map(std::env::split_paths).collect();
    let missing: Vec<_> = PROGRAMS
        .into_iter()
        .filter(|program| !folders.iter().any(|folder| folder.join(program).is_file()))
        .collect();
    if !missing.is_empty() {
        let evidence = format!("not in PATH: {}", missing.join(", "));
        return Finding::failed(evidence, "Install ffmpeg, and util-linux for setpriv and prlimit.");
    }
    match encoders().await {
        Ok(encoders) => {
            let lacking: Vec<_> = ["libopus", "libmp3lame", "flac", "pcm_s16le"]
                .into_iter()
                .filter(|name| !encoders.split_whitespace().any(|word| word == *name))
                .collect();
            if lacking.is_empty() {
                Finding::ok(format!("{} are there", PROGRAMS.join(", ")))
            } else {
                let evidence = format!("this ffmpeg cannot make {}", lacking.join(", "));
                Finding::warning(
                    evidence,
                    "Install the distribution's ffmpeg, or choose another RECORDING_FORMAT.",
                )
            }
        }
        Err(why) => Finding::failed(format!("ffmpeg does not run: {why}"), "Install ffmpeg anew."),
    }
}

async fn encoders() -> Result<String, String> {
    let mut asked = tokio::process::Command::new("ffmpeg");
    asked.args(["-hide_banner", "-encoders"]).stdin(std::process::Stdio::null()).kill_on_drop(true);
    let output = asked.output().await.map_err(|error| error.to_string())?;
    if !output.status.success() {
        return Err(output.status.to_string());
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// Whether the bucket of recordings answers, and the folder for files under work can be used.
pub(super) async fn bucket(settings: RecordingSettings) -> Finding {
    let Some(store) = &settings.store else { return Finding::skipped("RECORDING_ENABLED is false") };
    let store = ObjectStore::new(store).await;
    if let Err(error) = store.check().await {
        let remedy = match error.kind() {
            S3ErrorKind::NoSuchBucket => {
                "Create the bucket, or correct RECORDINGS_S3_BUCKET and S3_ENDPOINT."
            }
            S3ErrorKind::Region => "Correct RECORDINGS_S3_REGION.",
            other => other.remedy(),
        };
        return Finding::failed(error.to_string(), remedy);
    }
    let folder = settings.work_dir.display();
    // Made by the first job: its parent must allow that.
    let made = settings.work_dir.ancestors().find(|folder| folder.exists());
    let writable = made.is_some_and(|folder| {
        rustix::fs::access(folder, rustix::fs::Access::WRITE_OK | rustix::fs::Access::EXEC_OK).is_ok()
    });
    if !writable {
        return Finding::failed(
            format!("{folder} cannot be written"),
            "Make it writable for this user, or set RECORDING_WORK_DIR.",
        );
    }
    Finding::ok(format!("s3://{} can be read; files under work lie in {folder}", store.bucket()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_waits_too_long_and_what_was_given_up_is_told() {
        let shown = |waiting, oldest_seconds, given_up| {
            format!("{:?}", judge(Standing { waiting, oldest_seconds, given_up }))
        };
        assert!(shown(3, 21_600, 0).contains("none was given up"));
        assert!(
            shown(3, 21_601, 1).contains("the oldest for 6 h") || shown(3, 21_601, 1).contains("--missing")
        );
        assert!(shown(3, 60, 2).contains("2 recordings were given up"));
    }
}
