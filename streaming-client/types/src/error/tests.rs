use proptest::prelude::*;

use super::*;

/// Every code with an error that has it, its gRPC code, and the predicates that hold:
/// W(rong node) F(enced) I(gnored) S(kipped by Remove) U(nrecoverable) A(cquired) R(etryable) E(ffects possible).
fn table() -> Vec<(i32, StreamingError, Code, &'static str)> {
    vec![
        (1, StreamingError::channel_not_exist("c"), Code::FailedPrecondition, "WR"),
        (2, StreamingError::channel_fenced("c"), Code::FailedPrecondition, "FRE"),
        (3, StreamingError::manager_closed(), Code::FailedPrecondition, "FR"),
        (4, StreamingError::invalid_request_seq("x"), Code::FailedPrecondition, "R"),
        (5, StreamingError::unmatched_channel_term("c", 2, 3), Code::FailedPrecondition, "WSR"),
        (6, StreamingError::ignored_operation("x"), Code::FailedPrecondition, "IS"),
        (7, StreamingError::inner("x"), Code::Internal, "RE"),
        (8, StreamingError::invalid_argument("x"), Code::InvalidArgument, ""),
        (9, StreamingError::transaction_expired("x"), Code::FailedPrecondition, "U"),
        (10, StreamingError::invalid_transaction_state("op", "a", "b"), Code::FailedPrecondition, "U"),
        (11, StreamingError::unrecoverable("x"), Code::FailedPrecondition, "U"),
        (12, StreamingError::resource_acquired("x"), Code::FailedPrecondition, "AR"),
        (13, StreamingError::replicate_violation("x"), Code::FailedPrecondition, "U"),
        (999, StreamingError::unknown("x"), Code::Unknown, "RE"),
    ]
}

#[test]
fn every_code_has_its_grpc_code_and_predicates() {
    for (number, error, grpc, predicates) in table() {
        assert_eq!(i32::from(error.code()), number);
        assert_eq!(error.grpc_code(), grpc, "{error}");
        let got = [
            (error.is_wrong_node(), 'W'),
            (error.is_fenced(), 'F'),
            (error.is_ignored(), 'I'),
            (error.is_done_for_remove(), 'S'),
            (error.is_unrecoverable(), 'U'),
            (error.is_resource_acquired(), 'A'),
            (error.is_retryable(), 'R'),
            (error.has_side_effects(), 'E'),
        ];
        let got: String = got.iter().filter(|(holds, _)| *holds).map(|(_, letter)| letter).collect();
        assert_eq!(got, predicates, "{error}");
    }
}

#[test]
fn causes_that_peers_look_for_read_as_they_expect() {
    for (error, cause) in [
        (StreamingError::channel_fenced("p"), "p fenced"),
        (StreamingError::channel_not_exist("p"), "p not exist"),
        (StreamingError::unmatched_channel_term("p", 2, 3), "channel p at term 2 is expected, but current term is 3"),
        (StreamingError::manager_closed(), "wal manager is closed"),
        (
            StreamingError::invalid_transaction_state("commit", "TxnInFlight", "TxnCommitted"),
            "invalid transaction state for operation commit, expect TxnInFlight, current TxnCommitted",
        ),
        (StreamingError::overtaken_term(3, 2), "request term is expired, expected: 3, actual: 2"),
        (StreamingError::expired_open("p", 2), "channel p with expired term 2, cannot change expected state for open"),
    ] {
        assert_eq!(error.cause(), cause);
    }
}

#[test]
fn status_has_no_text_and_one_detail() {
    let status = Status::from(StreamingError::channel_fenced("p"));
    assert_eq!((status.code(), status.message()), (Code::FailedPrecondition, ""));
    let url = b"type.googleapis.com/milvus.proto.streaming.StreamingError";
    let error = [&[0x08, 0x02, 0x12, 0x08][..], b"p fenced"].concat();
    let any = [&[0x0a, 57][..], url, &[0x12, 12], &error].concat();
    assert_eq!((url.len(), error.len(), any.len()), (57, 12, 73));
    assert_eq!(status.details(), [&[0x08, 9, 0x1a, 73][..], &any].concat());
}

#[test]
fn every_error_survives_its_status() {
    for (_, error, ..) in table() {
        assert_eq!(StreamingError::check_status(&Status::from(error.clone())), Err(error));
    }
}

#[test]
fn first_readable_detail_of_a_streaming_error_counts() {
    let detail = |type_url: &str, value: Vec<u8>| Any { type_url: type_url.to_owned(), value };
    let encoded = |error: StreamingError| error.to_proto().encode_to_vec();
    let details = vec![
        detail("type.googleapis.com/google.rpc.DebugInfo", encoded(StreamingError::inner("0"))),
        detail(TYPE_URL, vec![0xff]),
        detail("elsewhere/milvus.proto.streaming.StreamingError", encoded(StreamingError::unrecoverable("1"))),
        detail(TYPE_URL, encoded(StreamingError::inner("2"))),
    ];
    let details = RpcStatus { code: 2, message: "text".to_owned(), details }.encode_to_vec();
    let status = Status::with_details(Code::Unknown, "text", details.into());
    assert_eq!(StreamingError::check_status(&status), Err(StreamingError::unrecoverable("1")));
}

#[test]
fn status_without_a_detail_is_unknown_with_its_text() {
    for details in [&[][..], &[0xff]] {
        let status = Status::with_details(Code::Unavailable, "connection refused", details.to_vec().into());
        let error = StreamingError::check_status(&status).unwrap_err();
        assert_eq!(error, StreamingError::unknown("Unavailable: connection refused"));
    }
}

#[test]
fn code_ok_is_success_and_a_later_code_is_unknown() {
    let proto = |code| pb::StreamingError { code, cause: "x".to_owned() };
    assert_eq!(StreamingError::check(&proto(0)), Ok(()));
    assert_eq!(StreamingError::check(&proto(14)), Err(StreamingError::unknown("streaming code 14: x")));
    assert_eq!(StreamingError::check_status(&Status::ok("")), Ok(()));

    let detail = Any { type_url: TYPE_URL.to_owned(), value: proto(0).encode_to_vec() };
    let details = RpcStatus { code: 2, message: String::new(), details: vec![detail] }.encode_to_vec();
    assert_eq!(StreamingError::check_status(&Status::with_details(Code::Unknown, "", details.into())), Ok(()));
}

proptest! {
    #[test]
    fn any_details_are_read_or_unknown(bytes: Vec<u8>, value: Vec<u8>, text: String) {
        let any = Any { type_url: TYPE_URL.to_owned(), value };
        let wrapped = RpcStatus { code: 2, message: text.clone(), details: vec![any] }.encode_to_vec();
        for details in [bytes, wrapped] {
            let status = Status::with_details(Code::Unknown, text.clone(), details.into());
            let _ = StreamingError::check_status(&status);
        }
    }

    #[test]
    fn any_error_reads_back(code in proptest::sample::select((1..=13).chain([999]).collect::<Vec<_>>()), cause: String) {
        let proto = pb::StreamingError { code, cause };
        let error = StreamingError::check(&proto).unwrap_err();
        prop_assert_eq!(&error.to_proto(), &proto);
        prop_assert_eq!(StreamingError::check_status(&Status::from(error.clone())), Err(error));
    }
}
