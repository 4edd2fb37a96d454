//! The pool token: one that the keeper (a Secret, a file) holds, renewed before it ends. The old one is retired
//! only when the keeper holds the new one and the overlap is over: its agents go on under the new one. Tokens of a
//! cut-off pass are found by their external id and revoked: their secrets are lost.

use secrecy::SecretString;

use super::{Context, Result, WriteKind, reading};
use crate::{
    api::iacp::AccessTokenAttributes,
    client::iacp::{self, PoolToken},
    crd::agent_pool::TokenSpec,
    ids::{PoolId, TokenId},
};

/// A token that the caller must store now: nobody can read the secret again.
#[derive(Debug)]
pub struct NewToken {
    pub id: TokenId,
    pub secret: SecretString,
    /// Milliseconds since 1970.
    pub expires_at: Option<i64>,
}

/// How the token stands after a pass.
#[derive(Debug, Default)]
pub struct TokenReport {
    /// Store it before anything else is done with the pool.
    pub fresh: Option<NewToken>,
    /// The token that is held, or the fresh one.
    pub id: Option<TokenId>,
    /// When that one ends, in milliseconds since 1970.
    pub expires_at: Option<i64>,
    /// When a pass has something to do, in milliseconds since 1970.
    pub next: Option<i64>,
}

/// A token's record, reduced to what matters here. Times are milliseconds since 1970.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Seen {
    pub id: TokenId,
    /// Counted by us; `None`: not made for this object.
    pub ordinal: Option<u64>,
    pub created_at: i64,
    pub expires_at: Option<i64>,
    pub used: bool,
}

/// What is to be done about tokens.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Plan {
    /// Ends agents that registered with them: nobody can have them.
    pub revoke: Vec<TokenId>,
    /// Replaced by the token that is held, whose agents theirs become.
    pub retire: Vec<TokenId>,
    /// Ordinal of a token to create.
    pub create: Option<u64>,
    pub next: Option<i64>,
}

/// Decides from the records in the control plane and the token that the keeper holds, read afresh.
#[must_use]
pub fn plan(spec: &TokenSpec, held: Option<&TokenId>, seen: &[Seen], now: i64) -> Plan {
    let next_ordinal = seen.iter().filter_map(|token| token.ordinal).max().unwrap_or(0) + 1;
    let ours = seen.iter().filter_map(|token| token.ordinal.map(|ordinal| (ordinal, token)));
    let ended = |token: &Seen| token.expires_at.is_some_and(|end| end <= now);
    let current = held.and_then(|id| seen.iter().find(|token| token.id == *id)).filter(|token| !ended(token));
    let Some(current) = current else {
        // Agents may still live on a token that was in use, even after its end: it goes when it has a successor.
        let revoke = ours.filter(|(_, token)| !token.used).map(|(_, token)| token.id.clone()).collect();
        return Plan { revoke, create: Some(next_ordinal), ..Plan::default() };
    };
    let overlap_ends = current.created_at + millis(spec.overlap.seconds());
    let ordinal = current.ordinal.unwrap_or(0);
    let mut plan = Plan::default();
    for (other, token) in ours.filter(|(_, token)| token.id != current.id) {
        if !token.used && other > ordinal {
            // The leaving of a pass that was cut off before its secret was stored.
            plan.revoke.push(token.id.clone());
        } else if other > ordinal || ended(token) || now >= overlap_ends {
            plan.retire.push(token.id.clone());
        } else {
            plan.next = Some(overlap_ends);
        }
    }
    let ttl_ends = current.created_at + millis(spec.ttl.seconds());
    let end = current.expires_at.map_or(ttl_ends, |end| end.min(ttl_ends));
    let due = end - millis(spec.rotate_before.seconds());
    if due <= now {
        plan.create = Some(next_ordinal);
    } else {
        plan.next = Some(plan.next.map_or(due, |next| next.min(due)));
    }
    plan
}

fn millis(seconds: u64) -> i64 {
    i64::try_from(seconds.saturating_mul(1000)).unwrap_or(i64::MAX)
}

/// Where the ordinal stands: in the external id, or for servers without one in the description.
fn marker(uid: &str) -> String {
    format!("{uid}/token/")
}

fn seen(token: &PoolToken, marker: &str) -> Seen {
    let AccessTokenAttributes { external_id, description, created_at, expires_at, last_used_at, .. } =
        &token.attributes;
    let ordinal = [external_id, description].into_iter().flatten().find_map(|text| {
        let rest = &text[text.find(marker)? + marker.len()..];
        rest.parse().ok()
    });
    Seen {
        id: token.id.clone(),
        ordinal,
        created_at: created_at.as_deref().and_then(parse_time).unwrap_or(0),
        expires_at: expires_at.as_deref().and_then(parse_time),
        used: last_used_at.is_some(),
    }
}

fn parse_time(text: &str) -> Option<i64> {
    text.parse::<jiff::Timestamp>().ok().map(jiff::Timestamp::as_millisecond)
}

/// Brings the tokens of `pool` into line. A fresh token is created last: nothing that may fail follows it.
pub(super) async fn reconcile(
    context: &Context,
    uid: &str,
    spec: &TokenSpec,
    pool: &PoolId,
    held: Option<&TokenId>,
) -> Result<TokenReport> {
    let marker = marker(uid);
    let tokens = context.control_plane.tokens(pool).await.map_err(reading("list the pool's tokens"))?;
    let tokens: Vec<Seen> = tokens.iter().map(|token| seen(token, &marker)).collect();
    let planned = plan(spec, held, &tokens, context.clock.now_ms());
    for id in &planned.revoke {
        context.seam.write(WriteKind::DeleteToken, context.control_plane.delete_token(id)).await?;
    }
    if let Some(held) = held {
        for id in &planned.retire {
            context.seam.write(WriteKind::RetireToken, retire(context, id, held)).await?;
        }
    }
    let Some(ordinal) = planned.create else {
        let current = tokens.into_iter().find(|token| Some(&token.id) == held);
        return Ok(TokenReport {
            fresh: None,
            expires_at: current.as_ref().and_then(|token| token.expires_at),
            id: current.map(|token| token.id),
            next: planned.next,
        });
    };
    let external_id = format!("{marker}{ordinal}");
    let attributes = AccessTokenAttributes {
        description: Some(format!("Kept by terrapool: {external_id}")),
        external_id: Some(external_id),
        expires_in: i64::try_from(spec.ttl.seconds().div_ceil(60)).ok(),
        ..AccessTokenAttributes::default()
    };
    let create = context.control_plane.create_token(pool, &attributes);
    let (token, secret) = context.seam.write(WriteKind::CreateToken, create).await?;
    let fresh = seen(&token, &marker);
    let next = match tokens.iter().any(|token| token.ordinal.is_some()) {
        // Soon again: what the fresh one replaces is looked at with the fresh one in hand.
        true => Some(context.clock.now_ms()),
        false => plan(spec, Some(&fresh.id), std::slice::from_ref(&fresh), context.clock.now_ms()).next,
    };
    let Seen { id, expires_at, .. } = fresh;
    Ok(TokenReport { id: Some(id.clone()), expires_at, next, fresh: Some(NewToken { id, secret, expires_at }) })
}

/// Revokes what was made for the object: it keeps no token any more.
pub(super) async fn revoke_own(context: &Context, uid: &str, pool: &PoolId) -> Result<()> {
    let marker = marker(uid);
    let tokens = context.control_plane.tokens(pool).await.map_err(reading("list the pool's tokens"))?;
    for token in tokens.iter().map(|token| seen(token, &marker)).filter(|token| token.ordinal.is_some()) {
        context.seam.write(WriteKind::DeleteToken, context.control_plane.delete_token(&token.id)).await?;
    }
    Ok(())
}

/// Where there is no retiring, the token is revoked: its agents have to register again.
async fn retire(context: &Context, old: &TokenId, successor: &TokenId) -> Result<(), iacp::Error> {
    match context.control_plane.retire_token(old, successor).await {
        Err(iacp::Error::Unsupported) => context.control_plane.delete_token(old).await,
        result => result,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOUR: i64 = 3_600_000;

    fn token(name: &str, ordinal: Option<u64>, created_hours: i64) -> Seen {
        Seen {
            id: format!("at-{name}").parse().unwrap(),
            ordinal,
            created_at: created_hours * HOUR,
            expires_at: Some((created_hours + 720) * HOUR),
            used: false,
        }
    }

    fn id(name: &str) -> TokenId {
        format!("at-{name}").parse().unwrap()
    }

    /// Defaults: 720h, renewed 168h before the end, 1h of overlap. What is retired is marked with `+`.
    fn decide(held: Option<&str>, seen: &[Seen], hours: i64) -> (Vec<String>, Option<u64>) {
        let held = held.map(id);
        let Plan { revoke, retire, create, .. } = plan(&TokenSpec::default(), held.as_ref(), seen, hours * HOUR);
        let retired = retire.iter().map(|id| format!("+{id}"));
        (revoke.iter().map(ToString::to_string).chain(retired).collect(), create)
    }

    #[test]
    fn a_first_token_is_made_and_then_left_alone() {
        assert_eq!(decide(None, &[], 0), (vec![], Some(1)));
        let one = [token("a", Some(1), 0)];
        assert_eq!(decide(Some("a"), &one, 1), (vec![], None));
        assert_eq!(decide(Some("a"), &one, 551), (vec![], None));
    }

    #[test]
    fn a_token_is_renewed_before_it_ends_and_retired_after_the_overlap() {
        let one = [token("a", Some(1), 0)];
        assert_eq!(decide(Some("a"), &one, 552), (vec![], Some(2)));
        let two = [token("a", Some(1), 0), token("b", Some(2), 552)];
        assert_eq!(decide(Some("b"), &two, 552), (vec![], None));
        assert_eq!(decide(Some("b"), &two, 553), (vec!["+at-a".to_owned()], None));
        let next = plan(&TokenSpec::default(), Some(&id("b")), &two, 552 * HOUR).next;
        assert_eq!(next, Some(553 * HOUR));
    }

    #[test]
    fn what_a_cut_off_pass_left_is_revoked() {
        // Created, never stored: the keeper still holds the first.
        let two = [token("a", Some(1), 0), token("b", Some(2), 552)];
        assert_eq!(decide(Some("a"), &two, 553), (vec!["at-b".to_owned()], Some(3)));
        let unstored = [token("a", Some(1), 0)];
        assert_eq!(decide(None, &unstored, 0), (vec!["at-a".to_owned()], Some(2)));
    }

    #[test]
    fn a_lost_or_revoked_or_ended_token_is_replaced_at_once() {
        let used = Seen { used: true, ..token("a", Some(1), 0) };
        assert_eq!(decide(None, std::slice::from_ref(&used), 1), (vec![], Some(2)), "agents still live on it");
        assert_eq!(decide(Some("gone"), &[], 1), (vec![], Some(1)));
        assert_eq!(decide(Some("a"), std::slice::from_ref(&used), 720), (vec![], Some(2)), "and after its end too");
        assert_eq!(decide(Some("a"), &[token("a", Some(1), 0)], 720), (vec!["at-a".to_owned()], Some(2)));
        let after = [used, token("b", Some(2), 720)];
        assert_eq!(decide(Some("b"), &after, 720), (vec!["+at-a".to_owned()], None), "its agents have somewhere to go");
    }

    #[test]
    fn a_later_token_that_is_in_use_is_retired_and_not_cut() {
        // The keeper holds an older one again, as after a restored backup.
        let two = [token("a", Some(1), 0), Seen { used: true, ..token("b", Some(2), 552) }];
        assert_eq!(decide(Some("a"), &two, 553), (vec!["+at-b".to_owned()], Some(3)));
    }

    #[test]
    fn strangers_tokens_are_never_touched() {
        let seen = [token("a", Some(1), 0), token("hand", None, 5), token("other", None, 0)];
        assert_eq!(decide(Some("a"), &seen, 100), (vec![], None));
        assert_eq!(decide(None, &seen[1..], 100), (vec![], Some(1)));
    }

    #[test]
    fn a_shorter_ttl_takes_effect_on_the_token_in_hand() {
        let spec =
            TokenSpec { ttl: "24h".parse().unwrap(), rotate_before: "2h".parse().unwrap(), ..TokenSpec::default() };
        let one = [token("a", Some(1), 0)];
        assert_eq!(plan(&spec, Some(&id("a")), &one, 22 * HOUR).create, Some(2));
    }
}
