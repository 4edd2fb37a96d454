-- One text for SQLite and PostgreSQL: TEXT, BIGINT, BYTEA only. Times are milliseconds since 1970.
CREATE TABLE accounts (
  id TEXT PRIMARY KEY,
  name TEXT NOT NULL UNIQUE,
  default_pool_id TEXT,
  created_at BIGINT NOT NULL
);
CREATE TABLE environments (
  id TEXT PRIMARY KEY,
  account_id TEXT NOT NULL REFERENCES accounts (id),
  name TEXT NOT NULL,
  default_pool_id TEXT,
  created_at BIGINT NOT NULL,
  UNIQUE (account_id, name)
);
CREATE TABLE users (
  id TEXT PRIMARY KEY,
  account_id TEXT NOT NULL REFERENCES accounts (id),
  username TEXT NOT NULL UNIQUE,
  email TEXT NOT NULL,
  is_admin BIGINT NOT NULL,
  is_service_account BIGINT NOT NULL,
  created_at BIGINT NOT NULL
);
CREATE TABLE pools (
  id TEXT PRIMARY KEY,
  account_id TEXT NOT NULL REFERENCES accounts (id),
  -- NULL: account scope
  environment_id TEXT REFERENCES environments (id),
  -- the environment's id, or '' for account scope: the scope of the name, and the part of the unique index that is never NULL
  scope_key TEXT NOT NULL,
  name TEXT NOT NULL,
  is_shared BIGINT NOT NULL,
  external_id TEXT,
  run_settings TEXT NOT NULL,
  created_at BIGINT NOT NULL,
  UNIQUE (account_id, scope_key, name)
);
CREATE UNIQUE INDEX pools_external ON pools (account_id, external_id);
-- which environments may use an account pool that is not shared
CREATE TABLE pool_environments (
  pool_id TEXT NOT NULL REFERENCES pools (id) ON DELETE CASCADE,
  environment_id TEXT NOT NULL REFERENCES environments (id) ON DELETE CASCADE,
  PRIMARY KEY (pool_id, environment_id)
);
CREATE TABLE agents (
  id TEXT PRIMARY KEY,
  pool_id TEXT NOT NULL REFERENCES pools (id) ON DELETE CASCADE,
  name TEXT NOT NULL,
  instance TEXT NOT NULL,
  version TEXT NOT NULL,
  os TEXT NOT NULL,
  platform TEXT NOT NULL,
  executor TEXT NOT NULL,
  run_as_root BIGINT NOT NULL,
  slots BIGINT NOT NULL,
  labels TEXT NOT NULL,
  -- as last reported: idle, busy, errored. Offline is concluded from last_seen_at.
  status TEXT NOT NULL,
  error_message TEXT,
  -- the agent says that it takes no more jobs
  draining BIGINT NOT NULL,
  -- the server wants it to drain
  cordoned BIGINT NOT NULL,
  created_at BIGINT NOT NULL,
  last_seen_at BIGINT NOT NULL,
  UNIQUE (pool_id, name)
);
CREATE TABLE tokens (
  id TEXT PRIMARY KEY,
  -- user, pool, agent
  kind TEXT NOT NULL,
  -- SHA-256 of the secret, hex
  hash TEXT NOT NULL UNIQUE,
  user_id TEXT REFERENCES users (id) ON DELETE CASCADE,
  pool_id TEXT REFERENCES pools (id) ON DELETE CASCADE,
  agent_id TEXT REFERENCES agents (id) ON DELETE CASCADE,
  -- the pool token that an agent's token came from: revoking that one ends this one
  parent_id TEXT REFERENCES tokens (id) ON DELETE CASCADE,
  name TEXT,
  description TEXT,
  external_id TEXT,
  created_at BIGINT NOT NULL,
  expires_at BIGINT,
  last_used_at BIGINT
);
CREATE INDEX tokens_pool ON tokens (pool_id);
CREATE INDEX tokens_agent ON tokens (agent_id);
CREATE INDEX tokens_parent ON tokens (parent_id);
CREATE UNIQUE INDEX tokens_external ON tokens (pool_id, external_id);
CREATE TABLE workspaces (
  id TEXT PRIMARY KEY,
  environment_id TEXT NOT NULL REFERENCES environments (id),
  name TEXT NOT NULL,
  description TEXT,
  -- the workspace's own link
  pool_id TEXT REFERENCES pools (id),
  -- remote or local
  execution_mode TEXT NOT NULL,
  auto_apply BIGINT NOT NULL,
  engine TEXT NOT NULL,
  -- exact version, or '' for any
  engine_version TEXT NOT NULL,
  working_directory TEXT NOT NULL,
  -- '' unlocked, 'user' or 'run'; the holder's id beside it
  lock_kind TEXT NOT NULL,
  lock_holder TEXT,
  lock_reason TEXT,
  -- the run that holds the workspace now, else the last one that did
  current_run_id TEXT,
  current_state_id TEXT,
  created_at BIGINT NOT NULL,
  updated_at BIGINT NOT NULL,
  UNIQUE (environment_id, name)
);
CREATE INDEX workspaces_pool ON workspaces (pool_id);
CREATE TABLE variables (
  id TEXT PRIMARY KEY,
  workspace_id TEXT NOT NULL REFERENCES workspaces (id) ON DELETE CASCADE,
  key TEXT NOT NULL,
  -- plain text, or sealed by the vault when sensitive
  value BYTEA NOT NULL,
  category TEXT NOT NULL,
  hcl BIGINT NOT NULL,
  sensitive BIGINT NOT NULL,
  description TEXT,
  updated_at BIGINT NOT NULL,
  UNIQUE (workspace_id, category, key)
);
CREATE TABLE configuration_versions (
  id TEXT PRIMARY KEY,
  workspace_id TEXT NOT NULL REFERENCES workspaces (id) ON DELETE CASCADE,
  status TEXT NOT NULL,
  source TEXT NOT NULL,
  speculative BIGINT NOT NULL,
  provisional BIGINT NOT NULL,
  auto_queue_runs BIGINT NOT NULL,
  size_bytes BIGINT NOT NULL,
  error TEXT,
  error_message TEXT,
  created_at BIGINT NOT NULL
);
CREATE INDEX configuration_versions_workspace ON configuration_versions (workspace_id, created_at);
CREATE TABLE runs (
  id TEXT PRIMARY KEY,
  workspace_id TEXT NOT NULL REFERENCES workspaces (id) ON DELETE CASCADE,
  configuration_version_id TEXT NOT NULL REFERENCES configuration_versions (id),
  plan_id TEXT NOT NULL UNIQUE,
  apply_id TEXT NOT NULL UNIQUE,
  status TEXT NOT NULL,
  -- order of creation: FIFO does not depend on the clock
  sequence BIGINT NOT NULL UNIQUE,
  message TEXT NOT NULL,
  source TEXT NOT NULL,
  -- JSON: flags and addresses as the client sent them
  options TEXT NOT NULL,
  plan_only BIGINT NOT NULL,
  has_changes BIGINT NOT NULL,
  engine TEXT NOT NULL,
  engine_version TEXT NOT NULL,
  -- the pool that runs it, as of the last stage that was queued
  pool_id TEXT,
  -- why a pending run waits, in words
  waiting_for TEXT,
  error_code TEXT,
  error_message TEXT,
  -- 0 no, 1 cancel asked for, 2 force-cancel asked for
  cancel BIGINT NOT NULL,
  cancel_requested_at BIGINT,
  plan_attempts BIGINT NOT NULL,
  created_by TEXT,
  created_at BIGINT NOT NULL,
  -- JSON: {"planning-at": ms, …}
  timestamps TEXT NOT NULL
);
CREATE INDEX runs_workspace ON runs (workspace_id, sequence);
CREATE INDEX runs_status ON runs (status);
CREATE TABLE stages (
  -- plan-… or apply-…
  id TEXT PRIMARY KEY,
  run_id TEXT NOT NULL REFERENCES runs (id) ON DELETE CASCADE,
  kind TEXT NOT NULL,
  -- pending, queued, running, finished, errored, canceled, unreachable
  status TEXT NOT NULL,
  additions BIGINT NOT NULL,
  changes BIGINT NOT NULL,
  destructions BIGINT NOT NULL,
  imports BIGINT NOT NULL,
  -- length of the log's text
  log_bytes BIGINT NOT NULL,
  -- 1: nothing more will be appended, the end mark may be read
  log_complete BIGINT NOT NULL,
  -- 1: the log lies in a blob, not in rows
  log_archived BIGINT NOT NULL,
  image_digest TEXT,
  queued_at BIGINT,
  started_at BIGINT,
  finished_at BIGINT
);
CREATE INDEX stages_run ON stages (run_id);
CREATE TABLE log_chunks (
  stage_id TEXT NOT NULL REFERENCES stages (id) ON DELETE CASCADE,
  start BIGINT NOT NULL,
  bytes BYTEA NOT NULL,
  PRIMARY KEY (stage_id, start)
);
-- Only jobs that wait or run: history is never scanned to claim one.
CREATE TABLE jobs (
  id TEXT PRIMARY KEY,
  run_id TEXT NOT NULL REFERENCES runs (id) ON DELETE CASCADE,
  stage_id TEXT NOT NULL UNIQUE REFERENCES stages (id) ON DELETE CASCADE,
  kind TEXT NOT NULL,
  pool_id TEXT NOT NULL REFERENCES pools (id),
  -- queued or claimed
  state TEXT NOT NULL,
  -- 0 apply, 1 plan, 2 speculative plan
  priority BIGINT NOT NULL,
  sequence BIGINT NOT NULL,
  epoch BIGINT NOT NULL,
  agent_id TEXT REFERENCES agents (id),
  claim_id TEXT,
  -- the run container has been asked for
  started BIGINT NOT NULL,
  -- where this claim's text starts in the stage's log: a plan that is planned again goes on in the same log
  log_base BIGINT NOT NULL,
  lease_until BIGINT,
  queued_at BIGINT NOT NULL,
  claimed_at BIGINT
);
CREATE INDEX jobs_claim ON jobs (pool_id, state, priority, sequence);
CREATE INDEX jobs_lease ON jobs (state, lease_until);
CREATE INDEX jobs_agent ON jobs (agent_id);
-- What became of every epoch: answers a result that arrives twice, and shows who ran what.
CREATE TABLE job_history (
  job_id TEXT NOT NULL,
  epoch BIGINT NOT NULL,
  run_id TEXT NOT NULL REFERENCES runs (id) ON DELETE CASCADE,
  stage_id TEXT NOT NULL,
  agent_id TEXT,
  -- finished, errored, canceled, lost, abandoned
  outcome TEXT NOT NULL,
  result TEXT,
  claimed_at BIGINT,
  ended_at BIGINT NOT NULL,
  PRIMARY KEY (job_id, epoch)
);
CREATE INDEX job_history_run ON job_history (run_id);
CREATE TABLE artifacts (
  run_id TEXT NOT NULL REFERENCES runs (id) ON DELETE CASCADE,
  name TEXT NOT NULL,
  blob TEXT NOT NULL,
  sha256 TEXT NOT NULL,
  size_bytes BIGINT NOT NULL,
  epoch BIGINT NOT NULL,
  created_at BIGINT NOT NULL,
  PRIMARY KEY (run_id, name)
);
CREATE TABLE state_versions (
  id TEXT PRIMARY KEY,
  workspace_id TEXT NOT NULL REFERENCES workspaces (id) ON DELETE CASCADE,
  -- pending (no content yet), finalized, discarded
  status TEXT NOT NULL,
  serial BIGINT NOT NULL,
  lineage TEXT NOT NULL,
  md5 TEXT NOT NULL,
  size_bytes BIGINT NOT NULL,
  blob TEXT,
  json_blob TEXT,
  -- JSON array of outputs, sealed by the vault
  outputs BYTEA,
  resource_count BIGINT NOT NULL,
  engine_version TEXT NOT NULL,
  run_id TEXT,
  -- the job epoch that wrote it, for a state written by a run
  epoch BIGINT,
  created_by TEXT,
  created_at BIGINT NOT NULL
);
CREATE INDEX state_versions_workspace ON state_versions (workspace_id, created_at);
CREATE TABLE settings (
  name TEXT PRIMARY KEY,
  value TEXT NOT NULL
);
INSERT INTO settings (name, value) VALUES ('run_sequence', '0');
