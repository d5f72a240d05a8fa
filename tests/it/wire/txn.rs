//! Transactions: what each message is answered with, and what a consumer may be given. The Go client panics at a begin
//! without its transaction, and at anything that stands between a begin and its commit.

use base64::{Engine, engine::general_purpose::STANDARD};
use prost::Message as _;
use streaming_proto::{
    messages::{BeginTxnMessageHeader, Message, TxnContext},
    streaming::{
        ConsumeRequest, ConsumeResponse, CreateVChannelConsumerRequest, DeliverPolicy, StreamingCode, consume_request,
        consume_response::Response, deliver_policy::Policy,
    },
};

use super::{
    raw::Call,
    server::{Server, append, insert},
};

const NAME: &str = "wire-txn_0";
const BEGIN: &str = "900";
const COMMIT: &str = "901";
const ROLLBACK: &str = "902";

/// A message that begins or ends a transaction.
fn frame(kind: &str, header: &impl prost::Message, txn: Option<&TxnContext>) -> Message {
    let mut message = insert(NAME, "");
    let header = STANDARD.encode(header.encode_to_vec());
    message.properties.extend([("_v", "2"), ("_t", kind), ("_h", &header)]);
    within(message, txn)
}

fn begin(keepalive_milliseconds: i64) -> Message {
    frame(BEGIN, &BeginTxnMessageHeader { keepalive_milliseconds }, None)
}

fn end(kind: &str, txn: &TxnContext) -> Message {
    frame(kind, &(), Some(txn))
}

fn within(mut message: Message, txn: Option<&TxnContext>) -> Message {
    if let Some(txn) = txn {
        message.properties.set("_tx", STANDARD.encode(txn.encode_to_vec()));
    }
    message
}

fn body(txn: &TxnContext, payload: &str) -> Message {
    within(insert(NAME, payload), Some(txn))
}

#[tokio::test(flavor = "multi_thread")]
async fn each_message_is_answered_with_its_transaction_or_with_the_code_that_stops_a_client() -> anyhow::Result<()> {
    use StreamingCode::{InvalidTransactionState, TransactionExpired, Unrecoverable};
    let Server { node, role: _role, .. } = &Server::start().await?;
    node.open(NAME, 1).await;
    let mut call = node.producer(NAME, 1).await;
    let plain = append(&mut call, insert(NAME, "plain")).await.expect("appended");
    assert_eq!(plain.txn_context, None, "a message of no transaction");
    assert!(plain.last_confirmed_id.is_some());

    let begun = append(&mut call, begin(7000)).await.expect("begun");
    let txn = begun.txn_context.expect("a begin has its transaction");
    assert_eq!((txn.keepalive_milliseconds, begun.last_confirmed_id.is_some()), (7000, true));
    let unset = append(&mut call, begin(0)).await.expect("begun").txn_context.expect("a transaction");
    assert_eq!(unset.keepalive_milliseconds, 10_000, "unless the client says");
    assert_ne!(unset.txn_id, txn.txn_id);
    for message in [body(&txn, "body"), end(COMMIT, &txn), end(ROLLBACK, &unset)] {
        let answer = append(&mut call, message).await.expect("appended");
        assert!(answer.txn_context.is_some() && answer.last_confirmed_id.is_some() && answer.id.is_some());
    }

    let nobody = TxnContext { txn_id: 4711, keepalive_milliseconds: 1000 };
    let mut elsewhere = append(&mut call, begin(0)).await.expect("begun").txn_context.map(|txn| body(&txn, "x"));
    let elsewhere = elsewhere.take().map(|mut message| {
        message.properties.set("_vc", format!("{NAME}_2v0"));
        message
    });
    let cases = [
        ("a body of no transaction", body(&nobody, "x"), TransactionExpired),
        ("a commit of no transaction", end(COMMIT, &nobody), TransactionExpired),
        ("a body after the commit", body(&txn, "x"), InvalidTransactionState),
        ("a second commit", end(COMMIT, &txn), InvalidTransactionState),
        ("a rollback after the commit", end(ROLLBACK, &txn), InvalidTransactionState),
        ("a commit after the rollback", end(COMMIT, &unset), InvalidTransactionState),
        ("a body on another vchannel", elsewhere.expect("a message"), Unrecoverable),
        ("a commit that names no transaction", frame(COMMIT, &(), None), Unrecoverable),
        ("a begin inside a transaction", within(begin(0), Some(&nobody)), Unrecoverable),
        // The protocol says INVAILD_ARGUMENT, which a client would send again for ever.
        ("a keepalive below a millisecond", begin(-2), Unrecoverable),
    ];
    for (what, message, code) in cases {
        let error = append(&mut call, message).await.expect_err(what);
        assert_eq!(error.code(), code, "{what}: {}", error.cause);
    }
    append(&mut call, insert(NAME, "the stream lives on")).await.expect("appended");
    Ok(())
}

/// What the client's own transaction buffer takes, and at what it panics.
#[derive(Default)]
struct Buffer {
    open: Option<(String, Vec<String>)>,
    last: u64,
    whole: Vec<Vec<String>>,
}

impl Buffer {
    fn take(&mut self, properties: &streaming_proto::Properties, payload: &[u8]) {
        let tick = u64::from_str_radix(properties.get("_tt").expect("a tick"), 36).expect("base 36");
        // That of a tick is no text.
        let payload = String::from_utf8_lossy(payload).into_owned();
        let txn = properties.get("_tx").map(str::to_owned);
        match (properties.get("_t").expect("a type"), &mut self.open) {
            // A begin keeps its own tick, which is older than what was delivered.
            (BEGIN, None) => self.open = Some((txn.expect("a transaction"), Vec::new())),
            (COMMIT, Some((open, bodies))) => {
                assert_eq!(txn.as_ref(), Some(&*open), "the commit of another one");
                self.whole.push(std::mem::take(bodies));
                self.open = None;
                assert!(tick > self.last);
                self.last = tick;
            }
            (kind, Some((open, bodies))) => {
                assert_eq!((kind, txn.as_ref()), ("2", Some(&*open)), "between a begin and its commit");
                assert!(tick > self.last && properties.contains("_lc"), "a body has the commit's place");
                bodies.push(payload);
            }
            (kind, None) => {
                assert!(txn.is_none(), "{kind} outside of its transaction");
                assert!(tick >= self.last, "ticks rise");
                self.last = tick;
                if kind != "1" {
                    self.whole.push(vec![payload]);
                }
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_consumer_gets_transactions_in_a_row_with_nothing_between_their_messages() -> anyhow::Result<()> {
    let Server { node, role: _role, .. } = &Server::start().await?;
    node.open(NAME, 1).await;
    let read = async || {
        let call = node.consumer(NAME, 1).await;
        let deliver_policy = Some(DeliverPolicy { policy: Some(Policy::All(())) });
        let asked = CreateVChannelConsumerRequest { deliver_policy, ..CreateVChannelConsumerRequest::default() };
        call.send(&ConsumeRequest { request: Some(consume_request::Request::CreateVchannelConsumer(asked)) }).await;
        call
    };
    // One reads while it is written, one when it is there.
    let tail = read().await;
    let mut call = node.producer(NAME, 1).await;
    let mut expected = Vec::new();
    for round in 0..20 {
        let mut open = Vec::new();
        for _ in 0..3 {
            open.push(append(&mut call, begin(0)).await.expect("begun").txn_context.expect("a transaction"));
        }
        for number in 0..3 {
            for (index, txn) in open.iter().enumerate() {
                append(&mut call, body(txn, &format!("{round} {index} {number}"))).await.expect("appended");
            }
            let plain = format!("{round} plain {number}");
            append(&mut call, insert(NAME, &plain)).await.expect("appended");
            expected.push(vec![plain]);
        }
        if round % 5 == 0 {
            // Ticks come while transactions are open.
            tokio::time::sleep(std::time::Duration::from_millis(250)).await;
        }
        append(&mut call, end(COMMIT, &open[2])).await.expect("committed");
        append(&mut call, end(ROLLBACK, &open[1])).await.expect("rolled back");
        append(&mut call, end(COMMIT, &open[0])).await.expect("committed");
        for index in [2, 0] {
            expected.push((0..3).map(|number| format!("{round} {index} {number}")).collect());
        }
    }
    for mut consumer in [tail, read().await] {
        let mut buffer = Buffer::default();
        while buffer.whole.len() < expected.len() {
            match next(&mut consumer).await {
                Response::CreateVchannel(_) => {}
                Response::Consume(consumed) => {
                    let message = consumed.message.expect("a message");
                    buffer.take(&message.properties, &message.payload);
                }
                other => panic!("{other:?}"),
            }
        }
        assert_eq!(buffer.whole, expected);
    }
    Ok(())
}

async fn next(call: &mut Call<ConsumeResponse>) -> Response {
    call.next().await.expect("a response").expect("no end").response.expect("every response says something")
}
