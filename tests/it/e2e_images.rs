//! Run images that cannot be had: who waits for them is told at once, and nobody else notices.

use serde_json::{Value, json};

use crate::support::e2e::{World, condition, is_ready};

const CONFIGURATION: &str = r#"
resource "terraform_data" "one" {}
"#;

#[tokio::test(flavor = "multi_thread")]
async fn a_run_whose_image_cannot_be_pulled_fails_at_once_and_says_why() {
    let world = World::restricted().await;
    let image = format!("{}/team/terraform:1", world.empty_registry());
    world.apply_pool("broken", &json!({"agents": {"minIdle": 0}, "runs": {"image": image}}));
    world.apply_pool("sound", &json!({"agents": {"minIdle": 1}}));
    world.apply_link("stuck", "broken");
    world.apply_link("fine", "sound");
    let stuck = world.desk("stuck", CONFIGURATION).await;
    world.link_becomes("stuck", "Ready", "True").await;

    let output = stuck.run(&["apply", "-auto-approve"]).await;
    output.expect(1).says(&format!("The run image {image} cannot be pulled"));
    println!("image that is not there: apply failed after {:?}", output.took);
    let run = world.admin.newest_run(&world.workspace_id("stuck").await).await;
    assert_eq!(run["attributes"]["status"], "errored", "{run}");
    world.admin.is_unlocked(&world.workspace_id("stuck").await).await;
    // With a warm agent wanted, the pool shows it before any run does.
    world.apply_pool("broken", &json!({"agents": {"minIdle": 1}, "runs": {"image": image}}));
    world
        .until("the pool says so", async || {
            let pool = world.pool("broken").await;
            let available = condition(&pool, "AgentsAvailable");
            let said =
                available["reason"] == "ImagePullFailed" && available["message"].as_str().unwrap().contains(&image);
            if said && condition(&pool, "Ready")["status"] == "False" { Ok(()) } else { Err(pool["status"].clone()) }
        })
        .await;

    // The other pool works.
    let fine = world.desk("fine", CONFIGURATION).await;
    world.link_becomes("fine", "Ready", "True").await;
    fine.succeed(&["apply", "-auto-approve"]).await.says("Apply complete!");

    // Corrected, the same pool works as well.
    world.apply_pool("broken", &json!({"agents": {"minIdle": 1}, "runs": {"image": "terraform:test"}}));
    world.pods_become("broken", "one with the right image", |pods| pods.len() == 1 && is_ready(&pods[0])).await;
    stuck.succeed(&["apply", "-auto-approve"]).await.says("Apply complete!");
    world.pool_becomes("broken", "Ready", "True").await;
    let none: Vec<Value> = Vec::new();
    assert_eq!(
        world
            .pods("broken")
            .await
            .into_iter()
            .filter(|pod| pod["spec"]["containers"][1]["image"] == json!(image))
            .collect::<Vec<_>>(),
        none
    );
}
