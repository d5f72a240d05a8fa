//! Who may do what: tokens and their roles.

use std::{fmt, net::SocketAddr, sync::Arc};

use arc_swap::ArcSwap;
use http::{HeaderMap, header::AUTHORIZATION};
use subtle::ConstantTimeEq;

/// What a caller may do; each role includes those before it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Role {
    /// Look and consume.
    Read,
    /// Append.
    Write,
    /// Assign, fence, delete, change: what operators and the roles of the cluster do.
    Admin,
}

impl Role {
    /// Its name in a tokens file.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Read => "read",
            Self::Write => "write",
            Self::Admin => "admin",
        }
    }

    fn named(name: &str) -> Option<Self> {
        [Self::Read, Self::Write, Self::Admin].into_iter().find(|role| role.name() == name)
    }
}

/// What a call needs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Need {
    /// Nothing: probes must work without secrets.
    Nothing,
    /// A token of this role, or of one that includes it.
    Role(Role),
    /// A token of an admin. Where no tokens are known, the caller must be on this machine: it is what operators do, and no role
    /// of a cluster asks it of another.
    Operator,
}

/// Why someone may not do something.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Denied {
    #[error("the call carries no bearer token")]
    NoToken,
    #[error("the token is not known here")]
    WrongToken,
    #[error("this needs the role {}, the token has {}", needed.name(), role.name())]
    Role { needed: Role, role: Role },
    #[error("without tokens (auth.enabled), this is open to this machine only")]
    Remote,
}

impl Denied {
    /// One of a few words, for metrics.
    #[must_use]
    pub fn reason(self) -> &'static str {
        match self {
            Self::NoToken => "no_token",
            Self::WrongToken => "wrong_token",
            Self::Role { .. } => "role",
            Self::Remote => "remote",
        }
    }
}

/// Why a tokens file is refused. The text never holds a token.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TokensError {
    #[error("line {line}: expected ROLE TOKEN, with the role read, write or admin")]
    Malformed { line: usize },
    #[error("line {line}: the token has {length} characters, {LEAST_TOKEN} are the least")]
    Short { line: usize, length: usize },
    #[error("line {line}: the token stands there twice")]
    Twice { line: usize },
    #[error("holds no token")]
    Empty,
}

/// A token that can be guessed protects nothing.
const LEAST_TOKEN: usize = 16;
const SCHEME: &[u8] = b"Bearer ";

/// Whether who calls without tokens may do what is for operators.
///
/// # Errors
/// [`Denied::Remote`] for another machine, and where the network has no addresses.
pub fn operate(peer: Option<SocketAddr>) -> Result<(), Denied> {
    if peer.is_some_and(|peer| peer.ip().to_canonical().is_loopback()) { Ok(()) } else { Err(Denied::Remote) }
}

/// The tokens that are let in. Clones are one; they can be replaced while they are in use.
#[derive(Clone)]
pub struct Tokens(Arc<ArcSwap<Vec<Entry>>>);

struct Entry {
    role: Role,
    token: Box<[u8]>,
}

impl fmt::Debug for Tokens {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Tokens({})", self.0.load().len())
    }
}

impl Tokens {
    /// Reads what a tokens file says: a role and a token on each line; empty lines and those that begin with `#` do not
    /// count.
    ///
    /// # Errors
    /// [`TokensError`].
    pub fn parse(text: &str) -> Result<Self, TokensError> {
        Ok(Self(Arc::new(ArcSwap::from_pointee(entries(text)?))))
    }

    /// Lets in what another text says from now on, here and in every clone. Calls that run go on.
    ///
    /// # Errors
    /// [`TokensError`]; the old ones stay.
    pub fn replace(&self, text: &str) -> Result<(), TokensError> {
        self.0.store(Arc::new(entries(text)?));
        Ok(())
    }

    /// Whether the bearer token among the headers may do what needs a role.
    ///
    /// # Errors
    /// [`Denied`].
    pub fn judge(&self, headers: &HeaderMap, needed: Role) -> Result<(), Denied> {
        let header = headers.get(AUTHORIZATION).ok_or(Denied::NoToken)?.as_bytes();
        let (scheme, token) = header.split_at_checked(SCHEME.len()).ok_or(Denied::NoToken)?;
        if !scheme.eq_ignore_ascii_case(SCHEME) {
            return Err(Denied::NoToken);
        }
        match self.role(token.trim_ascii()) {
            None => Err(Denied::WrongToken),
            Some(role) if role < needed => Err(Denied::Role { needed, role }),
            Some(_) => Ok(()),
        }
    }

    /// The role of a token, if there is such a token. Takes as long for every token of a length.
    #[must_use]
    pub fn role(&self, token: &[u8]) -> Option<Role> {
        let entries = self.0.load();
        // All are compared, so that the time tells nothing about which one it was.
        entries.iter().fold(None, |found, entry| if entry.token.ct_eq(token).into() { Some(entry.role) } else { found })
    }
}

fn entries(text: &str) -> Result<Vec<Entry>, TokensError> {
    let mut entries: Vec<Entry> = Vec::new();
    for (line, content) in text.lines().enumerate().map(|(index, content)| (index + 1, content.trim())) {
        if content.is_empty() || content.starts_with('#') {
            continue;
        }
        let mut words = content.split_ascii_whitespace();
        let (Some(role), Some(token), None) = (words.next().and_then(Role::named), words.next(), words.next()) else {
            return Err(TokensError::Malformed { line });
        };
        if !token.bytes().all(|byte| byte.is_ascii_graphic()) {
            return Err(TokensError::Malformed { line });
        }
        if token.len() < LEAST_TOKEN {
            return Err(TokensError::Short { line, length: token.len() });
        }
        if entries.iter().any(|entry| *entry.token == *token.as_bytes()) {
            return Err(TokensError::Twice { line });
        }
        entries.push(Entry { role, token: token.as_bytes().into() });
    }
    if entries.is_empty() { Err(TokensError::Empty) } else { Ok(entries) }
}

#[cfg(test)]
mod tests {
    use super::*;

    const READ: &str = "r-0123456789abcdef";
    const ADMIN: &str = "a-0123456789abcdef";

    #[test]
    fn a_token_has_the_role_of_its_line() {
        let tokens = Tokens::parse(&format!("# who looks\nread {READ}\n\n  admin\t{ADMIN}  \n")).unwrap();
        assert_eq!(tokens.role(READ.as_bytes()), Some(Role::Read));
        assert_eq!(tokens.role(ADMIN.as_bytes()), Some(Role::Admin));
        for wrong in ["", "r-0123456789abcde", "r-0123456789abcdeg", "r-0123456789abcdef0", "read"] {
            assert_eq!(tokens.role(wrong.as_bytes()), None, "{wrong:?}");
        }
        assert!(Role::Read < Role::Write && Role::Write < Role::Admin);
    }

    #[test]
    fn who_shows_no_token_a_wrong_one_or_one_of_a_smaller_role_is_told_which() {
        let tokens = Tokens::parse(&format!("read {READ}\nadmin {ADMIN}")).unwrap();
        let judge = |header: Option<String>, needed| {
            let headers = header.map(|text| (AUTHORIZATION, text.parse().unwrap()));
            tokens.judge(&headers.into_iter().collect(), needed)
        };
        assert_eq!(judge(None, Role::Read), Err(Denied::NoToken));
        assert_eq!(judge(Some("Basic abc".into()), Role::Read), Err(Denied::NoToken));
        assert_eq!(judge(Some("Bearer abc".into()), Role::Read), Err(Denied::WrongToken));
        assert_eq!(judge(Some(format!("bearer {READ}")), Role::Read), Ok(()));
        let smaller = Denied::Role { needed: Role::Write, role: Role::Read };
        assert_eq!(judge(Some(format!("Bearer {READ}")), Role::Write), Err(smaller));
        assert_eq!(judge(Some(format!("Bearer {ADMIN}")), Role::Write), Ok(()));
    }

    #[test]
    fn what_is_no_tokens_file_is_refused_without_telling_its_secrets() {
        for (text, why) in [
            ("", TokensError::Empty),
            ("# nothing\n", TokensError::Empty),
            ("read short", TokensError::Short { line: 1, length: 5 }),
            ("\nroot r-0123456789abcdef", TokensError::Malformed { line: 2 }),
            ("r-0123456789abcdef", TokensError::Malformed { line: 1 }),
            ("read r-0123456789abcdef and more", TokensError::Malformed { line: 1 }),
            ("read r-0123456789abcdef\nadmin r-0123456789abcdef", TokensError::Twice { line: 2 }),
        ] {
            let error = Tokens::parse(text).unwrap_err();
            assert_eq!(error, why, "{text:?}");
            assert!(!error.to_string().contains("0123456789"), "{error}");
        }
    }

    #[test]
    fn tokens_are_replaced_in_use_and_stay_when_the_new_ones_are_wrong() {
        let tokens = Tokens::parse(&format!("read {READ}")).unwrap();
        let used = tokens.clone();
        tokens.replace("nonsense").unwrap_err();
        assert_eq!(used.role(READ.as_bytes()), Some(Role::Read));
        tokens.replace(&format!("write {ADMIN}")).unwrap();
        assert_eq!(used.role(READ.as_bytes()), None);
        assert_eq!(used.role(ADMIN.as_bytes()), Some(Role::Write));
        assert_eq!(format!("{used:?}"), "Tokens(1)");
    }
}
