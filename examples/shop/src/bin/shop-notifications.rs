//! The process of the notifications service: see `highwater_shop::notifications`.

use clap::Parser;
use highwater_shop::notifications;
use highwater_shop::run::{Arguments, until_stopped};

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let (client, store) = Arguments::parse().open("notifications").await?;
    until_stopped(notifications::start(&client, store).await?).await
}
