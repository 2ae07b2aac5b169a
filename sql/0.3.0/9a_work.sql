-- What workers do, one step a transaction.

CREATE FUNCTION ner_retriever.unpause(index_id integer)
RETURNS void
LANGUAGE sql SET search_path = pg_catalog, pg_temp
BEGIN ATOMIC
    UPDATE ner_retriever.managed_index AS i
    SET paused_until = NULL, pauses = 0, last_error = NULL, last_error_at = NULL
    WHERE i.id = (SELECT l.id FROM ner_retriever.managed_index AS l
                  WHERE l.id = unpause.index_id AND l.pauses > 0 FOR NO KEY UPDATE SKIP LOCKED);
END;
COMMENT ON FUNCTION ner_retriever.unpause(integer) IS
'An index works again';

-- Everything that is done to users' tables is done with their owner's rights. While somebody else has a table
-- locked, others are worked on: that is nobody's fault.
CREATE FUNCTION ner_retriever.is_in_use(code text)
RETURNS boolean
LANGUAGE sql IMMUTABLE SET search_path = pg_catalog, pg_temp
RETURN code IN ('55P03', '40P01');
COMMENT ON FUNCTION ner_retriever.is_in_use(text) IS
'Whether an error with this SQLSTATE only means that somebody else has a lock';

CREATE FUNCTION ner_retriever.take_turn(index_id integer)
RETURNS boolean
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    INSERT INTO ner_retriever.turn (index_id) VALUES (take_turn.index_id) ON CONFLICT DO NOTHING;
    PERFORM FROM ner_retriever.turn AS t WHERE t.index_id = take_turn.index_id FOR UPDATE SKIP LOCKED;
    RETURN FOUND;
END
$$;
COMMENT ON FUNCTION ner_retriever.take_turn(integer) IS
'Whether it is this worker''s turn to do what only one can do to an index';

-- Whoever has the row changes or drops the index, and may wait for a lock that this worker has.
CREATE FUNCTION ner_retriever.lock_index(index_id integer)
RETURNS void
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    PERFORM FROM ner_retriever.managed_index AS m WHERE m.id = lock_index.index_id FOR NO KEY UPDATE NOWAIT;
END
$$;
COMMENT ON FUNCTION ner_retriever.lock_index(integer) IS
'Locks the catalogue''s row of an index as the last thing in a step; an error if somebody else has it';

-- One unit of work of the first index after a given one that has any: NULL if none has. Changes and the
-- comparison take turns, so that neither waits for the end of the other.
CREATE FUNCTION ner_retriever.work(
    after_index integer, max_rows integer, compare_first boolean, OUT index_id integer, OUT rows_done integer
)
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp
-- Shorter than deadlock_timeout: where a worker and a user wait for each other it is the worker that gives way.
SET lock_timeout = '50ms'
AS $$
DECLARE
    i ner_retriever.managed_index;
BEGIN
    FOR i IN
        SELECT * FROM ner_retriever.managed_index
        WHERE paused_until IS NULL OR paused_until <= clock_timestamp()
        ORDER BY id <= after_index, id
    LOOP
        rows_done := ner_retriever.work_on(i.id, max_rows, compare_first);
        IF rows_done > 0 THEN
            index_id := i.id;
            RETURN;
        END IF;
    END LOOP;
    rows_done := 0;
END
$$;
COMMENT ON FUNCTION ner_retriever.work(integer, integer, boolean) IS
'One step of a worker, in a transaction of its own';

-- Whatever the owners' triggers and conversions raise, the worker goes on with other indexes: OTHERS
-- alone would let two kinds of error through.
CREATE FUNCTION ner_retriever.work_on(index_id integer, max_rows integer, compare_first boolean)
RETURNS integer
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    rows_done integer := 0;
    i record;
BEGIN
    SELECT * INTO i FROM ner_retriever.managed_index AS m WHERE m.id = index_id;
    IF NOT FOUND THEN
        RETURN 0;
    END IF;
    PERFORM ner_retriever.follow_names(index_id), ner_retriever.follow_owner(index_id);
    IF NOT ner_retriever.is_whole(index_id) THEN
        RETURN 0;
    END IF;
    rows_done := ner_retriever.take_up(index_id);
    IF rows_done > 0 THEN
        RETURN rows_done;
    END IF;
    IF compare_first THEN
        rows_done := ner_retriever.compare_some(index_id);
    END IF;
    IF rows_done = 0 THEN
        rows_done := ner_retriever.embed_batch(index_id, max_rows);
    END IF;
    IF rows_done = 0 THEN
        rows_done := ner_retriever.compare_some(index_id);
    END IF;
    IF rows_done = 0 OR i.state = 'filling' AND i.pass IS NULL THEN
        rows_done := greatest(rows_done, ner_retriever.finish_filling(index_id));
    END IF;
    RETURN rows_done;
EXCEPTION WHEN OTHERS OR query_canceled OR assert_failure THEN
    IF NOT ner_retriever.is_in_use(SQLSTATE) THEN
        PERFORM ner_retriever.pause(index_id, SQLERRM);
    END IF;
    RETURN 0;
END
$$;
COMMENT ON FUNCTION ner_retriever.work_on(integer, integer, boolean) IS
'One step of a worker for an index. Returns whether there was anything to do';

-- A restore makes keys when the rows are there: what is done before would be in its way. An index whose key
-- has been dropped waits for another.
CREATE FUNCTION ner_retriever.is_whole(index_id integer)
RETURNS boolean
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    i record;
BEGIN
    SELECT m.*, c.oid IS NOT NULL AS has_table INTO i
    FROM ner_retriever.managed_index AS m LEFT JOIN pg_class AS c ON c.oid = m.base WHERE m.id = index_id;
    IF NOT i.has_table OR i.key IS NULL OR EXISTS (
        SELECT FROM unnest(ARRAY[i.mentions, i.memory, i.next_mentions, i.next_memory]::oid[]) AS t (relation)
        WHERE t.relation IS NOT NULL
          AND NOT EXISTS (SELECT FROM pg_index AS x WHERE x.indrelid = t.relation AND x.indisprimary AND x.indisvalid))
    THEN
        RETURN false;
    END IF;
    IF ner_retriever.key_index(i.base, i.key_numbers) IS NULL THEN
        BEGIN
            PERFORM ner_retriever.check_key(index_id);
        EXCEPTION WHEN object_not_in_prerequisite_state THEN
            PERFORM ner_retriever.pause(index_id, SQLERRM);
        END;
        RETURN false;
    END IF;
    RETURN true;
END
$$;
COMMENT ON FUNCTION ner_retriever.is_whole(integer) IS
'Whether a managed index has all that it needs';

-- The beginning of what takes many steps: filling an index, comparing a table, knowing what an index of 0.2.0
-- has. Returns whether there was anything to begin.
CREATE FUNCTION ner_retriever.take_up(index_id integer)
RETURNS integer
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    i record;
    asked boolean;
    rows_counted bigint;
BEGIN
    IF NOT ner_retriever.take_turn(index_id) THEN
        RETURN 0;
    END IF;
    SELECT m.*, c.relowner AS owner INTO i
    FROM ner_retriever.managed_index AS m JOIN pg_class AS c ON c.oid = m.base
    WHERE m.id = index_id;
    WITH asked_for AS (
        DELETE FROM ner_retriever.pending WHERE ctid = ANY (ARRAY(
            SELECT p.ctid FROM ner_retriever.pending AS p
            WHERE p.index_id = take_up.index_id AND p.key IS NULL FOR UPDATE SKIP LOCKED))
        RETURNING 1)
    SELECT count(*) > 0 INTO asked FROM asked_for;
    IF i.memory IS NULL THEN
        PERFORM ner_retriever.check_row_security(i.base);
        PERFORM ner_retriever.lock_index(index_id);
        PERFORM ner_retriever.create_memory(index_id, false);
        PERFORM ner_retriever.execute_as(i.owner, format('SELECT ner_retriever.remember_mentions(%s)', index_id));
        PERFORM ner_retriever.adopt(index_id);
        UPDATE ner_retriever.managed_index SET pass = 'requested', pass_cursor = NULL WHERE id = index_id;
    ELSIF i.next_mentions IS NOT NULL AND i.next_memory IS NULL THEN
        PERFORM ner_retriever.lock_index(index_id);
        PERFORM ner_retriever.create_memory(index_id, true);
        PERFORM ner_retriever.adopt(index_id);
        UPDATE ner_retriever.managed_index SET state = 'new' WHERE id = index_id;
    ELSIF i.state = 'new' THEN
        PERFORM ner_retriever.check_row_security(i.base);
        PERFORM ner_retriever.adopt(index_id);
        rows_counted := ner_retriever.count_as(i.owner, format('SELECT ner_retriever.count_rows(%L)', i.base::oid));
        PERFORM ner_retriever.lock_index(index_id);
        UPDATE ner_retriever.managed_index
        SET state = 'filling', pass = 'requested', pass_cursor = NULL, pass_not_before = NULL, rows_total = rows_counted
        WHERE id = index_id;
    ELSIF asked THEN
        PERFORM ner_retriever.lock_index(index_id);
        UPDATE ner_retriever.managed_index
        SET pass = 'requested', pass_cursor = NULL, pass_not_before = NULL,
            -- Its vector index went when the type of a key's column changed, and is built again.
            state = CASE WHEN ner_retriever.has_vector_index(i.mentions) THEN state ELSE 'filling' END
        WHERE id = index_id;
    ELSIF i.pass IS NULL AND i.state = 'ready' AND i.mode <> 'manual'
        AND current_setting('ner_retriever.reconcile_interval')::interval > '0'
        AND coalesce(i.reconciled_at, '-infinity') <= now() - current_setting('ner_retriever.reconcile_interval')::interval THEN
        PERFORM ner_retriever.lock_index(index_id);
        UPDATE ner_retriever.managed_index
        SET pass = 'periodic', pass_cursor = NULL, pass_not_before = NULL WHERE id = index_id;
    ELSE
        RETURN 0;
    END IF;
    RETURN 1;
END
$$;
COMMENT ON FUNCTION ner_retriever.take_up(integer) IS
'Begins what takes many steps';

CREATE FUNCTION ner_retriever.has_vector_index(mentions oid)
RETURNS boolean
LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp
RETURN EXISTS (
    SELECT FROM pg_index AS x JOIN pg_class AS c ON c.oid = x.indexrelid JOIN pg_am AS a ON a.oid = c.relam
    WHERE x.indrelid = mentions AND a.amname = 'hnsw');
COMMENT ON FUNCTION ner_retriever.has_vector_index(oid) IS
'Whether mentions are found through an HNSW index';

-- The index is built when the table is full, which is faster and better than growing it. Only the mentions are
-- locked meanwhile. A table changes its place in a step of its own.
CREATE FUNCTION ner_retriever.finish_filling(index_id integer)
RETURNS integer
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    i record;
    target regclass;
BEGIN
    SELECT m.*, c.relowner AS owner, o.relname INTO i
    FROM ner_retriever.managed_index AS m
    JOIN pg_class AS c ON c.oid = m.base
    JOIN pg_class AS o ON o.oid = m.mentions
    WHERE m.id = index_id AND m.state = 'filling' AND m.pass IS NULL;
    IF NOT FOUND OR NOT ner_retriever.take_turn(index_id) OR EXISTS (SELECT FROM ner_retriever.pending AS p
                            WHERE p.index_id = finish_filling.index_id AND p.backfill) THEN
        RETURN 0;
    END IF;
    target := coalesce(i.next_mentions, i.mentions);
    IF NOT ner_retriever.has_vector_index(target) THEN
        PERFORM ner_retriever.execute_as(i.owner, format(
            'CREATE INDEX ON %s USING hnsw (embedding %s)', ner_retriever.name_of(target),
            ner_retriever.vector_type((i.storage || '_cosine_ops')::name)));
        RETURN 1;
    END IF;
    IF i.next_mentions IS NOT NULL THEN
        PERFORM ner_retriever.check_dependants(i.mentions);
        -- Waiting for searches to end, and for nobody else while they wait.
        PERFORM ner_retriever.execute_as(i.owner, format('LOCK TABLE %s IN ACCESS EXCLUSIVE MODE', ner_retriever.name_of(i.mentions)));
        PERFORM ner_retriever.execute_as(i.owner, format('LOCK TABLE %s, %s, %s IN ACCESS EXCLUSIVE MODE NOWAIT',
            ner_retriever.name_of(target), ner_retriever.name_of(i.memory), ner_retriever.name_of(i.next_memory)));
        PERFORM ner_retriever.take_grants(i.mentions, target);
        PERFORM ner_retriever.take_publications(i.mentions, target);
        PERFORM ner_retriever.lock_index(index_id);
        UPDATE ner_retriever.managed_index
        SET mentions = next_mentions, memory = next_memory, fingerprint = next_fingerprint, dims = next_dims,
            next_mentions = NULL, next_memory = NULL, next_fingerprint = NULL, next_dims = NULL
        WHERE id = index_id;
        PERFORM ner_retriever.execute_as(i.owner, format('DROP TABLE %s', ner_retriever.name_of(i.mentions)));
        PERFORM ner_retriever.execute_as(i.owner, format('ALTER TABLE %s RENAME TO %I', ner_retriever.name_of(target), i.relname));
        PERFORM ner_retriever.adopt(index_id);
    END IF;
    PERFORM ner_retriever.lock_index(index_id);
    UPDATE ner_retriever.managed_index
    SET state = 'ready', paused_until = NULL, pauses = 0, last_error = NULL, last_error_at = NULL WHERE id = index_id;
    RETURN 1;
END
$$;
COMMENT ON FUNCTION ner_retriever.finish_filling(integer) IS
'Builds the vector index of a table whose rows are all embedded, and puts the table in its place';

CREATE FUNCTION ner_retriever.take_publications(old regclass, new regclass)
RETURNS void
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    p record;
BEGIN
    FOR p IN
        SELECT format('ALTER PUBLICATION %I ADD TABLE %s%s%s', b.pubname, ner_retriever.name_of(new),
            (SELECT ' (' || string_agg(quote_ident(a.attname), ', ') || ')' FROM unnest(r.prattrs::smallint[]) AS n (number)
             JOIN pg_attribute AS a ON a.attrelid = old AND a.attnum = n.number),
            ' WHERE (' || pg_get_expr(r.prqual, r.prrelid) || ')') AS statement
        FROM pg_publication_rel AS r JOIN pg_publication AS b ON b.oid = r.prpubid WHERE r.prrelid = old
    LOOP
        EXECUTE p.statement;
    END LOOP;
END
$$;
COMMENT ON FUNCTION ner_retriever.take_publications(regclass, regclass) IS
'Publishes a table as another one is';
