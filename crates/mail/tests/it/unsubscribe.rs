//! One click ends a subscription; looking at the link does not.

use axum::Router;
use axum::body::{Body, to_bytes};
use axum::http::{Request, Response, StatusCode};
use tower::ServiceExt as _;
use url::Url;
use voiceai_mail::suppression::{Links, routes};
use voiceai_mail::{Address, Class};
use voiceai_postgres::sqlx;
use voiceai_runtime::Secret;

async fn ask(routes: &Router, method: &str, path: &str) -> Response<Body> {
    let request = Request::builder()
        .method(method)
        .uri(path)
        .header("accept-language", "de-DE,de;q=0.9")
        .header("content-type", "application/x-www-form-urlencoded")
        .body(Body::from("List-Unsubscribe=One-Click"))
        .expect("a request");
    routes.clone().oneshot(request).await.expect("an answer")
}

async fn text(response: Response<Body>) -> String {
    let bytes = to_bytes(response.into_body(), 100_000).await.expect("a body");
    String::from_utf8(bytes.to_vec()).expect("text")
}

#[tokio::test]
async fn one_click() {
    let database = voiceai_testkit::database().await;
    let pool = database.pool().await;
    let base = Url::parse("https://mail.example.com").expect("a URL");
    let links = Links::new(&base, &Secret::new("0123456789abcdef0123456789abcdef")).expect("sound");
    let routes = routes(pool.clone(), links.clone());
    let kim = Address::parse("Kim@example.com").expect("an address");
    let link = links.link(&kim, Some("acme"), Class::Marketing).expect("a link");
    let path = link.strip_prefix("https://mail.example.com").expect("below the base");
    let list = async || -> Vec<(String, String, String, String)> {
        sqlx::query_as("SELECT address, tenant, class, reason FROM mail.suppressions")
            .fetch_all(&pool)
            .await
            .expect("a list")
    };

    // A mail scanner opens every link.
    let looked = ask(&routes, "GET", path).await;
    assert_eq!(looked.status(), StatusCode::OK);
    assert_eq!(looked.headers()["cache-control"], "no-store");
    let page = text(looked).await;
    assert!(
        page.contains("<form method=\"post\">") && page.contains("Abmelden") && !page.contains("kim"),
        "{page}"
    );
    assert!(list().await.is_empty(), "looking ends nothing");

    for _ in 0..2 {
        let ended = ask(&routes, "POST", path).await;
        assert_eq!(ended.status(), StatusCode::OK, "no redirect, no login");
    }
    let expected =
        ("kim@example.com".to_owned(), "acme".to_owned(), "marketing".to_owned(), "unsubscribe".to_owned());
    assert_eq!(list().await, [expected]);

    let mut forged = path.to_owned();
    forged.replace_range(
        path.len() - 6..path.len() - 5,
        if path.as_bytes()[path.len() - 6] == b'A' { "B" } else { "A" },
    );
    for (method, path) in [("POST", forged.as_str()), ("GET", forged.as_str()), ("POST", "/unsubscribe/x")] {
        assert_eq!(ask(&routes, method, path).await.status(), StatusCode::NOT_FOUND, "{method} {path}");
    }
    assert_eq!(list().await.len(), 1);

    pool.close().await;
    let away = ask(&routes, "POST", path).await;
    assert_eq!(
        away.status(),
        StatusCode::SERVICE_UNAVAILABLE,
        "nobody is told that it is done when it is not"
    );
}
