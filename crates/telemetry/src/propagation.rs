//! The W3C `traceparent`, which carries a trace through a job's envelope or a script's environment.

use opentelemetry::trace::{SpanContext, SpanId, TraceContextExt as _, TraceFlags, TraceId, TraceState};
use tracing_opentelemetry::OpenTelemetrySpanExt as _;

/// The current span as a `traceparent` (version 00, 55 characters), or nothing outside every span.
pub fn current_traceparent() -> Option<String> {
    traceparent_of(&tracing::Span::current())
}

/// A span as a `traceparent`; nothing when it is disabled. Fixes the span's parent: call
/// [`continue_trace`] first where both are wanted.
pub fn traceparent_of(span: &tracing::Span) -> Option<String> {
    let context = span.context();
    let span = context.span();
    let ids = span.span_context();
    ids.is_valid()
        .then(|| format!("00-{}-{}-{:02x}", ids.trace_id(), ids.span_id(), ids.trace_flags().to_u8()))
}

/// Makes `span` a child of the span that `traceparent` names, in this process or another. Call it before the span is
/// entered. Returns false, and leaves `span` as it was, when the text is not a valid `traceparent` or comes too late.
pub fn continue_trace(span: &tracing::Span, traceparent: &str) -> bool {
    let Some(parent) = parse(traceparent) else { return false };
    let context = opentelemetry::Context::new().with_remote_span_context(parent);
    span.set_parent(context).is_ok()
}

/// Links `span` to the span that `traceparent` names: for work that was caused by another trace without being a part of
/// it, such as a batch. Returns false when the text is not a valid `traceparent`.
pub fn link_trace(span: &tracing::Span, traceparent: &str) -> bool {
    parse(traceparent).is_some_and(|linked| {
        span.add_link(linked);
        true
    })
}

/// A new `info` span called `job` that continues `traceparent` where that is valid, and begins a trace where it is not.
pub fn span_from_traceparent(traceparent: Option<&str>) -> tracing::Span {
    let span = tracing::info_span!(parent: None, "job");
    if let Some(traceparent) = traceparent {
        continue_trace(&span, traceparent);
    }
    span
}

/// Reads a `traceparent` as the W3C recommendation wants: lower-case hex, no zero ids, later versions by their first
/// four parts, version ff never.
fn parse(text: &str) -> Option<SpanContext> {
    let mut parts = text.trim().split('-');
    let version = hex(parts.next()?, 2)?;
    let trace = TraceId::from_hex(hex(parts.next()?, 32)?).ok()?;
    let span = SpanId::from_hex(hex(parts.next()?, 16)?).ok()?;
    let flags = u8::from_str_radix(hex(parts.next()?, 2)?, 16).ok()?;
    if version == "ff" || (version == "00" && parts.next().is_some()) {
        return None;
    }
    let flags = TraceFlags::new(flags) & TraceFlags::SAMPLED;
    let parsed = SpanContext::new(trace, span, flags, true, TraceState::default());
    parsed.is_valid().then_some(parsed)
}

fn hex(part: &str, digits: usize) -> Option<&str> {
    let sound = part.len() == digits && part.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
    sound.then_some(part)
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";

    #[test]
    fn only_a_sound_traceparent_is_read() {
        let parsed = parse(GOOD).expect("the recommendation's own example");
        assert_eq!(parsed.trace_id().to_string(), "0af7651916cd43dd8448eb211c80319c");
        assert!(parsed.is_sampled() && parsed.is_remote());
        assert!(parse(&GOOD.replace("00-0af", "cc-0af").replace("-01", "-01-what-comes-later")).is_some());
        for bad in [
            "",
            "00",
            &GOOD.to_uppercase(),
            &GOOD.replace("00-0af", "ff-0af"),
            &format!("{GOOD}-00"),
            &GOOD.replace("b7ad6b7169203331", "0000000000000000"),
            &GOOD.replace("0af7651916cd43dd8448eb211c80319c", &"0".repeat(32)),
            &GOOD.replace("-01", "-1"),
            &GOOD.replace("0af7", "+af7"),
        ] {
            assert!(parse(bad).is_none(), "{bad}");
        }
    }
}
