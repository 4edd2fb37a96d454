//! The frame of every page, and what pages share: badges, times, failures.

use axum::{
    http::StatusCode,
    response::{IntoResponse, Response},
};
use maud::{DOCTYPE, Markup, html};

use crate::{api::run_state::RunState, clock, server::error::Error};

/// A whole page.
pub(super) fn page(title: &str, signed_in: bool, body: &Markup) -> Markup {
    html! {
        (DOCTYPE)
        html lang="en" {
            head {
                meta charset="utf-8";
                meta name="viewport" content="width=device-width, initial-scale=1";
                meta name="color-scheme" content="light dark";
                title { (title) " · Terrapool" }
                link rel="stylesheet" href=(super::assets::CSS);
                link rel="icon" href=(super::assets::ICON) type="image/svg+xml";
                script src=(super::assets::SCRIPT) defer {}
            }
            body {
                a.skip href="#main" { "Skip to the content" }
                header.top {
                    a.brand href="/" { span.mark aria-hidden="true" {} "Terrapool" }
                    @if signed_in {
                        nav aria-label="Main" {
                            a href="/" { "Overview" }
                            a href="/app/settings/tokens" { "Tokens" }
                            form method="post" action="/logout" { button.link type="submit" { "Sign out" } }
                        }
                    }
                }
                main #main { (body) }
            }
        }
    }
}

/// Something that went wrong, as a page.
pub(super) struct Failure(pub Error);

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        Self(error)
    }
}

impl From<crate::server::store::Error> for Failure {
    fn from(error: crate::server::store::Error) -> Self {
        Self(error.into())
    }
}

impl IntoResponse for Failure {
    fn into_response(self) -> Response {
        let text = self.0.to_string();
        // decides the status, and logs what is a defect
        let status = self.0.into_response().status();
        let (title, text) = if status.is_server_error() {
            ("That did not work", "The control plane failed to show this; its log says why.".to_owned())
        } else if status == StatusCode::NOT_FOUND {
            ("Not found", text)
        } else {
            ("That is not possible", text)
        };
        let body = html! { section.card.narrow { h1 { (title) } p { (text) } p { a href="/" { "To the overview" } } } };
        (status, page(title, true, &body)).into_response()
    }
}

/// The status of a run, coloured by what it means for its reader.
pub(super) fn run_badge(status: RunState) -> Markup {
    let tone = match status {
        RunState::Pending | RunState::PlanQueued | RunState::ApplyQueued => "wait",
        RunState::Planning | RunState::Applying => "work",
        RunState::Planned | RunState::PlannedAndSaved => "ask",
        RunState::PlannedAndFinished | RunState::Applied => "good",
        RunState::Discarded | RunState::Canceled | RunState::ForceCanceled => "idle",
        RunState::Errored => "bad",
    };
    badge(tone, &status.as_str().replace('_', " "))
}

pub(super) fn badge(tone: &str, text: &str) -> Markup {
    html! { span class={ "badge " (tone) } { (text) } }
}

/// How long ago, with the exact time as its title.
pub(super) fn ago(at: i64, now: i64) -> Markup {
    let exact = clock::rfc3339(at);
    html! { time datetime=(exact) title=(exact) { (duration((now - at) / 1000)) " ago" } }
}

/// Seconds in the two largest units.
pub(super) fn duration(seconds: i64) -> String {
    let seconds = seconds.max(0);
    match seconds {
        0..60 => format!("{seconds} s"),
        60..3600 => format!("{} min", seconds / 60),
        3600..86_400 => format!("{} h {} min", seconds / 3600, seconds % 3600 / 60),
        _ => format!("{} d", seconds / 86_400),
    }
}
