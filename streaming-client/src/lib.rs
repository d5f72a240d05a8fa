//! The client of the streaming system: appends to channels and reads them, wherever they are served at the moment.
//!
//! A [`Client`] follows the coordinator's assignment of channels to nodes. A [`Producer`] and a [`Consumer`] find the node
//! that serves their channel, and go on at the next one when it fails: appends are retried in order, reading continues
//! where it was.
//!
//! ```no_run
//! use std::time::Duration;
//!
//! use streaming_client::{Client, ConsumeOptions, Delivery, Discovery, Edges, Settings};
//! use streaming_proto::messages::InsertMessageHeader;
//! use streaming_types::{DeliverPolicy, MessageBuilder};
//! use woodpecker_base::{clock::Clock, net, random::Random};
//!
//! # async fn example() -> Result<(), Box<dyn std::error::Error>> {
//! let edges = Edges { connector: net::tcp_connector(), clock: Clock::system(), random: Random::system() };
//! let settings = Settings::new(Discovery::Address("127.0.0.1:53100".to_owned()));
//! let client = Client::connect(settings, edges)?;
//! let channel = client.wait_channel("by-dev-rootcoord-dml_0", Duration::from_secs(10)).await?;
//! println!("{} is served by {}", channel.pchannel, channel.owner.address);
//!
//! let vchannel = "by-dev-rootcoord-dml_0_1v0";
//! let producer = client.producer(vchannel);
//! let message = MessageBuilder::new(&InsertMessageHeader::default()).vchannel(vchannel).payload("hello").build()?;
//! // The first await is for room among the unacknowledged appends, the second for the acknowledgement.
//! let appended = producer.append(message).await?.await?;
//!
//! let mut consumer = client.consume(ConsumeOptions::new(vchannel, DeliverPolicy::StartFrom(appended.id)))?;
//! if let Delivery::Message(message) = consumer.next().await? {
//!     assert_eq!(message.payload, "hello");
//! }
//! consumer.close().await;
//! client.close().await;
//! # Ok(())
//! # }
//! ```

mod alarm;
mod assignment;
mod balance;
mod client;
mod connections;
mod consumer;
mod consumers;
mod error;
mod metrics;
mod producer;
mod read_point;
mod replicate;
mod settings;

pub use assignment::{Channel, Node, Version};
pub use client::{Client, Coordinator};
pub use consumer::{ConsumeOptions, Consumer, Delivery, Txn};
pub use consumers::{ConsumersError, RegisteredConsumer};
pub use error::{AppendError, ConsumeError, NotReady, ReadPointError, TxnError};
pub use producer::{Append, AppendResult, Producer, Transaction};
pub use replicate::{ReplicateAnswers, ReplicateError, ReplicateSender};
pub use settings::{Discovery, Edges, InvalidSetting, Limits, Order, Settings, Timeouts, Tls};
pub use woodpecker_base::net::Token;
