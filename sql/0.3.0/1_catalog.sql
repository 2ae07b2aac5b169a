\echo Use "ALTER EXTENSION ner_retriever UPDATE TO '0.3.0'" to load this file. \quit

-- What is managed, what is known of its rows, what waits and what failed. The first of these tables is the
-- only one that must outlive a crash and travel in a dump; the others are found again by comparing tables
-- with their memories (9c_reconcile.sql), and so are unlogged: they cost no WAL, no publication has them, and
-- a crash, a promotion or a restore leaves them empty, which is how a worker knows that it has to compare.

-- Nothing that somebody else has created may take part in what follows.
SET LOCAL search_path = pg_catalog, pg_temp;

-- Offsets count characters: as substr() does only where the server knows what a character is.
DO $$
BEGIN
    IF NOT EXISTS (
        SELECT FROM pg_database AS d WHERE d.datname = current_database()
          AND (pg_encoding_to_char(d.encoding) = 'UTF8' OR EXISTS (
              SELECT FROM pg_conversion AS c
              WHERE c.condefault AND c.conforencoding = d.encoding AND c.contoencoding = pg_char_to_encoding('UTF8'))))
    THEN
        RAISE EXCEPTION 'ner_retriever cannot be used in a database whose encoding is %', getdatabaseencoding()
            USING ERRCODE = 'feature_not_supported',
                  HINT = 'Its texts cannot be converted to UTF8, which the model reads: use a database with an encoding that can.';
    END IF;
END
$$;

DROP EVENT TRIGGER ner_retriever_after_drop;
DROP EVENT TRIGGER ner_retriever_after_alter;
DROP EVENT TRIGGER ner_retriever_after_grant;

ALTER TABLE ner_retriever.managed_index
    -- The text's column and the key's by number as well: names change, and an event trigger follows them.
    ADD COLUMN column_number smallint,
    ADD COLUMN key name[],
    ADD COLUMN key_numbers smallint[],
    -- What was embedded of each row: its key and a hash of its text, for the table of the same generation.
    ADD COLUMN memory regclass UNIQUE,
    ADD COLUMN next_memory regclass UNIQUE,
    -- Who may read the mentions because of the table.
    ADD COLUMN readers name[] NOT NULL DEFAULT '{}',
    -- A comparison of the table with its memory is under way, from this key on. What somebody waits for is
    -- requested; what is done now and then makes way for other work.
    ADD COLUMN pass text CHECK (pass IN ('requested', 'periodic')),
    ADD COLUMN pass_cursor text[],
    ADD COLUMN pass_not_before timestamptz,
    ADD COLUMN reconciled_at timestamptz;

-- The foreign keys of 0.2.0 say which columns are the keys; they refused and cascaded what is the owners'.
UPDATE ner_retriever.managed_index AS i
SET key = k.names
FROM (SELECT m.id, array_agg(c.base_column ORDER BY c."position") AS names
      FROM ner_retriever.managed_index AS m
      CROSS JOIN LATERAL ner_retriever.key_columns(m.base, m.mentions) AS c GROUP BY m.id) AS k
WHERE i.id = k.id;
DO $$
DECLARE
    c record;
BEGIN
    FOR c IN
        SELECT format('ALTER TABLE %I.%I DROP CONSTRAINT %I CASCADE', n.nspname, t.relname, k.conname) AS statement
        FROM ner_retriever.managed_index AS i
        JOIN pg_constraint AS k ON k.contype = 'f' AND k.conparentid = 0 AND k.confrelid = i.base
            AND k.conrelid IN (i.mentions, i.next_mentions)
        JOIN pg_class AS t ON t.oid = k.conrelid
        JOIN pg_namespace AS n ON n.oid = t.relnamespace
    LOOP
        -- With the triggers, which depended on it.
        EXECUTE c.statement;
    END LOOP;
END
$$;

DROP VIEW ner_retriever.indexes, ner_retriever.queue, ner_retriever.failed, ner_retriever.readable_index CASCADE;
DROP FUNCTION
    ner_retriever.adopt(integer), ner_retriever.after_alter(), ner_retriever.after_drop(), ner_retriever.after_grant(),
    ner_retriever.check_mentions(oid, oid, text), ner_retriever.create_mentions(regclass, name, name[], text, integer),
    ner_retriever.create_triggers(integer), ner_retriever.embed_batch(integer, integer),
    ner_retriever.embed_claimed(integer, tid[]),
    ner_retriever.fail(tid, text, text), ner_retriever.find(regclass, name), ner_retriever.finish_filling(integer),
    ner_retriever.key_columns(oid, oid), ner_retriever.key_part(text, integer, bigint),
    ner_retriever.lock_tables(integer),
    ner_retriever.refresh_statement(regclass, text, name),
    ner_retriever.share_mentions(regclass, name, regclass), ner_retriever.start_filling(integer),
    ner_retriever.start_worker(),
    ner_retriever.statements(integer), ner_retriever.work(integer, integer), ner_retriever.write_statements(integer);
ALTER EXTENSION ner_retriever DROP TABLE ner_retriever.pending;
ALTER EXTENSION ner_retriever DROP TABLE ner_retriever.failed_row;
ALTER TABLE ner_retriever.pending RENAME TO old_pending;
ALTER TABLE ner_retriever.old_pending RENAME CONSTRAINT pending_pkey TO old_pending_pkey;
ALTER SEQUENCE ner_retriever.pending_id_seq RENAME TO old_pending_id_seq;
ALTER TABLE ner_retriever.failed_row RENAME TO old_failed_row;
ALTER TABLE ner_retriever.old_failed_row RENAME CONSTRAINT failed_row_pkey TO old_failed_row_pkey;

CREATE UNLOGGED TABLE ner_retriever.pending (
    index_id integer NOT NULL,
    -- Found by comparing, not told by a trigger.
    backfill boolean NOT NULL DEFAULT false,
    id bigint GENERATED ALWAYS AS IDENTITY,
    -- NULL: more has changed than is worth telling, the whole table is to be compared.
    key text[],
    -- Counting different keys is quick by these.
    key_hash bigint GENERATED ALWAYS AS (hash_array_extended(key, 0)) STORED,
    -- Of the text that was compared.
    text_hash bytea,
    attempts integer NOT NULL DEFAULT 0,
    not_before timestamptz,
    enqueued_at timestamptz NOT NULL DEFAULT now(),
    -- What users just changed goes before the backfill; one index serves this order, and no
    -- constraint makes one writer wait for another: a row that changes often is here often, until a
    -- worker looks.
    PRIMARY KEY (index_id, backfill, id)
) WITH (
    -- A queue is all dead rows: the usual share of the table would be reached too late.
    autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 5000,
    autovacuum_analyze_scale_factor = 0, autovacuum_analyze_threshold = 50000
);

INSERT INTO ner_retriever.pending (index_id, backfill, key)
SELECT DISTINCT index_id, backfill, key FROM ner_retriever.old_pending
UNION SELECT index_id, false, key FROM ner_retriever.old_failed_row;
DROP TABLE ner_retriever.old_pending, ner_retriever.old_failed_row;

CREATE UNLOGGED TABLE ner_retriever.failed_row (
    index_id integer NOT NULL,
    key text[] NOT NULL,
    -- Keys may be longer than what an index takes.
    key_hash bigint GENERATED ALWAYS AS (hash_array_extended(key, 0)) STORED,
    text_hash bytea,
    attempts integer NOT NULL,
    sqlstate text NOT NULL,
    message text NOT NULL,
    failed_at timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (index_id, key_hash)
);

-- Whoever fills, compares or builds an index has its row here locked: one worker at a time. Nobody else does, so
-- that no ALTER TABLE waits for what may take long. Rows of the catalogue are locked last and for moments.
CREATE UNLOGGED TABLE ner_retriever.turn (
    index_id integer PRIMARY KEY
);

-- Where a worker has worked last. Another database, another cluster, or no row: all indexes are compared.
CREATE UNLOGGED TABLE ner_retriever.last_place (
    database oid NOT NULL, system_identifier bigint NOT NULL
);
GRANT SELECT ON ner_retriever.last_place TO PUBLIC;

CREATE FUNCTION ner_retriever.is_known_place()
RETURNS boolean
LANGUAGE sql STABLE SECURITY DEFINER SET search_path = pg_catalog, pg_temp
BEGIN ATOMIC
    SELECT EXISTS (
        SELECT FROM ner_retriever.last_place AS p
        JOIN pg_database AS d ON d.oid = p.database AND d.datname = current_database()
        WHERE p.system_identifier = (SELECT c.system_identifier FROM pg_control_system() AS c));
END;
COMMENT ON FUNCTION ner_retriever.is_known_place() IS
'Whether a worker has looked at this database since it came here, or since the last crash';

-- Numbers follow names when a row arrives, also from a dump: a restored table counts its columns anew.
CREATE FUNCTION ner_retriever.number_columns()
RETURNS trigger
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    NEW.column_number := (SELECT attnum FROM pg_attribute
                          WHERE attrelid = NEW.base AND attname = NEW."column" AND attnum > 0);
    NEW.key_numbers := (SELECT array_agg(a.attnum ORDER BY u.n) FROM unnest(NEW.key) WITH ORDINALITY AS u (name, n)
                        JOIN pg_attribute AS a ON a.attrelid = NEW.base AND a.attname = u.name AND a.attnum > 0);
    RETURN NEW;
END
$$;
COMMENT ON FUNCTION ner_retriever.number_columns() IS
'Finds the columns of a managed index by their names';
CREATE TRIGGER number_columns BEFORE INSERT ON ner_retriever.managed_index
    FOR EACH ROW EXECUTE FUNCTION ner_retriever.number_columns();
ALTER TABLE ner_retriever.managed_index ENABLE ALWAYS TRIGGER number_columns;
UPDATE ner_retriever.managed_index AS i SET
    column_number = (SELECT a.attnum FROM pg_attribute AS a
                     WHERE a.attrelid = i.base AND a.attname = i."column" AND a.attnum > 0),
    key_numbers = (SELECT array_agg(a.attnum ORDER BY u.n) FROM unnest(i.key) WITH ORDINALITY AS u (name, n)
                   JOIN pg_attribute AS a ON a.attrelid = i.base AND a.attname = u.name AND a.attnum > 0);

-- What a subscription applies to a managed index of this server's own would make it another server's: a
-- publication FOR ALL TABLES has the mentions and this catalogue. Everything else may be loaded as a replica.
CREATE FUNCTION ner_retriever.is_logical_worker()
RETURNS boolean
LANGUAGE c
AS 'MODULE_PATHNAME', 'ner_is_logical_worker_wrapper';
COMMENT ON FUNCTION ner_retriever.is_logical_worker() IS
'Whether this process applies what a subscription brings';

CREATE FUNCTION ner_retriever.keep_local()
RETURNS trigger
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    IF ner_retriever.is_logical_worker() THEN
        RETURN NULL;
    ELSIF TG_OP = 'DELETE' THEN
        RETURN OLD;
    END IF;
    RETURN NEW;
END
$$;
COMMENT ON FUNCTION ner_retriever.keep_local() IS
'Leaves out what a subscription would apply: each server keeps its own managed indexes';
CREATE TRIGGER keep_local BEFORE INSERT OR UPDATE OR DELETE ON ner_retriever.managed_index
    FOR EACH ROW EXECUTE FUNCTION ner_retriever.keep_local();
ALTER TABLE ner_retriever.managed_index ENABLE REPLICA TRIGGER keep_local;

-- A managed index is its owner's. The worker is a superuser's process and sees all of them; what it
-- does to users' tables it does with their owner's rights.
DROP POLICY owner ON ner_retriever.managed_index;
CREATE POLICY owner ON ner_retriever.managed_index
    USING (ner_retriever.owns(base))
    WITH CHECK (ner_retriever.owns(base) AND ner_retriever.owns(mentions)
        AND (memory IS NULL OR ner_retriever.owns(memory))
        AND (next_mentions IS NULL OR ner_retriever.owns(next_mentions))
        AND (next_memory IS NULL OR ner_retriever.owns(next_memory)));
ALTER TABLE ner_retriever.pending ENABLE ROW LEVEL SECURITY;
ALTER TABLE ner_retriever.failed_row ENABLE ROW LEVEL SECURITY;
CREATE POLICY owner ON ner_retriever.pending
    USING (index_id IN (SELECT id FROM ner_retriever.managed_index));
CREATE POLICY owner ON ner_retriever.failed_row
    USING (index_id IN (SELECT id FROM ner_retriever.managed_index));
-- What the functions below write with the rights of an owner, and no more: a forged number, counter
-- or name of one's own index would be everybody's trouble in the worker and the event triggers.
GRANT SELECT, INSERT (key), UPDATE (next_memory, pass, pass_cursor) ON ner_retriever.managed_index TO PUBLIC;
GRANT SELECT, INSERT (index_id, backfill, key, text_hash), DELETE ON ner_retriever.pending TO PUBLIC;
GRANT SELECT, DELETE ON ner_retriever.failed_row TO PUBLIC;
GRANT SELECT ON SEQUENCE ner_retriever.pending_id_seq TO PUBLIC;
