//! A file system of a few MiB for PostgreSQL, real and soon full.

use std::path::PathBuf;
use std::process::Command;

use tempfile::TempDir;
use voiceai_postgres::sqlx::{self, PgPool};
use voiceai_testkit::wait_for;

use crate::stage::PATIENCE;

/// What is thrown overboard first where room is made, in bytes.
const BALLAST: usize = 256 * 1024;
/// What fills the disk: rows that are never moved aside.
const FILLER: &str = "CREATE TABLE public.filler (text text) TABLESPACE small; ALTER TABLE public.filler ALTER text SET STORAGE plain";

/// Mounted for as long as it lives.
pub(crate) struct SmallDisk(TempDir);

impl SmallDisk {
    /// Nothing where this process may not mount.
    pub(crate) fn mount(mebibytes: u32) -> Option<Self> {
        let folder = tempfile::tempdir().unwrap();
        let size = format!("size={mebibytes}m");
        let mounted =
            Command::new("mount").args(["-t", "tmpfs", "-o", &size, "tmpfs"]).arg(folder.path()).output();
        if !mounted.is_ok_and(|output| output.status.success()) {
            eprintln!("skipped: no file system may be mounted here, so no disk can be made full");
            return None;
        }
        let disk = Self(folder);
        std::fs::create_dir(disk.space()).unwrap();
        let given = Command::new("chown").arg("postgres:").arg(disk.space()).status();
        assert!(given.is_ok_and(|status| status.success()), "PostgreSQL may not write there");
        std::fs::write(disk.ballast(), vec![1; BALLAST]).unwrap();
        Some(disk)
    }

    /// Makes the tablespace `small` of it.
    pub(crate) async fn tablespace(&self, pool: &PgPool) {
        let small = format!("CREATE TABLESPACE small LOCATION '{}'", self.space().display());
        sqlx::query(sqlx::AssertSqlSafe(small)).execute(pool).await.unwrap();
    }

    fn space(&self) -> PathBuf {
        self.0.path().join("space")
    }

    fn ballast(&self) -> PathBuf {
        self.0.path().join("ballast")
    }

    /// Room for everything again, once.
    pub(crate) async fn make_room(&self, pool: &PgPool) {
        // Emptying the table would need room for another file, and even dropping it may need some.
        std::fs::remove_file(self.ballast()).unwrap();
        wait_for(PATIENCE, "the filler is dropped", async || {
            sqlx::query("DROP TABLE public.filler").execute(pool).await.map_err(|error| error.to_string())
        })
        .await;
        prepare_filler(pool).await;
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(self.0.path()).status();
    }
}

/// The table that `fill` writes to.
pub(crate) async fn prepare_filler(pool: &PgPool) {
    sqlx::raw_sql(FILLER).execute(pool).await.unwrap();
}

/// Leaves no room on the disk.
pub(crate) async fn fill(pool: &PgPool) {
    // What a refused statement has claimed stays claimed: large steps first, and then page by page.
    for rows in [500, 8, 1] {
        until_full(
            pool,
            &format!("INSERT INTO public.filler SELECT repeat('x', 7000) FROM generate_series(1, {rows})"),
        )
        .await;
    }
}

/// Repeats a statement until it is refused for want of room.
pub(crate) async fn until_full(pool: &PgPool, statement: &str) {
    for _ in 0..10_000 {
        if let Err(error) = sqlx::query(sqlx::AssertSqlSafe(statement.to_owned())).execute(pool).await {
            assert!(error.to_string().contains("No space left on device"), "{error}");
            return;
        }
    }
    panic!("there is no end of room for {statement}");
}
