//! One JSON object a line.

use std::borrow::Cow;
use std::error::Error;
use std::fmt::{self, Write as _};
use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::io::Write;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Instant;

use opentelemetry::trace::TraceContextExt as _;
use serde_json::Value;
use tracing::dispatcher::WeakDispatch;
use tracing::field::{Field, Visit};
use tracing::span::{Attributes, Id, Record};
use tracing::{Dispatch, Event, Metadata, Subscriber};
use tracing_subscriber::Layer;
use tracing_subscriber::layer::Context;
use tracing_subscriber::registry::LookupSpan;

use crate::repeat::{Repeats, Verdict, distinguishes, is_name};

/// Longest text of one field; a longer one is cut and says so, for one line must not fill a disk.
const TEXT_MAX: usize = 16 * 1024;

/// Names that the layer itself writes; a field of that name is written as `field.<name>`.
const RESERVED: [&str; 9] = [
    "timestamp",
    "level",
    "target",
    "service",
    "instance",
    "span",
    "otel_trace_id",
    "otel_span_id",
    "repeats_left_out",
];

/// Where lines go. Cloned by the layer and by whoever flushes it.
#[derive(Clone)]
pub(crate) struct Sink {
    out: Arc<Mutex<Box<dyn Write + Send>>>,
    repeats: Arc<Repeats>,
}

impl Sink {
    pub(crate) fn new(out: Box<dyn Write + Send>) -> Self {
        Self { out: Arc::new(Mutex::new(out)), repeats: Arc::default() }
    }

    /// Writes the counts of lines that were left out and have not come again.
    pub(crate) fn write_left_out(&self) {
        for late in self.repeats.drain() {
            self.write(&late.body, late.left_out);
        }
    }

    fn write(&self, body: &str, left_out: u64) {
        let now = jiff::Timestamp::now().strftime("%Y-%m-%dT%H:%M:%S%.3fZ");
        let mut line = format!("{{\"timestamp\":\"{now}\"{body}");
        if left_out > 0 {
            let _ = write!(line, ",\"repeats_left_out\":{left_out}");
        }
        line.push_str("}\n");
        let mut out = self.out.lock().unwrap_or_else(PoisonError::into_inner);
        // A log that cannot be written must not stop the work, and there is nowhere left to say so.
        let _ = out.write_all(line.as_bytes());
        let _ = out.flush();
    }
}

/// The layer that writes the lines.
pub(crate) struct JsonLayer {
    sink: Sink,
    service: String,
    instance: String,
    /// The subscriber this layer belongs to: asked for the trace ids of a span.
    dispatch: OnceLock<WeakDispatch>,
}

impl JsonLayer {
    pub(crate) fn new(sink: Sink, service: &str, instance: &str) -> Self {
        Self { sink, service: service.to_owned(), instance: instance.to_owned(), dispatch: OnceLock::new() }
    }

    /// The ids of the innermost span that is traced, as 32 and 16 hex digits.
    fn trace_ids(&self, spans: &[Id]) -> Option<(String, String)> {
        let dispatch = self.dispatch.get()?.upgrade()?;
        spans.iter().find_map(|id| {
            let context = tracing_opentelemetry::get_otel_context(id, &dispatch)?;
            let span = context.span();
            let ids = span.span_context();
            ids.is_valid().then(|| (ids.trace_id().to_string(), ids.span_id().to_string()))
        })
    }

    /// The line without its time and closing brace.
    fn body(
        &self,
        metadata: &Metadata<'_>,
        fields: &Fields,
        span: Option<&str>,
        ids: Option<&(String, String)>,
    ) -> String {
        let mut body = String::with_capacity(256);
        put(&mut body, "level", &Value::from(metadata.level().as_str()));
        put(&mut body, "target", &Value::from(metadata.target()));
        put(&mut body, "message", fields.get("message").unwrap_or(&Value::Null));
        for (name, value) in fields.0.iter().filter(|(name, _)| name != "message") {
            if RESERVED.contains(&name.as_ref()) {
                put(&mut body, &format!("field.{name}"), value);
            } else {
                put(&mut body, name, value);
            }
        }
        if let Some(span) = span {
            put(&mut body, "span", &Value::from(span));
        }
        if let Some((trace, span)) = ids {
            put(&mut body, "otel_trace_id", &Value::from(trace.as_str()));
            put(&mut body, "otel_span_id", &Value::from(span.as_str()));
        }
        put(&mut body, "service", &Value::from(self.service.as_str()));
        put(&mut body, "instance", &Value::from(self.instance.as_str()));
        body
    }
}

impl<S> Layer<S> for JsonLayer
where
    S: Subscriber + for<'a> LookupSpan<'a>,
{
    fn on_register_dispatch(&self, dispatch: &Dispatch) {
        let _ = self.dispatch.set(dispatch.downgrade());
    }

    fn on_new_span(&self, attributes: &Attributes<'_>, id: &Id, context: Context<'_, S>) {
        let mut fields = Fields::default();
        attributes.record(&mut fields);
        if let Some(span) = context.span(id) {
            span.extensions_mut().insert(fields);
        }
    }

    fn on_record(&self, id: &Id, values: &Record<'_>, context: Context<'_, S>) {
        // Visited before the span is locked: a value's own `Debug` may log.
        let mut fields = Fields::default();
        values.record(&mut fields);
        if let Some(span) = context.span(id)
            && let Some(known) = span.extensions_mut().get_mut::<Fields>()
        {
            known.merge(fields);
        }
    }

    fn on_event(&self, event: &Event<'_>, context: Context<'_, S>) {
        let mut own = Fields::default();
        event.record(&mut own);
        let mut fields = Fields::default();
        let mut spans = Vec::new();
        let mut innermost = None;
        let scope = context.event_scope(event).map(tracing_subscriber::registry::Scope::from_root);
        for span in scope.into_iter().flatten() {
            if let Some(known) = span.extensions().get::<Fields>() {
                fields.merge(known.clone());
            }
            spans.push(span.id());
            innermost = Some(span.name());
        }
        spans.reverse();
        fields.remove("message");
        fields.merge(own);
        let key = line_key(event.metadata(), &fields);
        let body = self.body(event.metadata(), &fields, innermost, self.trace_ids(&spans).as_ref());
        let (verdict, late) = self.sink.repeats.observe(key, &body, Instant::now());
        for late in late {
            self.sink.write(&late.body, late.left_out);
        }
        if let Verdict::Write { left_out } = verdict {
            self.sink.write(&body, left_out);
        }
    }
}

/// What makes a line the same line: see [`crate::repeat`].
fn line_key(metadata: &Metadata<'_>, fields: &Fields) -> u64 {
    let mut hasher = DefaultHasher::new();
    metadata.callsite().hash(&mut hasher);
    metadata.target().hash(&mut hasher);
    let named = fields.0.iter().any(|(name, _)| is_name(name));
    for (name, value) in fields.0.iter().filter(|(name, _)| distinguishes(name, named)) {
        name.hash(&mut hasher);
        value.to_string().hash(&mut hasher);
    }
    hasher.finish()
}

/// Appends `,"name":value`, on one line whatever the value holds.
fn put(line: &mut String, name: &str, value: &Value) {
    line.push(',');
    escape_controls(line, &Value::from(name).to_string());
    line.push(':');
    escape_controls(line, &value.to_string());
}

/// JSON leaves the C1 controls and the Unicode line separators as they are; terminals and line readers obey them.
fn escape_controls(line: &mut String, json: &str) {
    for c in json.chars() {
        if matches!(c, '\u{7f}'..='\u{9f}' | '\u{2028}' | '\u{2029}') {
            let _ = write!(line, "\\u{:04x}", u32::from(c));
        } else {
            line.push(c);
        }
    }
}

/// The fields of a span or an event, in order, each name once.
#[derive(Debug, Clone, Default)]
struct Fields(Vec<(Cow<'static, str>, Value)>);

impl Fields {
    fn get(&self, name: &str) -> Option<&Value> {
        self.0.iter().find(|(known, _)| known == name).map(|(_, value)| value)
    }

    fn set(&mut self, name: Cow<'static, str>, value: Value) {
        match self.0.iter_mut().find(|(known, _)| *known == name) {
            Some((_, known)) => *known = value,
            None => self.0.push((name, value)),
        }
    }

    fn remove(&mut self, name: &str) {
        self.0.retain(|(known, _)| known != name);
    }

    fn merge(&mut self, newer: Self) {
        for (name, value) in newer.0 {
            self.set(name, value);
        }
    }

    /// A text under a name that ends in `_json` is shown as the JSON it holds, under the name without that ending.
    fn set_text(&mut self, field: &Field, text: &str) {
        if let Some(name) = field.name().strip_suffix("_json")
            && let Ok(value) = serde_json::from_str::<Value>(text)
        {
            self.set(Cow::Borrowed(name), value);
            return;
        }
        self.set(Cow::Borrowed(field.name()), Value::from(cut(text)));
    }
}

impl Visit for Fields {
    fn record_f64(&mut self, field: &Field, value: f64) {
        let number = serde_json::Number::from_f64(value);
        let value = number.map_or_else(|| Value::from(value.to_string()), Value::Number);
        self.set(Cow::Borrowed(field.name()), value);
    }

    fn record_i64(&mut self, field: &Field, value: i64) {
        self.set(Cow::Borrowed(field.name()), Value::from(value));
    }

    fn record_u64(&mut self, field: &Field, value: u64) {
        self.set(Cow::Borrowed(field.name()), Value::from(value));
    }

    fn record_bool(&mut self, field: &Field, value: bool) {
        self.set(Cow::Borrowed(field.name()), Value::from(value));
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        self.set_text(field, value);
    }

    fn record_error(&mut self, field: &Field, value: &(dyn Error + 'static)) {
        let mut text = value.to_string();
        let mut source = value.source();
        while let Some(cause) = source {
            let _ = write!(text, ": {cause}");
            source = cause.source();
        }
        self.set_text(field, &text);
    }

    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        self.set_text(field, &format!("{value:?}"));
    }
}

fn cut(text: &str) -> Cow<'_, str> {
    if text.len() <= TEXT_MAX {
        return Cow::Borrowed(text);
    }
    let mut end = TEXT_MAX;
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    Cow::Owned(format!("{}… ({} bytes left out)", &text[..end], text.len() - end))
}
