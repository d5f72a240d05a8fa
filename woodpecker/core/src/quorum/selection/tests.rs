use std::collections::BTreeSet;

use super::*;
use crate::ids::StoreId;

/// A store for each `zone/group`, numbered from 0.
fn stores(places: &[&str]) -> Vec<StoreRecord> {
    let store = |(id, place): (usize, &&str)| {
        let (zone, group) = place.split_once('/').unwrap_or((place, ""));
        StoreRecord {
            id: StoreId(id as u128),
            address: format!("store-{id}:1"),
            region: zone.split('-').next().unwrap_or_default().to_owned(),
            zone: zone.to_owned(),
            resource_group: group.to_owned(),
            load: 0,
            state: StoreState::Active,
        }
    };
    places.iter().enumerate().map(store).collect()
}

fn policy(zone: Spread, resource_group: Spread, affinity: Affinity) -> SelectionPolicy {
    SelectionPolicy { replicas: 3, strategy: Strategy::Spread { zone, resource_group, region: Spread::Any }, affinity }
}

fn random() -> SelectionPolicy {
    policy(Spread::Any, Spread::Any, Affinity::Soft)
}

/// A hundred choices, as sets of store numbers.
fn choices(policy: &SelectionPolicy, stores: &[StoreRecord]) -> Vec<Result<BTreeSet<u128>, Unplaceable>> {
    let mut state = 1_u64;
    let mut draw = |below: u64| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 33) % below
    };
    let mut choose = || policy.select(stores, &mut draw).map(|set| set.stores().iter().map(|store| store.0).collect());
    (0..100).map(|_| choose()).collect()
}

/// All choices, which succeed.
fn chosen(policy: &SelectionPolicy, stores: &[StoreRecord]) -> BTreeSet<BTreeSet<u128>> {
    choices(policy, stores).into_iter().map(Result::unwrap).collect()
}

fn sets(sets: &[&[u128]]) -> BTreeSet<BTreeSet<u128>> {
    sets.iter().map(|set| set.iter().copied().collect()).collect()
}

#[test]
fn every_store_has_its_turn_and_none_comes_twice() {
    let found = chosen(&random(), &stores(&["a", "a", "b", "c"]));
    assert_eq!(found, sets(&[&[0, 1, 2], &[0, 1, 3], &[0, 2, 3], &[1, 2, 3]]));
}

#[test]
fn zones_are_spread_and_a_hard_policy_lets_none_have_an_ack_quorum() {
    let many = |affinity| policy(Spread::Many, Spread::Any, affinity);
    let three = stores(&["a", "a", "b", "c"]);
    for affinity in [Affinity::Soft, Affinity::Hard] {
        assert_eq!(chosen(&many(affinity), &three), sets(&[&[0, 2, 3], &[1, 2, 3]]));
    }
    let two = stores(&["a", "a", "b"]);
    assert_eq!(chosen(&many(Affinity::Soft), &two), sets(&[&[0, 1, 2]]));
    let refused = Unplaceable { wanted: 3, usable: 3, hard: true };
    assert!(choices(&many(Affinity::Hard), &two).into_iter().all(|choice| choice == Err(refused.clone())));
    // Five replicas, of which three ack, survive any zone if none has more than two.
    let five = SelectionPolicy { replicas: 5, ..many(Affinity::Hard) };
    for set in chosen(&five, &stores(&["a", "a", "a", "b", "b", "b", "c", "c"])) {
        let per_zone = [0..3, 3..6, 6..8].map(|zone| set.iter().filter(|id| zone.contains(*id)).count());
        assert!(per_zone.iter().all(|count| *count <= 2), "{per_zone:?}");
    }
}

#[test]
fn one_zone_means_one_that_has_enough() {
    let places = stores(&["a", "a", "b", "b", "b", "c", "c", "c", "c"]);
    for set in chosen(&policy(Spread::One, Spread::Any, Affinity::Hard), &places) {
        assert!(set.iter().all(|id| (2..5).contains(id)) || set.iter().all(|id| (5..9).contains(id)), "{set:?}");
    }
    let poor = stores(&["a", "a", "b"]);
    assert!(choices(&policy(Spread::One, Spread::Any, Affinity::Hard), &poor).iter().all(Result::is_err));
    assert_eq!(chosen(&policy(Spread::One, Spread::Any, Affinity::Soft), &poor), sets(&[&[0, 1, 2]]));
}

#[test]
fn zones_and_groups_are_asked_for_together() {
    let places = stores(&["a/x", "a/y", "b/x", "b/y", "c/x", "c/y", "a/z", "a/x"]);
    let one_group = chosen(&policy(Spread::Many, Spread::One, Affinity::Hard), &places);
    assert_eq!(one_group, sets(&[&[0, 2, 4], &[2, 4, 7], &[1, 3, 5]]));
    let one_zone = chosen(&policy(Spread::One, Spread::Many, Affinity::Hard), &places);
    assert_eq!(one_zone, sets(&[&[0, 1, 6], &[1, 6, 7]]));
}

#[test]
fn a_selector_for_each_replica_is_met_by_moving_others() {
    let selector = |zone: &str, group: &str| Selector {
        zone: zone.to_owned(),
        resource_group: group.to_owned(),
        ..Selector::default()
    };
    // The first could take any store; only the last two fit the others.
    let selectors = vec![selector("", ""), selector("eu-*", ""), selector("eu-2", "fast")];
    let custom = |affinity| SelectionPolicy { replicas: 3, strategy: Strategy::Custom(selectors.clone()), affinity };
    let fitting = stores(&["us-1/slow", "eu-1/slow", "eu-2/fast"]);
    for affinity in [Affinity::Soft, Affinity::Hard] {
        assert_eq!(chosen(&custom(affinity), &fitting), sets(&[&[0, 1, 2]]));
    }
    let none_fast = stores(&["us-1/slow", "eu-1/slow", "eu-2/slow", "eu-22/fast"]);
    assert!(choices(&custom(Affinity::Hard), &none_fast).iter().all(Result::is_err), "patterns match whole names");
    for set in chosen(&custom(Affinity::Soft), &none_fast) {
        assert!(set.len() == 3 && set.iter().any(|id| *id != 0), "{set:?}");
    }
}

#[test]
fn patterns_match_whole_names() {
    for (pattern, name) in [("eu-*", "eu-"), ("*", ""), ("*-1", "eu-1"), ("e*-*1", "eu-a-1"), ("a", "a"), ("é*", "éa")]
    {
        assert!(matches(pattern, name), "{pattern} {name}");
    }
    for (pattern, name) in [("eu", "eu-1"), ("u-1", "eu-1"), ("*-1", "eu-12"), ("e.", "eu"), ("a*b*c", "acb")] {
        assert!(!matches(pattern, name), "{pattern} {name}");
    }
}

#[test]
fn too_few_stores_make_a_smaller_set_but_never_fewer_than_ack() {
    assert_eq!(chosen(&random(), &stores(&["a", "b"])), sets(&[&[0, 1]]));
    let refused = Unplaceable { wanted: 3, usable: 1, hard: false };
    assert!(choices(&random(), &stores(&["a"])).into_iter().all(|choice| choice == Err(refused.clone())));
    let five = SelectionPolicy { replicas: 5, ..random() };
    assert_eq!(chosen(&five, &stores(&["a"; 4])), sets(&[&[0, 1, 2, 3]]));
    assert!(choices(&five, &stores(&["a", "b"])).iter().all(Result::is_err));
    let hard = SelectionPolicy { affinity: Affinity::Hard, ..random() };
    assert!(choices(&hard, &stores(&["a", "b"])).iter().all(Result::is_err));
}

#[test]
fn stores_that_slow_down_come_last_and_those_that_leave_never() {
    let mut places = stores(&["a", "b", "c", "d", "e"]);
    places[0].state = StoreState::Slowed;
    places[1].state = StoreState::Decommissioning;
    assert_eq!(chosen(&random(), &places), sets(&[&[2, 3, 4]]));
    places[2].state = StoreState::ReadOnly;
    assert_eq!(chosen(&random(), &places), sets(&[&[0, 3, 4]]));
    places[3].state = StoreState::Unknown;
    assert_eq!(chosen(&random(), &places), sets(&[&[0, 4]]));
}

#[test]
fn load_moves_segments_to_the_idle() {
    let mut places = stores(&["a", "b", "c", "d"]);
    places[0].load = 1_000;
    places[1].load = 5_000;
    let picks = choices(&random(), &places);
    let with = |id: u128| picks.iter().filter(|set| set.as_ref().unwrap().contains(&id)).count();
    assert!(with(2) == 100 && with(3) == 100 || with(2) + with(3) > 190, "{} {}", with(2), with(3));
    assert!(with(0) > 20 && with(1) > 20, "the loaded ones share what is left: {} {}", with(0), with(1));
}
