//! On a real server, which checks signatures.

use std::convert::Infallible;
use std::pin::Pin;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll};
use std::time::Duration;

use sha2::{Digest as _, Sha256};
use tokio::io::{AsyncRead, ReadBuf};
use tokio_util::sync::CancellationToken;
use voiceai_aws::{KeyPair, KeySource, ObjectStore, PartSizes, ReadKeys, S3ErrorKind, S3Settings};
use voiceai_runtime::Secret;

use crate::{bucket, bytes, settings};

const PART: usize = 5 * 1024 * 1024;

async fn approve(_: u64) -> Result<(), Infallible> {
    Ok(())
}

/// Gives `given` bytes and then fails, or never ends.
struct Broken {
    given: usize,
    fails: bool,
}

impl AsyncRead for Broken {
    fn poll_read(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<std::io::Result<()>> {
        if self.given > 0 {
            let now = self.given.min(buffer.remaining());
            buffer.put_slice(&vec![7; now]);
            self.given -= now;
            return Poll::Ready(Ok(()));
        }
        if self.fails { Poll::Ready(Err(std::io::Error::other("the pipe broke"))) } else { Poll::Pending }
    }
}

async fn stored(store: &ObjectStore, key: &str) -> Vec<u8> {
    let mut download = store.get(key).await.expect("the object is there");
    let mut content = Vec::new();
    while let Some(chunk) = download.next_chunk().await.expect("it can be read") {
        content.extend_from_slice(&chunk);
    }
    assert_eq!(content.len() as u64, download.size());
    content
}

#[tokio::test]
async fn a_stream_of_unknown_length_arrives_whole_and_hashed() {
    let (server, store) = bucket().await;
    let never = CancellationToken::new();
    for (key, length, parts) in
        [("d/empty", 0, 1), ("d/short", 10, 1), ("d/exact", 2 * PART, 2), ("d/long", 3 * PART + 17, 4)]
    {
        let content = bytes(length);
        let sizes = PartSizes::starting_at(PART as u64);
        let uploaded =
            store.put_stream(key, content.as_slice(), sizes, &never, approve).await.expect("stored");
        let digest: String = Sha256::digest(&content).iter().map(|byte| format!("{byte:02x}")).collect();
        assert_eq!(
            (uploaded.bytes, uploaded.parts, uploaded.sha256),
            (length as u64, parts, digest),
            "{key}"
        );
        assert_eq!(store.head(key).await.expect("a head").expect("an object").size, length as u64);
        assert!(stored(&store, key).await == content, "{key} came back changed");
    }
    assert_eq!(server.unfinished_uploads().await, 0);
    let keys: Vec<_> = store.list("d/").await.expect("a list").into_iter().map(|object| object.key).collect();
    assert_eq!(keys, ["d/empty", "d/exact", "d/long", "d/short"]);
    store.delete("d/long").await.expect("deleted");
    store.delete("d/long").await.expect("deleting again is no error");
    assert_eq!(store.head("d/long").await.expect("a head"), None);
}

#[tokio::test]
async fn an_upload_that_does_not_end_well_leaves_nothing() {
    let (server, store) = bucket().await;
    let (never, sizes) = (CancellationToken::new(), PartSizes::starting_at(PART as u64));

    let failing = Broken { given: 2 * PART + 1, fails: true };
    let error =
        store.put_stream("failing", failing, sizes, &never, approve).await.expect_err("the pipe broke");
    assert_eq!(error.kind(), S3ErrorKind::Source);
    assert!(error.to_string().contains("the pipe broke"), "{error}");

    let refuse = async |bytes: u64| {
        assert_eq!(bytes, 3);
        Err(std::io::Error::other("pg_dump exited with 1"))
    };
    let error = store.put_stream("refused", &b"abc"[..], sizes, &never, refuse).await.expect_err("refused");
    assert!(error.to_string().contains("pg_dump exited with 1"), "{error}");

    let cancel = CancellationToken::new();
    let endless = Broken { given: PART, fails: false };
    let upload = store.put_stream("cancelled", endless, sizes, &cancel, approve);
    let stop = async {
        until(|| async { server.unfinished_uploads().await == 1 }).await;
        cancel.cancel();
    };
    let (ended, ()) = tokio::join!(upload, stop);
    assert_eq!(ended.expect_err("cancelled").kind(), S3ErrorKind::Cancelled);
    assert_eq!(server.unfinished_uploads().await, 0);

    {
        let endless = Broken { given: PART, fails: false };
        let upload = store.put_stream("dropped", endless, sizes, &never, approve);
        let begun = until(|| async { server.unfinished_uploads().await == 1 });
        tokio::select! { _ = upload => panic!("it never ends"), () = begun => {} }
    }
    until(|| async { server.unfinished_uploads().await == 0 }).await;
    assert_eq!(store.list("").await.expect("a list"), vec![]);
}

#[tokio::test]
async fn what_a_killed_process_left_is_found_and_aborted() {
    let (server, store) = bucket().await;
    for key in ["ours/one", "ours/two", "theirs/one"] {
        let endless = Broken { given: 0, fails: false };
        let (store, sizes) = (store.clone(), PartSizes::SMALLEST);
        // A runtime that ends with an upload under way, as a killed process does: nothing is left to abort it.
        let key = key.to_owned();
        std::thread::spawn(move || {
            let runtime =
                tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
            runtime.block_on(async {
                let never = CancellationToken::new();
                let mut upload =
                    Box::pin(async move { store.put_stream(&key, endless, sizes, &never, approve).await });
                let _ = tokio::time::timeout(Duration::from_millis(500), &mut upload).await;
                std::mem::forget(upload);
            });
        })
        .join()
        .expect("the thread ends");
    }
    assert_eq!(server.unfinished_uploads().await, 3);
    let open = store.open_uploads("ours/").await.expect("a list");
    assert_eq!(open.len(), 2, "{open:?}");
    assert_eq!(store.abort_uploads("ours/", |upload| upload.key == "ours/two").await.expect("aborted"), 1);
    assert_eq!(store.abort_uploads("ours/", |_| true).await.expect("aborted"), 1);
    assert_eq!(server.unfinished_uploads().await, 1);
    assert_eq!(store.abort_uploads("", |_| true).await.expect("aborted"), 1);
}

#[tokio::test]
async fn lists_go_over_page_ends() {
    let (_server, store) = bucket().await;
    let mut writing = tokio::task::JoinSet::new();
    for number in 0..1_100 {
        let store = store.clone();
        writing.spawn(async move {
            let key = format!("many/{number:05}");
            store.put_small(&key, bytes::Bytes::from_static(b"x"), "text/plain").await
        });
        if number % 50 == 49 {
            while let Some(written) = writing.join_next().await {
                written.expect("no panic").expect("written");
            }
        }
    }
    let listed = store.list("many/").await.expect("a list");
    assert_eq!(listed.len(), 1_100);
    assert!(listed.is_sorted_by(|one, next| one.key < next.key));
    assert!(listed.iter().all(|object| object.size == 1 && object.modified.is_some()));
}

#[tokio::test]
async fn small_objects_are_replaced_and_read_up_to_a_limit() {
    let (_server, store) = bucket().await;
    for content in ["first", "second"] {
        store.put_small("m.json", content.into(), "application/json").await.expect("written");
    }
    assert_eq!(store.get_small("m.json", 6).await.expect("read"), "second");
    assert_eq!(store.get_small("m.json", 5).await.expect_err("too long").kind(), S3ErrorKind::Other);
    assert_eq!(store.get_small("none", 5).await.expect_err("not there").kind(), S3ErrorKind::NotFound);
    assert_eq!(store.get("none").await.expect_err("not there").kind(), S3ErrorKind::NotFound);
}

#[tokio::test]
async fn what_is_wrong_with_the_store_is_told_apart() {
    let (server, store) = bucket().await;
    store.check().await.expect("all is well");
    let (endpoint, bucket) = (&server.endpoint, &server.bucket);
    let (access, secret) = (&server.access_key, &server.secret_key);
    let port = voiceai_testkit::Port::reserve();
    let nobody = format!("http://127.0.0.1:{}", port.number());
    for (settings, kind) in [
        (settings(endpoint, "no-such-bucket", access, secret), S3ErrorKind::NoSuchBucket),
        (settings(endpoint, bucket, "nobody", secret), S3ErrorKind::Credentials),
        (settings(endpoint, bucket, access, "s3cret-canary"), S3ErrorKind::Credentials),
        (settings(&nobody, bucket, access, secret), S3ErrorKind::Unreachable),
    ] {
        let error = ObjectStore::new(&settings).await.check().await.expect_err("it cannot work");
        assert_eq!(error.kind(), kind, "{error}");
        assert!(!format!("{error} {error:?}").contains("s3cret-canary"));
        assert!(error.to_string().contains(&settings.bucket), "the error names the bucket: {error}");
    }
}

/// Keys as a service holds them: what is kept, and what a look at the stores would bring.
#[derive(Debug, Default)]
struct Kept {
    held: Mutex<Option<KeyPair>>,
    stored: Mutex<Option<KeyPair>>,
    looks: AtomicUsize,
}

impl KeySource for Kept {
    fn keys(&self, refused: bool) -> ReadKeys<'_> {
        Box::pin(async move {
            if refused {
                self.looks.fetch_add(1, Ordering::Relaxed);
                let stored = self.stored.lock().expect("not poisoned").clone();
                *self.held.lock().expect("not poisoned") = stored;
            }
            self.held.lock().expect("not poisoned").clone()
        })
    }
}

#[tokio::test]
async fn keys_that_change_are_used_at_once_and_refused_ones_are_looked_for_again() {
    let (server, _store) = bucket().await;
    let pair = |secret: &str| Some((Secret::new(server.access_key.as_str()), Secret::new(secret)));
    let kept = Arc::new(Kept::default());
    let settings = S3Settings {
        renewed: Some(Arc::clone(&kept) as Arc<dyn KeySource>),
        ..settings(&server.endpoint, &server.bucket, &server.access_key, "s3cret-canary")
    };
    let store = ObjectStore::new(&settings).await;
    // Those of the start count while the source has none.
    *kept.stored.lock().expect("not poisoned") = pair(&server.secret_key);
    assert_eq!(store.check().await.expect_err("wrong keys").kind(), S3ErrorKind::Credentials);
    store.check().await.expect("the refusal made it look for newer ones");
    // What is changed without a refusal counts from the next request on, whatever a client had cached.
    *kept.held.lock().expect("not poisoned") = pair("s3cret-canary");
    assert_eq!(store.check().await.expect_err("wrong keys").kind(), S3ErrorKind::Credentials);
    // A store that goes on refusing is not made slow by looks that find nothing.
    for _ in 0..3 {
        assert_eq!(store.check().await.expect_err("wrong keys").kind(), S3ErrorKind::Credentials);
    }
    assert_eq!(kept.looks.load(Ordering::Relaxed), 1);
    assert!(!format!("{store:?} {settings:?}").contains("s3cret-canary"));
}

async fn until<F: Future<Output = bool>>(condition: impl Fn() -> F) {
    let wait = async {
        while !condition().await {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(20), wait).await.expect("the condition came true in time");
}
