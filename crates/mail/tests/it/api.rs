//! The two documents of docs/api say what the code does.

use std::path::PathBuf;
use std::sync::Arc;

use serde_json::{Value, json};
use voiceai_config::{Binary, Resolved};
use voiceai_mail::Wake;
use voiceai_mail::delivery::{DeliveryStatus, PayloadMode};
use voiceai_mail::intake::{Command, Composer, Content, Intake};
use voiceai_mail::message::Mailbox;
use voiceai_mail::settings::MailSettings;
use voiceai_mail::stream;
use voiceai_mail::template::Catalogue;
use voiceai_mail::{malformed, rest};

fn path(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../docs/api").join(name)
}

#[test]
fn the_openapi_document_is_the_routes() {
    let made = format!("{}\n", rest::openapi().to_pretty_json().unwrap());
    let path = path("mail-openapi.json");
    if std::env::var_os("UPDATE_DOCS").is_some() {
        std::fs::write(&path, &made).unwrap();
    }
    let stored = std::fs::read_to_string(&path).unwrap_or_default();
    assert!(
        stored == made,
        "docs/api/mail-openapi.json is stale: run UPDATE_DOCS=1 cargo nextest run -p voiceai-mail api"
    );
    let document: Value = serde_json::from_str(&made).unwrap();
    let login = &document["paths"]["/api/v1/internal/login-code-deliveries"]["post"];
    assert_eq!(
        (&login["operationId"], &login["tags"]),
        (&json!("acceptLoginCodeDelivery"), &json!(["AuthIntegration"]))
    );
    let key = &login["parameters"][0];
    assert_eq!(
        (&key["name"], &key["in"], &key["required"]),
        (&json!("Idempotency-Key"), &json!("header"), &json!(true))
    );
    let statuses = &document["components"]["schemas"]["DeliveryStatus"]["enum"];
    assert_eq!(statuses, &json!(DeliveryStatus::ALL.iter().map(|one| one.as_str()).collect::<Vec<_>>()));
    assert_eq!(document["components"]["securitySchemes"]["bearer"]["scheme"], "bearer");
    let references = made.matches("\"$ref\": \"#/components/schemas/");
    assert!(references.count() > 20, "{made}");
    for (at, _) in made.match_indices("#/components/schemas/") {
        let name = made[at + 21..].split('"').next().unwrap();
        assert!(document["components"]["schemas"][name].is_object(), "nothing is called {name}");
    }
}

/// The example messages of the AsyncAPI document, as the fields of a stream entry.
fn examples(document: &Value) -> Vec<Vec<(Vec<u8>, Vec<u8>)>> {
    let messages = document["components"]["messages"].as_object().unwrap();
    let of = |message: &Value| message["examples"].as_array().unwrap().clone();
    let fields = |example: Value| {
        let payload = example["payload"].as_object().unwrap().clone();
        let text =
            |value: &Value| value.as_str().expect("every field of a stream is text").as_bytes().to_vec();
        payload.iter().map(|(name, value)| (name.as_bytes().to_vec(), text(value))).collect()
    };
    messages.values().flat_map(of).map(fields).collect()
}

fn document() -> Value {
    let text = std::fs::read_to_string(path("delivery-commands-asyncapi.yaml")).unwrap();
    yaml_serde::from_str(&text).unwrap()
}

#[tokio::test]
async fn the_examples_of_the_stream_are_read_and_accepted() {
    let document = document();
    let commands: Vec<Command> = examples(&document)
        .iter()
        .map(|fields| stream::command(fields).expect("the parser takes the example"))
        .collect();
    let modes: Vec<_> = commands.iter().map(|command| command.content.mode()).collect();
    assert!(modes.contains(&PayloadMode::Rendered) && modes.contains(&PayloadMode::Template), "{modes:?}");
    let catalogue = Catalogue::load(None, "en", "Delphi").unwrap();
    for command in &commands {
        if let Content::Template { template_id, locale, variables } = &command.content {
            catalogue.render(template_id, locale, variables).expect("the example fits the template");
        }
    }
    // The very intake takes them too.
    let database = voiceai_testkit::database().await;
    let pool = database.pool().await;
    let sender = [("EMAIL_SENDER_ADDRESS", "noreply@delphi.example")];
    let settings = Resolved::from_pairs(Binary::Tasker, sender).read(MailSettings::read).unwrap().settings;
    let from = Mailbox::parse("Delphi <noreply@delphi.example>", "from").unwrap();
    let composer = Composer::new(Arc::new(catalogue), from, None);
    let intake = Intake::new(pool.clone(), Arc::new(composer), &settings, true, Wake::new());
    for command in commands {
        let accepted = intake.accept(command).await.expect("the intake takes the example");
        assert_eq!(accepted.status, DeliveryStatus::Suppressed);
    }
    assert!(malformed::list(&pool, None, 10).await.unwrap().is_empty());
}

#[test]
fn the_document_of_the_stream_names_what_the_parser_needs() {
    let document = document();
    assert_eq!(document["channels"]["deliveryCommands"]["address"], "mail:delivery_commands");
    let required = document["components"]["schemas"]["CommonFields"]["required"].as_array().unwrap().clone();
    let example = examples(&document).pop().unwrap();
    for field in &required {
        let mut without = example.clone();
        without.retain(|(name, _)| name != field.as_str().unwrap().as_bytes());
        assert_eq!(stream::command(&without).unwrap_err().code, "missing_field", "{field}");
    }
    // And nothing else is needed.
    let mut least = example;
    least.retain(|(name, _)| required.iter().any(|field| field.as_str().unwrap().as_bytes() == name));
    assert!(stream::command(&least).is_ok());
}
