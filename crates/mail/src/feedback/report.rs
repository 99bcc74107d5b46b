use serde::Deserialize;
use serde::Serialize;

/// What a report means for one recipient.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Effect {
    /// The mailbox does not exist, or SES itself has it on its list.
    HardBounce,
    /// Its server could not take the mail this time.
    SoftBounce,
    /// The mail itself was not taken: says nothing about the address.
    Ignored,
    /// Its owner called the mail spam.
    Complaint,
    /// The mail arrived.
    Delivered,
}

/// What SES reports.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Report {
    /// `Bounce`, `Complaint`, `Delivery`, …: SES's own word.
    pub kind: String,
    /// SES's id of the mail.
    pub provider_id: Option<String>,
    /// Whom it is about, in lower case, what it means for each, and why.
    pub recipients: Vec<(String, Effect, String)>,
}

/// Reads the text of a notification: identity notifications name their kind in `notificationType`, events of a configuration
/// set in `eventType`; else they are alike. `None` when it is neither.
#[must_use]
pub fn read(text: &str) -> Option<Report> {
    let raw: Raw = serde_json::from_str(text).ok()?;
    let kind = raw.notification_type.or(raw.event_type)?;
    let mut recipients: Vec<(String, Effect, String)> = Vec::new();
    if let Some(bounce) = raw.bounce {
        // Every recipient that bounced, and nobody else of those the mail was for.
        for one in bounce.bounced_recipients {
            let effect = bounce_effect(&bounce.bounce_type, &bounce.bounce_sub_type, &one);
            let words = [&bounce.bounce_type, &bounce.bounce_sub_type, &one.status, &one.diagnostic_code];
            let words: Vec<&str> =
                words.into_iter().map(|word| word.trim()).filter(|word| !word.is_empty()).collect();
            recipients.push((one.email_address, effect, words.join(" ")));
        }
    }
    if let Some(complaint) = raw.complaint {
        let words = [complaint.complaint_sub_type.as_deref(), complaint.complaint_feedback_type.as_deref()];
        let detail = words.into_iter().flatten().collect::<Vec<_>>().join(" ");
        for one in complaint.complained_recipients {
            recipients.push((one.email_address, Effect::Complaint, detail.clone()));
        }
    }
    if let Some(delivery) = raw.delivery {
        recipients.extend(
            delivery.recipients.into_iter().map(|address| (address, Effect::Delivered, String::new())),
        );
    }
    for (address, ..) in &mut recipients {
        *address = bare(address);
    }
    recipients.retain(|(address, ..)| address.contains('@'));
    Some(Report { kind, provider_id: raw.mail.and_then(|mail| mail.message_id), recipients })
}

/// `Kim <Kim@Example.com>` and `kim@example.com` are the same mailbox.
fn bare(text: &str) -> String {
    let inside = text.rsplit_once('<').and_then(|(_, rest)| rest.split_once('>')).map(|(inside, _)| inside);
    inside.unwrap_or(text).trim().to_lowercase()
}

fn bounce_effect(kind: &str, sub_type: &str, one: &Bounced) -> Effect {
    let gave_up = one.status.trim() == "4.4.7" || one.diagnostic_code.contains("4.4.7");
    match (kind, sub_type) {
        ("Permanent", _) => Effect::HardBounce,
        (_, "OnAccountSuppressionList" | "Suppressed") => Effect::HardBounce,
        (_, "MessageTooLarge" | "ContentRejected" | "AttachmentRejected") => Effect::Ignored,
        // SES has tried for hours by then.
        ("Transient", _) if gave_up => Effect::HardBounce,
        _ => Effect::SoftBounce,
    }
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Raw {
    notification_type: Option<String>,
    event_type: Option<String>,
    bounce: Option<Bounce>,
    complaint: Option<Complaint>,
    delivery: Option<Delivery>,
    mail: Option<Mail>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Bounce {
    #[serde(default)]
    bounce_type: String,
    #[serde(default)]
    bounce_sub_type: String,
    #[serde(default)]
    bounced_recipients: Vec<Bounced>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Bounced {
    email_address: String,
    #[serde(default)]
    status: String,
    #[serde(default)]
    diagnostic_code: String,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Complaint {
    #[serde(default)]
    complained_recipients: Vec<Complained>,
    complaint_sub_type: Option<String>,
    complaint_feedback_type: Option<String>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Complained {
    email_address: String,
}

#[derive(Deserialize)]
struct Delivery {
    #[serde(default)]
    recipients: Vec<String>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Mail {
    message_id: Option<String>,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bounce(key: &str, kind: &str, sub: &str, recipients: &str) -> Report {
        read(&format!(
            r#"{{"{key}":"Bounce","mail":{{"messageId":"m1","destination":["innocent@example.com","kim@example.com"]}},
                "bounce":{{"bounceType":"{kind}","bounceSubType":"{sub}","bouncedRecipients":{recipients}}}}}"#
        ))
        .expect("a report")
    }

    #[test]
    fn both_forms_and_every_recipient() {
        for key in ["notificationType", "eventType"] {
            let report = bounce(
                key,
                "Permanent",
                "General",
                r#"[{"emailAddress":"Kim <Kim@Example.com>","status":"5.1.1","diagnosticCode":"smtp; 550"},{"emailAddress":"lee@example.com"}]"#,
            );
            let found: Vec<_> =
                report.recipients.iter().map(|(address, effect, _)| (address.as_str(), *effect)).collect();
            assert_eq!(
                found,
                [("kim@example.com", Effect::HardBounce), ("lee@example.com", Effect::HardBounce)]
            );
            assert_eq!((report.kind.as_str(), report.provider_id.as_deref()), ("Bounce", Some("m1")));
        }
        for key in ["notificationType", "eventType"] {
            let text = format!(
                r#"{{"{key}":"Complaint","complaint":{{"complainedRecipients":[{{"emailAddress":"a@b.c"}}],"complaintFeedbackType":"abuse"}},"mail":{{}}}}"#
            );
            let report = read(&text).expect("a report");
            assert_eq!(report.recipients, [("a@b.c".to_owned(), Effect::Complaint, "abuse".to_owned())]);
        }
        let report =
            read(r#"{"eventType":"Delivery","delivery":{"recipients":["A@b.c"]},"mail":{"messageId":"m"}}"#);
        assert_eq!(report.expect("a report").recipients[0].1, Effect::Delivered);
        assert!(read(r#"{"eventType":"Open","open":{},"mail":{}}"#).expect("a report").recipients.is_empty());
        assert!(read("Successfully validated SNS topic").is_none() && read("{}").is_none());
    }

    #[test]
    fn what_a_bounce_means() {
        for (kind, sub, recipient, effect) in [
            ("Permanent", "NoEmail", r#"{"emailAddress":"a@b.c"}"#, Effect::HardBounce),
            ("Permanent", "OnAccountSuppressionList", r#"{"emailAddress":"a@b.c"}"#, Effect::HardBounce),
            ("Transient", "MailboxFull", r#"{"emailAddress":"a@b.c"}"#, Effect::SoftBounce),
            ("Transient", "General", r#"{"emailAddress":"a@b.c","status":"4.4.7"}"#, Effect::HardBounce),
            ("Transient", "MessageTooLarge", r#"{"emailAddress":"a@b.c"}"#, Effect::Ignored),
            ("Transient", "ContentRejected", r#"{"emailAddress":"a@b.c"}"#, Effect::Ignored),
            ("Transient", "AttachmentRejected", r#"{"emailAddress":"a@b.c"}"#, Effect::Ignored),
            ("Undetermined", "Undetermined", r#"{"emailAddress":"a@b.c"}"#, Effect::SoftBounce),
        ] {
            assert_eq!(
                bounce("eventType", kind, sub, &format!("[{recipient}]")).recipients[0].1,
                effect,
                "{kind} {sub}"
            );
        }
    }
}
