use std::time::Duration;

use proptest::prelude::*;
use streaming_types::MessageId;
use woodpecker_base::clock::Clock;

use super::*;

type Reply = oneshot::Receiver<Result<AppendResult, AppendError>>;

fn entry(name: &str, now: Instant) -> (Box<Entry>, Reply) {
    let (reply, result) = oneshot::channel();
    let message = Arc::new(Message { payload: name.to_owned().into(), ..Message::default() });
    let deadline = now + Duration::from_secs(100);
    let entry = Box::new(Entry {
        message,
        size: 1,
        admitted: now,
        deadline,
        reply,
        held: None,
        sent: false,
        failures: 0,
        retry_at: now,
        scope: Scope::Request,
    });
    (entry, result)
}

fn done() -> AppendResult {
    AppendResult {
        id: MessageId::new(1, 1),
        time_tick: streaming_types::TimeTick(1),
        last_confirmed_id: None,
        txn: None,
        extra: None,
    }
}

/// A window with the messages `a`, `b`, `c`, …
fn window(order: Order, count: u8, now: Instant) -> (Window, Vec<Reply>) {
    let mut window = Window::new(order);
    let names = (b'a'..b'a' + count).map(|name| char::from(name).to_string());
    let replies = names.map(|name| {
        let (entry, reply) = entry(&name, now);
        window.push(entry);
        reply
    });
    let replies = replies.collect();
    (window, replies)
}

/// Sends all that may be sent: `1a` is request 1 with payload `a`.
fn send(window: &mut Window) -> Vec<String> {
    let mut sent = Vec::new();
    while let Some((id, message)) = window.next() {
        sent.push(format!("{id}{}", String::from_utf8_lossy(&message.payload)));
    }
    sent
}

fn acknowledge(window: &mut Window, id: i64) {
    window.take(id, true).expect("is waiting").finish(Ok(done()));
}

const PAUSE: Duration = Duration::from_secs(1);

fn now() -> Instant {
    Clock::system().now()
}

#[test]
fn ended_stream_puts_back_what_is_not_acknowledged() {
    for order in [Order::Strict, Order::Relaxed] {
        let (mut window, mut replies) = window(order, 4, now());
        let first: Vec<_> = (0..3).filter_map(|_| window.next()).collect();
        assert_eq!(first.len(), 3);
        acknowledge(&mut window, 1);
        window.stream_ended();
        assert_eq!(send(&mut window), ["1b", "2c", "3d"], "ids begin anew, order stays");
        assert_eq!(replies[0].try_recv(), Ok(Ok(done())));
        assert!(replies[1].try_recv().is_err(), "still open");
    }
}

#[test]
fn answer_for_an_unknown_request_is_nobodys() {
    let (mut window, _replies) = window(Order::Strict, 1, now());
    assert!(window.take(1, true).is_none());
    send(&mut window);
    acknowledge(&mut window, 1);
    assert!(window.take(1, true).is_none(), "answered twice");
    window.fail(1, Scope::Request, now(), |_| PAUSE);
    assert!(window.is_empty());
}

#[test]
fn strict_window_retries_when_all_is_answered_and_the_pause_is_over() {
    let start = now();
    let (mut window, _replies) = window(Order::Strict, 4, start);
    let _ = (window.next(), window.next(), window.next());
    window.fail(1, Scope::Request, start, |_| PAUSE);
    assert!(!window.has_next() && window.next().is_none(), "d must not pass a");
    assert!(window.is_draining());
    assert_eq!(window.next_deadline(), Some(start + Duration::from_secs(100)), "only answers can help now");
    window.fail(2, Scope::Request, start, |_| PAUSE);
    window.fail(3, Scope::Request, start, |failures| PAUSE * (failures + 2));
    assert!(!window.is_draining());
    assert_eq!(window.next_deadline(), Some(start + PAUSE * 2));
    window.retry(start + PAUSE);
    assert!(!window.has_next(), "c has a longer pause");
    window.retry(start + PAUSE * 2);
    assert_eq!(send(&mut window), ["4a", "5b", "6c", "7d"]);
}

#[test]
fn strict_window_gives_up_what_was_overtaken() {
    let start = now();
    let (mut window, mut replies) = window(Order::Strict, 4, start);
    send(&mut window);
    window.fail(2, Scope::Request, start, |_| PAUSE);
    for id in [1, 3] {
        acknowledge(&mut window, id);
    }
    window.fail(4, Scope::Request, start, |_| PAUSE);
    window.retry(start + PAUSE);
    assert_eq!(replies[1].try_recv(), Ok(Err(AppendError::Overtaken)));
    assert_eq!(send(&mut window), ["5d"], "nothing behind d was acknowledged");
    window.stream_ended();
    assert_eq!(send(&mut window), ["1d"]);
}

#[test]
fn strict_window_gives_up_what_may_have_been_overtaken_when_the_stream_ended() {
    for (scope, resent) in [(Scope::Request, vec!["1b"]), (Scope::Log, vec!["1a", "2b"])] {
        let start = now();
        let (mut window, _replies) = window(Order::Strict, 2, start);
        send(&mut window);
        window.fail(1, scope, start, |_| PAUSE);
        window.stream_ended();
        assert_eq!(send(&mut window), resent, "{scope:?}");
    }
}

#[test]
fn relaxed_window_retries_each_on_its_own() {
    let start = now();
    let (mut window, _replies) = window(Order::Relaxed, 3, start);
    assert_eq!(send(&mut window), ["1a", "2b", "3c"]);
    window.fail(1, Scope::Request, start, |_| PAUSE);
    acknowledge(&mut window, 2);
    assert!(!window.is_draining());
    assert_eq!(window.next_deadline(), Some(start + PAUSE));
    window.retry(start + PAUSE);
    assert_eq!(send(&mut window), ["4a"]);
}

#[test]
fn failures_of_one_append_are_counted() {
    let start = now();
    let (mut window, _replies) = window(Order::Strict, 1, start);
    for expected in 0..5 {
        let (id, _) = window.next().expect("is to be sent");
        window.fail(id, Scope::Request, start, |failures| {
            assert_eq!(failures, expected);
            Duration::ZERO
        });
        window.retry(start);
    }
}

#[test]
fn time_runs_out_for_queued_sent_and_failed_appends() {
    let start = now();
    let (mut window, mut replies) = window(Order::Relaxed, 3, start);
    let _ = (window.next(), window.next());
    window.fail(1, Scope::Request, start, |_| PAUSE);
    assert_eq!(window.len(), 3);
    window.expire(start + Duration::from_secs(99), Some("the node is busy"));
    assert_eq!(window.len(), 3);
    window.expire(start + Duration::from_secs(100), Some("the node is busy"));
    assert!(window.is_empty() && window.next_deadline().is_none());
    for (reply, was_sent) in replies.iter_mut().zip([true, true, false]) {
        let after = Duration::from_secs(100);
        let timeout = AppendError::Timeout { after, sent: was_sent, cause: "the node is busy".to_owned() };
        assert_eq!(reply.try_recv(), Ok(Err(timeout)));
    }
}

#[test]
fn refusing_ends_what_was_never_sent() {
    let (mut window, mut replies) = window(Order::Strict, 2, now());
    let _ = window.next();
    window.stream_ended();
    let why = StreamingError::unrecoverable("no");
    assert_eq!(window.refuse(&why), 1);
    assert_eq!(replies[1].try_recv(), Ok(Err(AppendError::Refused(why))));
    assert_eq!((window.len(), replies[0].try_recv().is_err()), (1, true), "what may be in the log is sent again");
}

#[test]
fn close_tells_what_may_be_in_the_log() {
    let (mut window, mut replies) = window(Order::Strict, 2, now());
    let _ = window.next();
    window.close();
    assert_eq!(replies[0].try_recv(), Ok(Err(AppendError::Closed { sent: true })));
    assert_eq!(replies[1].try_recv(), Ok(Err(AppendError::Closed { sent: false })));
}

#[derive(Debug, Clone)]
enum Event {
    Send,
    Acknowledge(usize),
    Fail(usize),
    Fence,
    Retry,
    Break { appended: usize },
}

fn events() -> impl Strategy<Value = Vec<Event>> {
    let event = prop_oneof![
        4 => Just(Event::Send),
        4 => (0..4_usize).prop_map(Event::Acknowledge),
        1 => (0..4_usize).prop_map(Event::Fail),
        1 => Just(Event::Fence),
        2 => Just(Event::Retry),
        1 => (0..4_usize).prop_map(|appended| Event::Break { appended }),
    ];
    prop::collection::vec(event, 0..80)
}

proptest! {
    /// Whatever the server answers and whenever streams break: first copies lie in the log in call order, but for what the
    /// caller was told to have been overtaken; what was acknowledged is not sent again; nothing is lost.
    #[test]
    fn strict_window_keeps_the_order(events in events()) {
        let start = now();
        let (mut window, mut replies) = window(Order::Strict, 10, start);
        let mut log: Vec<String> = Vec::new();
        // On the wire and not answered; the server handles requests in this order.
        let mut wire: Vec<(i64, String)> = Vec::new();
        let mut acknowledged: Vec<String> = Vec::new();
        for event in events.into_iter().chain(std::iter::repeat_n([Event::Send, Event::Retry, Event::Acknowledge(0)], 40).flatten()) {
            match event {
                Event::Send => if let Some((id, message)) = window.next() {
                    let name = String::from_utf8_lossy(&message.payload).into_owned();
                    prop_assert!(!acknowledged.contains(&name), "{name} was acknowledged before");
                    wire.push((id, name));
                },
                Event::Acknowledge(nth) => {
                    // All before it were handled too; those that are skipped here failed without being appended.
                    for _ in 0..nth.min(wire.len().saturating_sub(1)) {
                        let (id, _) = wire.remove(0);
                        window.fail(id, Scope::Request, start, |_| Duration::ZERO);
                    }
                    if !wire.is_empty() {
                        let (id, name) = wire.remove(0);
                        log.push(name.clone());
                        acknowledged.push(name);
                        acknowledge(&mut window, id);
                    }
                }
                Event::Fail(nth) => for _ in 0..nth.min(wire.len()) {
                    let (id, _) = wire.remove(0);
                    window.fail(id, Scope::Request, start, |_| Duration::ZERO);
                },
                Event::Fence => {
                    // The first answer may be all that arrives before the stream ends.
                    if let Some((id, _)) = wire.drain(..).next() {
                        window.fail(id, Scope::Log, start, |_| Duration::ZERO);
                        window.stream_ended();
                    }
                }
                Event::Retry => window.retry(start),
                Event::Break { appended } => {
                    log.extend(wire.drain(..).take(appended).map(|(_, name)| name));
                    window.stream_ended();
                }
            }
        }
        prop_assert!(window.is_empty());
        let overtaken: Vec<String> = (b'a'..).zip(&mut replies).filter_map(|(name, reply)| match reply.try_recv() {
            Ok(Ok(_)) => None,
            Ok(Err(AppendError::Overtaken)) => Some(char::from(name).to_string()),
            other => panic!("{other:?}"),
        }).collect();
        let mut seen = std::collections::BTreeSet::new();
        let firsts: Vec<&String> = log.iter().filter(|name| seen.insert(name.as_str())).filter(|name| !overtaken.contains(name)).collect();
        prop_assert!(firsts.is_sorted(), "{firsts:?}");
        prop_assert_eq!(firsts.len() + overtaken.len(), 10);
    }
}
