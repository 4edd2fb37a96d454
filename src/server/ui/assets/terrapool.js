// Keeps pages current. Everything works without it, after a reload.
"use strict";

// The overview and workspace pages: fetched again while somebody looks at them.
const live = document.querySelector("[data-refresh]");
if (live) {
  setInterval(async () => {
    if (document.hidden || !getSelection().isCollapsed) return;
    try {
      const answer = await fetch(location.href, { credentials: "same-origin" });
      if (!answer.ok || answer.redirected) return;
      const next = new DOMParser().parseFromString(await answer.text(), "text/html").querySelector("[data-refresh]");
      if (next && next.innerHTML !== live.innerHTML) live.innerHTML = next.innerHTML;
    } catch {
      // the server is away: the page stays as it was
    }
  }, 3000);
}

// A run's page: one stream brings status and log. What it sends is HTML that the server has escaped.
const run = document.querySelector("[data-events]");
if (run) {
  const atEnd = () => innerHeight + scrollY >= document.documentElement.scrollHeight - 80;
  const logs = [...document.querySelectorAll("[data-log]")];
  const events = new EventSource(run.dataset.events);
  events.addEventListener("open", () => logs.forEach((log) => log.replaceChildren()));
  events.addEventListener("status", (event) => {
    document.getElementById("status").innerHTML = event.data;
  });
  for (const log of logs) {
    events.addEventListener(log.dataset.log, (event) => {
      const follow = atEnd();
      log.closest("section").hidden = false;
      log.insertAdjacentHTML("beforeend", event.data);
      if (follow) scrollTo(0, document.documentElement.scrollHeight);
    });
  }
  events.addEventListener("done", () => events.close());
}
