use voiceai_platform::{Missing, Needs, missing};

use crate::stage;

#[tokio::test]
async fn what_is_absent_is_named() {
    let with = stage::platform().await.pool().await;
    let without = stage::bare().await.pool().await;
    let needs = Needs(&[("tenants", &["tenant_id", "name"]), ("audit_log", &["timestamp"])]);
    assert_eq!(missing(&with, needs).await.unwrap(), None);
    let absent = missing(&without, needs).await.unwrap().unwrap();
    assert_eq!(absent, Missing { table: "tenants".into(), columns: vec![] });
    assert_eq!(absent.result()["reason"], "table absent");
    let needs = Needs(&[("tenants", &["tenant_id", "colour", "size"])]);
    let absent = missing(&with, needs).await.unwrap().unwrap();
    assert_eq!(absent.to_string(), "table tenants lacks colour, size");
    assert_eq!(missing(&with, Needs(&[("tenants", &[])])).await.unwrap(), None);
}
