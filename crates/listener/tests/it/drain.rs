//! The end of a listener.

use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::net::TcpStream;
use tokio::sync::Notify;
use voiceai_listener::axum::Router;
use voiceai_listener::axum::routing::get;
use voiceai_listener::{Limits, Listener};

use crate::client::{Client, PATIENCE, Served, run, serve, settings, with_token};

/// A route that says when it began, and ends when it is told.
fn slow(began: &Arc<Notify>, end: &Arc<Notify>) -> Router {
    let (began, end) = (Arc::clone(began), Arc::clone(end));
    let handler = move || {
        let (began, end) = (Arc::clone(&began), Arc::clone(&end));
        async move {
            began.notify_one();
            end.notified().await;
            "done"
        }
    };
    Router::new().route("/slow", get(handler)).route("/quick", get(|| async { "quick" }))
}

async fn asked(served: &Served, began: &Notify) -> Client {
    let mut client = Client::connect(served.address).await;
    client.say(&with_token("GET", "/slow")).await;
    began.notified().await;
    client
}

#[tokio::test]
async fn a_running_request_ends_and_no_new_connection_is_taken() {
    let (began, end) = (Arc::new(Notify::new()), Arc::new(Notify::new()));
    let served = serve(slow(&began, &end), Limits::default());
    let mut idle = Client::connect(served.address).await;
    idle.say(&with_token("GET", "/quick")).await;
    assert_eq!(idle.hear().await.unwrap().status, 200);
    let mut client = asked(&served, &began).await;
    served.stopping.cancel();
    assert!(idle.hear().await.is_none(), "an idle connection is closed at once");
    assert!(TcpStream::connect(served.address).await.is_err(), "the port is closed");
    end.notify_one();
    let answer = client.hear().await.expect("the running request is answered");
    assert_eq!((answer.status, answer.body.as_str()), (200, "done"));
    assert!(client.hear().await.is_none(), "and nothing follows it");
    tokio::time::timeout(PATIENCE, served.task).await.expect("the listener ends").unwrap();
}

#[tokio::test]
async fn a_request_that_does_not_end_is_cut() {
    let (began, end) = (Arc::new(Notify::new()), Arc::new(Notify::new()));
    let listener = Listener::internal(&settings(Limits::default())).unwrap().unwrap();
    let served = run(listener.mount(slow(&began, &end)), Duration::from_millis(300));
    let mut client = asked(&served, &began).await;
    served.stopping.cancel();
    let since = Instant::now();
    tokio::time::timeout(PATIENCE, served.task).await.expect("the listener ends").unwrap();
    assert!(since.elapsed() >= Duration::from_millis(250) && since.elapsed() < Duration::from_secs(5));
    assert!(client.hear().await.is_none(), "cut");
}
