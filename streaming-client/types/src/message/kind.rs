//! The table of message types.

use std::fmt;

/// How the payload of a message is to be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Version {
    /// From before messages had versions.
    V0,
    /// A body of package `milvus.proto.msg`.
    V1,
    /// A body of package `milvus.proto.messages`.
    V2,
}

impl Version {
    #[must_use]
    pub fn from_number(number: u32) -> Option<Self> {
        match number {
            0 => Some(Self::V0),
            1 => Some(Self::V1),
            2 => Some(Self::V2),
            _ => None,
        }
    }

    #[must_use]
    pub fn number(self) -> u32 {
        match self {
            Self::V0 => 0,
            Self::V1 => 1,
            Self::V2 => 2,
        }
    }
}

/// One row: the version of a type and what it is besides.
#[derive(Clone, Copy)]
struct Row {
    version: Version,
    flags: u8,
}

/// Consumers get it whatever types they filter for.
const SYSTEM: u8 = 1;
/// Only the node itself may write it.
const SELF_CONTROLLED: u8 = 1 << 1;
/// Waits for, and then shuts out, everything else on its vchannel, and ends the transactions there.
const EXCLUSIVE: u8 = 1 << 2;
/// Its payload may be ciphertext.
const ENCRYPTABLE: u8 = 1 << 3;

macro_rules! message_types {
    ($($name:ident = $number:literal, $version:ident $(, $flag:ident)*;)*) => {
        /// What a message is. Types that came after these are unknown here and refused, because nobody could say how to
        /// lock for them.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub enum MessageType {
            $($name = $number,)*
        }

        impl MessageType {
            /// Every type, by number.
            pub const ALL: &[Self] = &[$(Self::$name,)*];

            /// `None` for 0 and every number that no type has.
            #[must_use]
            pub fn from_number(number: i32) -> Option<Self> {
                match number {
                    $($number => Some(Self::$name),)*
                    _ => None,
                }
            }

            /// The number on the wire.
            #[must_use]
            pub const fn number(self) -> i32 {
                self as i32
            }

            #[must_use]
            pub const fn name(self) -> &'static str {
                match self {
                    $(Self::$name => stringify!($name),)*
                }
            }

            const fn row(self) -> Row {
                match self {
                    $(Self::$name => Row { version: Version::$version, flags: 0 $(| $flag)* },)*
                }
            }
        }
    };
}

message_types! {
    TimeTick = 1, V1, SYSTEM, SELF_CONTROLLED;
    Insert = 2, V1, ENCRYPTABLE;
    Delete = 3, V1, ENCRYPTABLE;
    Flush = 4, V2, SELF_CONTROLLED;
    CreateCollection = 5, V1, EXCLUSIVE;
    DropCollection = 6, V1, EXCLUSIVE;
    CreatePartition = 7, V1, EXCLUSIVE;
    DropPartition = 8, V1, EXCLUSIVE;
    ManualFlush = 9, V2, EXCLUSIVE;
    CreateSegment = 10, V2, SELF_CONTROLLED;
    Import = 11, V1;
    SchemaChange = 12, V2, EXCLUSIVE;
    AlterCollection = 13, V2, EXCLUSIVE;
    AlterLoadConfig = 14, V2;
    DropLoadConfig = 15, V2;
    CreateDatabase = 16, V2;
    AlterDatabase = 17, V2;
    DropDatabase = 18, V2;
    AlterAlias = 19, V2;
    DropAlias = 20, V2;
    RestoreRbac = 21, V2;
    AlterUser = 22, V2;
    DropUser = 23, V2;
    AlterRole = 24, V2;
    DropRole = 25, V2;
    AlterUserRole = 26, V2;
    DropUserRole = 27, V2;
    AlterPrivilege = 28, V2;
    DropPrivilege = 29, V2;
    AlterPrivilegeGroup = 30, V2;
    DropPrivilegeGroup = 31, V2;
    AlterResourceGroup = 32, V2;
    DropResourceGroup = 33, V2;
    CreateIndex = 34, V2;
    AlterIndex = 35, V2;
    DropIndex = 36, V2;
    AlterReplicateConfig = 800, V2, EXCLUSIVE;
    BeginTxn = 900, V2, SYSTEM;
    CommitTxn = 901, V2, SYSTEM;
    RollbackTxn = 902, V2, SYSTEM;
    Txn = 999, V2, SYSTEM;
}

impl MessageType {
    /// The version that messages of this type are written in.
    #[must_use]
    pub const fn version(self) -> Version {
        self.row().version
    }

    /// Whether consumers get it whatever types they filter for.
    #[must_use]
    pub const fn is_system(self) -> bool {
        self.row().flags & SYSTEM != 0
    }

    /// Whether only the node itself may write it.
    #[must_use]
    pub const fn is_self_controlled(self) -> bool {
        self.row().flags & SELF_CONTROLLED != 0
    }

    /// Whether it needs its vchannel for itself, and ends the transactions there.
    #[must_use]
    pub const fn is_exclusive(self) -> bool {
        self.row().flags & EXCLUSIVE != 0
    }

    /// Whether its payload may be ciphertext.
    #[must_use]
    pub const fn is_encryptable(self) -> bool {
        self.row().flags & ENCRYPTABLE != 0
    }

    /// Whether it exists in memory only, as the sum of a transaction's messages.
    #[must_use]
    pub const fn is_in_memory_only(self) -> bool {
        matches!(self, Self::Txn)
    }

    /// Whether it may be a part of a transaction between begin and commit.
    #[must_use]
    pub const fn is_txn_body(self) -> bool {
        matches!(self, Self::Insert | Self::Delete)
    }
}

impl fmt::Display for MessageType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

#[cfg(test)]
mod tests {
    use streaming_proto::messages;

    use super::*;

    /// Number, version, flags S(ystem) C(ontrolled by the node) X (exclusive) E(ncryptable).
    const TABLE: &[(&[i32], u32, &str)] = &[
        (&[1], 1, "SC"),
        (&[2, 3], 1, "E"),
        (&[4], 2, "C"),
        (&[5, 6, 7, 8], 1, "X"),
        (&[9], 2, "X"),
        (&[10], 2, "C"),
        (&[11], 1, ""),
        (&[12, 13], 2, "X"),
        (&[14, 15, 16, 17, 18, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 29, 30, 31, 32, 33, 34, 35, 36], 2, ""),
        (&[800], 2, "X"),
        (&[900, 901, 902, 999], 2, "S"),
    ];

    #[test]
    fn every_type_has_its_version_and_flags() {
        for (numbers, version, flags) in TABLE {
            for number in *numbers {
                let kind = MessageType::from_number(*number).unwrap();
                assert_eq!(kind.number(), *number);
                assert_eq!(kind.version().number(), *version, "{kind}");
                let got = [
                    (kind.is_system(), 'S'),
                    (kind.is_self_controlled(), 'C'),
                    (kind.is_exclusive(), 'X'),
                    (kind.is_encryptable(), 'E'),
                ];
                let got: String = got.iter().filter(|(set, _)| *set).map(|(_, flag)| flag).collect();
                assert_eq!(got, *flags, "{kind}");
            }
        }
        assert_eq!(TABLE.iter().map(|(numbers, ..)| numbers.len()).sum::<usize>(), MessageType::ALL.len());
    }

    #[test]
    fn names_and_numbers_are_those_of_the_protocol() {
        for kind in MessageType::ALL {
            let proto = messages::MessageType::try_from(kind.number()).unwrap();
            assert!(proto.as_str_name().eq_ignore_ascii_case(kind.name()), "{kind}");
        }
    }

    #[test]
    fn zero_and_later_types_are_unknown() {
        for number in [0, -1, 37, 38, 47, 48, 700, 903, i32::MAX, i32::MIN] {
            assert_eq!(MessageType::from_number(number), None);
        }
    }

    #[test]
    fn versions_are_0_to_2() {
        for number in 0..3 {
            assert_eq!(Version::from_number(number).map(Version::number), Some(number));
        }
        assert_eq!(Version::from_number(3), None);
    }
}
