//! What a service remembers: one file of its own.
//!
//! Owns: transactions, rows as JSON, and the inbox that goes with every decision. Never: what is in the rows.

use std::path::Path;
use std::sync::Arc;

use anyhow::{Context, Result};
use highwater_client::worker::EventId;
use redb::{Database, ReadableDatabase, ReadableTable, TableDefinition, WriteTransaction};
use serde::Serialize;
use serde::de::DeserializeOwned;

/// A table of JSON by name.
pub type Rows = TableDefinition<'static, &'static str, &'static [u8]>;

/// Events that were decided, by source and id.
const INBOX: TableDefinition<'_, &str, ()> = TableDefinition::new("inbox");

/// A service's store. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Store {
    database: Arc<Database>,
}

impl Store {
    /// Opens the store at this path; makes an empty one if there is none.
    pub fn open(path: &Path) -> Result<Self> {
        let opened = Database::create(path);
        let database =
            opened.with_context(|| format!("cannot open the store {}", path.display()))?;
        Ok(Self { database: Arc::new(database) })
    }

    /// Changes it, all or nothing; returns when that is on disk.
    pub async fn change<T: Send + 'static>(
        &self,
        change: impl FnOnce(&Transaction) -> Result<T> + Send + 'static,
    ) -> Result<T> {
        let database = Arc::clone(&self.database);
        // Transactions wait for the disk and for one another.
        let done = tokio::task::spawn_blocking(move || {
            let transaction = Transaction(database.begin_write()?);
            let answer = change(&transaction)?;
            transaction.0.commit()?;
            Ok(answer)
        });
        done.await?
    }

    /// Reads all rows of a table, by name.
    pub fn rows<T: DeserializeOwned>(&self, table: Rows) -> Result<Vec<(String, T)>> {
        let reading = self.database.begin_read()?;
        let table = match reading.open_table(table) {
            Ok(table) => table,
            Err(redb::TableError::TableDoesNotExist(_)) => return Ok(Vec::new()),
            Err(error) => return Err(error.into()),
        };
        let mut rows = Vec::new();
        for row in table.iter()? {
            let (name, value) = row?;
            rows.push((name.value().to_owned(), serde_json::from_slice(value.value())?));
        }
        Ok(rows)
    }

    /// Reads one row.
    pub fn row<T: DeserializeOwned>(&self, table: Rows, name: &str) -> Result<Option<T>> {
        let reading = self.database.begin_read()?;
        let table = match reading.open_table(table) {
            Ok(table) => table,
            Err(redb::TableError::TableDoesNotExist(_)) => return Ok(None),
            Err(error) => return Err(error.into()),
        };
        let row = table.get(name)?;
        row.map(|row| Ok(serde_json::from_slice(row.value())?)).transpose()
    }
}

/// A change that is under way.
pub struct Transaction(WriteTransaction);

impl Transaction {
    /// Reads a row.
    pub fn get<T: DeserializeOwned>(&self, table: Rows, name: &str) -> Result<Option<T>> {
        let table = self.0.open_table(table)?;
        let row = table.get(name)?;
        row.map(|row| Ok(serde_json::from_slice(row.value())?)).transpose()
    }

    /// Writes a row.
    pub fn put(&self, table: Rows, name: &str, row: &impl Serialize) -> Result<()> {
        let bytes = serde_json::to_vec(row)?;
        self.0.open_table(table)?.insert(name, bytes.as_slice())?;
        Ok(())
    }

    /// Removes a row.
    pub fn remove(&self, table: Rows, name: &str) -> Result<()> {
        self.0.open_table(table)?.remove(name)?;
        Ok(())
    }

    /// How many rows there are.
    pub fn count(&self, table: Rows) -> Result<u64> {
        use redb::ReadableTableMetadata;
        Ok(self.0.open_table(table)?.len()?)
    }

    /// Notes that an event is decided. False if it was before: then nothing may be decided again.
    pub fn is_new(&self, event: Option<&EventId>) -> Result<bool> {
        let event = event.context("the event has no id: its publisher sends no CloudEvents")?;
        let name = format!("{} {}", event.source, event.id);
        Ok(self.0.open_table(INBOX)?.insert(name.as_str(), ())?.is_none())
    }
}
