//! Who is to own what: balanced, with the fewest moves.
//!
//! Owns: the computation. Never: state; whether a partition can be given yet is the group's business.
//!
//! What nobody owns goes to whoever has least. Then, as long as somebody has at least two more than another who could take one of
//! his, one partition moves from him who has most to him who has least. Where all members read the same topics, this ends with
//! counts that differ by one at the most, after the fewest moves that lead there: each move takes from somebody with too much or
//! gives to somebody with too little, and to both if there are both.

use std::collections::{BTreeMap, BTreeSet};

use super::Place;

/// Who is to own each place that anybody reads. `owned` says who owns it now: a member that reads its topic.
pub(super) fn target<'a>(
    places: &BTreeSet<Place>,
    members: &BTreeMap<&'a str, &'a BTreeSet<String>>,
    owned: impl Fn(&Place) -> Option<&'a str>,
) -> BTreeMap<Place, String> {
    let mut held: BTreeMap<&str, BTreeSet<&Place>> =
        members.keys().map(|id| (*id, BTreeSet::new())).collect();
    let mut free = Vec::new();
    for place in places {
        match owned(place).and_then(|id| held.get_mut(id)) {
            Some(has) => _ = has.insert(place),
            None => free.push(place),
        }
    }
    let reads = |id: &str, place: &Place| members.get(id).is_some_and(|it| it.contains(&place.0));
    for place in free {
        let least = held.iter_mut().filter(|(id, _)| reads(id, place));
        // The first of those that have equally few, so that the outcome does not depend on chance.
        if let Some((_, has)) = least.min_by_key(|(_, has)| has.len()) {
            has.insert(place);
        }
    }
    while let Some((from, place, to)) = next_move(&held, &reads) {
        if let Some(has) = held.get_mut(from) {
            has.remove(place);
        }
        if let Some(has) = held.get_mut(to) {
            has.insert(place);
        }
    }
    held.into_iter()
        .flat_map(|(id, has)| has.into_iter().map(move |place| (place.clone(), id.to_owned())))
        .collect()
}

/// The move that helps most: from him who has most to him who has least, among those between whom something can move.
fn next_move<'a, 'p>(
    held: &BTreeMap<&'a str, BTreeSet<&'p Place>>,
    reads: &impl Fn(&str, &Place) -> bool,
) -> Option<(&'a str, &'p Place, &'a str)> {
    let mut by_count: Vec<(&&str, &BTreeSet<&Place>)> = held.iter().collect();
    by_count.sort_by_key(|(id, has)| (has.len(), **id));
    for (from, has) in by_count.iter().rev() {
        for (to, has_less) in &by_count {
            if has_less.len() + 2 > has.len() {
                break;
            }
            // The last one, so that a member keeps a run of low numbers: easier to read, nothing more.
            if let Some(place) = held[**from].iter().rev().find(|place| reads(to, place)) {
                return Some((from, place, to));
            }
        }
    }
    None
}
