//! The process of the inventory service: see `highwater_shop::inventory`.

use clap::Parser;
use highwater_shop::inventory;
use highwater_shop::run::{Arguments, until_stopped};

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let (client, store) = Arguments::parse().open("inventory").await?;
    until_stopped(inventory::start(&client, store).await?).await
}
