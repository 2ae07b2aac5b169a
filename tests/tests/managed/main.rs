//! Managed indexes: making and dropping them, changes, searching.

mod changes;
mod definition;
mod failures;
mod search;

use ner_retriever_tests::server::SharedServer;

static SERVER: SharedServer = SharedServer::new("managed", &[]);
