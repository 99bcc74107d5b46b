//! Answers that a real server gives on its worst days.

use std::convert::Infallible;

use tokio_util::sync::CancellationToken;
use voiceai_aws::{ObjectStore, PartSizes, S3Error, S3ErrorKind, Uploaded};

use crate::scripted::{BROKEN, Scripted};
use crate::{bytes, settings};

const CREATED: &str = "<InitiateMultipartUploadResult><Bucket>b-1</Bucket><Key>k</Key><UploadId>u-1</UploadId>\
                       </InitiateMultipartUploadResult>";
const COMPLETED: &str = "<CompleteMultipartUploadResult><ETag>\"e-2\"</ETag></CompleteMultipartUploadResult>";

fn error(code: &str) -> String {
    format!("<?xml version=\"1.0\"?><Error><Code>{code}</Code><Message>said the store</Message></Error>")
}

/// Answers of a store where all goes well.
fn sound(request: &str) -> (u16, String) {
    match request.split(' ').next() {
        Some("POST") if request.contains("uploads") => (200, CREATED.to_owned()),
        Some("POST") => (200, COMPLETED.to_owned()),
        Some("DELETE") => (204, String::new()),
        _ => (200, String::new()),
    }
}

async fn upload(server: &Scripted) -> Result<Uploaded, S3Error> {
    let store = ObjectStore::new(&settings(&server.endpoint, "b-1", "a", "s")).await;
    let content = bytes(6 * 1024 * 1024);
    let sizes = PartSizes::starting_at(5 * 1024 * 1024);
    store
        .put_stream("k", content.as_slice(), sizes, &CancellationToken::new(), async |_| {
            Ok::<_, Infallible>(())
        })
        .await
}

fn aborts(server: &Scripted) -> usize {
    server
        .asked()
        .iter()
        .filter(|request| request.starts_with("DELETE") && request.contains("uploadId=u-1"))
        .count()
}

#[tokio::test]
async fn a_part_that_fails_is_sent_again() {
    let server = Scripted::start(|request, before| match (request.contains("partNumber=2"), before) {
        (true, 0) => (500, error("InternalError")),
        (true, 1) => (503, error("SlowDown")),
        _ => sound(request),
    })
    .await;
    let uploaded = upload(&server).await.expect("the third try is taken");
    assert_eq!((uploaded.parts, uploaded.bytes), (2, 6 * 1024 * 1024));
    let tries = server.asked().iter().filter(|request| request.contains("partNumber=2")).count();
    assert_eq!((tries, aborts(&server)), (3, 0));
}

#[tokio::test]
async fn a_store_that_stays_broken_ends_the_upload_after_a_bounded_number_of_tries() {
    let server = Scripted::start(|request, _| {
        if request.contains("partNumber=1") { (503, error("SlowDown")) } else { sound(request) }
    })
    .await;
    let failed = upload(&server).await.expect_err("it never works");
    assert_eq!(failed.kind(), S3ErrorKind::Unavailable, "{failed}");
    assert!(failed.is_transient() && failed.to_string().contains("SlowDown"), "{failed}");
    let tries = server.asked().iter().filter(|request| request.contains("partNumber=1")).count();
    assert_eq!((tries, aborts(&server)), (4, 1));
}

#[tokio::test]
async fn an_error_inside_a_success_is_an_error() {
    let server = Scripted::start(|request, _| {
        let completes = request.starts_with("POST") && request.contains("uploadId=u-1");
        if completes { (200, error("InternalError")) } else { sound(request) }
    })
    .await;
    let failed = upload(&server).await.expect_err("the body says that it failed");
    assert_eq!(failed.kind(), S3ErrorKind::Unavailable, "{failed}");
    assert!(failed.to_string().contains("complete upload of s3://b-1/k"), "{failed}");
    assert_eq!(aborts(&server), 1);
}

#[tokio::test]
async fn a_wrong_clock_and_a_wrong_region_are_called_so() {
    for (status, code, kind) in [
        (403, "RequestTimeTooSkewed", S3ErrorKind::ClockSkew),
        (403, "ExpiredToken", S3ErrorKind::Credentials),
        (403, "AccessDenied", S3ErrorKind::Denied),
        (301, "PermanentRedirect", S3ErrorKind::Region),
    ] {
        let server = Scripted::start(move |_, _| (status, error(code))).await;
        let store = ObjectStore::new(&settings(&server.endpoint, "b-1", "a", "s")).await;
        let refused = store.check().await.expect_err(code);
        assert_eq!(refused.kind(), kind, "{refused}");
        assert!(!refused.kind().remedy().is_empty());
    }
}

async fn read(server: &Scripted) -> Result<Vec<u8>, S3Error> {
    let store = ObjectStore::new(&settings(&server.endpoint, "b-1", "a", "s")).await;
    let mut download = store.get("k").await?;
    assert_eq!(download.size(), 10);
    let mut content = Vec::new();
    while let Some(chunk) = download.next_chunk().await? {
        content.extend_from_slice(&chunk);
    }
    Ok(content)
}

#[tokio::test]
async fn a_download_that_breaks_off_is_taken_up_where_it_ended() {
    let server = Scripted::start(|_, before| {
        let answer = match before {
            0 => "200 OK\netag: \"e\"\ncontent-length: 10\n\n0123",
            1 => "206 Partial\netag: \"e\"\ncontent-range: bytes 4-9/10\ncontent-length: 6\n\n45",
            _ => "206 Partial\netag: \"e\"\ncontent-range: bytes 6-9/10\ncontent-length: 4\n\n6789",
        };
        (BROKEN, answer.to_owned())
    })
    .await;
    assert_eq!(read(&server).await.expect("whole"), b"0123456789");
    assert_eq!(server.asked().len(), 3);
}

#[tokio::test]
async fn a_download_never_mixes_two_objects_and_does_not_try_for_ever() {
    let broken = "200 OK\netag: \"e\"\ncontent-length: 10\n\n0123";
    let replaced = Scripted::start(move |_, before| match before {
        0 => (BROKEN, broken.to_owned()),
        _ => (412, error("PreconditionFailed")),
    })
    .await;
    let failed = read(&replaced).await.expect_err("another object stands there now");
    assert!(failed.to_string().contains("PreconditionFailed"), "{failed}");

    let from_the_start = Scripted::start(move |_, _| (BROKEN, broken.to_owned())).await;
    let failed = read(&from_the_start).await.expect_err("the answer is not the rest");
    assert!(failed.to_string().contains("from the middle"), "{failed}");

    let stuck = Scripted::start(move |_, before| match before {
        0 => (BROKEN, broken.to_owned()),
        _ => (BROKEN, "206 Partial\ncontent-range: bytes 4-9/10\ncontent-length: 6\n\n".to_owned()),
    })
    .await;
    let failed = read(&stuck).await.expect_err("it never goes on");
    assert_eq!(failed.kind(), S3ErrorKind::Unreachable, "{failed}");
    assert!(failed.to_string().contains("after 4 of 10 bytes"), "{failed}");
}
