use std::borrow::Cow;
use std::fmt::{self, Write as _};
use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

use super::check::RecipientKind;
use super::command::{Command, Content};
use super::compose::{Compose, ComposeError, Composed, Draft};
use crate::message::{self, Attachment, Composition, Mailbox};
use crate::template::Catalogue;
use crate::{Address, Class};

/// Makes the link by which one recipient ends what a class of mail sends him: `(address, tenant, class)` to an `https` address.
pub type UnsubscribeLink = Arc<dyn Fn(&Address, Option<&str>, Class) -> Option<String> + Send + Sync>;

/// The composer that the service uses: the template catalogue, and mail format.
#[derive(Clone)]
pub struct Composer {
    catalogue: Arc<Catalogue>,
    from: Mailbox,
    unsubscribe: Option<UnsubscribeLink>,
}

impl fmt::Debug for Composer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Composer").field("from", &self.from).finish_non_exhaustive()
    }
}

/// The texts of a mail, wherever they came from.
struct Texts {
    class: Class,
    unsubscribe: bool,
    locale: Option<String>,
    sensitive: Vec<String>,
    subject: String,
    text: String,
    html: Option<String>,
}

impl Composer {
    /// A composer of mail `from` the service's sender. Without `unsubscribe` no mail carries a link that ends a subscription.
    #[must_use]
    pub fn new(catalogue: Arc<Catalogue>, from: Mailbox, unsubscribe: Option<UnsubscribeLink>) -> Self {
        Self { catalogue, from, unsubscribe }
    }

    /// The templates.
    #[must_use]
    pub fn catalogue(&self) -> &Catalogue {
        &self.catalogue
    }

    fn texts(&self, command: &Command) -> Result<Texts, ComposeError> {
        match &command.content {
            Content::Rendered { subject, text_body, html_body } => Ok(Texts {
                class: Class::Transactional,
                unsubscribe: false,
                locale: None,
                sensitive: Vec::new(),
                subject: subject.clone(),
                text: text_body.clone(),
                html: (!html_body.is_empty()).then(|| html_body.clone()),
            }),
            Content::Template { template_id, locale, variables } => {
                let made = self.catalogue.render(template_id, locale, variables);
                let made = made.map_err(|error| ComposeError(error.to_string()))?;
                let template = self.catalogue.template(template_id);
                Ok(Texts {
                    class: made.class,
                    unsubscribe: made.unsubscribe,
                    locale: Some(made.locale),
                    sensitive: template.map_or_else(Vec::new, |t| t.sensitive().map(str::to_owned).collect()),
                    subject: made.subject,
                    text: made.text,
                    html: made.html,
                })
            }
        }
    }
}

impl Compose for Composer {
    fn compose(&self, draft: &Draft<'_>) -> Result<Composed, ComposeError> {
        let command = draft.command;
        let texts = self.texts(command)?;
        let (to, cc) = (mailboxes(draft, RecipientKind::To), mailboxes(draft, RecipientKind::Cc));
        let reply_to = command.reply_to.iter().map(|text| Mailbox::parse(text, "reply_to"));
        let reply_to: Vec<_> =
            reply_to.collect::<Result<_, _>>().map_err(|error| ComposeError(error.to_string()))?;
        let attachments = attachments(command)?;
        let make = |unsubscribe: Option<&str>| {
            message::compose(&Composition {
                message_id: draft.message_id,
                idempotency_key: &in_a_header(&command.delivery_id),
                date: draft.date,
                from: &self.from,
                to: &to,
                cc: &cc,
                reply_to: &reply_to,
                subject: &texts.subject,
                text: &texts.text,
                html: texts.html.as_deref(),
                attachments: &attachments,
                class: texts.class,
                unsubscribe,
            })
            .map_err(|error| ComposeError(error.to_string()))
        };
        let link = self.unsubscribe.as_ref().filter(|_| texts.unsubscribe && texts.class != Class::Auth);
        let messages = match link {
            None => vec![make(None)?],
            Some(link) => {
                let tenant = command.tenant.as_deref();
                let each = draft.recipients.iter().map(|(_, address)| {
                    let url = link(address, tenant, texts.class);
                    make(url.as_deref())
                });
                each.collect::<Result<_, _>>()?
            }
        };
        Ok(Composed {
            class: texts.class,
            subject: texts.subject,
            locale: texts.locale,
            sensitive: texts.sensitive,
            messages,
        })
    }
}

/// An id as a header can carry it: bytes that are not ASCII as `%C3`.
fn in_a_header(id: &str) -> Cow<'_, str> {
    if id.is_ascii() {
        return Cow::Borrowed(id);
    }
    let mut coded = String::with_capacity(id.len() * 3);
    for byte in id.bytes() {
        if byte.is_ascii() {
            coded.push(char::from(byte));
        } else {
            let _ = write!(coded, "%{byte:02X}");
        }
    }
    Cow::Owned(coded)
}

fn mailboxes(draft: &Draft<'_>, kind: RecipientKind) -> Vec<Mailbox> {
    let of_kind = draft.recipients.iter().filter(|(have, _)| *have == kind);
    of_kind.map(|(_, address)| Mailbox { name: None, address: address.clone() }).collect()
}

fn attachments(command: &Command) -> Result<Vec<Attachment>, ComposeError> {
    let decode = |attachment: &super::Attachment| {
        let content = STANDARD
            .decode(&attachment.content_base64)
            .map_err(|_| ComposeError(format!("attachment {} is not base64", attachment.filename)))?;
        Ok(Attachment {
            filename: attachment.filename.clone(),
            content_type: attachment.content_type.clone(),
            content: content.into(),
        })
    };
    command.attachments.iter().map(decode).collect()
}
