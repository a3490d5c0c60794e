//! dash_store
