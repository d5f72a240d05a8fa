//! Traces across processes. Spans of the target [`TARGET`] are for a trace collector, not for logs: where none is
//! configured nobody wants them, and making one costs a load of an atomic. Their place in a trace travels as a W3C
//! `traceparent` with the message.

use opentelemetry::{
    Context, SpanId, TraceFlags, TraceId,
    trace::{SpanContext, TraceContextExt, TraceState},
};
use tracing::Span;
use tracing_opentelemetry::OpenTelemetrySpanExt;

/// The target of spans that a collector gets.
pub const TARGET: &str = "streaming::trace";

/// Makes a span a part of the trace that a message carries, if it names one.
pub fn continue_from(span: &Span, traceparent: &str) {
    if span.is_disabled() {
        return;
    }
    if let Some(parent) = decode(traceparent) {
        // Fails only where no layer knows the span, which is then nobody's.
        let _ = span.set_parent(Context::new().with_remote_span_context(parent));
    }
}

/// The span's place in its trace, for a message to carry; `None` if nobody wants the span.
#[must_use]
pub fn traceparent(span: &Span) -> Option<String> {
    if span.is_disabled() {
        return None;
    }
    let context = span.context();
    let place = context.span().span_context().clone();
    place.is_valid().then(|| encode(&place))
}

fn encode(place: &SpanContext) -> String {
    format!("00-{:032x}-{:016x}-{:02x}", place.trace_id(), place.span_id(), place.trace_flags().to_u8() & 1)
}

fn decode(text: &str) -> Option<SpanContext> {
    let mut parts = text.split('-');
    let (version, trace, span, flags) = (parts.next()?, parts.next()?, parts.next()?, parts.next()?);
    // Later versions may add parts; this one has none.
    let known = version.len() == 2 && version != "ff" && (version != "00" || parts.next().is_none());
    if !known || trace.len() != 32 || span.len() != 16 || flags.len() != 2 {
        return None;
    }
    let flags = TraceFlags::new(u8::from_str_radix(flags, 16).ok()? & 1);
    let (trace, span) = (TraceId::from_hex(trace).ok()?, SpanId::from_hex(span).ok()?);
    let place = SpanContext::new(trace, span, flags, true, TraceState::default());
    place.is_valid().then_some(place)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_place_in_a_trace_survives_its_way() {
        let text = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
        let place = decode(text).unwrap();
        assert!(place.is_sampled() && place.is_remote());
        assert_eq!(encode(&place), text);
    }

    #[test]
    fn what_is_no_place_in_a_trace_is_none() {
        for text in [
            "",
            "nonsense",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7",
            "00-00000000000000000000000000000000-00f067aa0ba902b7-01",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01-more",
            "ff-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
            "00-4bf92f3577b34da6a3ce929d0e0e473g-00f067aa0ba902b7-01",
        ] {
            assert!(decode(text).is_none(), "{text}");
        }
    }

    #[test]
    fn without_a_collector_there_is_nothing_to_carry() {
        let span = tracing::trace_span!(target: TARGET, "produce");
        continue_from(&span, "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01");
        assert_eq!(traceparent(&span), None);
    }
}
