//! Each rule of a primary and a secondary.

use proptest::prelude::*;
use streaming_types::StreamingCode;

use super::{
    samples::{header, topology},
    *,
};

fn fact<'a>(kind: MessageType, header: Option<&'a ReplicateHeader>, txn_id: Option<i64>) -> Fact<'a> {
    Fact { kind, header, txn_id, config: None, by_force: false }
}

fn insert(header: Option<&ReplicateHeader>) -> Fact<'_> {
    fact(MessageType::Insert, header, None)
}

fn alter(config: ReplicateConfiguration) -> Fact<'static> {
    Fact { config: Some(config), ..fact(MessageType::AlterReplicateConfig, None, None) }
}

/// WAL `b-p_1`, which follows `a-p_1`.
fn secondary() -> Replication {
    let mut replication = Replication::new("b", "b-p_1");
    replication.apply(&alter(topology(&[("a", "b")])), false);
    replication
}

fn code(result: Result<(), StreamingError>) -> Option<StreamingCode> {
    result.err().map(|error| error.code())
}

/// Takes what may be taken.
fn take(replication: &mut Replication, fact: &Fact<'_>) -> Option<StreamingCode> {
    let outcome = code(replication.judge(fact));
    if outcome.is_none() {
        replication.apply(fact, false);
    }
    outcome
}

const VIOLATION: Option<StreamingCode> = Some(StreamingCode::ReplicateViolation);
const IGNORED: Option<StreamingCode> = Some(StreamingCode::IgnoredOperation);

#[test]
fn primary_takes_its_clients_messages_and_no_replicated_ones() {
    for config in [None, Some(topology(&[])), Some(topology(&[("b", "a")]))] {
        let mut replication = Replication::new("b", "b-p_1");
        if let Some(config) = config {
            replication.apply(&alter(config), false);
        }
        assert_eq!(code(replication.judge(&insert(None))), None);
        assert_eq!(code(replication.judge(&insert(Some(&header(1, 1))))), VIOLATION);
        assert_eq!(replication.checkpoint(), None);
    }
}

#[test]
fn secondary_takes_only_what_its_source_sent() {
    let replication = secondary();
    assert_eq!(code(replication.judge(&insert(None))), VIOLATION);
    assert_eq!(code(replication.judge(&insert(Some(&header(1, 1))))), None);
    let foreign = ReplicateHeader { cluster_id: "c".to_owned(), ..header(1, 1) };
    assert_eq!(code(replication.judge(&insert(Some(&foreign)))), VIOLATION);
    let unreadable = ReplicateHeader { message_id: None, ..header(1, 1) };
    assert_eq!(code(replication.judge(&insert(Some(&unreadable)))), Some(StreamingCode::Unrecoverable));
}

#[test]
fn what_each_cluster_writes_for_itself_is_its_own_and_ignored_from_elsewhere() {
    let replication = secondary();
    for kind in [MessageType::TimeTick, MessageType::CreateSegment, MessageType::Flush] {
        assert_eq!(code(replication.judge(&fact(kind, None, None))), None);
        assert_eq!(code(replication.judge(&fact(kind, Some(&header(1, 1)), None))), IGNORED);
    }
}

#[test]
fn repeats_are_ignored_and_the_checkpoint_follows() {
    let mut replication = secondary();
    let before = replication.checkpoint().unwrap();
    assert_eq!((before.cluster_id.as_str(), before.pchannel.as_str()), ("a", "a-p_1"));
    assert_eq!((before.message_id, before.time_tick), (None, 0));
    assert_eq!(take(&mut replication, &insert(Some(&header(1, 10)))), None);
    assert_eq!(take(&mut replication, &insert(Some(&header(2, 20)))), None);
    assert_eq!(take(&mut replication, &insert(Some(&header(1, 10)))), IGNORED);
    assert_eq!(take(&mut replication, &insert(Some(&header(2, 20)))), IGNORED);
    let after = replication.checkpoint().unwrap();
    assert_eq!((after.message_id, after.time_tick), (Some(MessageId::new(1, 2).to_proto()), 20));
}

#[test]
fn transaction_is_taken_once_and_as_a_whole() {
    let mut replication = secondary();
    let part = |kind, entry| {
        let header = header(entry, 50);
        (kind, header)
    };
    let parts = [
        part(MessageType::BeginTxn, 3),
        part(MessageType::Insert, 4),
        part(MessageType::Delete, 6),
        part(MessageType::CommitTxn, 7),
    ];
    // Every part may come again at any later moment.
    for sent in 0..parts.len() {
        for (again, (kind, header)) in parts.iter().enumerate().take(sent + 1) {
            let outcome = take(&mut replication, &fact(*kind, Some(header), Some(9)));
            assert_eq!(outcome, if again == sent { None } else { IGNORED }, "{again} of {sent}");
        }
        let tick = replication.checkpoint().unwrap().time_tick;
        assert_eq!(tick, if sent == 3 { 50 } else { 0 }, "it counts when it is committed");
    }
    for (kind, header) in &parts {
        assert_eq!(take(&mut replication, &fact(*kind, Some(header), Some(9))), IGNORED);
    }
}

#[test]
fn what_breaks_the_order_of_a_transaction_is_a_violation() {
    let mut replication = secondary();
    assert_eq!(take(&mut replication, &fact(MessageType::Insert, Some(&header(3, 50)), Some(9))), VIOLATION);
    assert_eq!(take(&mut replication, &fact(MessageType::CommitTxn, Some(&header(3, 50)), Some(9))), VIOLATION);
    assert_eq!(take(&mut replication, &fact(MessageType::BeginTxn, Some(&header(3, 50)), Some(9))), None);
    assert_eq!(take(&mut replication, &insert(Some(&header(4, 40)))), VIOLATION);
    assert_eq!(take(&mut replication, &fact(MessageType::BeginTxn, Some(&header(5, 60)), Some(10))), VIOLATION);
    assert_eq!(take(&mut replication, &fact(MessageType::Insert, Some(&header(6, 60)), Some(10))), VIOLATION);
}

#[test]
fn role_changes_where_the_message_is() {
    let mut replication = secondary();
    take(&mut replication, &insert(Some(&header(1, 10))));
    let same = topology(&[("a", "b"), ("a", "c")]);
    let arrived = header(2, 20);
    let replicated = Fact { header: Some(&arrived), ..alter(same.clone()) };
    assert_eq!(take(&mut replication, &replicated), None);
    assert_eq!(replication.checkpoint().unwrap().time_tick, 20, "the source is the same");
    assert_eq!(take(&mut replication, &alter(same)), IGNORED, "in force already");
    assert_eq!(take(&mut replication, &alter(topology(&[]))), VIOLATION, "not by itself");

    let switch = header(3, 30);
    let switch = Fact { header: Some(&switch), ..alter(topology(&[("b", "a")])) };
    assert_eq!(take(&mut replication, &switch), None);
    assert_eq!(replication.checkpoint(), None);
    assert_eq!(replication.targets().collect::<Vec<_>>(), ["a"]);
    assert_eq!(take(&mut replication, &switch), VIOLATION, "a primary by now");
    assert_eq!(take(&mut replication, &insert(None)), None);

    take(&mut replication, &alter(topology(&[("a", "b")])));
    assert_eq!(replication.checkpoint().unwrap().message_id, None, "followed anew");
}

#[test]
fn promotion_by_force_is_for_a_secondary_that_follows_nobody_by_it() {
    let mut replication = secondary();
    take(&mut replication, &fact(MessageType::BeginTxn, Some(&header(1, 10)), Some(9)));
    let forced = |edges| Fact { by_force: true, ..alter(topology(edges)) };
    assert_eq!(take(&mut replication, &forced(&[("c", "b")])), VIOLATION, "it would follow another one");
    assert_eq!(take(&mut replication, &forced(&[("b", "c")])), None);
    assert!(replication.is_primary());
    assert_eq!(take(&mut replication, &insert(Some(&header(2, 20)))), VIOLATION);
    assert_eq!(take(&mut replication, &insert(None)), None);
    assert_eq!(take(&mut replication, &forced(&[("b", "c")])), None, "again");
}

proptest! {
    /// Who ships begins at the checkpoint and goes on in order; several at a time, at any speed, and begun anew at any
    /// moment, do no harm.
    #[test]
    fn however_many_ship_each_message_is_taken_once_and_in_order(
        steps in proptest::collection::vec((0..3_usize, 0..20_u8), 1..400),
    ) {
        let txn = |kind, entry, id| (fact(kind, None, Some(id)), header(entry, 60));
        let plain = |entry: i64| (insert(None), header(entry, 10 * entry.unsigned_abs()));
        let source = [
            plain(1),
            plain(2),
            txn(MessageType::BeginTxn, 3, 9),
            txn(MessageType::Insert, 4, 9),
            txn(MessageType::Delete, 5, 9),
            txn(MessageType::CommitTxn, 6, 9),
            plain(7),
            plain(8),
        ];
        let mut replication = secondary();
        let mut taken = Vec::new();
        let mut shippers = [0; 3];
        // In the end one of them has it all to itself.
        let alone = std::iter::once((0, 0)).chain(std::iter::repeat_n((0, 1), source.len()));
        for (shipper, step) in steps.into_iter().chain(alone) {
            if step == 0 {
                let tick = replication.checkpoint().map_or(0, |checkpoint| checkpoint.time_tick);
                shippers[shipper] = source.iter().filter(|(_, header)| header.time_tick <= tick).count();
                continue;
            }
            let Some((sent, header)) = source.get(shippers[shipper]) else { continue };
            let sent = Fact { header: Some(header), ..sent.clone() };
            match take(&mut replication, &sent) {
                None => taken.push(shippers[shipper]),
                refused => prop_assert_eq!(refused, IGNORED, "{} after {:?}", shippers[shipper], &taken),
            }
            shippers[shipper] += 1;
        }
        prop_assert_eq!(taken, (0..source.len()).collect::<Vec<_>>());
    }
}

#[test]
fn cluster_that_left_the_topology_is_a_primary() {
    let mut replication = secondary();
    let mut without = topology(&[]);
    without.clusters.retain(|cluster| cluster.cluster_id != "b");
    let arrived = header(3, 30);
    assert_eq!(take(&mut replication, &Fact { header: Some(&arrived), ..alter(without) }), None);
    assert!(replication.is_primary());
}

#[test]
fn recovery_gives_the_same_state_wherever_the_checkpoint_was() {
    let headers: Vec<ReplicateHeader> =
        (1..8).map(|entry| header(entry, if entry < 3 { 10 * entry as u64 } else { 70 })).collect();
    let config = alter(topology(&[("a", "b")]));
    let mut log = vec![config];
    log.push(insert(Some(&headers[0])));
    log.push(insert(Some(&headers[1])));
    log.push(fact(MessageType::BeginTxn, Some(&headers[2]), Some(9)));
    log.push(fact(MessageType::Insert, Some(&headers[3]), Some(9)));
    for kept in 0..=log.len() {
        let mut first = Replication::new("b", "b-p_1");
        log[..kept].iter().for_each(|fact| first.apply(fact, false));
        let checkpoint = first.checkpoint();
        let mut again = Replication::recovered("b", "b-p_1", first.config().cloned(), checkpoint.as_ref(), Vec::new());
        assert_eq!(again.checkpoint(), checkpoint);
        // The log is read from before the open transaction on.
        log.iter().enumerate().for_each(|(at, fact)| again.apply(fact, at < kept));
        assert_eq!(again.checkpoint().unwrap().time_tick, 20, "{kept}");
        let outcome = |entry: usize| code(again.judge(&fact(MessageType::Insert, Some(&headers[entry]), Some(9))));
        assert_eq!((outcome(3), outcome(4)), (IGNORED, None), "{kept}");
    }
}

#[test]
fn what_it_had_of_a_source_before_it_left_is_not_taken_when_it_follows_again() {
    let mut first = secondary();
    assert_eq!(take(&mut first, &insert(Some(&header(1, 10)))), None);
    let leaves = header(2, 20);
    first.apply(&Fact { header: Some(&leaves), ..alter(topology(&[("b", "a")])) }, false);
    assert_eq!(first.checkpoint(), None);
    let left = first.left().to_vec();
    assert_eq!(left.iter().map(|left| (left.cluster_id.as_str(), left.time_tick)).collect::<Vec<_>>(), [("a", 20)]);

    let restarted = Replication::recovered("b", "b-p_1", first.config().cloned(), None, left);
    for mut again in [first, restarted] {
        again.apply(&alter(topology(&[("a", "b")])), false);
        let checkpoint = again.checkpoint().unwrap();
        assert_eq!((checkpoint.message_id, checkpoint.time_tick), (None, 20), "where the source's new messages begin");
        assert_eq!(take(&mut again, &insert(Some(&header(1, 10)))), IGNORED);
        assert_eq!(take(&mut again, &insert(Some(&leaves))), IGNORED);
        assert_eq!(take(&mut again, &insert(Some(&header(3, 30)))), None);
        again.apply(&alter(topology(&[("c", "b")])), false);
        again.apply(&alter(topology(&[("b", "c")])), false);
        let left: Vec<_> = again.left().iter().map(|left| (left.cluster_id.as_str(), left.time_tick)).collect();
        assert_eq!(left, [("a", 30), ("c", 0)]);
        let mut without = topology(&[]);
        without.clusters.retain(|cluster| cluster.cluster_id != "a");
        again.apply(&alter(without), false);
        again.apply(&alter(topology(&[("a", "b")])), false);
        assert_eq!(take(&mut again, &insert(Some(&header(3, 30)))), IGNORED, "though it was out of the topology");
        assert_eq!(take(&mut again, &insert(Some(&header(4, 40)))), None);
    }
}

/// One of two clusters that follow each other in turn.
struct Side {
    name: &'static str,
    log: Vec<Entry>,
    replication: Replication,
    /// What was kept, and how much of the log it is from.
    kept: (usize, Replication),
}

#[derive(Debug, Clone)]
struct Entry {
    /// Where it comes from.
    header: Option<ReplicateHeader>,
    content: Content,
}

#[derive(Debug, Clone, PartialEq)]
enum Content {
    Message(usize),
    Topology(ReplicateConfiguration),
}

impl Entry {
    fn fact(&self) -> Fact<'_> {
        match &self.content {
            Content::Message(_) => insert(self.header.as_ref()),
            Content::Topology(config) => Fact { header: self.header.as_ref(), ..alter(config.clone()) },
        }
    }
}

impl Side {
    fn new(name: &'static str) -> Self {
        let replication = Replication::new(name, &format!("{name}-p_1"));
        Self { name, log: Vec::new(), kept: (0, replication.clone()), replication }
    }

    fn append(&mut self, entry: Entry) -> Option<StreamingCode> {
        let outcome = take(&mut self.replication, &entry.fact());
        if outcome.is_none() {
            self.log.push(entry);
        }
        outcome
    }

    fn restart(&mut self) {
        let (until, kept) = &self.kept;
        let (checkpoint, left) = (kept.checkpoint(), kept.left().to_vec());
        let pchannel = format!("{}-p_1", self.name);
        let mut again = Replication::recovered(self.name, &pchannel, kept.config().cloned(), checkpoint.as_ref(), left);
        self.log.iter().enumerate().for_each(|(at, entry)| again.apply(&entry.fact(), at < *until));
        assert_eq!((again.checkpoint(), again.left()), (self.replication.checkpoint(), self.replication.left()));
        self.replication = again;
    }

    /// The entry as it is shipped; ticks are those of this cluster.
    fn shipped(&self, at: usize) -> Entry {
        let entry = i64::try_from(at).unwrap();
        let header = ReplicateHeader { cluster_id: self.name.to_owned(), ..header(entry, self.tick(at)) };
        Entry { header: Some(header), content: self.log[at].content.clone() }
    }

    fn tick(&self, at: usize) -> u64 {
        (at as u64 + 1) * if self.name == "a" { 10 } else { 7 }
    }

    /// The entry behind the last one that made `target` follow this cluster, above the tick at which it left it before.
    fn introduction(&self, target: &str, left: u64) -> Option<usize> {
        let (mut found, mut followed) = (None, false);
        for (at, entry) in self.log.iter().enumerate() {
            if let Content::Topology(config) = &entry.content {
                let now = follows(config, self.name, target);
                if now && !followed && self.tick(at) > left {
                    found = Some(at + 1);
                }
                followed = now;
            }
        }
        found
    }
}

fn follows(config: &ReplicateConfiguration, source: &str, target: &str) -> bool {
    let mut edges = config.cross_cluster_topology.iter();
    edges.any(|edge| edge.source_cluster_id == source && edge.target_cluster_id == target)
}

/// Who ships from one of two clusters to the other.
#[derive(Debug, Default)]
struct Shipper {
    /// What the target said, maybe long ago.
    asked: Option<ReplicateCheckpoint>,
    /// The entry to send next.
    next: Option<usize>,
}

impl Shipper {
    fn ask(&mut self, source: &Side, target: &Side) {
        self.asked = target.replication.checkpoint().filter(|checkpoint| checkpoint.cluster_id == source.name);
    }

    fn begin(&mut self, source: &Side, target: &Side) {
        let Some(checkpoint) = &self.asked else { return };
        let reached = (0..source.log.len()).take_while(|at| source.tick(*at) <= checkpoint.time_tick).count();
        let introduced = || source.introduction(target.name, checkpoint.time_tick);
        self.next = if checkpoint.message_id.is_some() { Some(reached) } else { introduced() };
    }

    fn send(&mut self, source: &Side, target: &mut Side) {
        let Some(at) = self.next.filter(|at| *at < source.log.len()) else { return };
        self.next = Some(at + 1);
        if source.log[at].header.is_some() {
            return;
        }
        let shipped = source.shipped(at);
        let last = matches!(&shipped.content, Content::Topology(config) if !follows(config, source.name, target.name));
        let outcome = target.append(shipped);
        if last || !(outcome.is_none() || outcome == IGNORED) {
            *self = Self::default();
        }
    }
}

fn pair(sides: &mut [Side; 2], forth: bool) -> (&mut Side, &mut Side) {
    let [a, b] = sides;
    if forth { (a, b) } else { (b, a) }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    /// Roles change there and back while several ship, each with what it heard at some moment, and owners begin anew.
    #[test]
    fn two_clusters_hold_the_same_however_often_their_roles_change(
        steps in proptest::collection::vec((0..12_u8, 0..4_usize), 1..300),
    ) {
        let mut sides = [Side::new("a"), Side::new("b")];
        let mut shippers: [Shipper; 4] = Default::default();
        let own = |content| Entry { header: None, content };
        let edge = |forth: bool| topology(&[if forth { ("a", "b") } else { ("b", "a") }]);
        for side in &mut sides {
            prop_assert_eq!(side.append(own(Content::Topology(edge(true)))), None);
        }
        let mut written = 0;
        // In the end each direction has one that hears everything at once.
        let calm = (0..3).flat_map(|_| [0, 2].map(|shipper| [(1, shipper), (2, shipper)])).flatten();
        let calm = calm.flat_map(|step| std::iter::once(step).chain(std::iter::repeat_n((3, step.1), 400)));
        for (step, which) in steps.into_iter().chain(calm) {
            let forth = which < 2;
            match step {
                0 => {
                    let (one, _) = pair(&mut sides, forth);
                    written += usize::from(one.append(own(Content::Message(written))).is_none());
                }
                4 => {
                    // One change at a time.
                    let [a, b] = &sides;
                    if a.replication.config() == b.replication.config() {
                        let primary = a.replication.is_primary();
                        let change = own(Content::Topology(edge(!primary)));
                        prop_assert_eq!(pair(&mut sides, primary).0.append(change), None);
                    }
                }
                5 => {
                    let (one, _) = pair(&mut sides, forth);
                    one.kept = (one.log.len(), one.replication.clone());
                }
                6 => pair(&mut sides, forth).0.restart(),
                1 => {
                    let (source, target) = pair(&mut sides, forth);
                    shippers[which].ask(source, target);
                }
                2 => {
                    let (source, target) = pair(&mut sides, forth);
                    shippers[which].begin(source, target);
                }
                _ => {
                    let (source, target) = pair(&mut sides, forth);
                    shippers[which].send(source, target);
                }
            }
        }
        for side in &sides {
            let messages: Vec<_> = side.log.iter().filter_map(|entry| match entry.content {
                Content::Message(number) => Some(number),
                Content::Topology(_) => None,
            }).collect();
            prop_assert_eq!(messages, (0..written).collect::<Vec<_>>(), "{}", side.name);
        }
    }
}
