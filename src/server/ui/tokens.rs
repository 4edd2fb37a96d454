//! `/app/settings/tokens`: where `terraform login` sends people for a token.

use axum::{Form, extract::State, http::HeaderMap};
use maud::{Markup, html};
use secrecy::ExposeSecret;
use serde::Deserialize;

use super::{
    layout::{self, Failure},
    session::{SameOrigin, SignedIn},
};
use crate::server::{
    app::App,
    domain::{
        tokens::{self, NewToken},
        unit::Unit,
    },
};

/// Thirty days, in minutes.
const LIFETIME: i64 = 30 * 24 * 60;

pub(super) async fn show(_: SignedIn, headers: HeaderMap) -> Markup {
    page(&headers, None)
}

#[derive(Debug, Deserialize)]
pub(super) struct Request {
    #[serde(default)]
    description: String,
}

/// Creates a token and shows it, this once.
pub(super) async fn create(
    user: SignedIn,
    State(app): State<App>,
    headers: HeaderMap,
    _: SameOrigin,
    Form(request): Form<Request>,
) -> Result<Markup, Failure> {
    let mut unit = Unit::begin(&app).await?;
    let now = unit.now;
    let new = NewToken {
        description: Some(request.description.chars().take(200).collect()),
        expires_in: Some(LIFETIME),
        ..NewToken::default()
    };
    let (_, secret) = tokens::create_for_user(&mut unit, &user.user_id, new, now).await?;
    unit.commit().await?;
    Ok(page(&headers, Some(secret.expose_secret())))
}

fn page(headers: &HeaderMap, secret: Option<&str>) -> Markup {
    let host = headers.get("host").and_then(|host| host.to_str().ok()).unwrap_or("this-server");
    let body = html! {
        h1 { "Access tokens" }
        @if let Some(secret) = secret {
            section.card {
                h2 { "Your new token" }
                p { "It is shown this once, and ends in 30 days." }
                pre.block tabindex="0" { (secret) }
            }
        }
        section.card {
            p {
                "A token lets " code { "terraform" } " or " code { "tofu" } " do what you may do. Paste it where "
                code { "terraform login" } " asks for it, or write it into the CLI’s configuration file:"
            }
            pre.block tabindex="0" { "credentials \"" (host) "\" {\n  token = \"…\"\n}\n" }
            form method="post" action="/app/settings/tokens" {
                label for="description" { "What is it for?" }
                input #description type="text" name="description" maxlength="200" placeholder="my laptop";
                button type="submit" { "Create a token" }
            }
        }
    };
    layout::page("Access tokens", true, &body)
}
