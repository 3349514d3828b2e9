//! Scenario group P: pipelines, the count of Syncs, and recovery from errors.
mod support;
use support::Pooler;
use support::message::query;

#[tokio::test]
async fn p1_smoke() {
    let pooler = Pooler::config().start().await;
    let mut a = pooler.client().await;
    a.query("SELECT 1").await.is("T D(1) C(SELECT 1) Z(I)");
    pooler.same_as_direct(query("SELECT 2")).await;
    pooler.is_clean().await;
}
