//! Where a consumer stands, and from where it goes on after a break.

use streaming_proto::streaming::CreateVChannelConsumerRequest;
use streaming_types::{DeliverFilter, DeliverPolicy, MessageId, TimeTick};

use super::assembly::Whole;

#[derive(Debug)]
pub(super) struct Position {
    /// Empty for a whole pchannel.
    vchannel: String,
    policy: DeliverPolicy,
    filters: Vec<DeliverFilter>,
    last: Option<Last>,
}

/// What was delivered last.
#[derive(Debug, Clone, Copy)]
struct Last {
    time_tick: TimeTick,
    last_confirmed: MessageId,
    legacy: bool,
}

impl Position {
    pub(super) fn new(vchannel: String, policy: DeliverPolicy, filters: Vec<DeliverFilter>) -> Self {
        Self { vchannel, policy, filters, last: None }
    }

    pub(super) fn time_tick(&self) -> Option<TimeTick> {
        self.last.map(|last| last.time_tick)
    }

    /// Whether it was delivered already. The server filters by time tick too; this holds whatever it does.
    pub(super) fn is_repeat(&self, whole: &Whole) -> bool {
        self.last.is_some_and(|last| match last.legacy {
            true => whole.time_tick < last.time_tick,
            false => whole.time_tick <= last.time_tick,
        })
    }

    pub(super) fn advance(&mut self, whole: &Whole) {
        let Whole { time_tick, last_confirmed, legacy, .. } = *whole;
        self.last = Some(Last { time_tick, last_confirmed, legacy });
    }

    /// What to ask of the next stream: reading from the last confirmed id of a message meets every message with a larger
    /// time tick (wire.md §5.4).
    pub(super) fn request(&self) -> CreateVChannelConsumerRequest {
        let mut policy = self.policy;
        let mut filters = self.filters.clone();
        if let Some(last) = self.last {
            policy = DeliverPolicy::StartFrom(last.last_confirmed);
            let is_implied = |bound: TimeTick| bound <= last.time_tick;
            filters.retain(|filter| match filter {
                DeliverFilter::TimeTickGreaterThan(bound) | DeliverFilter::TimeTickAtLeast(bound) => {
                    !is_implied(*bound)
                }
                DeliverFilter::MessageTypes(_) => true,
            });
            filters.push(match last.legacy {
                true => DeliverFilter::TimeTickAtLeast(last.time_tick),
                false => DeliverFilter::TimeTickGreaterThan(last.time_tick),
            });
        }
        CreateVChannelConsumerRequest {
            vchannel: self.vchannel.clone(),
            deliver_policy: Some(policy.to_proto()),
            deliver_filters: filters.iter().map(DeliverFilter::to_proto).collect(),
            ..CreateVChannelConsumerRequest::default()
        }
    }
}

#[cfg(test)]
mod tests {
    use streaming_types::MessageType;

    use super::*;
    use crate::consumer::Delivery;

    fn tick(time_tick: u64, last_confirmed: MessageId, legacy: bool) -> Whole {
        let time_tick = TimeTick(time_tick);
        let delivery = Delivery::TimeTick { time_tick, last_confirmed };
        Whole { delivery, time_tick, last_confirmed, size: 0, legacy }
    }

    fn asked(position: &Position) -> (DeliverPolicy, Vec<DeliverFilter>) {
        let request = position.request();
        let filters = request.deliver_filters.iter().map(|filter| DeliverFilter::try_from(filter).unwrap()).collect();
        (DeliverPolicy::from_proto(request.deliver_policy.as_ref()).unwrap(), filters)
    }

    #[test]
    fn first_stream_is_asked_for_what_the_user_wants() {
        let filters = vec![DeliverFilter::TimeTickAtLeast(TimeTick(3))];
        let position = Position::new("p_1v0".into(), DeliverPolicy::Latest, filters.clone());
        assert_eq!(asked(&position), (DeliverPolicy::Latest, filters));
        assert_eq!(position.request().vchannel, "p_1v0");
    }

    #[test]
    fn later_streams_start_at_the_last_confirmed_id_behind_the_last_tick() {
        let types = DeliverFilter::message_types([MessageType::Insert]);
        let filters = vec![DeliverFilter::TimeTickGreaterThan(TimeTick(3)), types.clone()];
        let mut position = Position::new(String::new(), DeliverPolicy::All, filters);
        position.advance(&tick(9, MessageId::new(1, 4), false));
        let behind = DeliverFilter::TimeTickGreaterThan(TimeTick(9));
        assert_eq!(asked(&position), (DeliverPolicy::StartFrom(MessageId::new(1, 4)), vec![types.clone(), behind]));

        position.advance(&tick(12, MessageId::new(1, 7), true));
        let at = DeliverFilter::TimeTickAtLeast(TimeTick(12));
        assert_eq!(asked(&position), (DeliverPolicy::StartFrom(MessageId::new(1, 7)), vec![types, at]));
    }

    #[test]
    fn stronger_filter_of_the_user_is_kept() {
        let wanted = DeliverFilter::TimeTickGreaterThan(TimeTick(100));
        let mut position = Position::new(String::new(), DeliverPolicy::All, vec![wanted.clone()]);
        position.advance(&tick(9, MessageId::new(1, 4), false));
        assert!(asked(&position).1.contains(&wanted));
    }

    #[test]
    fn what_is_not_newer_is_a_repeat_unless_ticks_are_shared() {
        let id = MessageId::new(1, 1);
        let mut position = Position::new(String::new(), DeliverPolicy::All, vec![]);
        assert!(!position.is_repeat(&tick(5, id, false)));
        position.advance(&tick(5, id, false));
        assert!(position.is_repeat(&tick(4, id, false)) && position.is_repeat(&tick(5, id, false)));
        assert!(!position.is_repeat(&tick(6, id, false)));
        position.advance(&tick(7, id, true));
        assert!(position.is_repeat(&tick(6, id, true)) && !position.is_repeat(&tick(7, id, true)));
    }
}
