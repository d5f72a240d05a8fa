//! The properties of a message: few and short texts, kept together, so that not each of them costs an allocation.

use std::{collections::BTreeMap, fmt, sync::Arc};

use prost::{
    DecodeError,
    bytes::{Buf, BufMut},
    encoding::{
        DecodeContext, WireType, check_wire_type, decode_key, decode_varint, encode_key, encode_varint,
        encoded_len_varint, key_len, merge_loop, skip_field, string,
    },
};
use smallvec::SmallVec;

/// Texts by key, in the order of the keys; on the wire a `map<string, string>`. A clone shares them until it is changed.
///
/// ```
/// let mut properties = streaming_proto::Properties::default();
/// properties.set("_t", "2");
/// assert_eq!(properties.get("_t"), Some("2"));
/// assert_eq!(properties.remove("_t"), Some("2".to_owned()));
/// ```
#[derive(Clone, Default)]
pub struct Properties(Option<Arc<Texts>>);

#[derive(Clone)]
struct Texts {
    /// All keys and values, and what was replaced or removed.
    bytes: String,
    /// By key.
    entries: SmallVec<[Entry; ENTRIES]>,
    /// How many of the bytes were replaced or removed.
    stale: usize,
    /// A bit for every key that was ever here: most of those that are asked for never were.
    met: u64,
}

/// Where a property stands.
#[derive(Clone, Copy, Default)]
struct Entry {
    /// Tells most keys apart without a look at their texts.
    head: u64,
    key: Span,
    value: Span,
}

/// A part of the bytes. Small, because every message in memory has many; more than 4 GiB saturate, which is larger than what
/// anybody accepts.
#[derive(Clone, Copy, Default)]
struct Span {
    start: u32,
    len: u32,
}

/// Room for what the streaming system and a user usually put into a message.
const BYTES: usize = 256;
const ENTRIES: usize = 8;
/// A message with more properties is not read: each is put where it belongs among the others, and takes far more memory
/// than the eight bytes that it can have on the wire.
pub const MAX_PROPERTIES: usize = 2048;

impl Properties {
    // Inlined so that a known key's head is computed by the compiler.
    #[inline]
    #[must_use]
    pub fn get(&self, key: &str) -> Option<&str> {
        let (texts, head) = (self.0.as_ref()?, head(key));
        if texts.met & bit(head) == 0 { None } else { texts.get(head, key) }
    }

    #[inline]
    #[must_use]
    pub fn contains(&self, key: &str) -> bool {
        self.get(key).is_some()
    }

    pub fn set(&mut self, key: impl AsRef<str>, value: impl AsRef<str>) {
        self.texts().set(key.as_ref(), value.as_ref());
    }

    pub fn remove(&mut self, key: &str) -> Option<String> {
        let removed = self.get(key)?.to_owned();
        self.texts().remove(key);
        Some(removed)
    }

    /// Every property, by key.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &str)> {
        let bytes = self.0.as_ref().map_or("", |texts| &texts.bytes);
        self.entries().iter().map(|entry| (entry.key.of(bytes), entry.value.of(bytes)))
    }

    /// Bytes of all keys and values.
    #[must_use]
    pub fn size(&self) -> usize {
        self.entries().iter().map(|entry| entry.key.len() + entry.value.len()).sum()
    }

    /// How many there are.
    #[must_use]
    pub fn count(&self) -> usize {
        self.entries().len()
    }

    fn entries(&self) -> &[Entry] {
        self.0.as_ref().map_or(&[], |texts| &texts.entries)
    }

    /// To be changed: its own, if they were shared.
    fn texts(&mut self) -> &mut Texts {
        let empty =
            || Arc::new(Texts { bytes: String::with_capacity(BYTES), entries: SmallVec::new(), stale: 0, met: 0 });
        Arc::make_mut(self.0.get_or_insert_with(empty))
    }
}

impl Texts {
    fn get(&self, head: u64, key: &str) -> Option<&str> {
        let at = self.find(head, key)?;
        Some(self.at(self.entries[at].value))
    }

    fn set(&mut self, key: &str, value: &str) {
        let (head, value) = (head(key), self.push(value));
        // They mostly come in the order of their keys.
        let at = match self.entries.last() {
            Some(last) if (last.head, self.at(last.key)) >= (head, key) => {
                self.entries.partition_point(|entry| (entry.head, self.at(entry.key)) < (head, key))
            }
            _ => self.entries.len(),
        };
        match self.entries.get(at) {
            Some(entry) if self.at(entry.key) == key => {
                let replaced = std::mem::replace(&mut self.entries[at].value, value);
                self.drop_stale(replaced.len());
            }
            _ => {
                let key = self.push(key);
                self.entries.insert(at, Entry { head, key, value });
                self.met |= bit(head);
            }
        }
    }

    fn remove(&mut self, key: &str) {
        if let Some(at) = self.find(head(key), key) {
            let Entry { key, value, .. } = self.entries.remove(at);
            self.drop_stale(key.len() + value.len());
        }
    }

    /// Notes what is not needed any more, and drops it when it is more than what is: a message counts by what it has, and
    /// one that sets a property again and again would hold far more memory than that.
    fn drop_stale(&mut self, bytes: usize) {
        self.stale += bytes;
        if self.stale <= BYTES.max(self.bytes.len() / 2) {
            return;
        }
        let fresh = String::with_capacity(BYTES.max(self.bytes.len() - self.stale));
        let stale = std::mem::replace(&mut self.bytes, fresh);
        let mut entries = std::mem::take(&mut self.entries);
        for Entry { key, value, .. } in &mut entries {
            *key = self.push(key.of(&stale));
            *value = self.push(value.of(&stale));
        }
        (self.entries, self.stale) = (entries, 0);
    }

    fn find(&self, head: u64, key: &str) -> Option<usize> {
        let is_same = |entry: &Entry| {
            entry.head == head && entry.key.len() == key.len() && (key.len() <= HEAD || self.at(entry.key) == key)
        };
        self.entries.iter().position(is_same)
    }

    fn at(&self, span: Span) -> &str {
        span.of(&self.bytes)
    }

    fn push(&mut self, text: &str) -> Span {
        let saturated = |bytes| u32::try_from(bytes).unwrap_or(u32::MAX);
        let (start, len) = (saturated(self.bytes.len()), saturated(text.len()));
        self.bytes.push_str(text);
        Span { start, len }
    }
}

/// Bytes of a key in its head.
const HEAD: usize = size_of::<u64>();

/// The first bytes of a key, in the order of the keys.
#[inline]
fn head(key: &str) -> u64 {
    let mut head = [0; HEAD];
    match key.as_bytes().first_chunk() {
        Some(first) => head = *first,
        None => head[..key.len()].copy_from_slice(key.as_bytes()),
    }
    u64::from_be_bytes(head)
}

/// One of 64 bits, by a hash of the head.
#[inline]
fn bit(head: u64) -> u64 {
    1 << (head.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 58)
}

impl Span {
    fn of(self, bytes: &str) -> &str {
        let start = self.start as usize;
        bytes.get(start..start + self.len()).unwrap_or_default()
    }

    fn len(self) -> usize {
        self.len as usize
    }
}

impl PartialEq for Properties {
    fn eq(&self, other: &Self) -> bool {
        self.iter().eq(other.iter())
    }
}

impl Eq for Properties {}

impl fmt::Debug for Properties {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_map().entries(self.iter()).finish()
    }
}

impl<K: AsRef<str>, V: AsRef<str>> FromIterator<(K, V)> for Properties {
    fn from_iter<I: IntoIterator<Item = (K, V)>>(entries: I) -> Self {
        let mut properties = Self::default();
        properties.extend(entries);
        properties
    }
}

impl<K: AsRef<str>, V: AsRef<str>> Extend<(K, V)> for Properties {
    fn extend<I: IntoIterator<Item = (K, V)>>(&mut self, entries: I) {
        entries.into_iter().for_each(|(key, value)| self.set(key, value));
    }
}

impl From<BTreeMap<String, String>> for Properties {
    fn from(map: BTreeMap<String, String>) -> Self {
        map.into_iter().collect()
    }
}

const KEY: u32 = 1;
const VALUE: u32 = 2;

/// As the field `tag` of a message.
impl Properties {
    pub(crate) fn encode(&self, tag: u32, buffer: &mut impl BufMut) {
        for (entry, (key, value)) in self.entries().iter().zip(self.iter()) {
            encode_head(tag, entry.encoded_len(), buffer);
            for (tag, text) in [(KEY, key), (VALUE, value)] {
                if !text.is_empty() {
                    encode_head(tag, text.len(), buffer);
                    buffer.put_slice(text.as_bytes());
                }
            }
        }
    }

    pub(crate) fn encoded_len(&self, tag: u32) -> usize {
        let delimited = |len| key_len(tag) + encoded_len_varint(len as u64) + len;
        self.entries().iter().map(|entry| delimited(entry.encoded_len())).sum()
    }

    /// Reads one property. Of two with the same key the later one counts.
    ///
    /// # Errors
    /// It is none, or one of more than [`MAX_PROPERTIES`].
    pub(crate) fn merge(
        &mut self,
        wire_type: WireType,
        buffer: &mut impl Buf,
        context: DecodeContext,
    ) -> Result<(), DecodeError> {
        check_wire_type(WireType::LengthDelimited, wire_type)?;
        if self.count() >= MAX_PROPERTIES {
            return Err(too_many());
        }
        let mut rest = buffer.chunk();
        if let Some((key, value)) = whole(&mut rest).and_then(pair) {
            self.texts().set(key, value);
            let read = buffer.chunk().len() - rest.len();
            buffer.advance(read);
            return Ok(());
        }
        // In several parts, not as everybody writes it, or wrong.
        let mut texts = (String::new(), String::new());
        merge_loop(&mut texts, buffer, context, |(key, value), buffer, context| {
            let (tag, wire_type) = decode_key(buffer)?;
            match tag {
                KEY => string::merge(wire_type, key, buffer, context),
                VALUE => string::merge(wire_type, value, buffer, context),
                _ => skip_field(wire_type, tag, buffer, context),
            }
        })?;
        self.set(texts.0, texts.1);
        Ok(())
    }
}

/// Writes what stands before `len` bytes. For most two bytes, which go in one piece.
fn encode_head(tag: u32, len: usize, buffer: &mut impl BufMut) {
    match (u8::try_from(tag << 3 | WireType::LengthDelimited as u32), u8::try_from(len)) {
        (Ok(key @ ..0x80), Ok(len @ ..0x80)) => buffer.put_slice(&[key, len]),
        _ => {
            encode_key(tag, WireType::LengthDelimited, buffer);
            encode_varint(len as u64, buffer);
        }
    }
}

#[expect(deprecated, reason = "prost has no other way for those who decode by hand")]
fn too_many() -> DecodeError {
    DecodeError::new(format!("a message has more than {MAX_PROPERTIES} properties"))
}

/// What is there with its length.
fn whole<'a>(rest: &mut &'a [u8]) -> Option<&'a [u8]> {
    let len = usize::try_from(decode_varint(rest).ok()?).ok()?;
    let (bytes, after) = rest.split_at_checked(len)?;
    *rest = after;
    Some(bytes)
}

/// Key and value, if they are all there is, in this order.
fn pair(mut property: &[u8]) -> Option<(&str, &str)> {
    let mut text = |tag: u32| match property.split_first() {
        Some((first, mut rest)) if u32::from(*first) == (tag << 3 | 2u32) => {
            let text = std::str::from_utf8(whole(&mut rest)?).ok()?;
            property = rest;
            Some(text)
        }
        _ => Some(""),
    };
    let pair = (text(KEY)?, text(VALUE)?);
    property.is_empty().then_some(pair)
}

impl Entry {
    fn encoded_len(&self) -> usize {
        let field = |span: Span| match span.len() {
            0 => 0,
            len => 1 + encoded_len_varint(len as u64) + len,
        };
        field(self.key) + field(self.value)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use prost::Message as _;

    use super::*;
    use crate::messages;

    /// What the generated code would be.
    #[derive(Clone, PartialEq, prost::Message)]
    struct Generated {
        #[prost(bytes = "bytes", tag = "1")]
        payload: prost::bytes::Bytes,
        #[prost(btree_map = "string, string", tag = "2")]
        properties: BTreeMap<String, String>,
    }

    fn maps() -> impl Strategy<Value = BTreeMap<String, String>> {
        prop::collection::btree_map("[a-c_\\x00]{0,3}|[a-b]{7,10}", ".{0,300}", 0..16)
    }

    #[test]
    fn more_properties_than_a_message_may_have_are_not_read() {
        // In the order that costs most.
        let written = |count: usize| {
            let mut bytes = Vec::new();
            for number in (0..count).rev() {
                let one: Properties = [(format!("{number:06}"), "")].into_iter().collect();
                one.encode(2, &mut bytes);
            }
            messages::Message::decode(bytes.as_slice())
        };
        assert_eq!(written(MAX_PROPERTIES).unwrap().properties.count(), MAX_PROPERTIES);
        assert!(written(MAX_PROPERTIES + 1).unwrap_err().to_string().contains("2048 properties"));
        written(300_000).unwrap_err();
    }

    #[test]
    fn property_that_is_set_again_and_again_holds_no_more_memory_than_once() {
        let value = "v".repeat(1 << 16);
        let mut bytes = Vec::new();
        for _ in 0..100 {
            Properties::from_iter([("k", &value)]).encode(2, &mut bytes);
        }
        let mut properties = messages::Message::decode(bytes.as_slice()).unwrap().properties;
        let held = |properties: &Properties| properties.0.as_ref().unwrap().bytes.capacity();
        assert_eq!(properties.get("k"), Some(value.as_str()));
        assert!(held(&properties) <= 4 * value.len(), "{} bytes", held(&properties));
        for _ in 0..100 {
            properties.set("other", &value);
            properties.remove("other");
        }
        assert!(held(&properties) <= 4 * value.len(), "{} bytes", held(&properties));
    }

    proptest! {
        #[test]
        fn properties_are_written_and_read_as_a_map(map in maps(), payload: Vec<u8>, parts in 1usize..40) {
            let generated = Generated { payload: payload.clone().into(), properties: map.clone() };
            let message = messages::Message { payload: payload.into(), properties: map.into() };
            let bytes = generated.encode_to_vec();
            prop_assert_eq!(message.encoded_len(), bytes.len());
            prop_assert_eq!(&message.encode_to_vec(), &bytes);
            let (first, rest) = bytes.split_at(bytes.len() / parts);
            prop_assert_eq!(messages::Message::decode(first.chain(rest)), Ok(message));
        }

        #[test]
        fn any_bytes_are_read_as_the_generated_code_reads_them(bytes: Vec<u8>, mut valid in maps(), at: usize, bit in 0..8u32) {
            valid.insert("_t".to_owned(), "2".to_owned());
            let mut broken = Generated { payload: bytes.clone().into(), properties: valid }.encode_to_vec();
            let at = at % broken.len();
            broken[at] ^= 1u8 << bit;
            for bytes in [bytes, broken] {
                let read = messages::Message::decode(bytes.as_slice());
                match (read, Generated::decode(bytes.as_slice())) {
                    (Ok(read), Ok(generated)) => prop_assert_eq!(read.properties, generated.properties.into()),
                    (read, generated) => prop_assert!(read.is_err() && generated.is_err()),
                }
            }
        }

        #[test]
        fn properties_are_a_map(
            steps in prop::collection::vec(("[a-c]{0,2}|a{7,9}", prop::option::of(".{0,3}|[a-z]{0,200}")), 0..60),
        ) {
            let (mut ours, mut model) = (Properties::default(), BTreeMap::new());
            for (key, value) in steps {
                match value {
                    Some(value) => {
                        ours.set(&key, &value);
                        model.insert(key, value);
                    }
                    None => prop_assert_eq!(ours.remove(&key), model.remove(&key)),
                }
                let all: Vec<_> = model.iter().map(|(key, value)| (key.as_str(), value.as_str())).collect();
                prop_assert_eq!(ours.iter().collect::<Vec<_>>(), all);
                prop_assert_eq!(ours.size(), model.iter().map(|(key, value)| key.len() + value.len()).sum::<usize>());
                prop_assert!(model.keys().all(|key| ours.get(key) == model.get(key).map(String::as_str)));
            }
        }
    }
}
