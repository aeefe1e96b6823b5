CREATE TABLE alembic_version (
	version_num VARCHAR(32) NOT NULL, 
	CONSTRAINT alembic_version_pkc PRIMARY KEY (version_num)
);

CREATE TABLE api_keys (
	id INTEGER NOT NULL, 
	application_id INTEGER NOT NULL, 
	name TEXT NOT NULL, 
	hash TEXT NOT NULL, 
	hint TEXT NOT NULL, 
	permissions TEXT NOT NULL, 
	created_at BIGINT NOT NULL, 
	revoked_at BIGINT, rate_limit INTEGER, 
	CONSTRAINT api_keys_pkey PRIMARY KEY (id), 
	CONSTRAINT api_keys_hash_key UNIQUE (hash)
);

CREATE TABLE applications (
	id INTEGER NOT NULL, 
	name TEXT NOT NULL, 
	company_id BIGINT, 
	settings TEXT NOT NULL, 
	created_at BIGINT NOT NULL, 
	disabled_at BIGINT, callback_secret TEXT, previous_callback_secret TEXT, previous_callback_secret_until BIGINT, gateway_id INTEGER, 
	CONSTRAINT applications_pkey PRIMARY KEY (id), 
	CONSTRAINT applications_name_key UNIQUE (name)
);

CREATE TABLE attempts (
	id INTEGER NOT NULL, 
	delivery_id BIGINT NOT NULL, 
	attempt SMALLINT NOT NULL, 
	at BIGINT NOT NULL, 
	milliseconds INTEGER NOT NULL, 
	status SMALLINT, 
	error TEXT, 
	detail TEXT, 
	answer TEXT, 
	CONSTRAINT attempts_pkey PRIMARY KEY (id)
);

CREATE TABLE blocked_hosts (
	application_id INTEGER NOT NULL, 
	host TEXT NOT NULL, 
	created_at BIGINT NOT NULL, 
	CONSTRAINT blocked_hosts_pkey PRIMARY KEY (application_id, host)
);

CREATE TABLE cohorts (
	id INTEGER NOT NULL, 
	application_id INTEGER NOT NULL, 
	campaign TEXT NOT NULL, 
	source TEXT NOT NULL, 
	country TEXT NOT NULL, 
	process_id INTEGER DEFAULT '0' NOT NULL, 
	CONSTRAINT cohorts_pkey PRIMARY KEY (id), 
	CONSTRAINT cohorts_application_id_campaign_source_country_process_id_key UNIQUE (application_id, campaign, source, country, process_id)
);

CREATE TABLE conversions (
	id INTEGER NOT NULL, 
	application_id INTEGER NOT NULL, 
	message_id BIGINT NOT NULL, 
	hit_id BIGINT, 
	action TEXT NOT NULL, 
	transaction_id TEXT NOT NULL, 
	status TEXT, 
	disposition TEXT, 
	value TEXT, 
	currency TEXT, 
	at BIGINT NOT NULL, 
	received_at BIGINT NOT NULL, 
	metadata TEXT, revision INTEGER DEFAULT '1' NOT NULL, updated_at BIGINT, latest_at BIGINT, action_text TEXT, transaction_text TEXT, warnings TEXT, counted_as TEXT, 
	CONSTRAINT conversions_pkey PRIMARY KEY (id), 
	CONSTRAINT conversions_message_id_action_transaction_id_key UNIQUE (message_id, action, transaction_id)
);

CREATE TABLE counts (
	cohort_id INTEGER NOT NULL, 
	quarter INTEGER NOT NULL, 
	metric TEXT NOT NULL, 
	amount TEXT NOT NULL, rolled_up TEXT, 
	CONSTRAINT counts_pkey PRIMARY KEY (cohort_id, quarter, metric)
);

CREATE TABLE deliveries (
	id INTEGER NOT NULL, 
	event_id BIGINT NOT NULL, 
	topic SMALLINT NOT NULL, 
	application_id INTEGER NOT NULL, 
	tracker_id INTEGER, 
	callback_url TEXT, 
	lane TEXT NOT NULL, 
	status SMALLINT NOT NULL, 
	attempt SMALLINT NOT NULL, 
	base_attempt SMALLINT DEFAULT '0' NOT NULL, 
	queue SMALLINT DEFAULT '0' NOT NULL, 
	next_at BIGINT NOT NULL, 
	lease_until BIGINT, 
	created_at BIGINT NOT NULL, 
	finished_at BIGINT, 
	last_status SMALLINT, 
	last_error TEXT, held_since BIGINT, restarted_at BIGINT, scheduled_at BIGINT, replay_id BIGINT, 
	CONSTRAINT deliveries_pkey PRIMARY KEY (id)
);

CREATE TABLE domains (
	id INTEGER NOT NULL, 
	application_id INTEGER NOT NULL, 
	host TEXT NOT NULL, 
	base_url TEXT NOT NULL, 
	fallback_url TEXT, 
	created_at BIGINT NOT NULL, 
	disabled_at BIGINT, path TEXT DEFAULT '' NOT NULL, previous_paths TEXT, home_url TEXT, assetlinks TEXT, apple_app_site_association TEXT, is_default BOOLEAN DEFAULT 0 NOT NULL, removed_at BIGINT, 
	CONSTRAINT domains_pkey PRIMARY KEY (id), 
	CONSTRAINT domains_host_key UNIQUE (host)
);

CREATE TABLE events (
	id INTEGER NOT NULL, 
	application_id INTEGER NOT NULL, 
	topics SMALLINT NOT NULL, 
	at BIGINT NOT NULL, 
	message_id BIGINT, 
	link_id BIGINT, 
	hit_id BIGINT, 
	conversion_id BIGINT, 
	data TEXT, 
	facts TEXT, 
	fanned_out BOOLEAN DEFAULT 0 NOT NULL, 
	CONSTRAINT events_pkey PRIMARY KEY (id)
);

CREATE TABLE hits (
	id INTEGER NOT NULL, 
	link_id BIGINT NOT NULL, 
	at BIGINT NOT NULL, 
	verdict SMALLINT NOT NULL, 
	rule TEXT NOT NULL, 
	flags SMALLINT NOT NULL, 
	address TEXT NOT NULL, 
	user_agent TEXT NOT NULL, 
	first_verdict SMALLINT, 
	first_rule TEXT, country TEXT, device_class TEXT, 
	CONSTRAINT hits_pkey PRIMARY KEY (id)
);

CREATE TABLE idempotency (
	application_id INTEGER NOT NULL, 
	"key" TEXT NOT NULL, 
	content_hash TEXT NOT NULL, 
	answer TEXT NOT NULL, 
	created_at BIGINT NOT NULL, 
	CONSTRAINT idempotency_pkey PRIMARY KEY (application_id, "key")
);

CREATE TABLE installation (
	name TEXT NOT NULL, 
	value TEXT NOT NULL, 
	CONSTRAINT installation_pkey PRIMARY KEY (name)
);

CREATE TABLE links (
	id INTEGER NOT NULL, 
	code TEXT NOT NULL, 
	message_id BIGINT NOT NULL, 
	application_id INTEGER NOT NULL, 
	cohort_id INTEGER NOT NULL, 
	domain_id INTEGER NOT NULL, 
	position SMALLINT NOT NULL, 
	flags SMALLINT NOT NULL, 
	url TEXT NOT NULL, 
	location TEXT, 
	label TEXT, 
	fallback_url TEXT, 
	expires_at BIGINT NOT NULL, 
	disabled_at BIGINT, clicks_numbered INTEGER, path TEXT, link_set_id INTEGER, 
	CONSTRAINT links_pkey PRIMARY KEY (id), 
	CONSTRAINT links_code_key UNIQUE (code)
);

CREATE TABLE messages (
	id INTEGER NOT NULL, 
	application_id INTEGER NOT NULL, 
	cohort_id INTEGER NOT NULL, 
	message_id TEXT NOT NULL, 
	request_id TEXT NOT NULL, 
	external_request_id TEXT DEFAULT '' NOT NULL, 
	content_hash TEXT NOT NULL, 
	to_address TEXT NOT NULL, 
	from_address TEXT DEFAULT '' NOT NULL, 
	sender_id_id TEXT DEFAULT '' NOT NULL, 
	sender_id_alias TEXT DEFAULT '' NOT NULL, 
	state SMALLINT NOT NULL, 
	created_at BIGINT NOT NULL, 
	sent_at BIGINT, 
	delivered_at BIGINT, 
	read_at BIGINT, 
	failed_at BIGINT, 
	encoding TEXT NOT NULL, 
	segments SMALLINT NOT NULL, 
	fragments_count SMALLINT, 
	mt_price TEXT, 
	report_status TEXT, 
	reason_code TEXT, 
	reason_description TEXT, 
	telecom_message_id TEXT, 
	callback_url TEXT, 
	metadata TEXT, link_set_id INTEGER, track SMALLINT, 
	CONSTRAINT messages_pkey PRIMARY KEY (id), 
	CONSTRAINT messages_application_id_message_id_key UNIQUE (application_id, message_id)
);

CREATE TABLE processes (
	id INTEGER NOT NULL, 
	application_id INTEGER NOT NULL, 
	process_key TEXT NOT NULL, 
	track TEXT NOT NULL, 
	type TEXT NOT NULL, 
	created_at BIGINT NOT NULL, 
	CONSTRAINT processes_pkey PRIMARY KEY (id), 
	CONSTRAINT processes_application_id_track_type_key UNIQUE (application_id, track, type), 
	CONSTRAINT processes_process_key_key UNIQUE (process_key)
);

CREATE TABLE tallies (
	id INTEGER NOT NULL, 
	data TEXT NOT NULL, origins TEXT, 
	CONSTRAINT tallies_pkey PRIMARY KEY (id)
);

CREATE TABLE tracker_tokens (
	id INTEGER NOT NULL, 
	application_id INTEGER NOT NULL, 
	hash TEXT NOT NULL, 
	created_at BIGINT NOT NULL, 
	valid_until BIGINT, 
	CONSTRAINT tracker_tokens_pkey PRIMARY KEY (id), 
	CONSTRAINT tracker_tokens_hash_key UNIQUE (hash)
);

CREATE TABLE trackers (
	id INTEGER NOT NULL PRIMARY KEY AUTOINCREMENT, 
	application_id INTEGER NOT NULL, 
	role TEXT DEFAULT 'tracker' NOT NULL, 
	name TEXT NOT NULL, 
	enabled BOOLEAN NOT NULL, 
	disabled_reason TEXT, 
	url TEXT NOT NULL, 
	topics SMALLINT NOT NULL, 
	method TEXT NOT NULL, 
	format TEXT NOT NULL, 
	fields TEXT, 
	headers TEXT, 
	secret TEXT, 
	previous_secret TEXT, 
	previous_secret_until BIGINT, 
	success TEXT NOT NULL, 
	max_attempts INTEGER, 
	timeout TEXT, 
	concurrency INTEGER, 
	schedule TEXT, 
	with_suspected BOOLEAN DEFAULT 0 NOT NULL, 
	created_at BIGINT NOT NULL, 
	updated_at BIGINT NOT NULL, 
	revision INTEGER DEFAULT '1' NOT NULL, 
	failures_in_row INTEGER DEFAULT '0' NOT NULL, 
	open_until BIGINT, 
	recovering_at BIGINT, 
	last_success_at BIGINT, 
	last_failure_at BIGINT
, max_per_second FLOAT, rate FLOAT, rate_ceiling FLOAT, rate_lowered_at BIGINT, paced_until BIGINT, opened_at BIGINT, client_certificate TEXT, conversion_actions TEXT, conversion_dispositions TEXT);

CREATE TABLE first_clicks (
	id INTEGER NOT NULL, 
	at BIGINT, 
	hit_id BIGINT, 
	links INTEGER NOT NULL, 
	CONSTRAINT first_clicks_pkey PRIMARY KEY (id)
);

CREATE TABLE node_leases (
	node INTEGER NOT NULL, 
	owner TEXT NOT NULL, 
	until_ms BIGINT NOT NULL, 
	CONSTRAINT node_leases_pkey PRIMARY KEY (node)
);

CREATE TABLE hits_dead_letter (
	id INTEGER NOT NULL, 
	hit TEXT NOT NULL, 
	code TEXT, 
	reason TEXT NOT NULL, 
	at BIGINT NOT NULL, 
	CONSTRAINT hits_dead_letter_pkey PRIMARY KEY (id)
);

CREATE TABLE delivery_processes (
	id BIGINT NOT NULL, 
	seen_at BIGINT NOT NULL, 
	CONSTRAINT delivery_processes_pkey PRIMARY KEY (id)
);

CREATE TABLE conversion_revisions (
	id INTEGER NOT NULL, 
	conversion_id BIGINT NOT NULL, 
	revision INTEGER NOT NULL, 
	status TEXT, 
	disposition TEXT, 
	value TEXT, 
	currency TEXT, 
	at BIGINT NOT NULL, 
	received_at BIGINT NOT NULL, 
	metadata TEXT, 
	warnings TEXT, 
	CONSTRAINT conversion_revisions_pkey PRIMARY KEY (id), 
	CONSTRAINT conversion_revisions_conversion_id_revision_key UNIQUE (conversion_id, revision)
);

CREATE TABLE conversion_actions (
	application_id INTEGER NOT NULL, 
	action TEXT NOT NULL, 
	CONSTRAINT conversion_actions_pkey PRIMARY KEY (application_id, action)
);

CREATE TABLE refused_conversions (
	id INTEGER NOT NULL, 
	application_id INTEGER NOT NULL, 
	received_at BIGINT NOT NULL, 
	endpoint TEXT NOT NULL, 
	reason TEXT NOT NULL, 
	description TEXT NOT NULL, 
	details TEXT NOT NULL, 
	message_id TEXT, 
	parameters TEXT NOT NULL, 
	CONSTRAINT refused_conversions_pkey PRIMARY KEY (id)
);

CREATE TABLE postback_keys (
	id INTEGER NOT NULL, 
	application_id INTEGER NOT NULL, 
	name TEXT NOT NULL, 
	hash TEXT NOT NULL, 
	hint TEXT NOT NULL, 
	created_at BIGINT NOT NULL, 
	valid_until BIGINT, 
	revoked_at BIGINT, 
	CONSTRAINT postback_keys_pkey PRIMARY KEY (id), 
	CONSTRAINT postback_keys_hash_key UNIQUE (hash)
);

CREATE TABLE expiry_notices (
	kind TEXT NOT NULL, 
	key_id INTEGER NOT NULL, 
	expires_at BIGINT NOT NULL, 
	CONSTRAINT expiry_notices_pkey PRIMARY KEY (kind, key_id)
);

CREATE TABLE early_hits (
	id INTEGER NOT NULL, 
	at BIGINT NOT NULL, 
	is_due BOOLEAN DEFAULT 0 NOT NULL, 
	CONSTRAINT early_hits_pkey PRIMARY KEY (id)
);

CREATE TABLE link_changes (
	id INTEGER NOT NULL, 
	link_id BIGINT NOT NULL, 
	application_id INTEGER NOT NULL, 
	at BIGINT NOT NULL, 
	actor TEXT NOT NULL, 
	update_id BIGINT, 
	changes TEXT NOT NULL, 
	CONSTRAINT link_changes_pkey PRIMARY KEY (id)
);

CREATE TABLE link_updates (
	id INTEGER NOT NULL, 
	application_id INTEGER NOT NULL, 
	state TEXT NOT NULL, 
	actor TEXT NOT NULL, 
	filter TEXT NOT NULL, 
	changes TEXT NOT NULL, 
	total BIGINT, 
	counted BIGINT DEFAULT '0' NOT NULL, 
	done BIGINT DEFAULT '0' NOT NULL, 
	changed BIGINT DEFAULT '0' NOT NULL, 
	last_message_id BIGINT NOT NULL, 
	range_index INTEGER DEFAULT '0' NOT NULL, 
	cursor BIGINT DEFAULT '0' NOT NULL, 
	lease_until BIGINT, 
	owner TEXT, 
	created_at BIGINT NOT NULL, 
	finished_at BIGINT, 
	CONSTRAINT link_updates_pkey PRIMARY KEY (id)
);

CREATE TABLE link_sets (
	id INTEGER NOT NULL, 
	application_id INTEGER NOT NULL, 
	campaign TEXT NOT NULL, 
	hash TEXT NOT NULL, 
	links TEXT NOT NULL, 
	CONSTRAINT link_sets_pkey PRIMARY KEY (id), 
	CONSTRAINT link_sets_hash_key UNIQUE (hash)
);

CREATE TABLE count_groups (
	id BIGINT NOT NULL, 
	application_id INTEGER NOT NULL, 
	kind TEXT NOT NULL, 
	source TEXT NOT NULL, 
	campaign TEXT NOT NULL, 
	country TEXT NOT NULL, 
	name TEXT NOT NULL, 
	CONSTRAINT count_groups_pkey PRIMARY KEY (id)
);

CREATE TABLE rollups (
	group_id BIGINT NOT NULL, 
	series SMALLINT NOT NULL, 
	period INTEGER NOT NULL, 
	data TEXT NOT NULL, 
	CONSTRAINT rollups_pkey PRIMARY KEY (group_id, series, period)
)
 WITHOUT ROWID

;

CREATE TABLE erasure_repeats (
	id INTEGER NOT NULL, 
	due_at BIGINT NOT NULL, 
	repeats SMALLINT NOT NULL, 
	CONSTRAINT erasure_repeats_pkey PRIMARY KEY (id)
);

CREATE TABLE gateways (
	id INTEGER NOT NULL PRIMARY KEY AUTOINCREMENT, 
	application_id INTEGER NOT NULL, 
	name TEXT NOT NULL, 
	kind TEXT NOT NULL, 
	preset TEXT DEFAULT '' NOT NULL, 
	settings TEXT, 
	report_key TEXT, 
	report_key_hash TEXT NOT NULL, 
	enabled BOOLEAN NOT NULL, 
	disabled_reason TEXT, 
	allow_private BOOLEAN DEFAULT 0 NOT NULL, 
	on_doubt TEXT DEFAULT 'resend' NOT NULL, 
	max_attempts INTEGER, 
	timeout FLOAT, 
	concurrency INTEGER, 
	schedule TEXT, 
	created_at BIGINT NOT NULL, 
	updated_at BIGINT NOT NULL, 
	removed_at BIGINT, 
	revision INTEGER DEFAULT '1' NOT NULL, 
	failures_in_row INTEGER DEFAULT '0' NOT NULL, 
	open_until BIGINT, 
	opened_at BIGINT, 
	recovering_at BIGINT, 
	last_success_at BIGINT, 
	last_failure_at BIGINT, 
	max_per_second FLOAT, 
	rate FLOAT, 
	rate_ceiling FLOAT, 
	rate_lowered_at BIGINT, 
	paced_until BIGINT, 
	CONSTRAINT gateways_report_key_hash_key UNIQUE (report_key_hash)
);

CREATE TABLE sends (
	id INTEGER NOT NULL, 
	application_id INTEGER NOT NULL, 
	gateway_id INTEGER NOT NULL, 
	status SMALLINT NOT NULL, 
	text TEXT, 
	attempt SMALLINT DEFAULT '0' NOT NULL, 
	base_attempt SMALLINT DEFAULT '0' NOT NULL, 
	queue SMALLINT DEFAULT '0' NOT NULL, 
	next_at BIGINT NOT NULL, 
	lease_until BIGINT, 
	doubtful BOOLEAN DEFAULT 0 NOT NULL, 
	cost TEXT, 
	refunded BOOLEAN DEFAULT 0 NOT NULL, 
	created_at BIGINT NOT NULL, 
	finished_at BIGINT, 
	gateway_message_id TEXT, 
	last_status INTEGER, 
	last_error TEXT, deducted BOOLEAN, 
	CONSTRAINT sends_pkey PRIMARY KEY (id)
);

CREATE TABLE send_attempts (
	id INTEGER NOT NULL, 
	send_id BIGINT NOT NULL, 
	attempt SMALLINT NOT NULL, 
	at BIGINT NOT NULL, 
	milliseconds INTEGER NOT NULL, 
	outcome TEXT NOT NULL, 
	status INTEGER, 
	detail TEXT, 
	CONSTRAINT send_attempts_pkey PRIMARY KEY (id)
);

CREATE TABLE prices (
	application_id INTEGER NOT NULL, 
	prefix TEXT NOT NULL, 
	price TEXT NOT NULL, 
	CONSTRAINT prices_pkey PRIMARY KEY (application_id, prefix)
);

CREATE TABLE balances (
	application_id INTEGER NOT NULL, 
	amount TEXT NOT NULL, 
	currency TEXT NOT NULL, 
	updated_at BIGINT NOT NULL, 
	CONSTRAINT balances_pkey PRIMARY KEY (application_id)
);

CREATE TABLE balance_changes (
	id INTEGER NOT NULL, 
	application_id INTEGER NOT NULL, 
	at BIGINT NOT NULL, 
	amount TEXT NOT NULL, 
	balance TEXT NOT NULL, 
	actor TEXT NOT NULL, 
	CONSTRAINT balance_changes_pkey PRIMARY KEY (id)
);

CREATE TABLE opt_outs (
	application_id INTEGER NOT NULL, 
	phone TEXT NOT NULL, 
	at BIGINT NOT NULL, 
	source TEXT NOT NULL, 
	CONSTRAINT opt_outs_pkey PRIMARY KEY (application_id, phone)
);

CREATE TABLE operators (
	id INTEGER NOT NULL PRIMARY KEY AUTOINCREMENT, 
	name TEXT NOT NULL, 
	name_key TEXT NOT NULL, 
	password_hash TEXT, 
	password_changed_at BIGINT, 
	totp_secret TEXT, 
	totp_step BIGINT, 
	theme TEXT DEFAULT 'system' NOT NULL, 
	time_zone TEXT, 
	shortcuts BOOLEAN DEFAULT 1 NOT NULL, 
	created_at BIGINT NOT NULL, 
	disabled_at BIGINT, 
	last_sign_in_at BIGINT, 
	CONSTRAINT operators_name_key_key UNIQUE (name_key)
);

CREATE TABLE operator_roles (
	operator_id INTEGER NOT NULL, 
	application_id INTEGER NOT NULL, 
	role TEXT NOT NULL, 
	CONSTRAINT operator_roles_pkey PRIMARY KEY (operator_id, application_id)
);

CREATE TABLE operator_invitations (
	id INTEGER NOT NULL, 
	operator_id INTEGER NOT NULL, 
	hash TEXT NOT NULL, 
	may_rename BOOLEAN DEFAULT 0 NOT NULL, 
	created_at BIGINT NOT NULL, 
	expires_at BIGINT NOT NULL, 
	used_at BIGINT, 
	CONSTRAINT operator_invitations_pkey PRIMARY KEY (id), 
	CONSTRAINT operator_invitations_hash_key UNIQUE (hash)
);

CREATE TABLE operator_recovery_codes (
	operator_id INTEGER NOT NULL, 
	hash TEXT NOT NULL, 
	used_at BIGINT, 
	CONSTRAINT operator_recovery_codes_pkey PRIMARY KEY (operator_id, hash)
);

CREATE TABLE operator_sessions (
	id INTEGER NOT NULL PRIMARY KEY AUTOINCREMENT, 
	operator_id INTEGER NOT NULL, 
	hash TEXT NOT NULL, 
	needs_code BOOLEAN DEFAULT 0 NOT NULL, 
	created_at BIGINT NOT NULL, 
	seen_at BIGINT NOT NULL, 
	expires_at BIGINT NOT NULL, 
	password_at BIGINT NOT NULL, 
	network TEXT NOT NULL, 
	user_agent TEXT NOT NULL, 
	CONSTRAINT operator_sessions_hash_key UNIQUE (hash)
);

CREATE TABLE sign_in_failures (
	"key" TEXT NOT NULL, 
	failures INTEGER NOT NULL, 
	first_at BIGINT NOT NULL, 
	last_at BIGINT NOT NULL, 
	CONSTRAINT sign_in_failures_pkey PRIMARY KEY ("key")
);

CREATE TABLE audit_log (
	id INTEGER NOT NULL, 
	at BIGINT NOT NULL, 
	operator_id INTEGER, 
	operator TEXT NOT NULL, 
	session_id INTEGER, 
	network TEXT NOT NULL, 
	action TEXT NOT NULL, 
	application_id INTEGER, 
	object TEXT NOT NULL, 
	"before" TEXT, 
	"after" TEXT, 
	CONSTRAINT audit_log_pkey PRIMARY KEY (id)
);

CREATE TABLE stored_responses (
	application_id INTEGER NOT NULL, 
	operation TEXT NOT NULL, 
	"key" TEXT NOT NULL, 
	content_hash TEXT NOT NULL, 
	status INTEGER, 
	body TEXT, 
	created_at BIGINT NOT NULL, 
	CONSTRAINT stored_responses_pkey PRIMARY KEY (application_id, operation, "key")
);

CREATE TABLE report_polls (
	application_id INTEGER NOT NULL, 
	reader TEXT NOT NULL, 
	after_event_id BIGINT NOT NULL, 
	returned TEXT NOT NULL, 
	revision INTEGER NOT NULL, 
	CONSTRAINT report_polls_pkey PRIMARY KEY (application_id, reader)
);

CREATE TABLE replays (
	id INTEGER NOT NULL, 
	application_id INTEGER NOT NULL, 
	tracker_id INTEGER NOT NULL, 
	since BIGINT, 
	until BIGINT, 
	state TEXT NOT NULL, 
	stop_reason TEXT, 
	started_by TEXT NOT NULL, 
	stopped_by TEXT, 
	total BIGINT NOT NULL, 
	replayed BIGINT DEFAULT '0' NOT NULL, 
	cursor BIGINT DEFAULT '0' NOT NULL, 
	created_at BIGINT NOT NULL, 
	finished_at BIGINT, 
	CONSTRAINT replays_pkey PRIMARY KEY (id)
);

CREATE TABLE first_conversions (
	id INTEGER NOT NULL, 
	at BIGINT NOT NULL, 
	CONSTRAINT first_conversions_pkey PRIMARY KEY (id)
);

CREATE TABLE purged_codes (
	code TEXT NOT NULL, 
	CONSTRAINT purged_codes_pkey PRIMARY KEY (code)
)
 WITHOUT ROWID

;

CREATE INDEX api_keys_by_application_id ON api_keys (application_id);

CREATE INDEX attempts_by_delivery_id ON attempts (delivery_id);

CREATE INDEX cohorts_by_process_id ON cohorts (process_id);

CREATE INDEX conversions_by_application ON conversions (application_id, id);

CREATE INDEX deliveries_by_application ON deliveries (application_id, id);

CREATE INDEX deliveries_by_event_id ON deliveries (event_id);

CREATE INDEX deliveries_by_tracker ON deliveries (tracker_id, id);

CREATE INDEX deliveries_dead ON deliveries (tracker_id, id) WHERE status = 2;

CREATE INDEX deliveries_due ON deliveries (lane, queue, next_at) WHERE status = 0;

CREATE UNIQUE INDEX deliveries_once ON deliveries (event_id, topic, tracker_id) WHERE tracker_id IS NOT NULL;

CREATE INDEX domains_by_application_id ON domains (application_id);

CREATE INDEX events_pending ON events (id) WHERE fanned_out = 0;

CREATE INDEX hits_by_link ON hits (link_id) WHERE flags & 2 = 0;

CREATE INDEX idempotency_by_created_at ON idempotency (created_at);

CREATE INDEX links_by_expires_at ON links (expires_at);

CREATE INDEX links_by_message_id ON links (message_id);

CREATE INDEX messages_by_application ON messages (application_id, id);

CREATE INDEX messages_by_cohort ON messages (cohort_id, id);

CREATE INDEX messages_by_recipient ON messages (to_address, id);

CREATE INDEX tracker_tokens_by_application_id ON tracker_tokens (application_id);

CREATE INDEX trackers_by_application_id ON trackers (application_id);

CREATE INDEX events_by_message ON events (message_id) WHERE coalesce(hit_id, 0) <> id;

CREATE INDEX hits_dead_letter_by_code ON hits_dead_letter (code);

CREATE INDEX hits_dead_letter_by_at ON hits_dead_letter (at);

CREATE INDEX refused_conversions_by_application ON refused_conversions (application_id, id);

CREATE INDEX postback_keys_by_application_id ON postback_keys (application_id);

CREATE INDEX early_hits_by_at ON early_hits (at);

CREATE INDEX early_hits_due ON early_hits (id) WHERE is_due;

CREATE INDEX link_changes_by_link_id ON link_changes (link_id);

CREATE INDEX link_updates_by_application_id ON link_updates (application_id);

CREATE INDEX counts_not_rolled_up ON counts (quarter, cohort_id) WHERE rolled_up IS NULL OR rolled_up <> amount;

CREATE INDEX link_sets_by_campaign ON link_sets (application_id, campaign);

CREATE INDEX count_groups_by_kind ON count_groups (application_id, kind, campaign);

CREATE INDEX erasure_repeats_by_due_at ON erasure_repeats (due_at);

CREATE UNIQUE INDEX gateways_by_name ON gateways (application_id, name) WHERE removed_at IS NULL;

CREATE INDEX sends_due ON sends (gateway_id, queue, next_at) WHERE status = 0;

CREATE INDEX sends_in_flight ON sends (gateway_id, lease_until) WHERE lease_until IS NOT NULL;

CREATE INDEX sends_unfinished ON sends (id) WHERE status IN (0, 3);

CREATE INDEX sends_held ON sends (application_id, id) WHERE status = 3;

CREATE INDEX sends_by_gateway_message_id ON sends (gateway_id, gateway_message_id) WHERE gateway_message_id IS NOT NULL;

CREATE INDEX send_attempts_by_send_id ON send_attempts (send_id);

CREATE INDEX balance_changes_by_application ON balance_changes (application_id, id);

CREATE INDEX operator_invitations_by_operator_id ON operator_invitations (operator_id);

CREATE INDEX operator_sessions_by_operator_id ON operator_sessions (operator_id);

CREATE INDEX operator_sessions_by_expires_at ON operator_sessions (expires_at);

CREATE INDEX sign_in_failures_by_last_at ON sign_in_failures (last_at);

CREATE INDEX stored_responses_by_created_at ON stored_responses (created_at);

CREATE INDEX replays_by_application ON replays (application_id, id);

CREATE UNIQUE INDEX replays_running ON replays (tracker_id) WHERE state = 'running';

CREATE INDEX deliveries_of_replay ON deliveries (replay_id, status, id) WHERE replay_id IS NOT NULL;

CREATE TRIGGER domains_application_id_fkey BEFORE INSERT ON domains WHEN NOT EXISTS (SELECT 1 FROM applications WHERE id = NEW.application_id) BEGIN SELECT RAISE(ABORT, 'FOREIGN KEY constraint failed: domains.application_id'); END;

CREATE TRIGGER api_keys_application_id_fkey BEFORE INSERT ON api_keys WHEN NOT EXISTS (SELECT 1 FROM applications WHERE id = NEW.application_id) BEGIN SELECT RAISE(ABORT, 'FOREIGN KEY constraint failed: api_keys.application_id'); END;

CREATE TRIGGER tracker_tokens_application_id_fkey BEFORE INSERT ON tracker_tokens WHEN NOT EXISTS (SELECT 1 FROM applications WHERE id = NEW.application_id) BEGIN SELECT RAISE(ABORT, 'FOREIGN KEY constraint failed: tracker_tokens.application_id'); END;

CREATE TRIGGER postback_keys_application_id_fkey BEFORE INSERT ON postback_keys WHEN NOT EXISTS (SELECT 1 FROM applications WHERE id = NEW.application_id) BEGIN SELECT RAISE(ABORT, 'FOREIGN KEY constraint failed: postback_keys.application_id'); END;

CREATE TRIGGER trackers_application_id_fkey BEFORE INSERT ON trackers WHEN NOT EXISTS (SELECT 1 FROM applications WHERE id = NEW.application_id) BEGIN SELECT RAISE(ABORT, 'FOREIGN KEY constraint failed: trackers.application_id'); END;

CREATE TRIGGER link_updates_application_id_fkey BEFORE INSERT ON link_updates WHEN NOT EXISTS (SELECT 1 FROM applications WHERE id = NEW.application_id) BEGIN SELECT RAISE(ABORT, 'FOREIGN KEY constraint failed: link_updates.application_id'); END;

CREATE TRIGGER api_keys_rate_limit_is_positive_insert BEFORE INSERT ON api_keys WHEN NEW.rate_limit <= 0 BEGIN SELECT RAISE(ABORT, 'CHECK constraint failed: api_keys.rate_limit'); END;

CREATE TRIGGER api_keys_rate_limit_is_positive_update BEFORE UPDATE OF rate_limit ON api_keys WHEN NEW.rate_limit <= 0 BEGIN SELECT RAISE(ABORT, 'CHECK constraint failed: api_keys.rate_limit'); END;

CREATE TRIGGER trackers_max_attempts_is_positive_insert BEFORE INSERT ON trackers WHEN NEW.max_attempts <= 0 BEGIN SELECT RAISE(ABORT, 'CHECK constraint failed: trackers.max_attempts'); END;

CREATE TRIGGER trackers_max_attempts_is_positive_update BEFORE UPDATE OF max_attempts ON trackers WHEN NEW.max_attempts <= 0 BEGIN SELECT RAISE(ABORT, 'CHECK constraint failed: trackers.max_attempts'); END;

CREATE TRIGGER trackers_concurrency_is_positive_insert BEFORE INSERT ON trackers WHEN NEW.concurrency <= 0 BEGIN SELECT RAISE(ABORT, 'CHECK constraint failed: trackers.concurrency'); END;

CREATE TRIGGER trackers_concurrency_is_positive_update BEFORE UPDATE OF concurrency ON trackers WHEN NEW.concurrency <= 0 BEGIN SELECT RAISE(ABORT, 'CHECK constraint failed: trackers.concurrency'); END;

CREATE TRIGGER trackers_max_per_second_is_positive_insert BEFORE INSERT ON trackers WHEN NEW.max_per_second <= 0 BEGIN SELECT RAISE(ABORT, 'CHECK constraint failed: trackers.max_per_second'); END;

CREATE TRIGGER trackers_max_per_second_is_positive_update BEFORE UPDATE OF max_per_second ON trackers WHEN NEW.max_per_second <= 0 BEGIN SELECT RAISE(ABORT, 'CHECK constraint failed: trackers.max_per_second'); END;

CREATE TRIGGER replays_application_id_fkey BEFORE INSERT ON replays WHEN NOT EXISTS (SELECT 1 FROM applications WHERE id = NEW.application_id) BEGIN SELECT RAISE(ABORT, 'FOREIGN KEY constraint failed: replays.application_id'); END;

