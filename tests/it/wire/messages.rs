//! Messages that no well-behaved client sends. Each is refused in band with UNRECOVERABLE: with any other code a client
//! would send it for ever. The stream lives on.

use prost::Message as _;
use streaming_proto::{messages::Message, streaming::StreamingCode};

use super::server::{MAX_MESSAGE, Said, Server, append, insert, produce, said};

const NAME: &str = "wire-messages_0";

fn with(key: &str, value: &str) -> Message {
    let mut message = insert(NAME, "payload");
    message.properties.set(key, value);
    message
}

fn without(key: &str) -> Message {
    let mut message = insert(NAME, "payload");
    message.properties.remove(key);
    message
}

/// Messages that are refused, and what the refusal names.
fn refused() -> Vec<(&'static str, Message, &'static str)> {
    let mut broadcast = without("_vc");
    broadcast.properties.set("_bh", "CAU=");
    vec![
        ("no version", without("_v"), "_v"),
        ("a version to come", with("_v", "9"), "_v"),
        ("the version of another type", with("_v", "2"), "_v"),
        ("no type", without("_t"), "_t"),
        ("type 0", with("_t", "0"), ""),
        ("an unknown type", with("_t", "4711"), "unsupported message type"),
        ("a type that is no number", with("_t", "insert"), "_t"),
        ("a negative type", with("_t", "-2"), ""),
        ("a type of memory only", with("_t", "999"), "unsupported message type"),
        ("a tick", with("_t", "1"), "written by the node only"),
        ("a flush", with("_t", "4"), "written by the node only"),
        ("a new segment", with("_t", "10"), "written by the node only"),
        ("no header", without("_h"), "_h"),
        ("a header that is no base64", with("_h", "?"), "_h"),
        ("a header without padding", with("_h", "CAESBwgCEAoYgAg"), "_h"),
        ("a header of something else", with("_h", "/////w=="), "_h"),
        ("no vchannel", without("_vc"), "_vc"),
        ("a vchannel of another channel", with("_vc", "elsewhere_1v0"), "_vc"),
        ("a broadcast that names no vchannel", broadcast, "_vc"),
        ("a broken broadcast header", with("_bh", "?"), "_bh"),
        ("a broken barrier", with("_btt", "-"), "_btt"),
        ("a barrier too far away", with("_btt", "3w5e11264sgsf"), "_btt"),
        ("a broken transaction", with("_tx", "?"), "_tx"),
        ("a broken replicate header", with("_rh", "?"), "_rh"),
        ("a broken cipher header", with("_ch", "?"), "_ch"),
        ("a tick of its own", with("_tt", "1"), "_tt"),
        ("a term of its own", with("_wt", "1"), "_wt"),
        ("a last-confirmed id of its own", with("_lc", "CAMQEQ=="), "_lc"),
        ("a last-confirmed mark of its own", with("_lcs", ""), "_lcs"),
        ("a mark of memory", with("_np", ""), "_np"),
        ("no body", insert(NAME, ""), "payload is empty"),
        ("a large body", insert(NAME, &"x".repeat(MAX_MESSAGE)), "larger than"),
        ("a large property", with("user", &"x".repeat(MAX_MESSAGE)), "larger than"),
    ]
}

#[tokio::test(flavor = "multi_thread")]
async fn each_is_refused_for_good_and_the_stream_lives_on() -> anyhow::Result<()> {
    let Server { node, role: _role, .. } = &Server::start().await?;
    node.open(NAME, 1).await;
    let mut call = node.producer(NAME, 1).await;
    for (what, message, cause) in refused() {
        let error = append(&mut call, message).await.expect_err(what);
        assert_eq!(error.code(), StreamingCode::Unrecoverable, "{what}: {}", error.cause);
        assert!(error.cause.contains(cause), "{what}: {:?} does not say {cause:?}", error.cause);
    }
    // A replicated message comes to a primary.
    let error = append(&mut call, with("_rh", "CgdieS1kZXYy")).await.expect_err("replicated");
    assert_eq!(error.code(), StreamingCode::ReplicateViolation, "{}", error.cause);
    // A body of a transaction that nobody began: whatever the code, the user is told and nobody tries again.
    let error = append(&mut call, with("_tx", "COkHEJBO")).await.expect_err("no transaction");
    assert!(
        matches!(error.code(), StreamingCode::Unrecoverable | StreamingCode::TransactionExpired),
        "{:?}: {}",
        error.code(),
        error.cause
    );
    call.send(&produce(5, None)).await;
    let Said::Answer(5, Err(error)) = said(&mut call).await else { panic!("no refusal") };
    assert_eq!(error.code(), StreamingCode::Unrecoverable, "{}", error.cause);
    // Reserved keys of later versions and keys of users pass, and so does the largest message.
    append(&mut call, with("_zz", "later")).await.expect("appended");
    append(&mut call, with("user", "")).await.expect("appended");
    append(&mut call, insert(NAME, &"x".repeat(MAX_MESSAGE - 200))).await.expect("appended");
    Ok(())
}

/// A produce request whose message has this property after its other ones, whether it has it already or not.
fn doubled(message: &Message, key: &str, value: &str) -> Vec<u8> {
    let field = |tag: u8, bytes: &[u8]| {
        let mut field = vec![tag << 3 | 2];
        prost::encoding::encode_varint(bytes.len() as u64, &mut field);
        field.extend_from_slice(bytes);
        field
    };
    let entry = [field(1, key.as_bytes()), field(2, value.as_bytes())].concat();
    let message = [message.encode_to_vec(), field(2, &entry)].concat();
    field(1, &[vec![0x08, 0x09], field(2, &message)].concat())
}

/// The encoding lets a key of a map come twice and says that the last one counts: so a doubled key is judged as that.
#[tokio::test(flavor = "multi_thread")]
async fn of_a_doubled_property_the_last_counts() -> anyhow::Result<()> {
    let Server { node, role: _role, .. } = &Server::start().await?;
    node.open(NAME, 1).await;
    let mut call = node.producer(NAME, 1).await;
    let good = insert(NAME, "payload");
    let cases = [
        ("the same type again", good.clone(), "_t", "2", None),
        ("another, unknown type", good.clone(), "_t", "4711", Some("unsupported message type")),
        ("the right type after a wrong one", with("_t", "4711"), "_t", "2", None),
        ("a second header, broken", good.clone(), "_h", "?", Some("_h")),
        ("a second barrier, broken", with("_btt", "1"), "_btt", "-", Some("_btt")),
        ("a term, twice", with("_wt", "1"), "_wt", "2", Some("_wt")),
    ];
    for (what, message, key, value, refused) in cases {
        call.send_bytes(&doubled(&message, key, value)).await;
        match (said(&mut call).await, refused) {
            (Said::Answer(9, Ok(_)), None) => {}
            (Said::Answer(9, Err(error)), Some(cause)) => {
                assert_eq!(error.code(), StreamingCode::Unrecoverable, "{what}: {}", error.cause);
                assert!(error.cause.contains(cause), "{what}: {}", error.cause);
            }
            (other, _) => panic!("{what}: {other:?}"),
        }
    }
    Ok(())
}
