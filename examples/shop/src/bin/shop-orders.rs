//! The process of the order service: see `highwater_shop::orders`.

use clap::Parser;
use highwater_shop::orders::Orders;
use highwater_shop::run::{Arguments, until_stopped};

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let arguments = Arguments::parse();
    let (client, store) = arguments.open("orders").await?;
    let orders = Orders::new(&client, store);
    let worker = orders.start(&client).await?;
    let listener = tokio::net::TcpListener::bind(&arguments.listen).await?;
    tokio::select! {
        served = axum::serve(listener, orders.clone().routes()).into_future() => Ok(served?),
        () = orders.publish_outbox() => Ok(()),
        ended = until_stopped(worker) => ended,
    }
}
