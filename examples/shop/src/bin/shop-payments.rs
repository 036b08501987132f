//! The process of the payments service: see `highwater_shop::payments`.

use clap::Parser;
use highwater_shop::payments;
use highwater_shop::run::{Arguments, until_stopped};

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let (client, store) = Arguments::parse().open("payments").await?;
    until_stopped(payments::start(&client, store).await?).await
}
