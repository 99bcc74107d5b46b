/// Gives an enum of words its names in rows, logs and JSON.
macro_rules! words {
    ($(#[$doc:meta])* $type:ident { $($(#[$of:meta])* $variant:ident = $word:literal),+ $(,)? }) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, ::serde::Serialize, ::serde::Deserialize)]
        pub enum $type {
            $($(#[$of])* #[serde(rename = $word)] $variant),+
        }

        impl $type {
            /// All of them.
            pub const ALL: &[Self] = &[$(Self::$variant),+];

            /// The name in rows, logs and JSON.
            #[must_use]
            pub const fn as_str(self) -> &'static str {
                match self { $(Self::$variant => $word),+ }
            }
        }

        impl ::utoipa::PartialSchema for $type {
            fn schema() -> ::utoipa::openapi::RefOr<::utoipa::openapi::schema::Schema> {
                let words = Self::ALL.iter().map(|one| one.as_str());
                ::utoipa::openapi::ObjectBuilder::new()
                    .schema_type(::utoipa::openapi::schema::Type::String)
                    .enum_values(Some(words))
                    .build()
                    .into()
            }
        }

        impl ::utoipa::ToSchema for $type {
            fn name() -> ::std::borrow::Cow<'static, str> {
                ::std::borrow::Cow::Borrowed(stringify!($type))
            }
        }

        impl ::std::fmt::Display for $type {
            fn fmt(&self, f: &mut ::std::fmt::Formatter<'_>) -> ::std::fmt::Result {
                f.pad(self.as_str())
            }
        }

        impl ::std::str::FromStr for $type {
            type Err = String;

            fn from_str(text: &str) -> Result<Self, String> {
                Self::ALL.iter().copied().find(|one| one.as_str() == text).ok_or_else(|| {
                    let known: Vec<_> = Self::ALL.iter().map(|one| one.as_str()).collect();
                    format!("expected one of {}", known.join(", "))
                })
            }
        }
    };
}
pub(crate) use words;

words! {
    /// How a command brings its content.
    PayloadMode {
        /// Subject and bodies as they are sent.
        Rendered = "rendered",
        /// A template's name and its variables.
        Template = "template",
    }
}

words! {
    /// One try to hand a mail for one recipient to the provider.
    AttemptStatus {
        /// To come.
        Scheduled = "scheduled",
        /// Claimed by a process.
        InProgress = "in_progress",
        /// Taken over by the provider.
        ProviderAccepted = "provider_accepted",
        /// Refused by the provider for good, or not to be sent to this address.
        ProviderRejected = "provider_rejected",
        /// Not taken over, and it may be tried again.
        TransportFailed = "transport_failed",
        /// No answer in time; not taken over.
        TimedOut = "timed_out",
        /// The content could not be made.
        RenderFailed = "render_failed",
        /// Perhaps taken over: nobody said so.
        Unknown = "unknown",
    }
}

/// What happens to an attempt.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AttemptEvent {
    /// A process takes it.
    Claimed,
    /// That process gives it back before it began.
    HandedBack,
    /// The provider took the mail over.
    Accepted,
    /// Refused for good, or suppressed.
    Rejected,
    /// Refused for now, or the way to the provider is broken, or the time for it is over.
    Failed,
    /// A phase's limit passed, or the process ended, before any content went out.
    TimedOut,
    /// The content could not be made.
    RenderFailed,
    /// Content went out and no answer came.
    LostSight,
}

impl AttemptStatus {
    /// The only place where an attempt changes its state. `None`: the event is illegal here.
    #[must_use]
    pub const fn next(self, event: AttemptEvent) -> Option<Self> {
        use {AttemptEvent as E, AttemptStatus as S};
        Some(match (self, event) {
            (S::Scheduled, E::Claimed) => S::InProgress,
            (S::Scheduled, E::RenderFailed) => S::RenderFailed,
            (S::InProgress, E::HandedBack) => S::Scheduled,
            (S::InProgress, E::Accepted) => S::ProviderAccepted,
            (S::InProgress, E::Rejected) => S::ProviderRejected,
            (S::InProgress, E::Failed) => S::TransportFailed,
            (S::InProgress, E::TimedOut) => S::TimedOut,
            (S::InProgress, E::LostSight) => S::Unknown,
            _ => return None,
        })
    }

    /// True when it will not change any more.
    #[must_use]
    pub const fn is_terminal(self) -> bool {
        !matches!(self, Self::Scheduled | Self::InProgress)
    }
}

words! {
    /// Where one recipient of a delivery stands.
    RecipientStatus {
        /// An attempt is to come or in progress.
        Open = "open",
        /// The provider has the mail.
        Sent = "sent",
        /// Not to be written to; a success.
        Suppressed = "suppressed",
        /// Refused for good.
        Failed = "failed",
        /// Given up, for a person to look at.
        DeadLetter = "dead_letter",
        /// Perhaps sent; held for a person.
        Unknown = "unknown",
    }
}

/// What happens to a recipient.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RecipientEvent {
    /// Taken over by the provider.
    Accepted,
    /// Not to be written to.
    Suppressed,
    /// Refused for good, or its content could not be made.
    Refused,
    /// Another attempt is to come.
    Again,
    /// The ladder or the time is over.
    GivenUp,
    /// The outcome is unknown and the class's rule is to hold.
    Held,
    /// A person sent it back.
    Replayed,
}

impl RecipientStatus {
    /// The only place where a recipient changes its state. `None`: the event is illegal here.
    #[must_use]
    pub const fn next(self, event: RecipientEvent) -> Option<Self> {
        use {RecipientEvent as E, RecipientStatus as S};
        Some(match (self, event) {
            (S::Open, E::Accepted) => S::Sent,
            (S::Open, E::Suppressed) => S::Suppressed,
            (S::Open, E::Refused) => S::Failed,
            (S::Open, E::Again) | (S::DeadLetter, E::Replayed) => S::Open,
            (S::Open, E::GivenUp) => S::DeadLetter,
            (S::Open, E::Held) => S::Unknown,
            _ => return None,
        })
    }
}

words! {
    /// Where a delivery stands: what its recipients together say.
    DeliveryStatus {
        /// Accepted with its content; an attempt is to come.
        Queued = "queued",
        /// Accepted and made from its template; an attempt is to come.
        Rendered = "rendered",
        /// An attempt is in progress. Seen only from outside: no row is written for it.
        Sending = "sending",
        /// The provider has it.
        Sent = "sent",
        /// Not sent, on purpose.
        Suppressed = "suppressed",
        /// Refused for good.
        Failed = "failed",
        /// Given up.
        DeadLetter = "dead_letter",
        /// Perhaps sent.
        Unknown = "unknown",
    }
}

/// How many recipients stand where.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counts {
    /// See [`RecipientStatus::Open`].
    pub open: u32,
    /// See [`RecipientStatus::Sent`].
    pub sent: u32,
    /// See [`RecipientStatus::Suppressed`].
    pub suppressed: u32,
    /// See [`RecipientStatus::Failed`].
    pub failed: u32,
    /// See [`RecipientStatus::DeadLetter`].
    pub dead: u32,
    /// See [`RecipientStatus::Unknown`].
    pub unknown: u32,
}

impl DeliveryStatus {
    /// The only place where a delivery's state comes from; `mail.derived_status` repeats it in the schema. The worst end of any
    /// recipient names the delivery's.
    #[must_use]
    pub const fn derive(mode: PayloadMode, counts: Counts) -> Self {
        match (mode, counts) {
            (PayloadMode::Template, Counts { open: 1.., .. }) => Self::Rendered,
            (PayloadMode::Rendered, Counts { open: 1.., .. }) => Self::Queued,
            (_, Counts { unknown: 1.., .. }) => Self::Unknown,
            (_, Counts { dead: 1.., .. }) => Self::DeadLetter,
            (_, Counts { failed: 1.., .. }) => Self::Failed,
            (_, Counts { sent: 1.., .. }) => Self::Sent,
            _ => Self::Suppressed,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_attempt_goes_only_where_the_table_says() {
        use {AttemptEvent as E, AttemptStatus as S};
        let legal = [
            (S::Scheduled, E::Claimed, S::InProgress),
            (S::Scheduled, E::RenderFailed, S::RenderFailed),
            (S::InProgress, E::HandedBack, S::Scheduled),
            (S::InProgress, E::Accepted, S::ProviderAccepted),
            (S::InProgress, E::Rejected, S::ProviderRejected),
            (S::InProgress, E::Failed, S::TransportFailed),
            (S::InProgress, E::TimedOut, S::TimedOut),
            (S::InProgress, E::LostSight, S::Unknown),
        ];
        let events = [
            E::Claimed,
            E::HandedBack,
            E::Accepted,
            E::Rejected,
            E::Failed,
            E::TimedOut,
            E::RenderFailed,
            E::LostSight,
        ];
        for &from in S::ALL {
            for event in events {
                let want = legal.iter().find(|(f, e, _)| *f == from && *e == event).map(|(.., to)| *to);
                assert_eq!(from.next(event), want, "{from} {event:?}");
                assert!(!(from.is_terminal() && want.is_some()), "{from} ends");
            }
        }
    }

    #[test]
    fn a_recipient_goes_only_where_the_table_says() {
        use {RecipientEvent as E, RecipientStatus as S};
        let legal = [
            (S::Open, E::Accepted, S::Sent),
            (S::Open, E::Suppressed, S::Suppressed),
            (S::Open, E::Refused, S::Failed),
            (S::Open, E::Again, S::Open),
            (S::Open, E::GivenUp, S::DeadLetter),
            (S::Open, E::Held, S::Unknown),
            (S::DeadLetter, E::Replayed, S::Open),
        ];
        let events = [E::Accepted, E::Suppressed, E::Refused, E::Again, E::GivenUp, E::Held, E::Replayed];
        for &from in S::ALL {
            for event in events {
                let want = legal.iter().find(|(f, e, _)| *f == from && *e == event).map(|(.., to)| *to);
                assert_eq!(from.next(event), want, "{from} {event:?}");
            }
        }
    }

    #[test]
    fn the_worst_end_names_the_delivery() {
        let counts =
            |open, sent, failed, dead, unknown| Counts { open, sent, suppressed: 1, failed, dead, unknown };
        let derive = |c| DeliveryStatus::derive(PayloadMode::Rendered, c);
        assert_eq!(derive(counts(1, 1, 1, 1, 1)), DeliveryStatus::Queued);
        assert_eq!(
            DeliveryStatus::derive(PayloadMode::Template, counts(1, 0, 0, 0, 0)),
            DeliveryStatus::Rendered
        );
        assert_eq!(derive(counts(0, 1, 1, 1, 1)), DeliveryStatus::Unknown);
        assert_eq!(derive(counts(0, 1, 1, 1, 0)), DeliveryStatus::DeadLetter);
        assert_eq!(derive(counts(0, 1, 1, 0, 0)), DeliveryStatus::Failed);
        assert_eq!(derive(counts(0, 1, 0, 0, 0)), DeliveryStatus::Sent);
        assert_eq!(derive(counts(0, 0, 0, 0, 0)), DeliveryStatus::Suppressed);
    }
}
