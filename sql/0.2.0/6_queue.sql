-- The queue that the workers drain, one step a transaction.

-- Mentions go with the text's column, triggers with the mentions. A trigger that needs the foreign key is
-- restored after it and so after the rows of all partitions, whose mentions the dump has. Dumps do not keep
-- such dependencies, so they are added where they are missing.
CREATE FUNCTION ner_retriever.adopt(index_id integer)
RETURNS void
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    d record;
BEGIN
    FOR d IN
        SELECT 'pg_class'::regclass AS class, g.mentions::oid AS object,
               'pg_class'::regclass AS referenced_class, i.base::oid AS referenced,
               a.attnum::integer AS number, true AS auto
        FROM ner_retriever.managed_index AS i
        CROSS JOIN LATERAL (VALUES (i.mentions), (i.next_mentions)) AS g (mentions)
        JOIN pg_attribute AS a ON a.attrelid = i.base AND a.attname = i."column" AND NOT a.attisdropped
        WHERE i.id = adopt.index_id AND g.mentions IS NOT NULL
        UNION ALL
        SELECT 'pg_trigger'::regclass, t.oid, n.class, n.object, 0, n.auto
        FROM ner_retriever.managed_index AS i
        JOIN pg_trigger AS t ON t.tgrelid = i.base
        CROSS JOIN LATERAL (
            SELECT 'pg_class'::regclass AS class, i.mentions::oid AS object, true AS auto
            UNION ALL
            SELECT 'pg_constraint'::regclass, c.oid, false FROM pg_constraint AS c
            WHERE c.contype = 'f' AND c.conparentid = 0
              AND c.conrelid = i.mentions AND c.confrelid = i.base) AS n
        WHERE i.id = adopt.index_id
          AND t.tgname IN (SELECT format('ner_retriever_%s_%s', i.id, event)
                           FROM unnest(ARRAY['insert', 'update', 'truncate']) AS event)
    LOOP
        IF NOT EXISTS (
            SELECT FROM pg_depend AS p
            WHERE p.classid = d.class AND p.objid = d.object AND p.objsubid = 0
              AND p.refclassid = d.referenced_class AND p.refobjid = d.referenced
              AND p.refobjsubid = d.number AND p.deptype = CASE WHEN d.auto THEN 'a' ELSE 'n' END)
        THEN
            PERFORM ner_retriever.depend_on(
                d.class, d.object, d.referenced_class, d.referenced, d.number, d.auto);
        END IF;
    END LOOP;
END
$$;
COMMENT ON FUNCTION ner_retriever.adopt(integer) IS
'Ties what belongs to a managed index to its table';

-- Tables are locked before rows of the catalogue and the queue, as by whoever drops or truncates them;
-- a worker never waits for those rows. Otherwise each could wait for the other.
CREATE FUNCTION ner_retriever.lock_tables(index_id integer)
RETURNS boolean
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    t record;
BEGIN
    FOR t IN
        SELECT b.relowner AS owner,
               format('LOCK TABLE ONLY %I.%I IN %s MODE NOWAIT', n.nspname, c.relname, l.mode) AS statement
        FROM ner_retriever.managed_index AS m
        JOIN pg_class AS b ON b.oid = m.base
        CROSS JOIN LATERAL (VALUES (m.base, 'ROW SHARE'), (m.mentions, 'ROW EXCLUSIVE'),
                                   (m.next_mentions, 'ROW EXCLUSIVE')) AS l (relation, mode)
        JOIN pg_class AS c ON c.oid = l.relation
        JOIN pg_namespace AS n ON n.oid = c.relnamespace
        WHERE m.id = lock_tables.index_id
    LOOP
        PERFORM ner_retriever.execute_as(t.owner, t.statement);
    END LOOP;
    RETURN true;
EXCEPTION
    WHEN lock_not_available OR undefined_table THEN
        RETURN false;
    WHEN insufficient_privilege THEN
        -- What is wrong is told where the table is written to.
        RETURN true;
END
$$;
COMMENT ON FUNCTION ner_retriever.lock_tables(integer) IS
'Locks the tables of an index for a step of a worker; false if someone else has them';

-- One unit of work of the first index after a given one that has any: NULL if none has.
CREATE FUNCTION ner_retriever.work(
    after_index integer, max_rows integer, OUT index_id integer, OUT rows_done integer
)
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp
-- Longer than anything but a deliberate lock: other tables do not wait for one that is locked.
SET lock_timeout = '2s'
AS $$
DECLARE
    i ner_retriever.managed_index;
BEGIN
    FOR i IN
        SELECT * FROM ner_retriever.managed_index
        WHERE paused_until IS NULL OR paused_until <= clock_timestamp()
        ORDER BY id <= after_index, id
    LOOP
        rows_done := CASE
            WHEN i.state = 'new' THEN ner_retriever.start_filling(i.id)
            ELSE ner_retriever.embed_batch(i.id, max_rows)
        END;
        IF rows_done = 0 AND i.state = 'filling' THEN
            rows_done := ner_retriever.finish_filling(i.id);
        END IF;
        IF rows_done > 0 THEN
            index_id := i.id;
            RETURN;
        END IF;
    END LOOP;
    rows_done := 0;
END
$$;
COMMENT ON FUNCTION ner_retriever.work(integer, integer) IS
'One step of a worker, in a transaction of its own';

-- Whatever the owners' triggers and conversions raise, the worker goes on with other indexes: OTHERS
-- alone would let two kinds of error through.
CREATE FUNCTION ner_retriever.start_filling(index_id integer)
RETURNS integer
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    s record;
    enqueued bigint;
BEGIN
    IF NOT ner_retriever.lock_tables(index_id) THEN
        RETURN 0;
    END IF;
    PERFORM FROM ner_retriever.managed_index AS i
    WHERE i.id = index_id AND i.state = 'new' FOR UPDATE SKIP LOCKED;
    IF NOT FOUND THEN
        RETURN 0;
    END IF;
    PERFORM ner_retriever.adopt(index_id);
    SELECT * INTO s FROM ner_retriever.statements(index_id);
    PERFORM ner_retriever.check_row_security(s.base);
    DELETE FROM ner_retriever.pending AS p WHERE p.index_id = start_filling.index_id AND p.backfill;
    enqueued := ner_retriever.execute_as(s.owner, s.enqueue_all);
    UPDATE ner_retriever.managed_index SET state = 'filling', rows_total = enqueued WHERE id = index_id;
    RETURN 1;
EXCEPTION WHEN OTHERS OR query_canceled OR assert_failure THEN
    PERFORM ner_retriever.pause(index_id, SQLERRM);
    RETURN 0;
END
$$;
COMMENT ON FUNCTION ner_retriever.start_filling(integer) IS
'Enqueues all rows of a table';

-- The index is built when the table is full, which is faster and better than growing it.
-- A table changes its place in a step of its own: that needs a lock on the indexed table, for which
-- nobody shall have to queue for long.
CREATE FUNCTION ner_retriever.finish_filling(index_id integer)
RETURNS integer
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp SET lock_timeout = '2s'
AS $$
DECLARE
    i record;
    target regclass;
BEGIN
    IF NOT ner_retriever.lock_tables(index_id) THEN
        RETURN 0;
    END IF;
    SELECT m.*, c.relowner AS owner, n.nspname, o.relname INTO i
    FROM ner_retriever.managed_index AS m
    JOIN pg_class AS c ON c.oid = m.base
    JOIN pg_class AS o ON o.oid = m.mentions
    JOIN pg_namespace AS n ON n.oid = o.relnamespace
    WHERE m.id = index_id AND m.state = 'filling' FOR UPDATE OF m SKIP LOCKED;
    IF NOT FOUND OR EXISTS (SELECT FROM ner_retriever.pending AS p
                            WHERE p.index_id = finish_filling.index_id AND p.backfill) THEN
        RETURN 0;
    END IF;
    target := coalesce(i.next_mentions, i.mentions);
    IF NOT EXISTS (SELECT FROM pg_index AS x JOIN pg_class AS c ON c.oid = x.indexrelid
                   JOIN pg_am AS a ON a.oid = c.relam
                   WHERE x.indrelid = target AND a.amname = 'hnsw') THEN
        PERFORM ner_retriever.execute_as(i.owner, format(
            'CREATE INDEX ON %s USING hnsw (embedding %s)', target,
            ner_retriever.vector_type((i.storage || '_cosine_ops')::name)));
        RETURN 1;
    END IF;
    IF i.next_mentions IS NOT NULL THEN
        UPDATE ner_retriever.managed_index
        SET mentions = next_mentions, fingerprint = next_fingerprint, dims = next_dims,
            next_mentions = NULL, next_fingerprint = NULL, next_dims = NULL
        WHERE id = index_id;
        PERFORM ner_retriever.execute_as(i.owner, format('DROP TABLE %s', i.mentions));
        PERFORM ner_retriever.execute_as(i.owner, format('ALTER TABLE %s RENAME TO %I', target, i.relname));
        IF i.mode <> 'manual' THEN
            PERFORM ner_retriever.execute_as(
                i.owner, format('SELECT ner_retriever.create_triggers(%s)', index_id));
        END IF;
        PERFORM ner_retriever.adopt(index_id);
    END IF;
    UPDATE ner_retriever.managed_index SET state = 'ready' WHERE id = index_id;
    RETURN 1;
EXCEPTION WHEN OTHERS OR query_canceled OR assert_failure THEN
    PERFORM ner_retriever.pause(index_id, SQLERRM);
    RETURN 0;
END
$$;
COMMENT ON FUNCTION ner_retriever.finish_filling(integer) IS
'Builds the vector index of a table whose rows are all embedded, and puts the table in its place';

CREATE FUNCTION ner_retriever.pause(index_id integer, message text)
RETURNS void
LANGUAGE sql SET search_path = pg_catalog, pg_temp
BEGIN ATOMIC
    UPDATE ner_retriever.managed_index AS i
    SET paused_until = clock_timestamp() + least(power(2, least(i.pauses, 10)), 30) * interval '1 second',
        pauses = least(i.pauses, 1000) + 1, last_error = message, last_error_at = clock_timestamp()
    -- Whoever has it locked changes or drops the index.
    WHERE i.id = (SELECT l.id FROM ner_retriever.managed_index AS l
                  WHERE l.id = pause.index_id FOR NO KEY UPDATE SKIP LOCKED);
END;
COMMENT ON FUNCTION ner_retriever.pause(integer, text) IS
'Leaves an index alone for a while: at first a second, at most half a minute';

-- The rows stay locked until the transaction ends, so that no other worker takes them; if it dies,
-- they are free again.
CREATE FUNCTION ner_retriever.embed_batch(index_id integer, max_rows integer)
RETURNS integer
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    rows_claimed tid[];
BEGIN
    IF NOT EXISTS (SELECT FROM ner_retriever.pending AS p WHERE p.index_id = embed_batch.index_id)
       OR NOT ner_retriever.lock_tables(index_id) THEN
        RETURN 0;
    END IF;
    SELECT array_agg(c.row) INTO rows_claimed
    FROM (
        SELECT p.ctid AS row FROM ner_retriever.pending AS p
        WHERE p.index_id = embed_batch.index_id
          AND (p.not_before IS NULL OR p.not_before <= clock_timestamp())
        ORDER BY p.backfill, p.id LIMIT max_rows FOR UPDATE SKIP LOCKED
    ) AS c;
    IF rows_claimed IS NULL THEN
        RETURN 0;
    END IF;
    RETURN ner_retriever.embed_claimed(index_id, rows_claimed);
END
$$;
COMMENT ON FUNCTION ner_retriever.embed_batch(integer, integer) IS
'Embeds rows that wait. Returns how many were taken from the queue';

CREATE FUNCTION ner_retriever.embed_claimed(index_id integer, rows_claimed tid[])
RETURNS integer
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    keys text[];
    again integer[];
    code text;
    message text;
    half integer;
    done integer;
BEGIN
    -- Keys of one index are equally long, so that they make one array of two dimensions.
    SELECT array_agg(key) INTO keys
    FROM (SELECT DISTINCT key FROM ner_retriever.pending WHERE ctid = ANY (rows_claimed)) AS k;
    again := ner_retriever.embed_rows(index_id, keys);
    UPDATE ner_retriever.pending AS p SET not_before = clock_timestamp() + interval '0.1 second'
    FROM unnest(again) AS a (n)
    WHERE p.ctid = ANY (rows_claimed)
      AND p.key = (SELECT array_agg(keys[a.n][c] ORDER BY c) FROM generate_subscripts(keys, 2) AS c);
    DELETE FROM ner_retriever.failed_row AS f USING ner_retriever.pending AS p
    WHERE p.ctid = ANY (rows_claimed) AND f.index_id = p.index_id AND f.key = p.key;
    -- The updated ones have moved and stay.
    DELETE FROM ner_retriever.pending WHERE ctid = ANY (rows_claimed);
    UPDATE ner_retriever.managed_index AS i
    SET paused_until = NULL, pauses = 0, last_error = NULL, last_error_at = NULL
    WHERE i.id = (SELECT l.id FROM ner_retriever.managed_index AS l
                  WHERE l.id = index_id AND l.pauses > 0 FOR NO KEY UPDATE SKIP LOCKED);
    RETURN cardinality(rows_claimed);
EXCEPTION WHEN OTHERS OR query_canceled OR assert_failure THEN
    GET STACKED DIAGNOSTICS code = RETURNED_SQLSTATE, message = MESSAGE_TEXT;
    IF NOT ner_retriever.blames_the_row(code) THEN
        PERFORM ner_retriever.pause(index_id, message);
        RETURN 0;
    END IF;
    half := cardinality(rows_claimed) / 2;
    IF half > 0 THEN
        -- One of them is to blame; the others must not wait for it.
        done := ner_retriever.embed_claimed(index_id, rows_claimed[1:half]);
        RETURN done + ner_retriever.embed_claimed(index_id, rows_claimed[half + 1:]);
    END IF;
    PERFORM ner_retriever.fail(rows_claimed[1], code, message);
    RETURN 1;
END
$$;
COMMENT ON FUNCTION ner_retriever.embed_claimed(integer, tid[]) IS
'Embeds rows that this transaction has locked in the queue';

-- Errors of the engine's state are nobody's fault and no attempt: it is missing, cannot start, is of
-- another model. Everything else is the text's, or the table's.
CREATE FUNCTION ner_retriever.blames_the_row(code text)
RETURNS boolean
LANGUAGE sql IMMUTABLE SET search_path = pg_catalog, pg_temp
RETURN code NOT IN (
    '58P01', '0A000', 'XX001', '55000', '08006', '08P01', '53000', '53100', '53300', '53400', '22023',
    '42501', '42P01', '42703', '55P03', '57P03');
COMMENT ON FUNCTION ner_retriever.blames_the_row(text) IS
'Whether an error with this SQLSTATE counts as an attempt to embed a row';

CREATE FUNCTION ner_retriever.fail(pending_row tid, code text, message text)
RETURNS void
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    p ner_retriever.pending;
BEGIN
    SELECT * INTO p FROM ner_retriever.pending WHERE ctid = pending_row;
    p.attempts := p.attempts + 1;
    IF p.attempts < current_setting('ner_retriever.max_attempts')::integer THEN
        UPDATE ner_retriever.pending SET attempts = p.attempts,
            -- At most half an hour.
            not_before = clock_timestamp() + power(4, least(p.attempts - 1, 6)) * interval '0.5 second'
        WHERE ctid = pending_row;
        RETURN;
    END IF;
    INSERT INTO ner_retriever.failed_row (index_id, key, attempts, sqlstate, message)
    VALUES (p.index_id, p.key, p.attempts, code, message)
    ON CONFLICT ON CONSTRAINT failed_row_pkey DO UPDATE
    SET attempts = excluded.attempts, sqlstate = excluded.sqlstate, message = excluded.message,
        failed_at = excluded.failed_at;
    DELETE FROM ner_retriever.pending WHERE ctid = pending_row;
END
$$;
COMMENT ON FUNCTION ner_retriever.fail(tid, text, text) IS
'Counts a failed attempt: tried again later, or moved to the failed rows';

REVOKE EXECUTE ON FUNCTION
    ner_retriever.embed_rows(integer, text[]), ner_retriever.execute_as(oid, text),
    ner_retriever.depend_on(oid, oid, oid, oid, integer, boolean), ner_retriever.work(integer, integer),
    ner_retriever.lock_tables(integer), ner_retriever.start_filling(integer),
    ner_retriever.finish_filling(integer),
    ner_retriever.pause(integer, text), ner_retriever.embed_batch(integer, integer),
    ner_retriever.embed_claimed(integer, tid[]), ner_retriever.fail(tid, text, text)
FROM PUBLIC;
