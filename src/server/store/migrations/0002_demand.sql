-- How many agents ever registered: only grows.
ALTER TABLE pools ADD COLUMN registrations BIGINT NOT NULL DEFAULT 0;
-- The run image that the workspace asks for instead of its pool's.
ALTER TABLE workspaces ADD COLUMN run_image TEXT;
