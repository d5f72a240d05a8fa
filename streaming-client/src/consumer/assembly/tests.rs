use proptest::prelude::*;
use streaming_proto::messages::{
    BeginTxnMessageHeader, CipherHeader, CommitTxnMessageHeader, InsertMessageHeader, RollbackTxnMessageHeader,
};
use streaming_types::{MessageBuilder, TxnContext, message::time_tick_message, properties::key};

use super::*;

fn place(mut message: streaming_types::Message, entry: i64) -> ImmutableMessage {
    message.properties.set_time_tick(TimeTick(u64::try_from(entry).unwrap()));
    message.properties.set_last_confirmed_is_self();
    message.into_immutable(MessageId::new(1, entry))
}

#[derive(Debug, Clone, Copy)]
enum Part {
    Plain,
    Tick,
    Begin(i64),
    Body(i64),
    Commit(i64),
    Rollback(i64),
}

impl Part {
    fn message(self, entry: i64) -> ImmutableMessage {
        let builder = match self {
            Self::Tick => return place(time_tick_message(TimeTick::ZERO, 1), entry),
            Self::Plain | Self::Body(_) => MessageBuilder::new(&InsertMessageHeader::default()).payload("body"),
            Self::Begin(_) => MessageBuilder::new(&BeginTxnMessageHeader::default()),
            Self::Commit(_) => MessageBuilder::new(&CommitTxnMessageHeader {}).txn(TxnContext::new(0, 1)),
            Self::Rollback(_) => MessageBuilder::new(&RollbackTxnMessageHeader {}).txn(TxnContext::new(0, 1)),
        };
        let mut message = builder.vchannel("p_1v0").build().unwrap();
        if let Self::Begin(id) | Self::Body(id) | Self::Commit(id) | Self::Rollback(id) = self {
            message.properties.set_txn(TxnContext::new(id, 1));
        }
        place(message, entry)
    }
}

/// What comes out of each part: `-` nothing yet, `m` message, `t` tick, `x<n>` transaction with n bodies, `!` fault.
fn outcomes(parts: &[Part]) -> Vec<String> {
    let mut assembly = Assembly::new(1 << 20);
    let feed = |(entry, part): (usize, &Part)| match assembly.accept(part.message(i64::try_from(entry).unwrap())) {
        Ok(None) => "-".to_owned(),
        Ok(Some(Whole { delivery: Delivery::Message(_), .. })) => "m".to_owned(),
        Ok(Some(Whole { delivery: Delivery::TimeTick { .. }, .. })) => "t".to_owned(),
        Ok(Some(Whole { delivery: Delivery::Txn(txn), .. })) => format!("x{}", txn.bodies.len()),
        Err(_) => "!".to_owned(),
    };
    parts.iter().enumerate().map(feed).collect()
}

#[test]
fn transaction_comes_as_one_at_the_place_of_its_commit() {
    use Part::{Begin, Body, Commit, Plain, Tick};
    let parts = [Plain, Begin(7), Body(7), Body(7), Commit(7), Tick];
    assert_eq!(outcomes(&parts), ["m", "-", "-", "-", "x2", "t"]);

    let mut assembly = Assembly::new(1 << 20);
    let mut size = Commit(7).message(9).size();
    for (entry, part) in (0..).zip(&parts[1..4]) {
        size += part.message(entry).size();
        assert!(assembly.accept(part.message(entry)).unwrap().is_none());
    }
    let whole = assembly.accept(Commit(7).message(9)).unwrap().unwrap();
    assert_eq!((whole.time_tick, whole.last_confirmed, whole.size), (TimeTick(9), MessageId::new(1, 9), size));
}

#[test]
fn broken_transactions_are_faults() {
    use Part::{Begin, Body, Commit, Plain, Rollback, Tick};
    for parts in [
        &[Body(1)][..],
        &[Commit(1)],
        &[Rollback(1)],
        &[Begin(1), Begin(2)],
        &[Begin(1), Plain],
        &[Begin(1), Tick],
        &[Begin(1), Body(2)],
        &[Begin(1), Commit(2)],
        &[Begin(1), Rollback(1)],
    ] {
        assert_eq!(outcomes(parts).last().map(String::as_str), Some("!"), "{parts:?}");
    }
}

#[test]
fn begin_and_commit_without_their_transaction_are_faults() {
    for part in [Part::Begin(1), Part::Commit(1)] {
        let mut message = part.message(1);
        message.properties.remove(key::TXN);
        let fault = Assembly::new(1 << 20).accept(message).unwrap_err();
        assert!(matches!(fault, Fault::Malformed(cause) if cause.contains("without its transaction")));
    }
}

#[test]
fn transaction_is_as_large_as_it_is_whatever_its_ciphertexts_claim() {
    for (claimed, fits) in [(i64::MAX, true), (0, false)] {
        let mut assembly = Assembly::new(1 << 20);
        assembly.accept(Part::Begin(7).message(0)).unwrap();
        let mut body = Part::Body(7).message(1);
        body.properties.set_cipher(&CipherHeader { payload_bytes: claimed, ..CipherHeader::default() });
        if !fits {
            body.payload = vec![0; 2 << 20].into();
        }
        assert_eq!(assembly.accept(body).is_ok(), fits, "{claimed}");
    }
}

#[test]
fn type_of_a_later_release_is_a_message() {
    let mut message = Part::Plain.message(1);
    message.properties.set(key::TYPE, "12345");
    let whole = Assembly::new(1 << 20).accept(message).unwrap().unwrap();
    assert!(matches!(whole.delivery, Delivery::Message(_)) && !whole.legacy);
}

#[test]
fn fault_names_message_and_property() {
    let mut message = Part::Plain.message(4);
    message.properties.remove(key::TIME_TICK);
    let fault = Assembly::new(1 << 20).accept(message).unwrap_err();
    assert_eq!(fault, Fault::Malformed("message 1:4: property _tt: missing".to_owned()));
}

fn any_part() -> impl Strategy<Value = Part> {
    let id = 0..3_i64;
    prop_oneof![
        Just(Part::Plain),
        Just(Part::Tick),
        id.clone().prop_map(Part::Begin),
        id.clone().prop_map(Part::Body),
        id.clone().prop_map(Part::Commit),
        id.prop_map(Part::Rollback),
    ]
}

proptest! {
    #[test]
    fn any_sequence_is_delivered_or_refused(parts in prop::collection::vec(any_part(), 0..30)) {
        prop_assert_eq!(outcomes(&parts).len(), parts.len());
    }

    #[test]
    fn any_properties_are_read_or_refused(
        properties in prop::collection::btree_map("_tt|_lc|_lcs|_tx|_t|_v|_h", "[0-9a-zA-Z=]{0,8}", 0..7),
    ) {
        let mut message = Part::Plain.message(1);
        for (key, value) in properties {
            message.properties.set(key, value);
        }
        let _ = Assembly::new(1 << 20).accept(message);
    }
}
