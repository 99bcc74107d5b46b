//! Certificates, judged by the real openssl.

use std::path::Path;
use std::process::Command;

use jiff::{SignedDuration, Timestamp};
use serde_json::Value;
use voiceai_platform::certificates::{
    Authority, CertificateContext, CertificateSettings, CertificateUpkeep, Revoked, build, file_good_until,
    look, standing,
};
use voiceai_postgres::PgPool;
use voiceai_postgres::sqlx::{query, query_scalar};
use voiceai_runtime::Secret;
use voiceai_testkit::{Port, wait_for};

use crate::duty::{PATIENCE, Receiver, run};
use crate::stage;

fn openssl(folder: &Path, arguments: &str) -> String {
    let out =
        Command::new("openssl").args(arguments.split(' ')).current_dir(folder).output().expect("openssl");
    let both = format!("{}{}", String::from_utf8_lossy(&out.stdout), String::from_utf8_lossy(&out.stderr));
    assert!(out.status.success(), "openssl {arguments}: {both}");
    both
}

/// An authority as openssl makes one, in `ca.pem` and `ca.key`.
fn authority(folder: &Path, key: &str) {
    openssl(folder, &format!("genpkey {key} -out ca.key"));
    openssl(
        folder,
        "req -x509 -new -key ca.key -out ca.pem -days 30 -subj /C=DE/O=Example/CN=Devices \
         -addext keyUsage=critical,keyCertSign,cRLSign",
    );
}

/// A certificate that the authority signed, and its serial number in hexadecimal digits.
fn device(folder: &Path, name: &str) -> String {
    openssl(
        folder,
        &format!(
            "req -new -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -keyout {name}.key -out {name}.csr -subj /CN={name}"
        ),
    );
    openssl(
        folder,
        &format!("x509 -req -in {name}.csr -CA ca.pem -CAkey ca.key -CAcreateserial -days 5 -out {name}.pem"),
    );
    let serial = openssl(folder, &format!("x509 -in {name}.pem -noout -serial"));
    serial.trim().trim_start_matches("serial=").to_owned()
}

/// What openssl says of a certificate, with the list at hand.
fn verdict(folder: &Path, name: &str) -> (bool, String) {
    let out = Command::new("openssl")
        .args(["verify", "-crl_check", "-CAfile", "ca.pem", "-CRLfile", "crl.pem", &format!("{name}.pem")])
        .current_dir(folder)
        .output()
        .expect("openssl");
    (
        out.status.success(),
        format!("{}{}", String::from_utf8_lossy(&out.stdout), String::from_utf8_lossy(&out.stderr)),
    )
}

fn settings(folder: &Path) -> CertificateSettings {
    CertificateSettings {
        ca_certificate: Some(folder.join("ca.pem")),
        ca_key: Some(folder.join("ca.key")),
        crl_path: folder.join("crl.pem"),
        crl_lifetime: std::time::Duration::from_secs(7_200),
        crl_reload: None,
        warning_days: 30,
        endpoints: Vec::new(),
    }
}

fn context(pool: &PgPool, settings: CertificateSettings) -> CertificateContext {
    CertificateContext { pool: pool.clone(), rule: voiceai_egress::Rule::default(), settings }
}

/// Without an authority.
pub(crate) fn bare_context(pool: &PgPool) -> CertificateContext {
    let settings =
        CertificateSettings { ca_certificate: None, ca_key: None, ..settings(Path::new("/nonexistent")) };
    context(pool, settings)
}

async fn upkeep(pool: &PgPool, settings: CertificateSettings) -> Result<Value, String> {
    run(&CertificateUpkeep {}, &context(pool, settings)).await
}

async fn row(pool: &PgPool, device: &str, serial: &str, pem: &str, status: &str, ends_in: &str) {
    query(
        "INSERT INTO device_certificates (tenant_id, device_id, cert_pem, fingerprint_sha256, common_name, issuer, \
             serial_number, status, not_before, not_after, revoked_at, revoked_reason) \
         VALUES ('t1', $1, $2, 'FP' || $1, $1, 'CN=Devices', $3, $4, now() - interval '1 year', now() + $5::interval, \
             CASE WHEN $4 = 'REVOKED' THEN now() - interval '1 day' END, 'key_compromise')",
    )
    .bind(device)
    .bind(pem)
    .bind(serial)
    .bind(status)
    .bind(ends_in)
    .execute(pool)
    .await
    .expect("a certificate");
}

#[test]
fn openssl_takes_the_list_of_every_kind_of_key() {
    for key in [
        "-algorithm RSA -pkeyopt rsa_keygen_bits:2048",
        "-algorithm EC -pkeyopt ec_paramgen_curve:P-256",
        "-algorithm EC -pkeyopt ec_paramgen_curve:P-384",
    ] {
        let folder = tempfile::tempdir().expect("a folder");
        authority(folder.path(), key);
        let (good, bad) = (device(folder.path(), "good"), device(folder.path(), "bad"));
        let now = Timestamp::now();
        let revoked = |serial: &str, reason: Option<&str>| Revoked {
            serial: voiceai_platform::certificates::serial(None, Some(serial)).expect("a serial number"),
            at: now - SignedDuration::from_hours(1),
            reason: reason.map(str::to_owned),
        };
        let own = Authority::read(&folder.path().join("ca.pem"), &folder.path().join("ca.key"))
            .expect("an authority");
        let list =
            [revoked(&bad, Some("key_compromise")), revoked(&bad, None), revoked("ff00ff", Some("lost"))];
        let text = build(&own, &list, 7, now, SignedDuration::from_hours(2)).expect("a list");
        std::fs::write(folder.path().join("crl.pem"), text).expect("write");
        let shown = openssl(folder.path(), "crl -in crl.pem -noout -text -verify -CAfile ca.pem");
        assert!(shown.contains("verify OK"), "{key}: {shown}");
        assert!(shown.contains("Key Compromise") && shown.contains("Authority Key Identifier"), "{shown}");
        assert_eq!(shown.matches("Serial Number: ").count(), 2, "{shown}");
        assert!(shown.contains(&format!("Serial Number: {bad}")) && !shown.contains(&good), "{shown}");
        assert!(shown.contains("X509v3 CRL Number: \n                7"), "{shown}");
        let (valid, said) = verdict(folder.path(), "good");
        assert!(valid, "{said}");
        let (valid, said) = verdict(folder.path(), "bad");
        assert!(!valid && said.contains("revoked"), "{said}");
        // An empty list is a list too.
        let empty = build(&own, &[], 8, now, SignedDuration::from_hours(2)).expect("a list");
        std::fs::write(folder.path().join("crl.pem"), empty).expect("write");
        assert!(verdict(folder.path(), "bad").0);
    }
}

#[test]
fn keys_of_older_forms_are_read_and_wrong_files_are_named() {
    let folder = tempfile::tempdir().expect("a folder");
    let at = |name: &str| folder.path().join(name);
    authority(folder.path(), "-algorithm RSA -pkeyopt rsa_keygen_bits:2048");
    openssl(folder.path(), "rsa -in ca.key -traditional -out pkcs1.key");
    assert!(Authority::read(&at("ca.pem"), &at("pkcs1.key")).is_ok());
    openssl(folder.path(), "rsa -in ca.key -aes256 -passout pass:canary -out locked.key");
    openssl(folder.path(), "genpkey -algorithm EC -pkeyopt ec_paramgen_curve:P-256 -out other.key");
    openssl(folder.path(), "genpkey -algorithm ed25519 -out ed.key");
    openssl(
        folder.path(),
        "req -x509 -key ca.key -out narrow.pem -days 3 -subj /CN=x -addext keyUsage=keyCertSign",
    );
    std::fs::write(at("empty"), "").expect("write");
    for (certificate, key, part) in [
        ("ca.pem", "locked.key", "passphrase"),
        ("ca.pem", "other.key", "does not belong"),
        ("ca.pem", "ed.key", "neither RSA"),
        ("ca.pem", "empty", "no PEM block"),
        ("empty", "ca.key", "empty holds no certificate"),
        ("narrow.pem", "ca.key", "cRLSign"),
        ("absent", "ca.key", "absent"),
    ] {
        let error = Authority::read(&at(certificate), &at(key)).expect_err(part).to_string();
        assert!(error.contains(part) && !error.contains("canary"), "{part}: {error}");
    }
    openssl(folder.path(), "ecparam -name prime256v1 -genkey -noout -out sec1.key");
    openssl(folder.path(), "req -x509 -key sec1.key -out sec1.pem -days 3 -subj /CN=x");
    assert!(Authority::read(&at("sec1.pem"), &at("sec1.key")).is_ok());
}

#[tokio::test]
async fn how_the_list_stands_is_known_and_a_list_that_was_not_put_in_place_is_none() {
    let pool = stage::platform().await.pool().await;
    let folder = tempfile::tempdir().expect("a folder");
    authority(folder.path(), "-algorithm EC -pkeyopt ec_paramgen_curve:P-256");
    row(&pool, "soon", "2", "", "ACTIVE", "10 days").await;
    row(&pool, "later", "3", "", "ACTIVE", "31 days").await;
    let own = settings(folder.path());
    let none = standing(&pool, &own).await.expect("a look");
    assert_eq!((none.list, none.ending), (None, Some(1)));
    // Numbered, and then the folder is gone.
    let mut nowhere = own.clone();
    nowhere.crl_path = folder.path().join("no/such/folder.pem");
    upkeep(&pool, nowhere).await.expect_err("it cannot be put in place");
    let list = standing(&pool, &own).await.expect("a look").list.expect("it was begun");
    assert!(list.placed_at.is_none() && list.next_update <= Timestamp::now(), "{list:?}");
    upkeep(&pool, own.clone()).await.expect("a round");
    let list = standing(&pool, &own).await.expect("a look").list.expect("a list");
    let left = list.next_update.duration_since(Timestamp::now()).as_secs();
    assert!(list.placed_at.is_some() && (7_000..=7_200).contains(&left), "{list:?}");
    let until = file_good_until(&own.crl_path).expect("a list in its file");
    assert!(until.duration_since(list.next_update).abs() <= SignedDuration::from_secs(1), "{until} {list:?}");
    assert!(
        file_good_until(&folder.path().join("ca.pem")).expect_err("no list").contains("no revocation list")
    );
    assert!(file_good_until(&folder.path().join("absent")).is_err());
    // Without an authority there is no list to look after.
    let off = CertificateSettings { ca_key: None, ..own };
    assert_eq!(standing(&pool, &off).await.expect("a look").list, None);
}

#[tokio::test]
async fn the_round_publishes_ends_and_warns_once() {
    let pool = stage::platform().await.pool().await;
    let folder = tempfile::tempdir().expect("a folder");
    authority(folder.path(), "-algorithm EC -pkeyopt ec_paramgen_curve:P-256");
    let (bad, good) = (device(folder.path(), "bad"), device(folder.path(), "good"));
    let pem = std::fs::read_to_string(folder.path().join("bad.pem")).expect("read");
    // The certificate itself counts, whatever the row says beside it.
    row(&pool, "bad", "not a number", &pem, "REVOKED", "5 days").await;
    row(&pool, "typed", "0xAB:CD", "", "REVOKED", "5 days").await;
    row(&pool, "broken", "xyz", "", "REVOKED", "5 days").await;
    row(&pool, "past", "1", "", "ACTIVE", "-1 second").await;
    row(&pool, "soon", "2", "", "ACTIVE", "10 days").await;
    row(&pool, "later", &good, "", "ACTIVE", "31 days").await;
    let reloads = Receiver::start(|_| 204).await;
    let mut with_reload = settings(folder.path());
    with_reload.crl_reload = Some(Secret::new(format!("{}/reload", reloads.url())));
    let first = upkeep(&pool, with_reload).await.expect("a round");
    assert_eq!((&first["expired"], &first["warned"]), (&1.into(), &1.into()), "{first}");
    let list = &first["revocation_list"];
    assert_eq!((&list["revoked"], &list["reloaded"]), (&2.into(), &true.into()), "{first}");
    assert!(list["unreadable"][0].as_str().is_some_and(|text| text.contains("hexadecimal")), "{first}");
    assert_eq!((reloads.received().len(), reloads.received()[0].method.as_str()), (1, "PUT"));
    let shown = openssl(folder.path(), "crl -in crl.pem -noout -text -verify -CAfile ca.pem");
    assert!(
        shown.contains("verify OK") && shown.contains(&bad) && shown.contains("Serial Number: ABCD"),
        "{shown}"
    );
    let (valid, said) = verdict(folder.path(), "bad");
    assert!(!valid && said.contains("revoked"), "{said}");
    let states: Vec<String> =
        query_scalar("SELECT device_id || ' ' || status FROM device_certificates ORDER BY 1")
            .fetch_all(&pool)
            .await
            .unwrap();
    assert_eq!(
        states,
        ["bad REVOKED", "broken REVOKED", "later ACTIVE", "past EXPIRED", "soon ACTIVE", "typed REVOKED"]
    );
    let alerts: Vec<(String, i32, String)> = voiceai_postgres::sqlx::query_as(
        "SELECT device_id, severity, status FROM fleet_alert WHERE alert_type = 'CERT_EXPIRING'",
    )
    .fetch_all(&pool)
    .await
    .unwrap();
    assert_eq!(alerts, [("soon".to_owned(), 4, "OPEN".to_owned())]);
    let notice: Value =
        query_scalar("SELECT payload::jsonb FROM ops.outbox WHERE kind = 'notification.send'")
            .fetch_one(&pool)
            .await
            .unwrap();
    assert_eq!(
        (&notice["server"], &notice["template"]),
        (&"soon".into(), &"ops.certificate_expiring".into())
    );
    assert_eq!(notice["variables"]["days_left"], 9, "{notice}");

    // Again: nothing new, but a higher number. A warning that was cleared away from the outbox does not come back.
    query("DELETE FROM ops.outbox").execute(&pool).await.unwrap();
    let second = upkeep(&pool, settings(folder.path())).await.expect("a round");
    assert_eq!((&second["expired"], &second["warned"]), (&0.into(), &0.into()), "{second}");
    assert!(second["revocation_list"]["number"].as_u64() > list["number"].as_u64(), "{second}");
    let told: i64 = query_scalar("SELECT count(*) FROM ops.outbox").fetch_one(&pool).await.unwrap();
    assert_eq!(told, 0);
    // Revoked at last: nobody waits for its renewal any more.
    query("UPDATE device_certificates SET status = 'REVOKED', revoked_at = now() WHERE device_id = 'soon'")
        .execute(&pool)
        .await
        .unwrap();
    let third = upkeep(&pool, settings(folder.path())).await.expect("a round");
    assert_eq!(third["alerts_closed"], 1, "{third}");
}

#[tokio::test]
async fn a_missing_authority_skips_the_list_and_a_broken_one_keeps_the_old_list() {
    let pool = stage::platform().await.pool().await;
    let folder = tempfile::tempdir().expect("a folder");
    row(&pool, "past", "1", "", "ACTIVE", "-1 second").await;
    let mut without = settings(folder.path());
    without.ca_key = None;
    let result = upkeep(&pool, without).await.expect("a round");
    assert_eq!(result["revocation_list"]["reason"], "DEVICE_CA_KEY_PATH is not set");
    assert_eq!(result["expired"], 1, "the rest is done");
    let result = upkeep(&pool, settings(folder.path())).await.expect("a round");
    let reason = result["revocation_list"]["reason"].as_str().unwrap_or_default();
    assert!(reason.starts_with("DEVICE_CA_CERT_PATH: there is no file"), "{result}");
    authority(folder.path(), "-algorithm EC -pkeyopt ec_paramgen_curve:P-256");
    upkeep(&pool, settings(folder.path())).await.expect("a round");
    let before = std::fs::read(folder.path().join("crl.pem")).expect("a list");
    row(&pool, "soon", "2", "", "ACTIVE", "10 days").await;
    std::fs::write(folder.path().join("ca.key"), "nonsense").expect("write");
    let error = upkeep(&pool, settings(folder.path())).await.expect_err("no key");
    assert!(error.starts_with("discard") && error.contains("ca.key"), "{error}");
    assert_eq!(std::fs::read(folder.path().join("crl.pem")).expect("a list"), before);
    let warned: i64 =
        query_scalar("SELECT count(*) FROM ops.certificate_warnings").fetch_one(&pool).await.unwrap();
    assert_eq!(warned, 1, "people are warned all the same");
    // And the other way round: what cannot be warned of keeps no list from being made.
    authority(folder.path(), "-algorithm EC -pkeyopt ec_paramgen_curve:P-256");
    query("ALTER TABLE fleet_alert ADD CHECK (device_id <> 'another')").execute(&pool).await.unwrap();
    row(&pool, "another", "3", "", "ACTIVE", "10 days").await;
    let error = upkeep(&pool, settings(folder.path())).await.expect_err("an alert that is refused");
    assert!(error.contains("another"), "{error}");
    assert_ne!(std::fs::read(folder.path().join("crl.pem")).expect("a list"), before);
}

#[tokio::test]
async fn without_the_table_the_endpoints_are_still_looked_at() {
    let pool = stage::bare().await.pool().await;
    let folder = tempfile::tempdir().expect("a folder");
    openssl(
        folder.path(),
        "req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -keyout s.key -out s.pem -days 3 -subj /CN=localhost",
    );
    let reserved = Port::reserve();
    let port = reserved.number();
    let mut server = Command::new("openssl")
        .args([
            "s_server",
            "-quiet",
            "-accept",
            &format!("127.0.0.1:{port}"),
            "-key",
            "s.key",
            "-cert",
            "s.pem",
        ])
        .current_dir(folder.path())
        .stdin(std::process::Stdio::null())
        .stdout(std::process::Stdio::null())
        .stderr(std::process::Stdio::null())
        .spawn()
        .expect("openssl");
    let endpoint = format!("127.0.0.1:{port}");
    wait_for(PATIENCE, "the endpoint answers", async || {
        let rule = voiceai_egress::Rule::default();
        look(&endpoint, &rule, PATIENCE).await.map(drop).map_err(|error| error.to_string())
    })
    .await;
    let mut listed = settings(folder.path());
    listed.endpoints = vec![endpoint.clone(), "127.0.0.1:1".to_owned()];
    let result = upkeep(&pool, listed.clone()).await.expect("a round");
    assert_eq!((&result["skipped"], &result["reason"]), (&true.into(), &"table absent".into()), "{result}");
    assert_eq!(
        (&result["endpoints"]["looked_at"], &result["endpoints"]["warned"]),
        (&1.into(), &1.into()),
        "{result}"
    );
    assert_eq!(result["endpoints"]["unreachable"][0]["endpoint"], "127.0.0.1:1");
    let again = upkeep(&pool, listed).await.expect("a round");
    assert_eq!(again["endpoints"]["warned"], 0, "once: {again}");
    let shown = openssl(folder.path(), "x509 -in s.pem -noout -fingerprint -sha256");
    let wanted = shown.trim().rsplit('=').next().unwrap_or_default().replace(':', "").to_lowercase();
    let have: String =
        query_scalar("SELECT fingerprint FROM ops.certificate_warnings").fetch_one(&pool).await.unwrap();
    assert_eq!(have, wanted);
    let _ = server.kill();
    let _ = server.wait();
}
